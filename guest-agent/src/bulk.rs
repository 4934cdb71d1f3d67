//! The bulk port, and who uses it: the poll loop, or jobs without it.
//!
//! ```text
//! in     a push borrows the way in, from its first wait for data to its end: it reads with its own thread, and hands
//!        what is not its own to the poll loop
//! out    a job writes its data itself, and what the poll loop has queued with it
//! loop   polls the port while no job is at it. Each interrupt of a port wakes whoever polls it, whatever he polls for
//!        (Linux `drivers/char/virtio_console.c`): two changes of threads for each piece that a job moves
//! ```
//! A job that is at the port says so at each frame. One that was not seen for [`GRACE`] is not there any more: it may
//! hang in a file system, which must not stop what others send, so the poll loop takes back what it had borrowed.

use crate::outlet::{Outlet, Ticket};
use crate::reading::Reading;
use crate::thread::lock;
use guestline_protocol::{FrameHead, Framing, PortFraming};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The poll loop looks after a port that jobs are at so often.
pub(crate) const GRACE: Duration = Duration::from_millis(20);

/// Nobody.
const FREE: u32 = 0;

/// See the module.
pub(crate) struct Bulk {
    file: Arc<File>,
    reading: Mutex<Reading>,
    pub(crate) outlet: Outlet,
    /// The serial number of the job that borrows the way in.
    borrower: AtomicU32,
    /// Frames that borrowers handed to the poll loop, and that it has not dealt with: they come before what is read.
    handed: AtomicU32,
    /// How often jobs were seen.
    visits: AtomicU32,
    /// The poll loop leaves the port to jobs.
    is_left: AtomicBool,
    /// The poll loop is to read: bytes are there, or frames in the decoder, which no poll shows.
    has_input: AtomicBool,
}

impl Bulk {
    pub(crate) fn port(file: File) -> Self {
        let file = Arc::new(file);
        Self {
            reading: Mutex::new(Reading::new(file.clone(), Box::new(PortFraming::default()))),
            outlet: Outlet::new(file.clone()),
            file,
            borrower: AtomicU32::new(FREE),
            handed: AtomicU32::new(0),
            visits: AtomicU32::new(0),
            is_left: AtomicBool::new(false),
            has_input: AtomicBool::new(false),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What to poll for; none while jobs are at it.
    pub(crate) fn interest(&self) -> Option<PollFlags> {
        let flags = self.outlet.interest();
        if self.is_left.load(Ordering::Acquire) && !flags.contains(PollFlags::POLLOUT) {
            return None;
        }
        Some(if self.is_borrowed() { flags & !PollFlags::POLLIN } else { flags })
    }

    /// Is the poll loop to look after it every [`GRACE`]?
    pub(crate) fn is_used(&self) -> bool {
        self.is_left.load(Ordering::Acquire) || self.is_borrowed()
    }

    fn is_borrowed(&self) -> bool {
        self.borrower.load(Ordering::Acquire) != FREE
    }

    /// A job is at the port. True when the poll loop is to be told.
    pub(crate) fn visit(&self) -> bool {
        self.visits.fetch_add(1, Ordering::AcqRel);
        !self.is_left.load(Ordering::Acquire)
    }

    /// A job has written. True when there is something to read, and nobody but the poll loop to read it: it is to be told.
    pub(crate) fn is_unread(&self) -> bool {
        if self.is_borrowed() {
            return false;
        }
        let mut port = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        let is_there = poll(&mut port, PollTimeout::ZERO).is_ok_and(|found| found > 0);
        if is_there {
            self.has_input.store(true, Ordering::Release);
        }
        is_there
    }

    /// Queues data, whose buffer has its head spare; gives what to wait for.
    #[inline(never)]
    pub(crate) fn data(&self, head: FrameHead, buffer: Vec<u8>) -> Ticket {
        // Nobody makes pieces that are too long.
        let frame = PortFraming::default().seal(head, buffer, 0).unwrap_or_default();
        self.outlet.data(frame)
    }

    /// To read, unless somebody is at it.
    pub(crate) fn try_read(&self) -> Option<MutexGuard<'_, Reading>> {
        self.reading.try_lock().ok()
    }

    /// Keeps the way in for a job that begins: the poll loop would only read what is the job's.
    pub(crate) fn keep_for(&self, job: u32) {
        if self.handed.load(Ordering::Acquire) == 0 && self.swap_borrower(FREE, job).is_ok() {
            self.visit();
        }
    }

    /// For a job, if it has the way in or can have it now.
    pub(crate) fn borrow(&self, job: u32) -> Option<MutexGuard<'_, Reading>> {
        let is_new = match self.swap_borrower(FREE, job) {
            Ok(_) => true,
            Err(holder) if holder == job => false,
            Err(_) => return None,
        };
        // What the poll loop has not dealt with comes first: its next frame may be among it.
        let reading =
            self.try_read().filter(|_| !is_new || self.handed.load(Ordering::Acquire) == 0);
        let Some(reading) = reading else {
            self.give_back(job);
            return None;
        };
        // It may have been taken back since, and the poll loop may have found it in use then.
        if self.borrower.load(Ordering::Acquire) == job {
            return Some(reading);
        }
        self.has_input.store(true, Ordering::Release);
        None
    }

    /// Is the poll loop to have a turn, since nobody reads what may be there?
    pub(crate) fn wants_turn(&self) -> bool {
        !self.is_borrowed() && self.has_input.load(Ordering::Acquire)
    }

    /// A job gives it back, if it has it, and sees to it that the poll loop has a turn.
    pub(crate) fn give_back(&self, job: u32) {
        if self.swap_borrower(job, FREE).is_ok() {
            self.has_input.store(true, Ordering::Release);
        }
    }

    fn swap_borrower(&self, from: u32, to: u32) -> Result<u32, u32> {
        self.borrower.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Takes it back from whoever has it.
    pub(crate) fn take_back(&self) {
        self.borrower.store(FREE, Ordering::Release);
    }

    /// A borrower hands a frame to the poll loop.
    pub(crate) fn hand_over(&self) {
        self.handed.fetch_add(1, Ordering::AcqRel);
    }

    /// The poll loop has dealt with it.
    pub(crate) fn dealt_with(&self) {
        self.handed.fetch_sub(1, Ordering::AcqRel);
    }

    /// A new session: nothing of the one before is sent any more.
    pub(crate) fn forget(&self) {
        self.outlet.forget();
    }

    /// The far end is gone. Its jobs are told to stop by now.
    pub(crate) fn hang_up(&self) {
        self.take_back();
        self.outlet.reset();
        lock(&self.reading).restart();
        self.has_input.store(false, Ordering::Release);
    }
}

/// The poll loop's watch over the port.
#[derive(Default)]
pub(crate) struct Watch {
    visits: u32,
    /// When jobs were last found to have been there.
    at: Option<Instant>,
}

impl Watch {
    /// Looks after the port, at each turn of the loop. True when the loop is to read it.
    pub(crate) fn look(&mut self, bulk: &Bulk, now: Instant) -> bool {
        let visits = bulk.visits.load(Ordering::Acquire);
        if visits != self.visits {
            (self.visits, self.at) = (visits, Some(now));
            bulk.is_left.store(true, Ordering::Release);
        } else if self.at.is_none_or(|at| now.saturating_duration_since(at) >= GRACE) {
            bulk.is_left.store(false, Ordering::Release);
            // A borrower that holds the decoder waits for what comes.
            if bulk.is_borrowed()
                && let Some(_held) = bulk.try_read()
            {
                bulk.take_back();
                return true;
            }
        }
        let has_input = !bulk.is_borrowed() && bulk.has_input.swap(false, Ordering::AcqRel);
        if has_input {
            // One turn may not be enough: the rest shows in a poll.
            bulk.is_left.store(false, Ordering::Release);
        }
        has_input
    }
}

#[cfg(test)]
mod tests;
