//! Unix sockets (unix(7)): in a folder, however long its path is, where a socket's own is at most 108 bytes; and descriptors
//! that go over them.

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tokio::io::Interest;

/// Connects to a socket in a folder; it does not block.
pub(crate) fn connect(folder: &Path, socket: &str) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    let stream = UnixStream::connect(short(&folder, socket))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Makes a socket in a folder, and listens; it does not block.
pub(crate) fn listen(folder: &Path, socket: &str) -> io::Result<UnixListener> {
    let folder = File::open(folder)?;
    let listener = UnixListener::bind(short(&folder, socket))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn short(folder: &File, socket: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd()))
}

/// A connected socket that came as a descriptor.
pub(crate) fn of(socket: OwnedFd) -> io::Result<tokio::net::UnixStream> {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

/// Sends bytes; descriptors go with the first of them (`SCM_RIGHTS`).
pub(crate) async fn send(
    socket: &tokio::net::UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let with_fds = [ControlMessage::ScmRights(&fds)];
    let mut sent = 0;
    while sent < bytes.len() {
        socket.writable().await?;
        let rights = if sent == 0 && !fds.is_empty() { &with_fds[..] } else { &[] };
        let rest = [IoSlice::new(bytes.get(sent..).unwrap_or_default())];
        let wrote = socket.try_io(Interest::WRITABLE, || {
            Ok(sendmsg::<()>(socket.as_raw_fd(), &rest, rights, MsgFlags::MSG_NOSIGNAL, None)?)
        });
        match wrote {
            Ok(len) => sent += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
