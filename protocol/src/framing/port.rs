//! Length-prefixed frames for lossless ports.
//!
//! All numbers are little-endian.
//! ```text
//! offset  bytes
//!      0      2  magic, 47 4C ("GL")
//!      2      1  layout, 01
//!      3      1  reserved, 00
//!      4      8  session
//!     12      4  length of the body, at most MAX_FRAME_LEN
//!     16      4  CRC-32 (IEEE 802.3) of bytes 0 to 15
//!     20    len  body
//! ```
//! The body has no checksum: the transport loses and changes nothing. What does happen is that
//! bytes of an earlier session, perhaps half a frame, come before the first frame of this one. A
//! header of a session that is not accepted is therefore never believed as to its length: the
//! decoder steps over the header alone and goes on looking, so that a frame cut short cannot
//! swallow the one behind it.

use super::{Frame, FrameTooLong, Framing, Session, u32_at, u64_at};
use crate::MAX_FRAME_LEN;

const MAGIC: [u8; 4] = [b'G', b'L', 1, 0];
const HEADER_LEN: usize = 20;
const CHECKED_LEN: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct PortFraming {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are done with.
    start: usize,
    accepted: Option<Session>,
    dropped: u64,
}

/// What stands at the front of the buffer.
enum Front {
    /// Too few bytes to tell.
    Short,
    /// A header that checks, of a session that is accepted.
    Header { session: Session, len: usize },
    /// So many bytes that cannot begin a frame.
    Noise(usize),
}

impl PortFraming {
    fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn front(&self) -> Front {
        let pending = self.pending();
        let known = pending.len().min(MAGIC.len());
        if pending.get(..known) != MAGIC.get(..known) {
            // Up to the next byte that could be the magic's first.
            let rest = pending.get(1..).unwrap_or_default();
            let next = rest.iter().position(|&byte| byte == MAGIC[0]).unwrap_or(rest.len());
            return Front::Noise(next.saturating_add(1));
        }
        let Some((checked, header)) = pending.get(..CHECKED_LEN).zip(pending.get(..HEADER_LEN))
        else {
            return Front::Short;
        };
        let (Some(session), Some(len), Some(crc)) =
            (u64_at(header, 4), u32_at(header, 12), u32_at(header, 16))
        else {
            return Front::Short;
        };
        if crc32fast::hash(checked) != crc {
            return Front::Noise(1);
        }
        let session = Session(session);
        match usize::try_from(len) {
            Ok(len) if len <= MAX_FRAME_LEN => match self.accepted {
                Some(accepted) if accepted != session => Front::Noise(HEADER_LEN),
                _ => Front::Header { session, len },
            },
            _ => Front::Noise(HEADER_LEN),
        }
    }

    fn consume(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.buffer.len());
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            if self.buffer.capacity() > MAX_FRAME_LEN {
                self.buffer = Vec::new();
            }
        }
    }
}

impl Framing for PortFraming {
    fn encode(&self, session: Session, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameTooLong> {
        let too_long = FrameTooLong { len: body.len() };
        let len = u32::try_from(body.len()).map_err(|_| too_long)?;
        if body.len() > MAX_FRAME_LEN {
            return Err(too_long);
        }
        let mut checked = [0; CHECKED_LEN];
        checked[..4].copy_from_slice(&MAGIC);
        checked[4..12].copy_from_slice(&session.0.to_le_bytes());
        checked[12..].copy_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&checked);
        out.extend_from_slice(&crc32fast::hash(&checked).to_le_bytes());
        out.extend_from_slice(body);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if self.pending().is_empty() {
                return None;
            }
            match self.front() {
                Front::Short => return None,
                Front::Noise(len) => {
                    self.dropped = self.dropped.saturating_add(len as u64);
                    self.consume(len);
                }
                Front::Header { session, len } => {
                    let end = HEADER_LEN.saturating_add(len);
                    let body = self.pending().get(HEADER_LEN..end)?.to_vec();
                    self.consume(end);
                    return Some(Frame { session, body });
                }
            }
        }
    }

    fn accept_only(&mut self, session: Session) {
        self.accepted = Some(session);
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
