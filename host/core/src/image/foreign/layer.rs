//! The layer that embedding adds to a container image, and takes away again.

use super::edited::Edited;
use super::oci::{Descriptor, Index, MAX_DOCUMENT, OciError, choose, choose_docker, document};
use super::packing::Packed;
use super::read::{TarKind, tar};
use super::tree::{Bounds, FileTree, FileTreeError, Node, What};
use super::write;
use crate::digest::Digest;
use crate::image::embed::RECORD;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// A layer with little in it.
const BOUNDS: Bounds =
    Bounds { bytes: 1 << 30, why: "which no layer of ours has", members: 10_000 };

/// What the media type of an unpacked layer is (OCI image-spec, `media-types.md`).
const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// What was changed in a root, as a layer.
pub(super) fn layer(edited: &Edited, scratch: &Path) -> io::Result<Vec<u8>> {
    let mut tree = FileTree::new(scratch, BOUNDS).map_err(io::Error::other)?;
    for name in &edited.touched {
        let (name, node) = match edited.tree.node(name) {
            Some(Node { what: What::File(content), mode, uid, gid, .. }) => {
                let content = tree.keep(&mut edited.tree.open(content)?);
                let content = content.map_err(io::Error::other)?;
                let mut node = Node::of(What::File(content), *mode);
                (node.uid, node.gid) = (*uid, *gid);
                (name.clone(), node)
            }
            Some(node) => (name.clone(), node.clone()),
            None => {
                let at = name.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
                let (folder, last) = name.split_at(at);
                let content = tree.keep(&mut io::empty()).map_err(io::Error::other)?;
                ([folder, b".wh.", last].concat(), Node::of(What::File(content), 0o644))
            }
        };
        tree.add(&name, node).map_err(io::Error::other)?;
    }
    let mut bytes = Vec::new();
    write::tar(&tree, &mut bytes)?;
    Ok(bytes)
}

/// Whether a layer is one of ours.
fn is_ours(layer: std::fs::File, scratch: &Path, cancel: &CancellationToken) -> bool {
    let read = || -> Result<bool, FileTreeError> {
        let mut tree = FileTree::new(scratch, BOUNDS)?;
        tar(Packed::open(layer).map_err(FileTreeError::Read)?, TarKind::Root, &mut tree, cancel)?;
        Ok(tree.node(RECORD.trim_start_matches('/').as_bytes()).is_some())
    };
    read().unwrap_or(false)
}

fn wrong(name: &str, why: impl Into<String>) -> OciError {
    OciError::Document { name: crate::text::one_line(name, 100), why: why.into() }
}

/// Adds a file to the image's, or replaces it.
fn put(files: &mut FileTree, name: &str, mut content: &[u8]) -> Result<(), OciError> {
    let kept = files.keep(&mut content);
    let node = |content| Node::of(What::File(content), 0o644);
    let added = kept.and_then(|content| files.add(name.as_bytes(), node(content)));
    added.map_err(|source| OciError::Layer { digest: name.to_owned(), source })
}

fn put_blob(files: &mut FileTree, content: &[u8]) -> Result<String, OciError> {
    let digest = Digest::of(content);
    put(files, &format!("blobs/sha256/{}", digest.as_str()), content)?;
    Ok(format!("sha256:{}", digest.as_str()))
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// The configuration of the image with the digest of a layer more, or with the last one less.
fn change_config(config: &mut Value, layer: Option<&[u8]>) {
    let entry = || json!({ "created_by": "guestline image embed" });
    let ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    if let Some(ids) = ids {
        match layer {
            Some(layer) => ids.push(json!(format!("sha256:{}", Digest::of(layer).as_str()))),
            None => drop(ids.pop()),
        }
    }
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
        match layer {
            Some(_) => history.push(entry()),
            None if history.last() == Some(&entry()) => drop(history.pop()),
            None => {}
        }
    }
}

/// Adds the layer to an OCI image, or takes the last one away where that is ours.
pub(super) fn change_oci(
    files: &mut FileTree,
    pick: Option<&str>,
    layer: &[u8],
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<(), OciError> {
    const INDEX: &str = "index.json";
    let index: Index = document(files, INDEX)?;
    let old = choose(files, index, pick, 0)?;
    let mut manifest: Value = document(files, &blob_name(&old.digest))?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let config_name = text(manifest.pointer("/config/digest"));
    let mut config: Value = document(files, &blob_name(&config_name))?;
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
    let layers = layers.ok_or_else(|| wrong(&old.digest, "names no layers"))?;
    let last = layers.last().map(|last| text(last.get("digest"))).unwrap_or_default();
    match last_is_ours(files, &blob_name(&last), scratch, cancel) {
        true => {
            layers.pop();
            files.remove(blob_name(&last).as_bytes()).ok();
            change_config(&mut config, None);
        }
        false => {
            let digest = put_blob(files, layer)?;
            let size = layer.len();
            layers.push(json!({ "mediaType": MEDIA_TYPE, "digest": digest, "size": size }));
            change_config(&mut config, Some(layer));
        }
    }
    let bytes = config.to_string().into_bytes();
    let digest = put_blob(files, &bytes)?;
    if let Some(descriptor) = manifest.get_mut("config").and_then(Value::as_object_mut) {
        descriptor.insert("digest".to_owned(), json!(digest));
        descriptor.insert("size".to_owned(), json!(bytes.len()));
    }
    let bytes = manifest.to_string().into_bytes();
    let new = (put_blob(files, &bytes)?, bytes.len());
    for gone in [&old.digest, &config_name] {
        files.remove(blob_name(gone).as_bytes()).ok();
    }
    let index: Value = document(files, INDEX)?;
    let index = exchanged(files, index, &old, &new)?;
    put(files, INDEX, index.to_string().as_bytes())
}

/// An index in which one manifest is another now, also in an index that it leads to.
fn exchanged(
    files: &mut FileTree,
    mut index: Value,
    old: &Descriptor,
    new: &(String, usize),
) -> Result<Value, OciError> {
    let all = index.get_mut("manifests").and_then(Value::as_array_mut);
    for descriptor in all.into_iter().flatten().filter_map(Value::as_object_mut) {
        let digest =
            descriptor.get("digest").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = descriptor.get("mediaType").and_then(Value::as_str).unwrap_or_default();
        let (digest, size) = match () {
            () if digest == old.digest => new.clone(),
            () if kind.contains("index") || kind.contains("manifest.list") => {
                let inner: Value = document(files, &blob_name(&digest))?;
                let changed = exchanged(files, inner.clone(), old, new)?;
                if changed == inner {
                    continue;
                }
                let bytes = changed.to_string().into_bytes();
                files.remove(blob_name(&digest).as_bytes()).ok();
                (put_blob(files, &bytes)?, bytes.len())
            }
            () => continue,
        };
        descriptor.insert("digest".to_owned(), json!(digest));
        descriptor.insert("size".to_owned(), json!(size));
    }
    Ok(index)
}

fn last_is_ours(files: &FileTree, name: &str, scratch: &Path, cancel: &CancellationToken) -> bool {
    let Some((_, node)) = files.find(name.as_bytes()) else { return false };
    let What::File(content) = &node.what else { return false };
    // What we add is small; no other layer is unpacked for nothing.
    content.len() < MAX_DOCUMENT
        && files.file(content).is_ok_and(|file| is_ours(file, scratch, cancel))
}

/// The same of what `docker save` writes.
pub(super) fn change_docker(
    files: &mut FileTree,
    pick: Option<&str>,
    layer: &[u8],
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<(), OciError> {
    const MANIFEST: &str = "manifest.json";
    let chosen = choose_docker(files, pick)?;
    let mut config: Value = document(files, &chosen.config)?;
    let mut layers = chosen.layers.clone();
    let last = layers.last().cloned().unwrap_or_default();
    match last_is_ours(files, &last, scratch, cancel) {
        true => {
            layers.pop();
            files.remove(last.as_bytes()).ok();
            change_config(&mut config, None);
        }
        false => {
            let name = format!("{}/layer.tar", Digest::of(layer).as_str());
            put(files, &name, layer)?;
            layers.push(name);
            change_config(&mut config, Some(layer));
        }
    }
    let bytes = config.to_string().into_bytes();
    let name = format!("{}.json", Digest::of(&bytes).as_str());
    files.remove(chosen.config.as_bytes()).ok();
    put(files, &name, &bytes)?;
    let mut all: Value = document(files, MANIFEST)?;
    for image in all.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if image.get("Config").and_then(Value::as_str) == Some(&chosen.config) {
            image.insert("Config".to_owned(), json!(name));
            image.insert("Layers".to_owned(), json!(layers));
        }
    }
    put(files, MANIFEST, all.to_string().as_bytes())
}
