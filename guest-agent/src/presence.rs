//! Whether the host holds its end of a lane open: synchronous; the poll loop feeds it and does what it answers.
//!
//! A virtio-serial port says late that its host is there: Linux takes that news in a work queue
//! (`drivers/char/virtio_console.c`), and what the host has sent may be read before. Until then the port polls as one
//! whose host has left, which would end a session that has just begun. So a host that was never seen is waited for, and
//! only one that was seen can leave. The same goes for a tty, whose host is seen for as long as nobody hangs it up.

use crate::sys;
use nix::poll::PollFlags;
use std::os::fd::BorrowedFd;

/// What is known of the host at a lane's other end.
#[derive(Debug)]
pub(crate) struct HostEnd {
    presence: Presence,
    /// The kernel signals when it comes.
    has_news: bool,
}

impl HostEnd {
    pub(crate) fn new(presence: Presence) -> Self {
        Self { presence, has_news: false }
    }

    /// Is polling of use, or would it find at once that nobody is there?
    pub(crate) fn is_polled(&self) -> bool {
        self.presence != Presence::Awaited
    }

    /// Poll found this on its file.
    pub(crate) fn on_poll(&mut self, found: PollFlags, fd: BorrowedFd<'_>) -> Option<Look> {
        let look = self.presence.on_poll(found);
        self.listen(fd);
        look
    }

    /// A read of its file found that it has left.
    pub(crate) fn leave(&mut self, fd: BorrowedFd<'_>) {
        self.presence.leave();
        self.listen(fd);
    }

    /// Has the kernel signal when it comes, as long as it is awaited: later each byte would be signalled, too.
    fn listen(&mut self, fd: BorrowedFd<'_>) {
        let is_awaited = self.presence == Presence::Awaited;
        if self.has_news != is_awaited {
            self.has_news = is_awaited;
            sys::signal_changes(fd, is_awaited);
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Of a stream: its end is read, behind all that came before.
    Stream,
    /// Of a port or tty whose host was not seen yet, or has left.
    Awaited,
    /// Of one whose host is there.
    Here,
}

/// What is to be done about a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// There is something to read, or an end.
    Read,
    /// Its host is not there: look again later.
    Wait,
    /// Its host has left.
    Left,
}

impl Presence {
    /// Poll found this.
    fn on_poll(&mut self, found: PollFlags) -> Option<Look> {
        let is_hung_up = found.contains(PollFlags::POLLHUP);
        match (*self, is_hung_up) {
            (Self::Awaited, true) => return Some(Look::Wait),
            (Self::Here, true) => {
                *self = Self::Awaited;
                return Some(Look::Left);
            }
            (Self::Awaited, false) => *self = Self::Here,
            (Self::Stream | Self::Here, _) => {}
        }
        let can_read = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        found.intersects(can_read).then_some(Look::Read)
    }

    /// A read found that the host has left.
    fn leave(&mut self) {
        if *self == Self::Here {
            *self = Self::Awaited;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: PollFlags = PollFlags::empty();

    #[test]
    fn a_host_that_was_not_seen_cannot_leave() {
        let mut port = Presence::Awaited;
        // Its hello is there before the news of it.
        let early = PollFlags::POLLIN | PollFlags::POLLHUP;
        assert_eq!((port.on_poll(early), port), (Some(Look::Wait), Presence::Awaited));
        assert_eq!((port.on_poll(PollFlags::POLLIN), port), (Some(Look::Read), Presence::Here));
        assert_eq!(port.on_poll(early), Some(Look::Left));
        assert_eq!(port.on_poll(PollFlags::POLLHUP), Some(Look::Wait));
    }

    #[test]
    fn a_port_without_news_has_its_host() {
        let mut port = Presence::Awaited;
        assert_eq!((port.on_poll(NOTHING), port), (None, Presence::Here));
        assert_eq!(port.on_poll(PollFlags::POLLHUP), Some(Look::Left));
        let mut port = Presence::Here;
        port.leave();
        assert_eq!(port.on_poll(PollFlags::POLLHUP), Some(Look::Wait));
    }

    #[test]
    fn a_stream_is_read_to_its_end() {
        let mut stream = Presence::Stream;
        stream.leave();
        for found in [PollFlags::POLLIN, PollFlags::POLLHUP, PollFlags::POLLERR] {
            assert_eq!(stream.on_poll(found), Some(Look::Read));
        }
        assert_eq!(stream.on_poll(PollFlags::POLLOUT), None);
    }
}
