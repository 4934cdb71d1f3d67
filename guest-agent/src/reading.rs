//! The way in of a lane: a file and its decoder.

use crate::outlet::is_transient;
use crate::sys;
use guestline_protocol::{FrameHead, Framing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Where it is not known how much will come, so much is read at once.
pub(crate) const READ_LEN: usize = 16 * 1024;

/// A read of a virtio port gives so much at most (Linux `drivers/char/virtio_console.c`).
const PORT_READ: usize = 4096;

/// One call brings so much at most; one that gives less than it was asked for has emptied the port, unless its first piece
/// was the rest of a buffer.
const MOST_READ: usize = sys::PIECES * PORT_READ;

/// So many reads at most of what somebody left behind: more than a port has buffers.
const LEFT_READS: usize = 256;

/// See the module.
pub(crate) struct Reading {
    file: Arc<File>,
    pub(crate) framing: Box<dyn Framing>,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// Bytes, and perhaps more are there.
    Some,
    /// Bytes, and probably no more.
    Last,
    /// Nothing is there.
    Nothing,
    /// The far end is gone.
    Closed,
}

/// What a wait for a frame found.
pub(crate) enum Found {
    /// A frame, and the buffer that it came in.
    Frame(FrameHead, Vec<u8>, Range<usize>),
    /// Who waits is to stop.
    Stopped,
    /// The far end is gone.
    Closed,
}

impl Reading {
    pub(crate) fn new(file: Arc<File>, framing: Box<dyn Framing>) -> Self {
        Self { file, framing }
    }

    /// Reads what is there, up to so many bytes.
    pub(crate) fn read(&mut self, limit: usize) -> Read {
        let wanted = self.framing.missing().map_or(READ_LEN, |missing| missing.max(1)).min(limit);
        let Some(space) = self.framing.space(wanted).get_mut(..wanted) else {
            return Read::Nothing;
        };
        let mut len = 0_usize;
        let end = loop {
            let Some(rest) = space.get_mut(len..).filter(|rest| !rest.is_empty()) else {
                break Read::Some;
            };
            match sys::read_pieces(self.file.as_fd(), rest, PORT_READ) {
                Ok(0) => break Read::Closed,
                Ok(read) => {
                    len = len.saturating_add(read);
                    if read < rest.len().min(MOST_READ) {
                        break Read::Last;
                    }
                }
                Err(error) if is_transient(&error) => break Read::Nothing,
                // Whatever it is, this host is gone.
                Err(_) => break Read::Closed,
            }
        };
        self.framing.filled(len);
        match end {
            // An end is found again.
            Read::Nothing | Read::Closed if len > 0 => Read::Last,
            end => end,
        }
    }

    /// Waits for a frame; `spare` is the buffer for what comes behind it.
    pub(crate) fn next_frame(&mut self, spare: Vec<u8>, stop: BorrowedFd<'_>) -> Found {
        loop {
            if let Some((head, span)) = self.framing.next_span() {
                return Found::Frame(head, self.framing.detach(spare), span);
            }
            match self.read(usize::MAX) {
                Read::Closed => return Found::Closed,
                Read::Some | Read::Last => continue,
                Read::Nothing => {}
            }
            let mut fds = [self.file.as_fd(), stop].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut fds, PollTimeout::NONE);
            if fds[1].any().unwrap_or(false) {
                return Found::Stopped;
            }
        }
    }

    /// The far end is gone: half a frame is of no use to the next, and what is left is nobody's, unless somebody else is
    /// there by now.
    pub(crate) fn restart(&mut self) {
        self.framing.restart();
        let mut buffer = [0; PORT_READ];
        for _ in 0..LEFT_READS {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::empty())];
            let found = poll(&mut fds, PollTimeout::ZERO);
            let is_gone = found.is_ok_and(|found| found > 0);
            if !is_gone
                || !matches!(sys::read_pieces(self.file.as_fd(), &mut buffer, PORT_READ), Ok(1..))
            {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
