//! Lines from a peer that is not trusted: bounded in length and, once begun, in time.

use guestline_guest::protocol::MAX_LINE;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::{Instant, timeout_at};

/// The rest of a line may take so long.
const REST: Duration = Duration::from_secs(30);

/// One read.
const PIECE: usize = 16 * 1024;

/// No line comes.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("half a line came, and the rest not within {} s", REST.as_secs())]
    Slow,
}

/// What a peer says, line by line.
pub(super) struct Lines {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    /// So much of it was taken; it goes with the next read, for a peer may send many lines at once.
    start: usize,
    /// So much of the rest has no end of a line.
    searched: usize,
    begun: Option<Instant>,
    ended: bool,
}

impl Lines {
    pub(super) fn new(reader: OwnedReadHalf) -> Self {
        Self { reader, buffer: Vec::new(), start: 0, searched: 0, begun: None, ended: false }
    }

    /// The next line, without its end; none when the peer has hung up. Half a line before that is dropped. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            if let Some(line) = self.take()? {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            match (self.waiting().is_empty(), self.begun) {
                (true, _) => self.read().await,
                (false, begun) => {
                    let begun = *self.begun.insert(begun.unwrap_or_else(Instant::now));
                    let reading = timeout_at(begun + REST, self.read());
                    reading.await.map_err(|_| LineError::Slow)?;
                }
            }
        }
    }

    /// Waits until the peer has hung up. What it says meanwhile is kept, as much as a line may have. Cancel safe.
    pub(super) async fn hung_up(&mut self) {
        while !self.ended {
            if self.waiting().len() > MAX_LINE {
                return std::future::pending().await;
            }
            self.read().await;
        }
    }

    /// What came and was not taken.
    fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let waiting = self.waiting();
        let found = waiting[self.searched..].iter().position(|&byte| byte == b'\n');
        let end = found.map(|at| self.searched + at);
        if end.unwrap_or(waiting.len()) > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let Some(end) = end else {
            self.searched = waiting.len();
            return Ok(None);
        };
        let line = waiting[..end].to_vec();
        self.start += end + 1;
        (self.searched, self.begun) = (0, None);
        Ok(Some(line))
    }

    async fn read(&mut self) {
        self.buffer.drain(..std::mem::take(&mut self.start));
        self.buffer.reserve(PIECE);
        let mut room = (&mut self.reader).take(PIECE as u64);
        // A peer whose connection broke has hung up.
        self.ended = !matches!(room.read_buf(&mut self.buffer).await, Ok(1..));
    }
}
