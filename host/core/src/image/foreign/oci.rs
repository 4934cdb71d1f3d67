//! Container images: OCI layouts (OCI image-spec 1.1, `image-layout.md`) and what `docker save` writes.
//!
//! ```text
//! index.json ─> (index of platforms) ─> manifest ─> configuration
//!                                           └─> layers, each a tar archive upon those before
//! ```

use super::packing::Packed;
use super::read::{TarKind, tar};
use super::tree::{FileTree, FileTreeError, What};
use crate::digest::{Digest, Hasher};
use crate::text;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use tokio_util::sync::CancellationToken;

/// What a machine of ours can run.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// No document is longer, in bytes.
pub(super) const MAX_DOCUMENT: u64 = 16 << 20;

/// An index may lead to an index, and not on for ever.
const MAX_INDEXES: u32 = 4;

/// A container image is not one that can be used.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A document that is missing or none.
    #[error("its `{name}` {why}")]
    Document {
        /// The document.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A blob that is another one.
    #[error("its blob `{digest}` is damaged: its content has another digest")]
    Digest {
        /// What it should be.
        digest: String,
    },
    /// For another machine.
    #[error("it is for {found}, and a machine of Guestline is {OS}/{ARCHITECTURE}")]
    Platform {
        /// What it is for.
        found: String,
    },
    /// Several images.
    #[error("it holds {} images: {}", names.len(), text::one_line(&names.join(", "), 1000))]
    Several {
        /// Their names.
        names: Vec<String>,
    },
    /// None is called so.
    #[error(
        "it holds no image `{}`; it has {}",
        text::one_line(name, 200),
        match names.is_empty() {
            true => "none with a name".to_owned(),
            false => text::one_line(&names.join(", "), 1000),
        }
    )]
    NoSuch {
        /// The name.
        name: String,
        /// Those that there are.
        names: Vec<String>,
    },
    /// Several are called so.
    #[error(
        "it holds {} images that `{}` could be: {}",
        names.len(),
        text::one_line(name, 200),
        text::one_line(&names.join(", "), 1000)
    )]
    Ambiguous {
        /// The name.
        name: String,
        /// What tells them apart.
        names: Vec<String>,
    },
    /// A layer.
    #[error("its layer `{digest}` cannot be taken")]
    Layer {
        /// Its digest or name.
        digest: String,
        /// Why.
        #[source]
        source: FileTreeError,
    },
}

impl OciError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Document { .. } => "save it once more: `docker save NAME -o FILE`",
            Self::Digest { .. } => "save or fetch it once more: some of it has changed on its way",
            Self::Platform { .. } => {
                "take that for x86-64: `docker pull --platform linux/amd64 NAME`"
            }
            Self::Several { .. } | Self::Ambiguous { .. } => "--pick NAME takes one of them",
            Self::NoSuch { names, .. } => match &names[..] {
                [] | [_] => "without --pick it is the one that is there",
                _ => "--pick takes one of those",
            },
            Self::Layer { source, .. } => return source.hint(),
        })
    }
}

/// How a container of the image is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ContainerConfig {
    /// NAME=VALUE.
    #[serde(rename = "Env", default)]
    pub(crate) env: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ImageConfig {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<ContainerConfig>,
    rootfs: Option<RootfsConfig>,
}

#[derive(Debug, Deserialize)]
struct RootfsConfig {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerManifest {
    pub(super) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

/// Puts the layers of an image, whose files `blobs` has, into `tree`. `name` chooses where there are several.
pub(super) fn oci(
    blobs: &FileTree,
    name: Option<&str>,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<ContainerConfig, OciError> {
    let index: Index = document(blobs, "index.json")?;
    let manifest = choose(blobs, index, name, 0)?;
    let manifest: ImageManifest = blob_document(blobs, &manifest.digest)?;
    let config: ImageConfig = blob_document(blobs, &manifest.config.digest)?;
    let config = usable(config)?;
    for layer in &manifest.layers {
        if !layer.media_type.contains("tar") {
            let why =
                format!("has media type `{}`, and a layer is a tar archive", layer.media_type);
            return Err(OciError::Document {
                name: layer.digest.clone(),
                why: text::one_line(&why, 200),
            });
        }
        let failed = |source| OciError::Layer { digest: layer.digest.clone(), source };
        let file = checked(blobs, &layer.digest)?;
        let packed = Packed::open(file).map_err(|error| failed(FileTreeError::Read(error)))?;
        tar(packed, TarKind::Layer, tree, cancel).map_err(failed)?;
    }
    Ok(config)
}

/// The same of what `docker save` writes (Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset").
pub(super) fn docker(
    files: &FileTree,
    name: Option<&str>,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<ContainerConfig, OciError> {
    let manifest = choose_docker(files, name)?;
    let config: ImageConfig = document(files, &manifest.config)?;
    let wanted = config.rootfs.as_ref().map(|rootfs| rootfs.diff_ids.clone()).unwrap_or_default();
    let config = usable(config)?;
    for (number, layer) in manifest.layers.iter().enumerate() {
        let failed = |source| OciError::Layer { digest: layer.clone(), source };
        let packed = spooled(files, layer).and_then(Packed::open);
        let packed = packed.map_err(|error| failed(FileTreeError::Read(error)))?;
        let mut hashing = Hashing { from: packed, hasher: Hasher::default() };
        tar(&mut hashing, TarKind::Layer, tree, cancel).map_err(failed)?;
        // It is the digest of what a layer unpacks to, so it is known when all has been read.
        let found = hashing.hasher.finish();
        if let Some(wanted) = wanted.get(number)
            && wanted.strip_prefix("sha256:") != Some(found.as_str())
        {
            return Err(OciError::Digest { digest: wanted.clone() });
        }
    }
    Ok(config)
}

/// Reads, and takes the digest of what it has read.
struct Hashing<R> {
    from: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.hasher.update(into.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The image that is wanted, of those that `docker save` wrote.
pub(super) fn choose_docker(
    files: &FileTree,
    name: Option<&str>,
) -> Result<DockerManifest, OciError> {
    let mut all: Vec<DockerManifest> = document(files, "manifest.json")?;
    let tags = |manifest: &DockerManifest| manifest.repo_tags.clone().unwrap_or_default();
    let names: Vec<String> = all.iter().flat_map(tags).collect();
    let at = match name {
        Some(name) => all.iter().position(|image| tags(image).iter().any(|tag| tag == name)),
        None => (all.len() == 1).then_some(0),
    };
    match at {
        Some(at) => Ok(all.swap_remove(at)),
        None => Err(unpicked(name, names)),
    }
}

/// None of the images is the one that is wanted, or it is not said which is.
fn unpicked(name: Option<&str>, names: Vec<String>) -> OciError {
    match name {
        Some(name) => OciError::NoSuch { name: name.to_owned(), names },
        None => OciError::Several { names },
    }
}

/// The manifest that is wanted, out of an index and those it leads to.
pub(super) fn choose(
    blobs: &FileTree,
    index: Index,
    name: Option<&str>,
    depth: u32,
) -> Result<Descriptor, OciError> {
    let is_ours = |descriptor: &&Descriptor| {
        let ours = |platform: &Platform| platform.os == OS && platform.architecture == ARCHITECTURE;
        descriptor.platform.as_ref().is_none_or(ours)
    };
    let ours: Vec<&Descriptor> = index.manifests.iter().filter(is_ours).collect();
    // An index that another one leads to has no names: the image was picked there.
    let name = name.filter(|_| depth == 0);
    let chosen = match (&ours[..], name) {
        ([], _) => {
            let platforms = index.manifests.iter().filter_map(|found| found.platform.as_ref());
            let found = platforms.map(|found| format!("{}/{}", found.os, found.architecture));
            return Err(match found.collect::<Vec<_>>() {
                none if none.is_empty() => OciError::Document {
                    name: "index.json".to_owned(),
                    why: "names no image".to_owned(),
                },
                found => OciError::Platform { found: found.join(", ") },
            });
        }
        (all, None) => match distinct(all)[..] {
            [one] => one,
            _ => return Err(unpicked(None, shown(&named(blobs, all, depth)))),
        },
        (all, Some(name)) => {
            let mut named = named(blobs, all, depth);
            let known = shown(&named);
            named.retain(|(_, names)| names.iter().any(|its| its == name));
            let found: Vec<&Descriptor> = named.iter().map(|(found, _)| *found).collect();
            match distinct(&found)[..] {
                [one] => one,
                [] => return Err(unpicked(Some(name), known)),
                _ => {
                    let names = shown(&named);
                    return Err(OciError::Ambiguous { name: name.to_owned(), names });
                }
            }
        }
    };
    if !chosen.is_index() {
        return Ok(chosen.clone());
    }
    if depth >= MAX_INDEXES {
        let why = "leads from one index to the next".to_owned();
        return Err(OciError::Document { name: "index.json".to_owned(), why });
    }
    choose(blobs, blob_document(blobs, &chosen.digest)?, name, depth + 1)
}

/// Those that are not the same image once more.
fn distinct<'a>(all: &[&'a Descriptor]) -> Vec<&'a Descriptor> {
    let mut seen = BTreeSet::new();
    all.iter().copied().filter(|found| seen.insert(&found.digest)).collect()
}

/// Images with all that they may be called, the name that people know first and the digest last.
fn named<'a>(
    blobs: &FileTree,
    all: &[&'a Descriptor],
    depth: u32,
) -> Vec<(&'a Descriptor, Vec<String>)> {
    /// The whole name, as containerd writes it and with it `docker save`.
    const FULL: &str = "io.containerd.image.name";
    /// Often no more than the tag (OCI image-spec, `annotations.md`).
    const REF: &str = "org.opencontainers.image.ref.name";
    // What `docker save` writes beside an index is for older readers, and has the names that people use.
    let tags: Vec<DockerManifest> = match blobs.find(b"manifest.json") {
        Some(_) => document(blobs, "manifest.json").unwrap_or_default(),
        None => Vec::new(),
    };
    let names = |found: &Descriptor| {
        let full = found.annotations.get(FULL).map(String::as_str);
        let short = full.map(|name| name.strip_prefix("docker.io/").unwrap_or(name));
        let short = short.map(|name| name.strip_prefix("library/").unwrap_or(name));
        let config = (!tags.is_empty()).then(|| config_of(blobs, found, depth)).flatten();
        let config = config.map(|digest| format!("blobs/{}", digest.replacen(':', "/", 1)));
        let tagged = tags.iter().filter(|image| config.as_ref() == Some(&image.config));
        let tagged = tagged.filter_map(|image| image.repo_tags.as_ref()).flatten();
        let mut names: Vec<String> = short.into_iter().map(str::to_owned).collect();
        names.extend(tagged.cloned());
        names.extend(full.map(str::to_owned));
        names.extend(found.annotations.get(REF).cloned());
        names.push(found.digest.clone());
        names
    };
    all.iter().map(|found| (*found, names(found))).collect()
}

/// A name for each that no other one has, where there is one that people know.
fn shown(named: &[(&Descriptor, Vec<String>)]) -> Vec<String> {
    let is_of_one = |name: &String, of: &Descriptor| {
        let mut others = named.iter().filter(|(found, _)| found.digest != of.digest);
        !others.any(|(_, names)| names.contains(name))
    };
    let name = |(found, names): &(&Descriptor, Vec<String>)| {
        let name = names.iter().find(|name| is_of_one(name, found));
        name.unwrap_or(&found.digest).clone()
    };
    named.iter().map(name).collect()
}

/// The digest of an image's configuration, where it can be read.
fn config_of(blobs: &FileTree, image: &Descriptor, depth: u32) -> Option<String> {
    let manifest = match image.is_index() {
        true if depth >= MAX_INDEXES => return None,
        true => choose(blobs, blob_document(blobs, &image.digest).ok()?, None, depth + 1).ok()?,
        false => image.clone(),
    };
    let manifest: ImageManifest = blob_document(blobs, &manifest.digest).ok()?;
    Some(manifest.config.digest)
}

impl Descriptor {
    /// Whether it leads to another index, and not to an image.
    fn is_index(&self) -> bool {
        self.media_type.contains("index") || self.media_type.contains("manifest.list")
    }
}

/// An image for this kind of machine.
fn usable(config: ImageConfig) -> Result<ContainerConfig, OciError> {
    let os = config.os.unwrap_or_else(|| OS.to_owned());
    let architecture = config.architecture.unwrap_or_else(|| ARCHITECTURE.to_owned());
    match os == OS && architecture == ARCHITECTURE {
        true => Ok(config.config.unwrap_or_default()),
        false => Err(OciError::Platform { found: format!("{os}/{architecture}") }),
    }
}

pub(super) fn document<T: for<'de> Deserialize<'de>>(
    files: &FileTree,
    name: &str,
) -> Result<T, OciError> {
    let wrong = |why: String| OciError::Document { name: text::one_line(name, 100), why };
    let bytes = files.read(name.as_bytes(), MAX_DOCUMENT);
    let bytes = bytes.ok_or_else(|| wrong("is missing".to_owned()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(format!("is wrong: {error}")))
}

pub(super) fn blob_document<T: for<'de> Deserialize<'de>>(
    blobs: &FileTree,
    digest: &str,
) -> Result<T, OciError> {
    let mut text = Vec::new();
    let wrong = |why: String| OciError::Document { name: text::one_line(digest, 100), why };
    let read = checked(blobs, digest)?.take(MAX_DOCUMENT).read_to_end(&mut text);
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    serde_json::from_slice(&text).map_err(|error| wrong(format!("is wrong: {error}")))
}

/// A blob, whose content is what its name says.
fn checked(blobs: &FileTree, digest: &str) -> Result<File, OciError> {
    let wrong = |why| OciError::Document { name: text::one_line(digest, 100), why };
    let wanted = digest.strip_prefix("sha256:").and_then(Digest::parse);
    let wanted = wanted.ok_or_else(|| wrong("is no SHA-256 digest".to_owned()))?;
    let read = spooled(blobs, &format!("blobs/sha256/{}", wanted.as_str())).and_then(|mut file| {
        let digest = Digest::of_reader(&mut file)?;
        file.rewind()?;
        Ok((digest, file))
    });
    match read {
        Ok((found, file)) if found == wanted => Ok(file),
        Ok(_) => Err(OciError::Digest { digest: digest.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(wrong("is missing".to_owned()))
        }
        Err(error) => Err(wrong(format!("cannot be read: {error}"))),
    }
}

/// A content as a file of its own, which a program can read.
fn spooled(files: &FileTree, name: &str) -> io::Result<File> {
    let node = files.find(name.as_bytes()).map(|(_, node)| &node.what);
    let Some(What::File(content)) = node else { return Err(io::ErrorKind::NotFound.into()) };
    files.file(content)
}

#[cfg(test)]
mod tests;
