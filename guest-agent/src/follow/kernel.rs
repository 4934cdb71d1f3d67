//! The kernel's log: each read(2) of /dev/kmsg is one record (Linux Documentation/ABI/testing/dev-kmsg).

use super::Records;
use crate::control::{errno, open, refused};
use guestline_protocol::RemoteError;
use nix::errno::Errno;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const KMSG: &str = "/dev/kmsg";

/// The longest record, bytes (`CONSOLE_EXT_LOG_MAX`, linux/kernel/printk/internal.h).
pub(super) const MAX_RECORD_LEN: usize = 8192;

/// Stands for the records that were overwritten before they were read. In their shape, with nothing known of them.
const LOST: &[u8] = b"-,-,-,-;guestline: records were lost";

/// The kernel's log, open at some record.
#[derive(Debug)]
pub(super) struct KernelLog {
    file: File,
    /// Read, but did not fit any more.
    pending: Option<Vec<u8>>,
}

impl KernelLog {
    /// Opens it at the first record that the kernel still has, or after the last.
    pub(super) fn open(from_start: bool) -> Result<Self, RemoteError> {
        let mut file = open(Path::new(KMSG), 0)?;
        let to = if from_start { SeekFrom::Start(0) } else { SeekFrom::End(0) };
        file.seek(to).map_err(|error| failed(errno(&error)))?;
        Ok(Self { file, pending: None })
    }

    /// Reads the records that are there, as far as they fit.
    pub(super) fn read(&mut self, records: &mut Records) -> Result<(), RemoteError> {
        let mut buffer = [0; MAX_RECORD_LEN];
        loop {
            if let Some(text) = self.pending.take() {
                if text.len() > records.room() {
                    self.pending = Some(text);
                    return Ok(());
                }
                records.push(&text);
            }
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    let text = buffer.get(..len).unwrap_or_default();
                    self.pending = Some(text.strip_suffix(b"\n").unwrap_or(text).to_vec());
                }
                Err(error) => match errno(&error) {
                    Errno::EAGAIN => return Ok(()),
                    Errno::EINTR => {}
                    // The next read gives the first one that is still there.
                    Errno::EPIPE => self.pending = Some(LOST.to_vec()),
                    errno => return Err(failed(errno)),
                },
            }
        }
    }

    /// Rings when there are records.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn failed(errno: Errno) -> RemoteError {
    refused(&format!("`{KMSG}`"), errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::MIN_LIMIT;
    use guestline_protocol::log::LogParser;
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
    use std::os::fd::{AsRawFd, OwnedFd};

    /// A log whose reads give one record each, as the device's do, and the end to write to.
    fn log() -> (KernelLog, OwnedFd) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (KernelLog { file: File::from(ours), pending: None }, theirs)
    }

    fn texts(log: &mut KernelLog, limit: usize) -> Vec<String> {
        let mut records = Records::new(limit);
        log.read(&mut records).unwrap();
        assert!(records.bytes.len() <= limit.max(MIN_LIMIT));
        let records = LogParser::default().push(&records.bytes).unwrap();
        records.into_iter().map(|record| String::from_utf8(record.text).unwrap()).collect()
    }

    #[test]
    fn a_read_is_a_record() {
        let (mut log, kernel) = log();
        let say =
            |text: &str| send(kernel.as_raw_fd(), text.as_bytes(), MsgFlags::empty()).unwrap();
        assert_eq!(texts(&mut log, 0), [""; 0]);
        say("6,1,10,-;one\n SUBSYSTEM=x\n");
        say("6,2,20,-;two\n");
        assert_eq!(texts(&mut log, 0), ["6,1,10,-;one\n SUBSYSTEM=x", "6,2,20,-;two"]);
        // What does not fit comes the next time.
        let long = "x".repeat(5000);
        say(&long);
        say(&long);
        say("last");
        assert_eq!(texts(&mut log, 0), [long.as_str()]);
        assert_eq!(texts(&mut log, 0), [long.as_str(), "last"]);
        assert_eq!(texts(&mut log, 0), [""; 0]);
    }

    #[test]
    fn this_kernels_log_is_read() {
        match KernelLog::open(true) {
            Ok(mut log) => {
                for text in texts(&mut log, 64 * 1024) {
                    assert!(text.contains(';') && !text.ends_with('\n'), "{text}");
                }
            }
            // In a container, perhaps.
            Err(error) => assert!(error.message.starts_with("`/dev/kmsg`: "), "{error}"),
        }
    }
}
