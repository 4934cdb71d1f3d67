//! Unix sockets in a folder, however long its path is: a socket's own is at most 108 bytes (unix(7)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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
