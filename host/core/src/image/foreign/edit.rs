//! Archives that the agent is put into, or taken out of: read, changed in memory, written anew beside their place.
//!
//! ```text
//! tar, initramfs      the whole tree again, packed as it was; what stands before a packed initramfs stays as it is
//! OCI, docker save    a layer more with what was added; the layer is left out again
//! ```

use super::edited::Edited;
use super::kind::Kind;
use super::layer::{change_docker, change_oci, layer};
use super::oci::OciError;
use super::packing::Packing;
use super::rootfs::{Rootfs, RootfsError};
use super::tree::{FileTree, What};
use super::{read, write};
use crate::image::embed::{CopyError, EmbedError, Output, Root, Work, Worked, copy_folder};
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
    let tree = match kind {
        Kind::Cpio => Rootfs::read_last(path, scratch, cancel)?,
        _ => Rootfs::read(path, kind, pick, scratch, cancel)?.tree,
    };
    let mut edited = Edited::new(tree);
    let worked = work.run(&mut edited, true)?;
    if cancel.is_cancelled() {
        return Err(ArchiveEditError::Cancelled);
    }
    let (to, in_place) = match output {
        Output::Nowhere => return Ok(worked),
        Output::InPlace if worked.is_done => return Ok(worked),
        Output::InPlace => (path, true),
        Output::New(to) => (to.as_path(), false),
    };
    let wrong = |source| ArchiveEditError::Write { path: to.to_owned(), source };
    match kind {
        _ if worked.is_done && path.is_dir() => copy_folder(path, to, cancel)?,
        _ if worked.is_done => drop(sparse::copy(path, to, cancel).map_err(wrong)?),
        Kind::OciLayout => layout(input, &edited, to, in_place, cancel)?,
        _ => {
            let draft = Draft::new(path, to).map_err(wrong)?;
            match kind {
                Kind::Tar => {
                    let packing = packing_at(path, 0).map_err(wrong)?;
                    packing
                        .write(draft.file(), |to| write::tar(&edited.tree, to))
                        .map_err(wrong)?;
                }
                Kind::Cpio => initramfs(path, &edited.tree, draft.file()).map_err(wrong)?,
                _ => {
                    let files = container(input, &edited, cancel)?;
                    let packing = packing_at(path, 0).map_err(wrong)?;
                    packing.write(draft.file(), |to| write::tar(&files, to)).map_err(wrong)?;
                }
            }
            if cancel.is_cancelled() {
                return Err(ArchiveEditError::Cancelled);
            }
            draft.publish(to, in_place).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ArchiveEditError::Exists { path: to.to_owned() },
                _ => wrong(error),
            })?;
        }
    }
    Ok(worked)
}

/// A file on its way to its place, with the mode of what it comes from.
struct Draft(NamedTempFile);

impl Draft {
    fn new(from: &Path, to: &Path) -> io::Result<Self> {
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file = tempfile::Builder::new();
        let file = file.prefix(".guestline-").tempfile_in(folder.unwrap_or(Path::new(".")))?;
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
    edited: &Edited,
    cancel: &CancellationToken,
) -> Result<FileTree, ArchiveEditError> {
    let ArchiveInput { path, kind, pick, scratch } = input;
    let mut files = Rootfs::read_files(path, kind, scratch, cancel)?;
    let layer = layer(edited, scratch)
        .map_err(|source| ArchiveEditError::Write { path: scratch.to_owned(), source })?;
    match kind {
        Kind::DockerArchive => change_docker(&mut files, pick, &layer, scratch, cancel)?,
        _ => change_oci(&mut files, pick, &layer, scratch, cancel)?,
    }
    Ok(files)
}

/// A layout: blobs that are not there, and then the index.
fn layout(
    input: ArchiveInput<'_>,
    edited: &Edited,
    to: &Path,
    in_place: bool,
    cancel: &CancellationToken,
) -> Result<(), ArchiveEditError> {
    let files = container(input, edited, cancel)?;
    let wrong = |source| ArchiveEditError::Write { path: to.to_owned(), source };
    if in_place {
        return write_layout(&files, to).map_err(wrong);
    }
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    let making =
        tempfile::Builder::new().prefix(".guestline-").tempdir_in(folder.unwrap_or(Path::new(".")));
    let making = making.map_err(wrong)?;
    let copy = making.path().join("layout");
    fs::create_dir(&copy).and_then(|()| write_layout(&files, &copy)).map_err(wrong)?;
    fs::rename(&copy, to).map_err(wrong)
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
