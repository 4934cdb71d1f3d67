//! The way out of a lane: what waits to be written, and who writes it.
//!
//! The poll loop writes what it queued. A job whose data takes the bulk port writes it there itself, which spares two
//! changes of threads for each piece; whoever finds the other at it leaves his frames to him.

use crate::sys;
use crate::thread::lock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A write of a virtio port takes so much at most (Linux `drivers/char/virtio_console.c`).
const PORT_WRITE: usize = 32 * 1024;

/// With so many bytes of data unsent, what makes more of them waits.
const HIGH_WATER: usize = 256 * 1024;

/// Messages are written together up to so many bytes.
const TOGETHER: usize = 8 * 1024;

/// A message that nobody waits for is held back, to go with the next.
const HOLD: Duration = Duration::from_millis(8);

/// See the module.
pub(crate) struct Outlet {
    file: Arc<File>,
    queue: Mutex<Queue>,
    /// What is being written. Held while writing.
    current: Mutex<Option<Current>>,
    /// For how long a message that nobody waits for is held back.
    hold: Duration,
}

/// A frame, or several messages, of which some is written.
struct Current {
    bytes: Vec<u8>,
    written: usize,
    is_data: bool,
}

/// How many frames of data there were with one of them: whoever waits for it waits until so many have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Frames that wait to be written; messages go before data.
#[derive(Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    /// A buffer of messages that have left; the next piece of several is put together in it.
    spare: Vec<u8>,
    /// Bytes of data in it.
    bytes: usize,
    /// Frames of data that were queued so far, and that have left or were dropped.
    queued: u64,
    left: u64,
    /// What waits may wait until then, for more to be written with it.
    hold: Option<Instant>,
}

impl Queue {
    fn next(&mut self) -> Option<Current> {
        if let Some(bytes) = self.next_messages() {
            return Some(Current { bytes, written: 0, is_data: false });
        }
        let bytes = self.data.pop_front()?;
        self.bytes = self.bytes.saturating_sub(bytes.len());
        Some(Current { bytes, written: 0, is_data: true })
    }

    /// The messages that wait, several in one piece: a write costs more than its bytes.
    fn next_messages(&mut self) -> Option<Vec<u8>> {
        let first = self.messages.pop_front()?;
        if self.messages.is_empty() {
            return Some(first);
        }
        let mut piece = std::mem::take(&mut self.spare);
        piece.clear();
        piece.extend_from_slice(&first);
        while let Some(next) = self.messages.front()
            && piece.len().saturating_add(next.len()) <= TOGETHER
        {
            piece.extend_from_slice(next);
            self.messages.pop_front();
        }
        Some(piece)
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.data.is_empty()
    }

    /// Drops all of it.
    fn clear(&mut self) {
        *self = Self { queued: self.queued, left: self.queued, ..Self::default() };
    }

    fn is_held(&self) -> bool {
        self.hold.is_some_and(|until| until > Instant::now())
    }
}

impl Outlet {
    pub(crate) fn new(file: Arc<File>) -> Self {
        Self { file, queue: Mutex::default(), current: Mutex::default(), hold: HOLD }
    }

    /// Queues a message, which may wait for the next one if nobody waits for it.
    pub(crate) fn message(&self, frame: Vec<u8>, may_wait: bool) {
        let is_free = self.current.try_lock().is_ok_and(|current| current.is_none());
        let mut queue = lock(&self.queue);
        let waits = may_wait && (queue.hold.is_some() || (queue.is_empty() && is_free));
        queue.messages.push_back(frame);
        queue.hold = match waits {
            true => queue.hold.or_else(|| Instant::now().checked_add(self.hold)),
            false => None,
        };
    }

    /// Queues what goes with the next message, or alone: when what waits is written is not changed.
    pub(crate) fn add(&self, frame: Vec<u8>) {
        lock(&self.queue).messages.push_back(frame);
    }

    /// Queues data.
    pub(crate) fn data(&self, frame: Vec<u8>) -> Ticket {
        let mut queue = lock(&self.queue);
        queue.bytes = queue.bytes.saturating_add(frame.len());
        queue.data.push_back(frame);
        queue.hold = None;
        queue.queued = queue.queued.saturating_add(1);
        Ticket(queue.queued)
    }

    /// So many bytes of data may still be queued.
    pub(crate) fn room(&self) -> usize {
        HIGH_WATER.saturating_sub(lock(&self.queue).bytes)
    }

    /// When what is held back is to be written.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        lock(&self.queue).hold
    }

    /// Does anything wait to be written?
    pub(crate) fn has_output(&self) -> bool {
        !lock(&self.queue).is_empty()
            || self.current.try_lock().is_ok_and(|current| current.is_some())
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.wants_to_write());
        flags
    }

    /// Does anything wait that may be written now?
    fn wants_to_write(&self) -> bool {
        // Who is at it looks again when he is done.
        let Ok(current) = self.current.try_lock() else { return false };
        let queue = lock(&self.queue);
        (current.is_some() || !queue.is_empty()) && !queue.is_held()
    }

    /// Writes as much as is taken, unless somebody else is at it; `done` gets each buffer that is.
    pub(crate) fn write(&self, done: &mut dyn FnMut(Vec<u8>)) -> io::Result<()> {
        // What was queued while another wrote, and after he looked, is written here or by him.
        while self.wants_to_write()
            && let Ok(mut current) = self.current.try_lock()
        {
            if !self.write_queued(&mut current, done)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// False when the far end takes no more now.
    fn write_queued(
        &self,
        current: &mut Option<Current>,
        done: &mut dyn FnMut(Vec<u8>),
    ) -> io::Result<bool> {
        loop {
            if current.is_none() {
                let mut queue = lock(&self.queue);
                queue.hold = None;
                *current = queue.next();
            }
            let Some(Current { bytes, written, .. }) = current.as_mut() else { return Ok(true) };
            if *written < bytes.len() {
                let rest = bytes.get(*written..).unwrap_or_default();
                match sys::write_pieces(self.file.as_fd(), rest, PORT_WRITE) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(len) => *written = written.saturating_add(len),
                    Err(error) if is_transient(&error) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            if *written >= bytes.len()
                && let Some(Current { bytes, is_data, .. }) = current.take()
            {
                let mut queue = lock(&self.queue);
                queue.left = queue.left.saturating_add(u64::from(is_data));
                if !is_data && (queue.spare.capacity()..=TOGETHER).contains(&bytes.capacity()) {
                    queue.spare = bytes;
                } else {
                    drop(queue);
                    done(bytes);
                }
            }
        }
    }

    /// Writes what is queued until a frame of a job has left and there is room for the next, or `stop` is readable. An
    /// error when the far end is gone.
    pub(crate) fn write_out(
        &self,
        ticket: Ticket,
        stop: BorrowedFd<'_>,
        done: &mut dyn FnMut(Vec<u8>),
    ) -> io::Result<()> {
        loop {
            self.write(done)?;
            if lock(&self.queue).left >= ticket.0 && self.room() > 0 {
                return Ok(());
            }
            let out = PollFd::new(self.file.as_fd(), PollFlags::POLLOUT);
            let mut fds = [out, PollFd::new(stop, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE)?;
            if fds[1].any().unwrap_or(true) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }

    /// Drops what waits, but for a frame that is half out: the host must never see half of one.
    pub(crate) fn forget(&self) {
        lock(&self.queue).clear();
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|current| current.written == 0) {
            *current = None;
        }
    }

    /// The other end is gone: half a frame is of no use to the next.
    pub(crate) fn reset(&self) {
        lock(&self.queue).clear();
        *lock(&self.current) = None;
    }
}

/// Why `read` or `write` moved nothing: try again later.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
