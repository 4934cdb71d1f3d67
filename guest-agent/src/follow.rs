//! Following a log, the kernel's or a file: what is there, then what comes, until somebody says stop.
//!
//! ```text
//! next: read what is there ── something ──> Records
//!         │ nothing   └ not to be followed ──> End
//!         └ poll: the log, the stop ── stop ──> Stopped
//!                   └ the log: read again
//! ```
//! One follower has one thread, which sleeps in poll(2). It wakes when there is something to do: the kernel's log says
//! so by itself, a file by inotify(7). Only where inotify cannot tell is it looked at every [`BLIND_MS`].

mod file;
mod kernel;

use crate::control::{path, refused};
use crate::linux::clock_us;
use file::FileLog;
use guestline_protocol::log::{LOG_HEAD_LEN, MAX_LOG_TEXT, log_head};
use guestline_protocol::{FollowRequest, LogSource, RemoteError};
use kernel::{KernelLog, MAX_RECORD_LEN};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;

/// What [`Follower::next`] takes for its limit where that is less: room for the kernel's longest record.
pub(crate) const MIN_LIMIT: usize = LOG_HEAD_LEN + MAX_RECORD_LEN;

/// How often a file is looked at that nobody tells about.
const BLIND_MS: u16 = 500;

/// A log that is followed.
#[derive(Debug)]
pub(crate) struct Follower {
    log: Log,
    follow: bool,
}

#[derive(Debug)]
enum Log {
    Kernel(KernelLog),
    File(FileLog),
}

/// What a log has next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Whole records, at least one, as [`guestline_protocol::log`] lays them out.
    Records(Vec<u8>),
    /// That was all, of a log that is not to be followed.
    End,
    /// The stop became readable.
    Stopped,
}

impl Follower {
    /// Opens a log.
    ///
    /// # Errors
    /// Invalid for what is no regular file; not found for a file that is not there and not to be waited for; else what
    /// the kernel says.
    pub(crate) fn open(request: &FollowRequest) -> Result<Self, RemoteError> {
        let FollowRequest { source, from_start, follow, credit: _ } = request;
        let log = match source {
            LogSource::Kernel => Log::Kernel(KernelLog::open(*from_start)?),
            LogSource::File(name) => Log::File(FileLog::open(path(name)?, *from_start, *follow)?),
        };
        Ok(Self { log, follow: *follow })
    }

    /// Waits for the next records, or for `stop` to become readable, which wins.
    ///
    /// The records are at most `limit` bytes, or [`MIN_LIMIT`] if that is more. They can be sent in pieces, cut
    /// anywhere.
    ///
    /// # Errors
    /// What the kernel says of the log; invalid when its name comes to be no regular file's.
    pub(crate) fn next(&mut self, limit: usize, stop: BorrowedFd<'_>) -> Result<Next, RemoteError> {
        let mut records = Records::new(limit);
        // A log that never pauses must not keep the stop from being seen.
        if wait(None, stop, PollTimeout::ZERO)? == Woken::Stop {
            return Ok(Next::Stopped);
        }
        loop {
            match &mut self.log {
                Log::Kernel(log) => log.read(&mut records)?,
                Log::File(log) => log.read(&mut records)?,
            }
            if !records.bytes.is_empty() {
                return Ok(Next::Records(records.bytes));
            }
            if !self.follow {
                return Ok(Next::End);
            }
            let (bell, limit) = match &self.log {
                Log::Kernel(log) => (Some(log.bell()), PollTimeout::NONE),
                Log::File(log) => {
                    (log.bell(), if log.is_blind() { BLIND_MS.into() } else { PollTimeout::NONE })
                }
            };
            if wait(bell, stop, limit)? == Woken::Stop {
                return Ok(Next::Stopped);
            }
            if let Log::File(log) = &mut self.log {
                log.woken();
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The stop is readable.
    Stop,
    /// Something else: it is time to look.
    Look,
}

fn wait(
    bell: Option<BorrowedFd<'_>>,
    stop: BorrowedFd<'_>,
    limit: PollTimeout,
) -> Result<Woken, RemoteError> {
    let mut fds: Vec<_> = [Some(stop), bell]
        .into_iter()
        .flatten()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, limit) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(refused("waiting for a log", errno)),
    }
    // Its other end being closed is a stop too.
    let stopped = fds.first().and_then(PollFd::any).unwrap_or(false);
    Ok(if stopped { Woken::Stop } else { Woken::Look })
}

/// Records in the making.
#[derive(Debug)]
struct Records {
    bytes: Vec<u8>,
    limit: usize,
}

impl Records {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit: limit.max(MIN_LIMIT) }
    }

    /// How long the text of one more record may be, if there can be one.
    fn room(&self) -> usize {
        let used = self.bytes.len().saturating_add(LOG_HEAD_LEN);
        self.limit.saturating_sub(used).min(MAX_LOG_TEXT)
    }

    /// Adds a record that was read now; its text fits into [`Records::room`].
    fn push(&mut self, text: &[u8]) {
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&log_head(clock_us(), len));
        self.bytes.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests;
