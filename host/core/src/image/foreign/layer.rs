//! The layer that embedding adds to a container image, and takes away again.

use super::edited::Edited;
use super::oci::{Descriptor, MAX_DOCUMENT, OciError, choose, choose_docker, document};
use super::packing::Packed;
use super::read::{TarKind, tar};
use super::tree::{Bounds, FileTree, FileTreeError, Node, What, Why};
use super::write;
use crate::digest::Digest;
use crate::image::embed::RECORD;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// A layer with little in it.
const BOUNDS: Bounds =
    Bounds { bytes: 1 << 30, why: Why::Rule("which no layer of ours has"), members: 10_000 };

/// What the media type of an unpacked layer is (OCI image-spec, `media-types.md`).
const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// What was changed in a root, as a layer.
pub(super) fn layer(edited: &Edited, scratch: &Path) -> io::Result<Vec<u8>> {
    let mut tree = FileTree::new(scratch, BOUNDS).map_err(io::Error::other)?;
    for name in &edited.touched {
        // What is above it stays as it is.
        for (at, _) in name.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = name.get(..at).unwrap_or_default();
            if let Some(node) = edited.tree.node(above) {
                tree.add(above, node.clone()).map_err(io::Error::other)?;
            }
        }
        let (name, node) = match edited.tree.node(name) {
            Some(node @ Node { what: What::File(content), .. }) => {
                let content = tree.keep(&mut edited.tree.open(content)?);
                let content = content.map_err(io::Error::other)?;
                (name.clone(), Node { what: What::File(content), ..node.clone() })
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

/// Whether a layer is one of ours: nothing is in it but what its record names, and what that lies in.
fn is_ours(layer: std::fs::File, scratch: &Path, cancel: &CancellationToken) -> bool {
    let read = || -> Result<FileTree, FileTreeError> {
        let mut tree = FileTree::new(scratch, BOUNDS)?;
        tar(Packed::open(layer).map_err(FileTreeError::Read)?, TarKind::Root, &mut tree, cancel)?;
        Ok(tree)
    };
    let Ok(tree) = read() else { return false };
    let record = tree.read(relative(RECORD), MAX_DOCUMENT);
    let Some(record) = record.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) else {
        return false;
    };
    let keys =
        ["files", "links", "lines"].into_iter().filter_map(|key| record.get(key)?.as_object());
    let folders = record.get("folders").and_then(Value::as_array).into_iter().flatten();
    let mut known: Vec<&str> = keys.flat_map(|table| table.keys().map(String::as_str)).collect();
    known.extend(folders.filter_map(Value::as_str));
    known.push(RECORD);
    let is_known = |name: &[u8]| {
        let below = [name, b"/"].concat();
        known.iter().any(|path| relative(path) == name || relative(path).starts_with(&below))
    };
    tree.iter().all(|(name, _)| is_known(name) || is_merged(name, &known))
}

/// Below a link of a merged /usr what was added has another name than the record says.
fn is_merged(name: &[u8], known: &[&str]) -> bool {
    let Some(name) = name.strip_prefix(b"usr/") else { return name == b"usr" };
    known
        .iter()
        .any(|path| relative(path) == name || relative(path).starts_with(&[name, b"/"].concat()))
}

fn relative(path: &str) -> &[u8] {
    path.trim_start_matches('/').as_bytes()
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

/// What becomes of an image's layers.
#[derive(Debug, Clone, Copy)]
pub(super) enum LayerChange<'a> {
    /// One comes upon them.
    Push(&'a [u8]),
    /// The last one goes.
    Pop,
}

/// Whether the last layer of an OCI image is one of ours.
pub(super) fn oci_has_ours(
    files: &FileTree,
    pick: Option<&str>,
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<bool, OciError> {
    let manifest = choose(files, document(files, INDEX)?, pick, 0)?;
    let manifest: Value = document(files, &blob_name(&manifest.digest))?;
    let last = manifest.get("layers").and_then(Value::as_array).and_then(|layers| layers.last());
    let last = last.and_then(|last| last.get("digest")).and_then(Value::as_str);
    Ok(last.is_some_and(|last| last_is_ours(files, &blob_name(last), scratch, cancel)))
}

/// The same of what `docker save` writes.
pub(super) fn docker_has_ours(
    files: &FileTree,
    pick: Option<&str>,
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<bool, OciError> {
    let chosen = choose_docker(files, pick)?;
    Ok(chosen.layers.last().is_some_and(|last| last_is_ours(files, last, scratch, cancel)))
}

/// The index of an OCI image, and what `docker save` has in its place or beside it.
const INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";

/// Changes the layers of an OCI image. Tells the new manifest's digest.
pub(super) fn change_oci(
    files: &mut FileTree,
    pick: Option<&str>,
    change: LayerChange<'_>,
) -> Result<String, OciError> {
    let old = choose(files, document(files, INDEX)?, pick, 0)?;
    let mut manifest: Value = document(files, &blob_name(&old.digest))?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let old_config = text(manifest.pointer("/config/digest"));
    let mut config: Value = document(files, &blob_name(&old_config))?;
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
    let layers = layers.ok_or_else(|| wrong(&old.digest, "names no layers"))?;
    let mut gone = vec![blob_name(&old.digest), blob_name(&old_config)];
    match change {
        LayerChange::Pop => {
            let last = layers.pop();
            gone.extend(last.map(|last| blob_name(&text(last.get("digest")))));
            change_config(&mut config, None);
        }
        LayerChange::Push(layer) => {
            let digest = put_blob(files, layer)?;
            let size = layer.len();
            layers.push(json!({ "mediaType": MEDIA_TYPE, "digest": digest, "size": size }));
            change_config(&mut config, Some(layer));
        }
    }
    let layers: Vec<Value> =
        layers.iter().map(|layer| json!(blob_name(&text(layer.get("digest"))))).collect();
    let bytes = config.to_string().into_bytes();
    let config_digest = put_blob(files, &bytes)?;
    if let Some(descriptor) = manifest.get_mut("config").and_then(Value::as_object_mut) {
        descriptor.insert("digest".to_owned(), json!(config_digest));
        descriptor.insert("size".to_owned(), json!(bytes.len()));
    }
    let bytes = manifest.to_string().into_bytes();
    let new = (put_blob(files, &bytes)?, bytes.len());
    let index = exchanged(files, document(files, INDEX)?, &old, &new, &mut gone)?;
    put(files, INDEX, index.to_string().as_bytes())?;
    if files.find(DOCKER_MANIFEST.as_bytes()).is_some() {
        let config = blob_name(&config_digest);
        rewrite_docker(files, &blob_name(&old_config), &config, &layers)?;
    }
    remove_unused(files, gone)?;
    Ok(new.0)
}

/// Points an image of `manifest.json` to another configuration and other layers.
fn rewrite_docker(
    files: &mut FileTree,
    old_config: &str,
    config: &str,
    layers: &[Value],
) -> Result<(), OciError> {
    let mut all: Value = document(files, DOCKER_MANIFEST)?;
    for image in all.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if image.get("Config").and_then(Value::as_str) == Some(old_config) {
            image.insert("Config".to_owned(), json!(config));
            image.insert("Layers".to_owned(), json!(layers));
        }
    }
    put(files, DOCKER_MANIFEST, all.to_string().as_bytes())
}

/// Removes files that nothing names any more.
fn remove_unused(files: &mut FileTree, gone: Vec<String>) -> Result<(), OciError> {
    let mut used = BTreeSet::new();
    if files.find(INDEX.as_bytes()).is_some() {
        named_by(files, INDEX, &mut used);
    }
    if let Ok(all) = document::<Value>(files, DOCKER_MANIFEST) {
        for image in all.as_array().into_iter().flatten() {
            let layers = image.get("Layers").and_then(Value::as_array).into_iter().flatten();
            let names = layers.chain(image.get("Config")).filter_map(Value::as_str);
            used.extend(names.map(str::to_owned));
        }
    }
    for name in gone.iter().filter(|name| !used.contains(*name)) {
        let removed = files.remove(name.as_bytes());
        removed.map_err(|source| OciError::Layer { digest: name.clone(), source })?;
    }
    Ok(())
}

/// All that a document names, and what that names.
fn named_by(files: &FileTree, name: &str, used: &mut BTreeSet<String>) {
    let Ok(found) = document::<Value>(files, name) else { return };
    let lists = ["manifests", "layers"].into_iter().filter_map(|key| found.get(key)?.as_array());
    for descriptor in lists.flatten().chain(found.get("config")) {
        let Some(digest) = descriptor.get("digest").and_then(Value::as_str) else { continue };
        let is_document = descriptor
            .get("mediaType")
            .and_then(Value::as_str)
            .is_none_or(|kind| kind.contains("index") || kind.contains("manifest"));
        if used.insert(blob_name(digest)) && is_document {
            named_by(files, &blob_name(digest), used);
        }
    }
}

/// An index in which one manifest is another now, also in an index that it leads to.
fn exchanged(
    files: &mut FileTree,
    mut index: Value,
    old: &Descriptor,
    new: &(String, usize),
    gone: &mut Vec<String>,
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
                let changed = exchanged(files, inner.clone(), old, new, gone)?;
                if changed == inner {
                    continue;
                }
                let bytes = changed.to_string().into_bytes();
                gone.push(blob_name(&digest));
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
    change: LayerChange<'_>,
) -> Result<(), OciError> {
    let chosen = choose_docker(files, pick)?;
    let mut config: Value = document(files, &chosen.config)?;
    let (mut layers, mut gone) = (chosen.layers, vec![chosen.config.clone()]);
    match change {
        LayerChange::Pop => {
            gone.extend(layers.pop());
            change_config(&mut config, None);
        }
        LayerChange::Push(layer) => {
            let name = format!("{}/layer.tar", Digest::of(layer).as_str());
            put(files, &name, layer)?;
            layers.push(name);
            change_config(&mut config, Some(layer));
        }
    }
    let bytes = config.to_string().into_bytes();
    let name = format!("{}.json", Digest::of(&bytes).as_str());
    put(files, &name, &bytes)?;
    let layers: Vec<Value> = layers.into_iter().map(Value::from).collect();
    rewrite_docker(files, &chosen.config, &name, &layers)?;
    remove_unused(files, gone)
}
