//! A root that is mounted in a guest, by the verbs on its files.

use crate::guest::{FilesError, Guest};
use crate::image::embed::{Node, Root};
use crate::link::LinkError;
use guestline_protocol::{ByteBuf, Command, ErrorKind, ExecRequest, ExitStatus, FileKind};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use tokio::runtime::Handle;

/// A file that is larger is not read, in bytes.
const MAX_READ: usize = 256 << 20;

/// See the module. Its verbs block: for a thread of its own.
pub(super) struct GuestRoot {
    guest: Guest,
    runtime: Handle,
    /// Where in the guest it is mounted.
    at: PathBuf,
}

impl GuestRoot {
    pub(super) fn new(guest: Guest, runtime: Handle, at: &str) -> Self {
        Self { guest, runtime, at: at.into() }
    }

    fn path(&self, path: &Path) -> Vec<u8> {
        // Joined with nothing it would end with a slash.
        let whole = if path == Path::new("") { self.at.clone() } else { self.at.join(path) };
        whole.into_os_string().into_vec()
    }

    fn run(&self, argv: &[&[u8]]) -> io::Result<()> {
        let argv = argv.iter().map(|word| ByteBuf::from(*word)).collect();
        let request = ExecRequest::new(Command::Argv(argv));
        let ran = self.runtime.block_on(self.guest.run(request, &[], 4096)).map_err(of_link)?;
        match ran.exited.status {
            ExitStatus::Exited(0) => Ok(()),
            _ => {
                let said = String::from_utf8_lossy(&ran.stderr).into_owned();
                Err(io::Error::other(crate::text::printable(said.trim())))
            }
        }
    }
}

impl Root for GuestRoot {
    fn look(&mut self, path: &Path) -> io::Result<Option<Node>> {
        let path = self.path(path);
        let info = match self.runtime.block_on(self.guest.stat(&path, false)) {
            Ok(info) => info,
            Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(of_link(error)),
        };
        Ok(Some(match info.kind {
            FileKind::Folder => Node::Folder,
            FileKind::File => Node::File { mode: info.mode, len: info.len },
            FileKind::Symlink => {
                let target = info.target.unwrap_or_default();
                Node::Link { target: PathBuf::from(OsStr::from_bytes(&target)) }
            }
            _ => Node::Other,
        }))
    }

    fn read(&mut self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let path = self.path(path);
        let read = self.runtime.block_on(self.guest.read(&path, MAX_READ));
        let mut content = read.map_err(of_files)?;
        content.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(content)
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<OsString>> {
        let path = self.path(path);
        let listed = self.runtime.block_on(self.guest.list(&path)).map_err(of_link)?;
        Ok(listed.into_iter().map(|entry| OsString::from_vec(entry.name.into_vec())).collect())
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let path = self.path(path);
        self.runtime.block_on(self.guest.make_folder(&path, 0o755, false)).map_err(of_link)
    }

    fn write(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = self.path(path);
        self.runtime.block_on(self.guest.write(&path, content, mode)).map_err(of_files)
    }

    fn make_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let path = self.path(path);
        self.run(&[b"ln", b"-s", b"-T", b"--", target.as_os_str().as_bytes(), &path])
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let kind = self.look(path)?;
        let path = self.path(path);
        match kind {
            Some(Node::Folder) => self.run(&[b"rmdir", b"--", &path]),
            _ => self.run(&[b"rm", b"--", &path]),
        }
    }
}

fn of_link(error: LinkError) -> io::Error {
    match error {
        LinkError::Refused(error) => match error.errno {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(error.message),
        },
        error => io::Error::other(crate::text::chain(&error)),
    }
}

fn of_files(error: FilesError) -> io::Error {
    match error {
        FilesError::Link(error) => of_link(error),
        error => io::Error::other(crate::text::chain(&error)),
    }
}
