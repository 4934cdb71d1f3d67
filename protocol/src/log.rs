//! Logs that are followed: the kernel's, and files, over their rotation.
//!
//! ```text
//! host   FollowRequest ->   Credit…, Cancel ->
//! guest                   <- Done on cancel or at the end, data (records) before
//! ```
//! A record in the data, numbers little-endian:
//! ```text
//! offset  bytes
//!      0      8  guest's wall clock when it was read, microseconds since 1970
//!      8      4  length of the text, at most MAX_LOG_TEXT
//!     12    len  text: a record of /dev/kmsg as it is (Linux Documentation/ABI/testing/dev-kmsg), or a piece of a file
//! ```

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The longest text of a record, in bytes.
pub const MAX_LOG_TEXT: usize = 32 * 1024;

/// Length of a record's head, in bytes.
pub const LOG_HEAD_LEN: usize = 12;

/// Follows a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowRequest {
    /// Which.
    pub source: LogSource,
    /// From its beginning, as far as it is kept; else what comes from now on.
    pub from_start: bool,
    /// Go on when its end is reached; else that is the end.
    pub follow: bool,
    /// Credit for the records, bytes.
    pub credit: u32,
}

/// A log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogSource {
    /// The kernel's own.
    Kernel,
    /// A file, by name: when another file takes the name, that one is followed from its beginning; a file that gets
    /// shorter too. It need not be there yet.
    File(ByteBuf),
}

/// The head of a record.
pub fn log_head(clock_us: u64, len: u32) -> [u8; LOG_HEAD_LEN] {
    let mut head = [0; LOG_HEAD_LEN];
    head[..8].copy_from_slice(&clock_us.to_le_bytes());
    head[8..].copy_from_slice(&len.to_le_bytes());
    head
}

/// A record of a followed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Guest's wall clock, microseconds since 1970.
    pub clock_us: u64,
    /// Any bytes.
    pub text: Vec<u8>,
}

/// A record that says to be longer than [`MAX_LOG_TEXT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogTooLong {
    /// As long as that.
    pub len: u32,
}

impl core::fmt::Display for LogTooLong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a log record of {} bytes is over the limit of {MAX_LOG_TEXT} bytes", self.len)
    }
}

impl core::error::Error for LogTooLong {}

/// Cuts data into records.
#[derive(Debug, Default)]
pub struct LogParser {
    buffer: Vec<u8>,
}

impl LogParser {
    /// Takes bytes, split anywhere, and gives the records that are whole.
    ///
    /// # Errors
    /// [`LogTooLong`]; the stream is of no use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<LogRecord>, LogTooLong> {
        self.buffer.extend_from_slice(bytes);
        let mut records = Vec::new();
        let mut at = 0_usize;
        while let Some(head) = self.buffer.get(at..at.saturating_add(LOG_HEAD_LEN)) {
            let (clock, len) = head.split_at(8);
            let clock_us = u64::from_le_bytes(clock.try_into().unwrap_or_default());
            let len = u32::from_le_bytes(len.try_into().unwrap_or_default());
            let text_len = usize::try_from(len).unwrap_or(usize::MAX);
            if text_len > MAX_LOG_TEXT {
                return Err(LogTooLong { len });
            }
            let from = at.saturating_add(LOG_HEAD_LEN);
            let Some(text) = self.buffer.get(from..from.saturating_add(text_len)) else { break };
            records.push(LogRecord { clock_us, text: text.to_vec() });
            at = from.saturating_add(text_len);
        }
        self.buffer.drain(..at);
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_split_anywhere_come_whole() {
        let mut bytes = log_head(7, 2).to_vec();
        bytes.extend(b"ab");
        bytes.extend(log_head(8, 0));
        for cut in 0..bytes.len() {
            let mut parser = LogParser::default();
            let mut records = parser.push(&bytes[..cut]).unwrap();
            records.extend(parser.push(&bytes[cut..]).unwrap());
            assert_eq!(
                records,
                [
                    LogRecord { clock_us: 7, text: b"ab".to_vec() },
                    LogRecord { clock_us: 8, text: Vec::new() }
                ]
            );
        }
        assert!(LogParser::default().push(&log_head(0, u32::MAX)).is_err());
    }
}
