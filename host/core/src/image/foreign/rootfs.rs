//! Anything that holds a root file system, as a tree.

use super::kind::Kind;
use super::oci::{self, ContainerConfig, OciError};
use super::packing::Packed;
use super::read::{self, TarKind};
use super::tree::{Bounds, FileTree, FileTreeError, Node, What, Why};
use super::write;
use crate::host::{free_mib, hint_of_io};
use crate::image::build::BuildError;
use crate::image::squashfs::{Compression, pack};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// What is packed may unpack to so many times its size, and to this in any case.
const RATIO: u64 = 100;
const ALWAYS: u64 = 1 << 30;

/// So much of the disk stays free, MiB.
const KEEP_FREE_MIB: u64 = 512;

/// A root has fewer names.
const MAX_MEMBERS: usize = 4_000_000;

/// A root file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// What it holds.
    #[error("cannot take {kind} `{path}`", path = path.display())]
    Tree {
        /// What it is.
        kind: Kind,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FileTreeError,
    },
    /// A container image.
    #[error("cannot take {kind} `{path}`", path = path.display())]
    Oci {
        /// What it is.
        kind: Kind,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OciError,
    },
    /// What is put into it.
    #[error("cannot put `{name}` into it")]
    Change {
        /// What.
        name: String,
        /// Why.
        #[source]
        source: FileTreeError,
    },
    /// It cannot be opened.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A root file system, and how it was to be run.
#[derive(Debug)]
pub(crate) struct Rootfs {
    pub(crate) tree: FileTree,
    pub(crate) config: ContainerConfig,
}

impl RootfsError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Oci { source, .. } => source.hint(),
            Self::Tree { source, .. } | Self::Change { source, .. } => source.hint(),
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("are gzip, bzip2, xz and zstd there? apt-get install bzip2 xz-utils zstd")
            }
            Self::Read { source, .. } => hint_of_io(source),
        };
        hint.map(str::to_owned)
    }
}

impl Rootfs {
    /// Reads one; contents are kept in a file without a name in `scratch`. `name` chooses an image where there are several.
    ///
    /// # Errors
    /// [`RootfsError`]; a disk is none.
    pub(crate) fn read(
        path: &Path,
        kind: Kind,
        name: Option<&str>,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self, RootfsError> {
        let unreadable = |source| RootfsError::Read { path: path.to_owned(), source };
        let failed = |source| RootfsError::Tree { kind, path: path.to_owned(), source };
        let bounds = bounds(path, kind, scratch).map_err(unreadable)?;
        let mut tree = FileTree::new(scratch, bounds).map_err(failed)?;
        let open = || File::open(path).map_err(unreadable);
        let packed = || Packed::open(open()?).map(BufReader::new).map_err(unreadable);
        match kind {
            Kind::Folder => read::folder(path, &mut tree, cancel).map_err(failed)?,
            Kind::Tar => read::tar(packed()?, TarKind::Root, &mut tree, cancel).map_err(failed)?,
            Kind::Cpio => read::initramfs(open()?, &mut tree, cancel).map_err(failed)?,
            Kind::OciLayout | Kind::OciArchive | Kind::DockerArchive => {
                let files = Self::read_files(path, kind, scratch, cancel)?;
                return Self::of_files(&files, path, kind, name, scratch, cancel);
            }
            Kind::Squashfs | Kind::Qcow2 | Kind::RawDisk | Kind::Iso | Kind::Guestline => {
                return Err(unreadable(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("a {kind} is no archive of a root file system"),
                )));
            }
        }
        Ok(Self { tree, config: ContainerConfig::default() })
    }

    /// The files of a container image, as they are in its archive or folder.
    ///
    /// # Errors
    /// [`RootfsError`].
    pub(super) fn read_files(
        path: &Path,
        kind: Kind,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<FileTree, RootfsError> {
        let unreadable = |source| RootfsError::Read { path: path.to_owned(), source };
        let failed = |source| RootfsError::Tree { kind, path: path.to_owned(), source };
        let bounds = bounds(path, kind, scratch).map_err(unreadable)?;
        let mut files = FileTree::new(scratch, bounds).map_err(failed)?;
        let read = match kind {
            Kind::OciLayout => read::folder(path, &mut files, cancel),
            _ => {
                let packed = File::open(path).and_then(Packed::open).map_err(unreadable)?;
                read::tar(BufReader::new(packed), TarKind::Root, &mut files, cancel)
            }
        };
        read.map_err(failed)?;
        Ok(files)
    }

    /// The root that the files of a container image hold, and how it is to be run.
    ///
    /// # Errors
    /// [`RootfsError`].
    pub(super) fn of_files(
        files: &FileTree,
        path: &Path,
        kind: Kind,
        name: Option<&str>,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self, RootfsError> {
        let unreadable = |source| RootfsError::Read { path: path.to_owned(), source };
        let failed = |source| RootfsError::Tree { kind, path: path.to_owned(), source };
        let bounds = bounds(path, kind, scratch).map_err(unreadable)?;
        let mut tree = FileTree::new(scratch, bounds).map_err(failed)?;
        let config = match kind {
            Kind::DockerArchive => oci::docker(files, name, &mut tree, cancel),
            _ => oci::oci(files, name, &mut tree, cancel),
        };
        let failed = |source| RootfsError::Oci { kind, path: path.to_owned(), source };
        Ok(Self { tree, config: config.map_err(failed)? })
    }

    /// The last archive of an initial RAM file system, where that is packed; else all of them.
    ///
    /// # Errors
    /// [`RootfsError`].
    pub(super) fn read_last(
        path: &Path,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<FileTree, RootfsError> {
        let kind = Kind::Cpio;
        let unreadable = |source| RootfsError::Read { path: path.to_owned(), source };
        let failed = |source| RootfsError::Tree { kind, path: path.to_owned(), source };
        let bounds = bounds(path, kind, scratch).map_err(unreadable)?;
        let mut tree = FileTree::new(scratch, bounds).map_err(failed)?;
        let from = read::packed_from(path).map_err(unreadable)?;
        let mut file = File::open(path).map_err(unreadable)?;
        file.seek(SeekFrom::Start(from)).map_err(unreadable)?;
        read::initramfs(file, &mut tree, cancel).map_err(failed)?;
        Ok(tree)
    }

    /// Adds a file of root's.
    ///
    /// # Errors
    /// [`RootfsError::Change`].
    pub(crate) fn add_file(
        &mut self,
        name: &str,
        mode: u32,
        mut content: &[u8],
    ) -> Result<(), RootfsError> {
        let kept = self.tree.keep(&mut content);
        let node = |content| Node::of(What::File(content), mode);
        let added = kept.and_then(|content| self.tree.add(name.as_bytes(), node(content)));
        added.map_err(|source| RootfsError::Change { name: name.to_owned(), source })
    }

    /// Adds busybox, and links for those of its commands that are not there.
    ///
    /// # Errors
    /// [`RootfsError::Change`].
    pub(crate) fn add_busybox(
        &mut self,
        program: &[u8],
        applets: &[String],
    ) -> Result<(), RootfsError> {
        const PLACE: &str = "bin/busybox";
        self.add_file(PLACE, 0o755, program)?;
        for applet in applets {
            if self.tree.find(applet.as_bytes()).is_some() {
                continue;
            }
            let link = Node::of(What::Link(format!("/{PLACE}").into()), 0o777);
            let added = self.tree.add(applet.as_bytes(), link);
            added.map_err(|source| RootfsError::Change { name: applet.clone(), source })?;
        }
        Ok(())
    }

    /// Packs it as squashfs.
    ///
    /// # Errors
    /// [`BuildError`].
    pub(crate) fn pack(&self, to: &Path, cancel: &CancellationToken) -> Result<(), BuildError> {
        let failed = |source| BuildError::Write { path: to.to_owned(), source };
        let (reader, writer) = io::pipe().map_err(failed)?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || write::tar(&self.tree, BufWriter::new(writer)));
            let packed = pack(File::from(OwnedFd::from(reader)), to, Compression::ZstdSoon, cancel);
            let written = writing.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            match written {
                // Who reads has gone, and says why.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
                _ => packed,
            }
        })
    }
}

/// What a tree may take: of the disk what can be spared, and of something packed no more than what people pack.
fn bounds(path: &Path, kind: Kind, scratch: &Path) -> io::Result<Bounds> {
    let members = MAX_MEMBERS;
    let free_mib = free_mib(scratch)?;
    let (most, keep_mib) = match kind {
        // Nothing in it is packed, and but for what is added to it, nothing is kept.
        Kind::Folder => (u64::MAX, 0),
        Kind::OciLayout => (most_unpacked(blobs_len(path)?), KEEP_FREE_MIB),
        _ => (most_unpacked(fs::metadata(path)?.len()), KEEP_FREE_MIB),
    };
    let room = free_mib.saturating_sub(keep_mib) << 20;
    let (bytes, why) = match most < room {
        true => (most, Why::Rule("a hundred times its size: that is no root file system")),
        false => (room, Why::Room { free_mib, keep_mib }),
    };
    Ok(Bounds { bytes, why, members })
}

/// What so many bytes may unpack to, in bytes.
pub(super) fn most_unpacked(len: u64) -> u64 {
    len.saturating_mul(RATIO).max(ALWAYS)
}

/// The bytes of all blobs of an OCI layout (OCI image-spec, `image-layout.md`, "Blobs").
fn blobs_len(layout: &Path) -> io::Result<u64> {
    let mut len = 0_u64;
    let algorithms = match fs::read_dir(layout.join("blobs")) {
        // What is missing is told when it is looked for.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        algorithms => algorithms?,
    };
    for algorithm in algorithms {
        let folder = algorithm?.path();
        if folder.is_dir() {
            for blob in fs::read_dir(folder)? {
                len = len.saturating_add(blob?.metadata()?.len());
            }
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests;
