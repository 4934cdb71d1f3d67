//! What keepers and takers say to each other: JSON lines over a unix socket, a machine's descriptors beside its line
//! (`SCM_RIGHTS`, unix(7)). The socket is in a folder of the user's own.

use crate::json_line;
use crate::local_socket;
use crate::sys;
use crate::text;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Version of requests, answers and claims. Fields may be added without raising it.
pub(super) const VERSION: u32 = 1;

/// In the folder of a keeper.
pub(super) const SOCKET: &str = "pool.sock";
pub(super) const CLAIM: &str = "pool.json";

/// A longer line is nobody's.
const MAX_LINE_LEN: usize = 64 * 1024;

/// A keeper that does not answer for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a keeper keeps: `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) version: u32,
    /// Of the machines' template.
    pub(super) id: String,
    /// The keeper's process id.
    pub(super) pid: u32,
}

/// A request, a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(super) enum Request {
    /// A machine. The connection is its lease: when it ends, the machine is killed.
    Take,
    /// The machine of this connection is in the asker's account of memory.
    Taken,
    /// What is kept.
    Status,
    /// Somebody has no memory for a machine: one that waits is to go.
    MakeRoom,
    /// Nothing is to be kept any more.
    Stop,
}

/// An answer, a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// A machine. With it come, in this order: QMP connection, console, control port, bulk port, reserve line, and the
    /// machine's ends of its sockets.
    Machine {
        pid: u32,
        instance: String,
        is_restored: bool,
        /// The files that its disks are written to, as the keeper has them open.
        disks: Vec<PathBuf>,
        folder: PathBuf,
        memory_mib: u64,
        ready_us: u64,
        warm_up: Option<String>,
    },
    /// No machine is ready.
    None,
    /// QEMU of the machine of this connection has exited.
    Exited {
        how: String,
        signal: Option<i32>,
        stderr: String,
    },
    Status {
        pool: Box<PoolStatus>,
    },
    Error {
        message: String,
    },
}

/// What a pool has and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Of this record; fields may be added without raising it.
    pub version: u32,
    /// Of the machines' template.
    pub id: String,
    /// Their image.
    pub image: String,
    /// Memory of each, MiB.
    pub memory_mib: u64,
    /// Virtual CPUs of each.
    pub cpus: u32,
    /// A line that each has run since it was restored, as its image says.
    pub warm_up: Option<String>,
    /// So many are to be ready.
    pub size: u32,
    /// So many are.
    pub ready: u32,
    /// So many are somebody's now.
    pub lent: u32,
    /// So many were given away in all.
    pub served: u64,
    /// Nothing more is kept; it ends with the machines that are lent.
    pub stopping: bool,
    /// Why there are fewer than there are to be, where that is no matter of time.
    pub why: Option<String>,
    /// The keeper's process id.
    pub pid: u32,
    /// When it began, microseconds since 1970.
    pub since_us: u64,
}

/// A message as a line.
pub(super) fn line(message: impl Serialize) -> Vec<u8> {
    json_line::line(VERSION, message)
}

/// What a line says; in words, why it says nothing.
pub(super) fn understand<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    json_line::understand(VERSION, "message", line)
}

/// What keepers claim to keep, with their folders. One that was killed claims still.
pub(super) fn claims(runtime: &Path) -> Vec<(PathBuf, Claim)> {
    let runs = fs::read_dir(runtime).into_iter().flatten().flatten();
    let claim = |folder: PathBuf| {
        let claim: Claim = serde_json::from_slice(&fs::read(folder.join(CLAIM)).ok()?).ok()?;
        (claim.version == VERSION).then_some((folder, claim))
    };
    runs.filter_map(|run| claim(run.path())).collect()
}

/// The claim of a keeper of machines of this template.
pub(super) fn claim(id: &str, pid: u32) -> Vec<u8> {
    let claim = Claim { version: VERSION, id: id.to_owned(), pid };
    serde_json::to_vec(&claim).unwrap_or_default()
}

/// The process that keeps machines of this template; none when nobody answers.
pub(super) fn keeper_of(runtime: &Path, id: &str) -> Option<u32> {
    let its = claims(runtime).into_iter().filter(|(_, claim)| claim.id == id);
    its.filter(|(folder, _)| local_socket::connect(folder, SOCKET).is_ok())
        .map(|(_, claim)| claim.pid)
        .next()
}

/// Nobody is at the other end any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

/// A connection to the keeper in a folder.
pub(super) fn connect(folder: &Path) -> io::Result<UnixStream> {
    UnixStream::from_std(local_socket::connect(folder, SOCKET)?)
}

/// Asks the keeper in a folder what has one answer.
pub(super) async fn ask(folder: &Path, request: &Request) -> io::Result<Answer> {
    let asking = async {
        let stream = connect(folder)?;
        send(&stream, request, &[]).await?;
        let (answer, _) = Lines::default().next(&stream).await?;
        understand(&answer).map_err(io::Error::other)
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends a message, with descriptors.
pub(super) async fn send(
    stream: &UnixStream,
    message: impl Serialize,
    fds: &[OwnedFd],
) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    local_socket::send(stream, &line(message), &fds).await
}

/// Lines of a stream, with the descriptors that came with them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    kept: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Lines {
    /// Cancel safe.
    ///
    /// # Errors
    /// What reading gives, at the stream's end too, and for a line that is too long.
    pub(super) async fn next(
        &mut self,
        stream: &UnixStream,
    ) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_LINE_LEN];
        loop {
            if let Some(end) = self.kept.iter().position(|&byte| byte == b'\n') {
                let line = self.kept.drain(..=end).collect();
                return Ok((line, std::mem::take(&mut self.fds)));
            }
            if self.kept.len() >= MAX_LINE_LEN {
                return Err(io::Error::other("a line is too long"));
            }
            stream.readable().await?;
            let read =
                stream.try_io(Interest::READABLE, || sys::receive(stream.as_fd(), &mut buffer));
            match read {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((len, fds)) => {
                    self.kept.extend(buffer.get(..len).unwrap_or_default());
                    self.fds.extend(fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// An error as an answer.
pub(super) fn refusal(why: &str) -> Answer {
    Answer::Error { message: text::printable(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_versioned_lines() {
        let of = |text: &str| understand::<Request>(text.as_bytes());
        assert_eq!(of(r#"{"version":1,"request":"make-room","later":7}"#), Ok(Request::MakeRoom));
        assert_eq!(line(Request::Take), b"{\"version\":1,\"request\":\"take\"}\n");
        let later = of(r#"{"version":2,"request":"of-the-future"}"#).unwrap_err();
        assert_eq!(later, "version 2 is not spoken here, 1 is");
        for wrong in ["", "{}", r#"{"version":1}"#, r#"{"version":1,"request":"explode"}"#] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn descriptors_come_with_their_line() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"what is in it").unwrap();
        let fds = [file.try_clone().unwrap().into(), file.into()];
        send(&here, Answer::None, &fds).await.unwrap();
        send(&here, Request::Stop, &[]).await.unwrap();
        let mut lines = Lines::default();
        let (answer, fds) = lines.next(&there).await.unwrap();
        assert!(matches!(understand(&answer), Ok(Answer::None)));
        let files: Vec<_> = fds.into_iter().map(fs::File::from).collect();
        assert_eq!(files.len(), 2);
        assert_eq!(files[1].metadata().unwrap().len(), 13);
        let (request, fds) = lines.next(&there).await.unwrap();
        assert_eq!((understand(&request), fds.len()), (Ok(Request::Stop), 0));
        here.try_write(&vec![b'x'; MAX_LINE_LEN]).unwrap();
        let error = lines.next(&there).await.unwrap_err();
        assert_eq!(error.to_string(), "a line is too long");
    }
}
