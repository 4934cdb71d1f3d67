//! A disk image of somebody else as a file: whether it can be used, its copy, and that in its place.
//!
//! ```text
//! input (locked against writers) ── copied, holes and all ──> draft (no name) ── changed ──> named, where nothing is
//! ```

use crate::dirs::folder_of;
use crate::host::{hint_of_io, open_path};
use crate::image::embed::Output;
use crate::image::{Kind, KindError};
use crate::machine::{Disk, DiskFile, DiskFormat, NotUsable, qcow2};
use crate::sparse::next_data;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, copy_file_range, fcntl};
use nix::libc;
use nix::unistd::{Whence, linkat, lseek64};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

/// A piece of a copy, bytes: an interrupt is heard after each.
const PIECE: u64 = 16 << 20;

/// Smaller is no disk, in bytes.
const LEAST: u64 = 64 << 10;

/// Bytes of a file that QEMU locks: who writes, who changes its size, and who wants that nobody else writes (QEMU
/// `block/file-posix.c`, `RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE`; permissions: `include/block/block-common.h`).
const WRITES: i64 = 100 + 1;
const RESIZES: i64 = 100 + 3;
const ALONE: i64 = 200 + 1;

/// A disk image that is to be worked on.
#[derive(Debug)]
pub struct DiskInput {
    path: PathBuf,
    file: File,
    format: DiskFormat,
    /// Of the disk, in bytes.
    size: u64,
}

/// A disk image cannot be used, or not be written.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// It is no disk.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// It is something else than a disk.
    #[error("`{path}` is no disk image, but a {kind}", path = path.display())]
    NoDisk {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// It is smaller than any disk.
    #[error("`{path}` has {len} bytes, and is no whole disk", path = path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// What it has.
        len: u64,
    },
    /// Its own header speaks against it.
    #[error("`{path}` cannot be used: {why}", path = path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// Why.
        why: NotUsable,
    },
    /// Somebody else has it.
    #[error("`{path}` is in use: {by}", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// By whom.
        by: String,
    },
    /// It is no file.
    #[error("`{path}` is a device", path = path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
    /// What would be overwritten.
    #[error("`{path}` is there already", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file.
    #[error("cannot {what} `{path}`", path = path.display())]
    Io {
        /// As in "read".
        what: &'static str,
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

impl DiskFault {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kind(error) => error.hint(),
            Self::Qcow2 { why, .. } => why.hint().map(str::to_owned),
            Self::InUse { .. } => Some("power its machine off first".to_owned()),
            Self::Device { .. } => Some("copy it into a file first".to_owned()),
            Self::Exists { .. } => Some("name a place where nothing is".to_owned()),
            Self::Io { source, .. } => hint_of_io(source).map(str::to_owned),
            _ => None,
        }
    }
}

impl DiskInput {
    /// Opens a disk image, and keeps others from writing to it as long as this lives. `alone`: nobody may read it either.
    ///
    /// # Errors
    /// [`DiskFault`].
    pub fn open(path: &Path, alone: bool) -> Result<Self, DiskFault> {
        let format = match Kind::of(path, &CancellationToken::new())? {
            Kind::Qcow2 => DiskFormat::Qcow2,
            Kind::RawDisk => DiskFormat::Raw,
            kind => return Err(DiskFault::NoDisk { path: path.to_owned(), kind }),
        };
        let wrong = |what, source| DiskFault::Io { what, path: path.to_owned(), source };
        let path = path.canonicalize().map_err(|source| wrong("read", source))?;
        let file = File::open(&path).map_err(|source| wrong("read", source))?;
        let found = file.metadata().map_err(|source| wrong("read", source))?;
        if !found.is_file() {
            return Err(DiskFault::Device { path });
        }
        if let Some(by) = user_of(&file, &path, alone).map_err(|source| wrong("lock", source))? {
            return Err(DiskFault::InUse { path, by });
        }
        let size = match format {
            DiskFormat::Raw => found.len(),
            DiskFormat::Qcow2 => qcow2::inspect(&file)
                .map_err(|source| wrong("read", source))?
                .map_err(|why| DiskFault::Qcow2 { path: path.clone(), why })?,
        };
        if size < LEAST {
            return Err(DiskFault::TooShort { path, len: size });
        }
        Ok(Self { path, file, format, size })
    }

    /// The file, for a machine that only reads it.
    pub(super) fn to_read(&self) -> Result<Disk, DiskFault> {
        let file = self.file.try_clone();
        let file = file.map_err(|source| self.wrong("open", source))?;
        Ok(Disk::given(DiskFile::open_as(file, self.format), self.size, true))
    }

    fn wrong(&self, what: &'static str, source: io::Error) -> DiskFault {
        DiskFault::Io { what, path: self.path.clone(), source }
    }

    /// Copies it beside where it is to be. Blocks.
    pub(super) fn draft(
        &self,
        output: &Output,
        cancel: &CancellationToken,
    ) -> Result<Draft, DiskFault> {
        let to = match output {
            Output::New(to) => to.clone(),
            Output::InPlace | Output::Nowhere => self.path.clone(),
        };
        let in_place = *output == Output::InPlace;
        if !in_place && to.symlink_metadata().is_ok() {
            return Err(DiskFault::Exists { path: to });
        }
        let wrong = |source| DiskFault::Io { what: "write", path: to.clone(), source };
        let found = self.file.metadata().map_err(|source| self.wrong("read", source))?;
        let draft = Draft::beside(&to, in_place, self.format, self.size).map_err(wrong)?;
        let file = draft.file();
        file.set_permissions(Permissions::from_mode(found.mode() & 0o777)).map_err(wrong)?;
        if in_place {
            let owners = (Some(found.uid()), Some(found.gid()));
            std::os::unix::fs::fchown(file, owners.0, owners.1).map_err(wrong)?;
        }
        copy(&self.file, file, found.len(), cancel).map_err(|error| match error {
            Some(source) => wrong(source),
            None => DiskFault::Cancelled,
        })?;
        Ok(draft)
    }
}

/// Who has a file, so that its content may change; it is locked as a reader's else.
fn user_of(file: &File, path: &Path, alone: bool) -> io::Result<Option<String>> {
    let lock = |start: i64, kind: libc::c_int| libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    for byte in [WRITES, RESIZES].into_iter().chain(alone.then_some(ALONE)) {
        let mut asked = lock(byte, libc::F_WRLCK);
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked)) {
            Ok(_) if i32::from(asked.l_type) == libc::F_UNLCK => {}
            Ok(_) => return Ok(Some("a process has locked it, as QEMU does".to_owned())),
            // A file system without locks.
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(ALONE, libc::F_RDLCK))) {
        Ok(_) | Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => {
            return Ok(Some("a process has locked it, as QEMU does".to_owned()));
        }
        Err(error) => return Err(error.into()),
    }
    // A loop device has no locks (Linux `Documentation/ABI/testing/sysfs-block-loop`).
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let behind = fs::read_to_string(device.path().join("loop/backing_file"));
        if behind.is_ok_and(|behind| Path::new(behind.trim_end_matches('\n')) == path) {
            return Ok(Some(format!("/dev/{} is made of it", device.file_name().display())));
        }
    }
    Ok(None)
}

/// Copies what is data; none as the error when it is not wanted any more.
fn copy(
    from: &File,
    to: &File,
    len: u64,
    cancel: &CancellationToken,
) -> Result<(), Option<io::Error>> {
    let signed = |at: u64| i64::try_from(at).map_err(|_| Some(io::ErrorKind::FileTooLarge.into()));
    to.set_len(len).map_err(Some)?;
    let mut at = 0;
    let (mut by_kernel, mut buffer) = (true, Vec::new());
    while at < len {
        // Nothing but a hole up to the end.
        let Some(data) = next_data(from, at).map_err(Some)? else { break };
        let data = data.min(len);
        let hole = lseek64(from, signed(data)?, Whence::SeekHole);
        let end = hole.ok().and_then(|hole| u64::try_from(hole).ok()).unwrap_or(len).min(len);
        at = data;
        while at < end {
            if cancel.is_cancelled() {
                return Err(None);
            }
            let piece = usize::try_from((end - at).min(PIECE)).unwrap_or(usize::MAX);
            let copied = if by_kernel {
                // It shares blocks where the file system can.
                let (mut source, mut target) = (signed(at)?, signed(at)?);
                match copy_file_range(from, Some(&mut source), to, Some(&mut target), piece) {
                    Ok(copied) => copied,
                    Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                        by_kernel = false;
                        continue;
                    }
                    Err(error) => return Err(Some(error.into())),
                }
            } else {
                buffer.resize(piece, 0);
                let read = from.read_at(&mut buffer, at).map_err(Some)?;
                to.write_all_at(&buffer[..read], at).map_err(Some)?;
                read
            };
            if copied == 0 {
                return Err(Some(io::ErrorKind::UnexpectedEof.into()));
            }
            at += copied as u64;
        }
    }
    Ok(())
}

/// The copy of a disk image; gone with this, unless it was given its name.
#[derive(Debug)]
pub(super) struct Draft {
    held: Held,
    to: PathBuf,
    in_place: bool,
    format: DiskFormat,
    size: u64,
}

#[derive(Debug)]
enum Held {
    /// It has no name, and goes with its last descriptor.
    Unnamed(File),
    /// Where the file system has no files without names.
    Named(NamedTempFile),
}

impl Draft {
    fn beside(to: &Path, in_place: bool, format: DiskFormat, size: u64) -> io::Result<Self> {
        let folder = folder_of(to);
        let mut options = File::options();
        let flags = libc::O_TMPFILE;
        let held = match options.read(true).write(true).mode(0o600).custom_flags(flags).open(folder)
        {
            Ok(file) => Held::Unnamed(file),
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL) => {
                    Held::Named(tempfile::Builder::new().prefix(".guestline-").tempfile_in(folder)?)
                }
                _ => return Err(error),
            },
        };
        Ok(Self { held, to: to.to_owned(), in_place, format, size })
    }

    fn file(&self) -> &File {
        match &self.held {
            Held::Unnamed(file) => file,
            Held::Named(file) => file.as_file(),
        }
    }

    /// The file, for a machine that writes to it.
    pub(super) fn to_write(&self) -> Result<Disk, DiskFault> {
        let file = self.file().try_clone();
        let file = file.map_err(|source| self.wrong(source))?;
        Ok(Disk::given(DiskFile::open_as(file, self.format), self.size, false))
    }

    fn wrong(&self, source: io::Error) -> DiskFault {
        DiskFault::Io { what: "write", path: self.to.clone(), source }
    }

    /// Gives it its name. Blocks.
    pub(super) fn publish(self) -> Result<(), DiskFault> {
        self.file().sync_all().map_err(|source| self.wrong(source))?;
        let (to, in_place) = (self.to.clone(), self.in_place);
        let named = match self.held {
            Held::Named(file) if in_place => {
                file.persist(&to).map(drop).map_err(|error| error.error)
            }
            Held::Named(file) => file.persist_noclobber(&to).map(drop).map_err(|error| error.error),
            Held::Unnamed(file) if in_place => {
                let beside = folder_of(&to).join(format!(".guestline-{}", ulid::Ulid::generate()));
                link(&file, &beside).and_then(|()| {
                    fs::rename(&beside, &to).inspect_err(|_| drop(fs::remove_file(&beside)))
                })
            }
            Held::Unnamed(file) => link(&file, &to),
        };
        named.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => DiskFault::Exists { path: to },
            _ => DiskFault::Io { what: "write", path: to, source },
        })
    }
}

/// Gives a file without a name one (open(2), `O_TMPFILE`).
fn link(file: &File, to: &Path) -> io::Result<()> {
    let from = open_path(file);
    Ok(linkat(AT_FDCWD, &from, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn raw(folder: &Path) -> PathBuf {
        let path = folder.join("disk.raw");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[0x55, 0xaa], 510).unwrap();
        file.write_all_at(b"far away", 40 << 20).unwrap();
        path
    }

    fn taken(path: &Path) -> Result<(), String> {
        DiskInput::open(path, false).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_holes_and_a_name_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = raw(folder.path());
        let cancel = CancellationToken::new();
        let input = DiskInput::open(&path, false).unwrap();
        let to = folder.path().join("copy");
        let output = Output::New(to.clone());
        let draft = input.draft(&output, &cancel).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        draft.publish().unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read(&path).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert!(matches!(input.draft(&output, &cancel), Err(DiskFault::Exists { .. })));
        let other = Output::New(folder.path().join("other"));
        let draft = input.draft(&other, &cancel).unwrap();
        fs::write(folder.path().join("other"), "meanwhile").unwrap();
        assert!(matches!(draft.publish(), Err(DiskFault::Exists { .. })));
        let draft = input.draft(&Output::InPlace, &cancel).unwrap();
        draft.file().write_all_at(b"changed", 1 << 20).unwrap();
        draft.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap()[1 << 20..][..7], *b"changed");
        cancel.cancel();
        let gone = input.draft(&Output::New(folder.path().join("x")), &cancel);
        assert!(matches!(gone, Err(DiskFault::Cancelled)));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn a_disk_that_qemu_writes_to_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = raw(folder.path());
        assert_eq!(taken(&path), Ok(()));
        // Both let nobody else write, and may read it at once.
        let _first = DiskInput::open(&path, false).unwrap();
        assert_eq!(taken(&path), Ok(()));
        assert!(DiskInput::open(&path, true).is_err());
        drop(_first);
        let mut io = Command::new("qemu-io")
            .args(["-f", "raw", "-c", "sleep 20000"])
            .arg(&path)
            .spawn()
            .unwrap();
        // Looked for where it is no trial: one would keep qemu-io from it (proc_locks(5)).
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        while !fs::read_to_string("/proc/locks").unwrap().contains(&format!(":{inode} ")) {
            assert!(io.try_wait().unwrap().is_none(), "qemu-io has gone");
        }
        let said = taken(&path);
        io.kill().unwrap();
        io.wait().unwrap();
        assert!(said.unwrap_err().contains("in use: a process has locked it"));
        assert_eq!(taken(&path), Ok(()));
    }

    #[test]
    fn what_is_no_disk_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = |content: &[u8]| {
            let path = folder.path().join("file");
            fs::write(&path, content).unwrap();
            taken(&path).unwrap_err().replace(&*folder.path().to_string_lossy(), "FOLDER")
        };
        let mut boot = vec![0; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let all = [file(b""), file(b"text"), file(&boot), file(b"QFI\xfb\0\0\0\x03")];
        insta::assert_snapshot!(all.join("\n"));
    }
}
