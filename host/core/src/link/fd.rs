//! Any stream socket as a stream: the standard types know TCP and unix sockets only.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket, such as a vsock.
#[derive(Debug)]
pub(super) struct FdStream(AsyncFd<OwnedFd>);

impl FdStream {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        #[expect(
            deprecated,
            reason = "unsound for what may close its descriptor; `OwnedFd` does not"
        )]
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// Waits until it can be written to: a connection that was begun stands then, or has failed.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map(drop)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read = guard.try_io(|fd| {
                Ok(nix::unistd::read(fd.get_ref().as_fd(), buffer.initialize_unfilled())?)
            });
            if let Ok(read) = read {
                return Poll::Ready(read.map(|len| buffer.advance(len)));
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let written = guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref().as_fd(), bytes)?));
            if let Ok(written) = written {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.fd().as_raw_fd(), Shutdown::Write)?))
    }
}
