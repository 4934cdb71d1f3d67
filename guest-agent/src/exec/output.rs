//! The end of a pipe or terminal from which a command's output is read: once for each time that poll(2) says so, straight
//! into the buffer that goes out. Buffers begin small, and grow with what comes.

use crate::sys::spawn::{bytes_waiting, read_append};
use guestline_protocol::{HEADROOM, MAX_DATA_LEN, Stream};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// A first read.
const SMALL: usize = 4096;

/// What a pipe holds if nothing is said (pipe(7)), and what one holds that was found full.
const PIPE_LEN: usize = 64 * 1024;
const GROWN_PIPE_LEN: i32 = 256 * 1024;

/// At most so many large buffers are kept for the next read.
const MAX_SPARE: usize = 4;

/// Large buffers to be used again: memory that is new costs as much as reading into it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    spare: Vec<Vec<u8>>,
}

impl Buffers {
    /// A buffer with [`HEADROOM`] zeros in it and room for `len` bytes more.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let room = len.saturating_add(HEADROOM);
        let mut buffer = match self.spare.pop() {
            Some(buffer) if room > SMALL.saturating_add(HEADROOM) => buffer,
            spare => {
                self.spare.extend(spare);
                Vec::new()
            }
        };
        buffer.clear();
        buffer.reserve_exact(room);
        buffer.resize(HEADROOM, 0);
        buffer
    }

    /// Takes a buffer back; a small one is not worth keeping.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() >= PIPE_LEN && self.spare.len() < MAX_SPARE {
            self.spare.push(buffer);
        }
    }
}

/// What a read gave.
pub(super) enum Got {
    /// [`HEADROOM`] zeros, then so many bytes of output.
    Data(Vec<u8>),
    Nothing,
    /// It is at its end.
    End,
}

/// Did poll(2) say that nothing is there and nothing will come?
pub(super) fn is_end(events: PollFlags) -> bool {
    !events.is_empty() && !events.contains(PollFlags::POLLIN)
}

/// One stream of output.
#[derive(Debug)]
pub(super) struct Output {
    fd: Rc<OwnedFd>,
    pub(super) stream: Stream,
    is_terminal: bool,
    /// A read does not wait. A pipe is told before its first one: a command may also read what it wrote, by
    /// `/proc/self/fd/1`, after poll(2) said that something is there.
    is_nonblocking: bool,
    /// Bytes that were in it at the exit and have not been read yet.
    pub(super) owed: usize,
    /// Room for the next read.
    room: usize,
}

impl Output {
    pub(super) fn new(fd: Rc<OwnedFd>, stream: Stream, is_terminal: bool) -> Self {
        let is_nonblocking = is_terminal;
        Self { fd, stream, is_terminal, is_nonblocking, owed: 0, room: SMALL }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.fd(), PollFlags::POLLIN)
    }

    /// Reads once, at most `limit` bytes, after poll(2) said `events`.
    pub(super) fn read(&mut self, events: PollFlags, limit: usize, buffers: &mut Buffers) -> Got {
        // A terminal may have got its last bytes since.
        if is_end(events) && !self.is_terminal {
            return Got::End;
        }
        let len = self.room.min(limit);
        if len == 0 || events.is_empty() {
            return Got::Nothing;
        }
        if !self.is_nonblocking {
            let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
            self.is_nonblocking = fcntl(&*self.fd, flags).is_ok();
        }
        let mut buffer = buffers.take(len);
        let got = read_append(self.fd(), &mut buffer, len);
        let said = match got {
            Ok(got @ 1..) => {
                self.owed = self.owed.saturating_sub(got);
                self.adapt(got);
                // Few bytes do not keep a large buffer while they wait to be sent.
                if got < buffer.capacity() / 4 && buffer.capacity() >= PIPE_LEN {
                    let few = buffer.clone();
                    buffers.give_back(std::mem::replace(&mut buffer, few));
                }
                return Got::Data(buffer);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Got::Nothing,
            // A terminal that nobody has open any more gives EIO.
            Ok(_) | Err(_) => Got::End,
        };
        buffers.give_back(buffer);
        said
    }

    /// Notes what waits in it now that the process is gone.
    pub(super) fn owe(&mut self) {
        self.owed = bytes_waiting(self.fd());
    }

    /// Somebody else may have read what was owed.
    pub(super) fn owe_at_most_what_waits(&mut self) {
        self.owed = self.owed.min(bytes_waiting(self.fd()));
    }

    fn adapt(&mut self, got: usize) {
        if got >= self.room {
            if self.room == PIPE_LEN {
                // Refused where a user's pipes have reached their limit: it stays as it is.
                let _ = fcntl(&*self.fd, FcntlArg::F_SETPIPE_SZ(GROWN_PIPE_LEN));
            }
            self.room = if self.room < PIPE_LEN { PIPE_LEN } else { MAX_DATA_LEN };
        } else if got < self.room / 16 {
            self.room = if self.room > PIPE_LEN { PIPE_LEN } else { SMALL };
        }
    }
}
