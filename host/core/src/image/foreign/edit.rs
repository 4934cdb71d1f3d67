//! Archives that the agent is put into, or taken out of: read, changed in memory, written anew beside their place.
//!
//! ```text
//! tar, initramfs      the whole tree again, packed as it was; what stands before a packed initramfs stays as it is
//! OCI, docker save    a layer more with what was added; the layer is left out again
//! ```

use super::edited::Edited;
use super::kind::Kind;
use super::layer::{LayerChange, change_docker, change_oci, docker_has_ours, layer, oci_has_ours};
use super::oci::OciError;
use super::packing::Packing;
use super::rootfs::{Rootfs, RootfsError};
use super::tree::{FileTree, What};
use super::{read, write};
use crate::dirs::folder_of;
use crate::host::hint_of_io;
use crate::image::embed::{Beside, CopyError, EmbedError, Output, Root, Work, Worked, copy_folder};
use crate::sparse;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

/// An archive could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveEditError {
    /// It cannot be read.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A container image.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The work.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// A copy of a folder.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// What would be overwritten.
    #[error("`{path}` is there already", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl ArchiveEditError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Rootfs(error) => return error.hint(),
            Self::Oci(error) => error.hint(),
            Self::Embed(error) => error.hint(),
            Self::Copy(error) => error.hint(),
            Self::Exists { .. } => Some("name a place where nothing is"),
            Self::Write { source, .. } => hint_of_io(source),
            Self::Cancelled => None,
        };
        hint.map(str::to_owned)
    }
}

/// What is worked on, and in which folder contents are kept meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveInput<'a> {
    /// The file or folder.
    pub path: &'a Path,
    /// What it is.
    pub kind: Kind,
    /// Which image, where it holds several.
    pub pick: Option<&'a str>,
    /// A folder with room.
    pub scratch: &'a Path,
}

/// Looks at the root that an archive holds.
///
/// # Errors
/// [`RootfsError`], and what `look` gives.
pub fn look_into_archive<T, E: From<RootfsError>>(
    input: ArchiveInput<'_>,
    cancel: &CancellationToken,
    look: impl FnOnce(&mut dyn Root) -> Result<T, E>,
) -> Result<T, E> {
    let ArchiveInput { path, kind, pick, scratch } = input;
    let rootfs = Rootfs::read(path, kind, pick, scratch, cancel)?;
    look(&mut Edited::new(rootfs.tree))
}

/// Works on an archive, and writes what comes of it.
///
/// # Errors
/// [`ArchiveEditError`]; nothing is written then.
pub fn edit_archive(
    input: ArchiveInput<'_>,
    output: &Output,
    work: &Work,
    cancel: &CancellationToken,
) -> Result<Worked, ArchiveEditError> {
    let ArchiveInput { path, kind, pick, scratch } = input;
    if let Output::New(to) = output
        && to.symlink_metadata().is_ok()
    {
        return Err(ArchiveEditError::Exists { path: to.clone() });
    }
    let (tree, files) = match kind {
        Kind::Cpio => (Rootfs::read_last(path, scratch, cancel)?, None),
        Kind::OciLayout | Kind::OciArchive | Kind::DockerArchive => {
            let files = Rootfs::read_files(path, kind, scratch, cancel)?;
            (Rootfs::of_files(&files, path, kind, pick, scratch, cancel)?.tree, Some(files))
        }
        _ => (Rootfs::read(path, kind, pick, scratch, cancel)?.tree, None),
    };
    let mut edited = Edited::new(tree);
    let worked = work.run(&mut edited, true)?;
    if cancel.is_cancelled() {
        return Err(ArchiveEditError::Cancelled);
    }
    // What a link leads to is meant, and not the link.
    let itself = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (to, in_place) = match output {
        Output::Nowhere => return Ok(worked),
        Output::InPlace if worked.is_done => return Ok(worked),
        Output::InPlace => (itself.as_path(), true),
        Output::New(to) => (to.as_path(), false),
    };
    let wrong = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ArchiveEditError::Exists { path: to.to_owned() },
        _ => ArchiveEditError::Write { path: to.to_owned(), source },
    };
    if worked.is_done {
        match path.is_dir() {
            true => {
                let beside = Beside::new(to).map_err(wrong)?;
                copy_folder(path, &beside.copy(), cancel)?;
                beside.publish(to).map_err(wrong)?;
            }
            false => drop(sparse::copy(path, to, cancel).map_err(wrong)?),
        }
        return Ok(worked);
    }
    let files = files.map(|files| container(input, files, &edited, work, cancel)).transpose()?;
    if let (Kind::OciLayout, Some(files)) = (kind, &files) {
        layout(files, to, in_place).map_err(wrong)?;
        return Ok(worked);
    }
    let draft = Draft::new(path, to).map_err(wrong)?;
    let written = match kind {
        Kind::Cpio => initramfs(path, &edited.tree, draft.file()),
        _ => {
            let tree = files.as_ref().unwrap_or(&edited.tree);
            packing_at(path, 0)
                .and_then(|packing| packing.write(draft.file(), |to| write::tar(tree, to)))
        }
    };
    written.map_err(wrong)?;
    if cancel.is_cancelled() {
        return Err(ArchiveEditError::Cancelled);
    }
    draft.publish(to, in_place).map_err(wrong)?;
    Ok(worked)
}

/// A file on its way to its place, with the mode of what it comes from.
struct Draft(NamedTempFile);

impl Draft {
    fn new(from: &Path, to: &Path) -> io::Result<Self> {
        let mut file = tempfile::Builder::new();
        let file = file.prefix(".guestline-").tempfile_in(folder_of(to))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        Ok(Self(file))
    }

    fn file(&self) -> &File {
        self.0.as_file()
    }

    fn publish(self, to: &Path, in_place: bool) -> io::Result<()> {
        self.0.as_file().sync_all()?;
        let put = if in_place { self.0.persist(to) } else { self.0.persist_noclobber(to) };
        put.map(drop).map_err(|error| error.error)
    }
}

fn packing_at(path: &Path, at: u64) -> io::Result<Packing> {
    let mut start = [0; 8];
    let count = std::os::unix::fs::FileExt::read_at(&File::open(path)?, &mut start, at)?;
    Ok(Packing::of(start.get(..count).unwrap_or_default()))
}

/// What stands before a packed archive is for the kernel's first moments, and stays as it is.
fn initramfs(path: &Path, tree: &FileTree, to: &File) -> io::Result<()> {
    let head = read::packed_from(path)?;
    io::copy(&mut File::open(path)?.take(head), &mut &*to)?;
    packing_at(path, head)?.write(to, |to| write::cpio(tree, to).map(drop))
}

/// The files of a container image with a layer more, or without the one that was added.
fn container(
    input: ArchiveInput<'_>,
    files: FileTree,
    edited: &Edited,
    work: &Work,
    cancel: &CancellationToken,
) -> Result<FileTree, ArchiveEditError> {
    let ArchiveInput { path, kind, pick, scratch } = input;
    let is_docker = kind == Kind::DockerArchive;
    let wrong = |source| ArchiveEditError::Write { path: scratch.to_owned(), source };
    let has_ours = match is_docker {
        true => docker_has_ours(&files, pick, scratch, cancel)?,
        false => oci_has_ours(&files, pick, scratch, cancel)?,
    };
    if !has_ours {
        let layer = layer(edited, scratch).map_err(wrong)?;
        return change(files, is_docker, pick, LayerChange::Push(&layer)).map(|(files, _)| files);
    }
    let (files, digest) = change(files, is_docker, pick, LayerChange::Pop)?;
    if matches!(work, Work::Unembed) {
        return Ok(files);
    }
    // Another agent takes the place of ours: its layer goes upon what was there before.
    let pick = pick.map(|pick| if pick.starts_with("sha256:") { &digest } else { pick });
    let below = Rootfs::of_files(&files, path, kind, pick, scratch, cancel)?;
    let mut again = Edited::new(below.tree);
    work.run(&mut again, true)?;
    let layer = layer(&again, scratch).map_err(wrong)?;
    change(files, is_docker, pick, LayerChange::Push(&layer)).map(|(files, _)| files)
}

fn change(
    mut files: FileTree,
    is_docker: bool,
    pick: Option<&str>,
    change: LayerChange<'_>,
) -> Result<(FileTree, String), ArchiveEditError> {
    let digest = match is_docker {
        true => change_docker(&mut files, pick, change).map(|()| String::new())?,
        false => change_oci(&mut files, pick, change)?,
    };
    Ok((files, digest))
}

/// A layout: blobs that are not there, and then the index.
fn layout(files: &FileTree, to: &Path, in_place: bool) -> io::Result<()> {
    if in_place {
        return write_layout(files, to);
    }
    let beside = Beside::new(to)?;
    fs::create_dir(beside.copy())?;
    write_layout(files, &beside.copy())?;
    beside.publish(to)
}

fn write_layout(files: &FileTree, to: &Path) -> io::Result<()> {
    const INDEX: &[u8] = b"index.json";
    let write = |name: &[u8], what: &What| {
        let path = to.join(std::ffi::OsStr::from_bytes(name));
        match what {
            What::Folder => fs::create_dir_all(&path),
            What::File(content) => {
                if name != INDEX && fs::metadata(&path).is_ok_and(|it| it.len() == content.len()) {
                    return Ok(());
                }
                let mut file = NamedTempFile::new_in(path.parent().unwrap_or(to))?;
                io::copy(&mut files.open(content)?, &mut file)?;
                file.as_file().set_permissions(Permissions::from_mode(0o644))?;
                file.flush()?;
                file.persist(&path).map(drop).map_err(|error| error.error)
            }
            _ => Ok(()),
        }
    };
    for (name, node) in files.iter().filter(|(name, _)| *name != INDEX) {
        write(name, &node.what)?;
    }
    match files.find(INDEX) {
        Some((_, node)) => write(INDEX, &node.what),
        None => Ok(()),
    }
}
