//! A command's standard input: what the channel's data is written to, as fast as the command reads.
//!
//! What waits is bounded by the credit that the host was granted. Where nobody reads any more, what comes is dropped, and
//! credit granted on: the host need not notice.

use super::terminal;
use guestline_protocol::{CreditEvent, ErrorKind, ReceiveCredit, RemoteError};
use nix::errno::Errno;
use nix::unistd::write;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Where input goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Our end does not block.
    Pipe(OwnedFd),
    Terminal(Rc<OwnedFd>),
    /// Nobody reads.
    Gone,
}

#[derive(Debug)]
pub(super) struct Input {
    sink: Sink,
    credit: ReceiveCredit,
    waiting: VecDeque<u8>,
    /// The last byte that was taken in.
    last: Option<u8>,
    /// All that the host will have sent.
    total: Option<u64>,
    is_end_said: bool,
    /// Credit that was not told to the host yet.
    grant: u32,
}

impl Input {
    /// An input of which the host may send `window` bytes at first.
    pub(super) fn new(sink: Sink, window: u32) -> Self {
        Self {
            sink,
            credit: ReceiveCredit::new(window),
            waiting: VecDeque::new(),
            last: None,
            total: None,
            is_end_said: false,
            grant: 0,
        }
    }

    /// Takes bytes that came from the host.
    ///
    /// # Errors
    /// `Protocol` when they were not granted, or come after the end.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), RemoteError> {
        self.credit.receive(bytes.len()).map_err(|error| protocol(error.to_string()))?;
        if self.total.is_some_and(|total| self.credit.received() > total) {
            return Err(protocol("data beyond the end of the input".to_owned()));
        }
        self.last = bytes.last().copied().or(self.last);
        self.waiting.extend(bytes);
        self.write();
        Ok(())
    }

    /// The host will have sent `total` bytes; some may be under way still.
    pub(super) fn end(&mut self, total: u64) {
        self.total = Some(total);
        self.write();
    }

    /// What to ask poll(2) for when something waits to be written.
    pub(super) fn waiting_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd().filter(|_| !self.waiting.is_empty())
    }

    /// Writes what it can, and ends the input after the last byte.
    pub(super) fn write(&mut self) {
        self.flush();
        let is_all_in = self.total.is_some_and(|total| self.credit.received() >= total);
        if !is_all_in || !self.waiting.is_empty() || self.is_end_said {
            return;
        }
        self.is_end_said = true;
        match &self.sink {
            Sink::Pipe(_) => self.sink = Sink::Gone,
            Sink::Terminal(fd) => {
                let is_line_open = self.last.is_some_and(|byte| byte != b'\n');
                self.waiting.extend(terminal::end_of_input(fd, is_line_open));
                self.flush();
            }
            Sink::Gone => {}
        }
    }

    /// Drops what waits and all that comes.
    pub(super) fn close(&mut self) {
        self.sink = Sink::Gone;
        self.flush();
    }

    /// Credit to tell the host.
    pub(super) fn take_grant(&mut self) -> Option<CreditEvent> {
        let bytes = std::mem::take(&mut self.grant);
        (bytes > 0).then_some(CreditEvent { bytes })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::Pipe(fd) => Some(fd.as_fd()),
            Sink::Terminal(fd) => Some(fd.as_fd()),
            Sink::Gone => None,
        }
    }

    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let written = match self.fd() {
                Some(fd) => write(fd, front),
                None => Err(Errno::EPIPE),
            };
            let len = match written {
                // A terminal may take nothing without saying so.
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(_) => {
                    self.sink = Sink::Gone;
                    self.waiting.len()
                }
            };
            self.waiting.drain(..len.min(self.waiting.len()));
            if let Some(more) = self.credit.use_up(len) {
                self.grant = self.grant.saturating_add(more.bytes);
            }
        }
    }
}

fn protocol(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Protocol, message)
}
