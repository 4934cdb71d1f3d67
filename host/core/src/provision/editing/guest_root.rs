//! A root that is mounted in a guest, by the verbs on its files.

use crate::guest::{FilesError, Guest};
use crate::image::embed::{Node, Root};
use crate::link::LinkError;
use guestline_protocol::{ByteBuf, Command, ErrorKind, ExecRequest, ExitStatus, FileKind};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// A file that is larger is not read, in bytes.
const MAX_READ: usize = 256 << 20;

/// See the module. Its verbs block: for a thread of its own.
pub(super) struct GuestRoot {
    guest: Guest,
    runtime: Handle,
    /// So long may each verb take.
    limit: Duration,
    /// Where in the guest it is mounted.
    at: PathBuf,
}

impl GuestRoot {
    pub(super) fn new(guest: Guest, runtime: Handle, limit: Duration, at: &str) -> Self {
        Self { guest, runtime, limit, at: at.into() }
    }

    fn path(&self, path: &Path) -> Vec<u8> {
        // Joined with nothing it would end with a slash.
        let whole = if path == Path::new("") { self.at.clone() } else { self.at.join(path) };
        whole.into_os_string().into_vec()
    }

    /// The answer to a verb.
    fn wait<T, E>(
        &self,
        verb: impl Future<Output = Result<T, E>>,
        told: fn(E) -> io::Error,
    ) -> io::Result<T> {
        let answer = self.runtime.block_on(async { timeout(self.limit, verb).await });
        let late = || format!("it is not done within {}", crate::text::limit(self.limit));
        answer.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, late()))?.map_err(told)
    }

    fn run(&self, argv: &[&[u8]]) -> io::Result<()> {
        let argv = argv.iter().map(|word| ByteBuf::from(*word)).collect();
        let request = ExecRequest::new(Command::Argv(argv));
        let ran = self.wait(self.guest.run(request, &[], 4096), of_link)?;
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
        let looking = async {
            match self.guest.stat(&path, false).await {
                Ok(info) => Ok(Some(info)),
                Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        let Some(info) = self.wait(looking, of_link)? else { return Ok(None) };
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
        let mut content = self.wait(self.guest.read(&path, MAX_READ), of_files)?;
        content.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(content)
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<OsString>> {
        let path = self.path(path);
        let listed = self.wait(self.guest.list(&path), of_link)?;
        Ok(listed.into_iter().map(|entry| OsString::from_vec(entry.name.into_vec())).collect())
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let path = self.path(path);
        self.wait(self.guest.make_folder(&path, 0o755, false), of_link)
    }

    fn write(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = self.path(path);
        self.wait(self.guest.write(&path, content, mode), of_files)
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
