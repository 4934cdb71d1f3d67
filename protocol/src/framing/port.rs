//! Length-prefixed frames for lossless streams.
//!
//! All numbers are little-endian.
//! ```text
//! offset  bytes
//!      0      2  magic, 47 4C ("GL")
//!      2      1  layout, 01
//!      3      1  kind: 0 message, 1 data of stream 0, 2 data of stream 1
//!      4      8  session
//!     12      4  channel
//!     16      4  length of the body, at most MAX_FRAME_LEN
//!     20      4  CRC-32 (IEEE 802.3) of bytes 0 to 19
//!     24    len  body
//! ```
//! The body has no checksum: the transport loses and changes nothing. What does happen is that
//! bytes of an earlier session, perhaps half a frame, come before the first frame of this one. A
//! header of a session that is not accepted is therefore never believed: the decoder steps over
//! its first byte alone and goes on looking, so that a frame cut short cannot swallow the one
//! behind it, not even when the first bytes of that happen to complete its header.

use super::{CRC, FrameHead, FrameKind, FrameTooLong, Framing, Session, u32_at, u64_at};
use crate::MAX_FRAME_LEN;
use core::ops::Range;

const MAGIC: [u8; 3] = [b'G', b'L', 1];
const CHECKED_LEN: usize = 20;

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 24;

/// See the module.
#[derive(Debug, Default)]
pub struct PortFraming {
    /// Bytes from `start` to `end` have arrived and are not done with.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The head at `start`, once it was found to be one, and the length of its body: a body comes in many pieces.
    head: Option<(FrameHead, usize)>,
    accepted: Option<Session>,
    dropped: u64,
}

/// What stands at the front of the buffer.
enum Front {
    /// Too few bytes to tell.
    Short,
    /// A header that checks, of a session that is accepted.
    Header { head: FrameHead, len: usize },
    /// So many bytes that cannot begin a frame.
    Noise(usize),
}

impl PortFraming {
    /// The header of a frame.
    fn header(head: FrameHead, len: u32) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..3].copy_from_slice(&MAGIC);
        header[3] = head.kind.to_byte();
        header[4..12].copy_from_slice(&head.session.0.to_le_bytes());
        header[12..16].copy_from_slice(&head.channel.to_le_bytes());
        header[16..20].copy_from_slice(&len.to_le_bytes());
        let crc = CRC.checksum(&header[..CHECKED_LEN]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
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
        let numbers = (u64_at(header, 4), u32_at(header, 12), u32_at(header, 16));
        let ((Some(session), Some(channel), Some(len)), Some(crc)) = (numbers, u32_at(header, 20))
        else {
            return Front::Short;
        };
        if CRC.checksum(checked) != crc {
            return Front::Noise(1);
        }
        let session = Session(session);
        if self.accepted.is_some_and(|accepted| accepted != session) {
            return Front::Noise(1);
        }
        match (usize::try_from(len), header.get(3).copied().and_then(FrameKind::from_byte)) {
            (Ok(len), Some(kind)) if len <= MAX_FRAME_LEN => {
                Front::Header { head: FrameHead { session, channel, kind }, len }
            }
            _ => Front::Noise(1),
        }
    }

    fn consume(&mut self, len: usize) {
        self.start = self.start.saturating_add(len).min(self.end);
    }
}

impl Framing for PortFraming {
    fn seal(
        &mut self,
        head: FrameHead,
        mut buffer: Vec<u8>,
        _now_ms: u64,
    ) -> Result<Vec<u8>, FrameTooLong> {
        let body = buffer.len().saturating_sub(HEADER_LEN);
        let too_long = FrameTooLong { len: body };
        let len = u32::try_from(body).map_err(|_| too_long)?;
        if body > MAX_FRAME_LEN {
            return Err(too_long);
        }
        if let Some(front) = buffer.get_mut(..HEADER_LEN) {
            front.copy_from_slice(&Self::header(head, len));
        }
        Ok(buffer)
    }

    fn missing(&self) -> Option<usize> {
        let (_, len) = self.head?;
        Some(HEADER_LEN.saturating_add(len).saturating_sub(self.pending().len()))
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end.saturating_add(len) > self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        let wanted = self.end.saturating_add(len);
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    fn filled(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(self.buffer.len());
    }

    fn next_span(&mut self) -> Option<(FrameHead, Range<usize>)> {
        loop {
            if let Some((head, len)) = self.head {
                let from = self.start.saturating_add(HEADER_LEN);
                let to = from.saturating_add(len);
                if to > self.end {
                    return None;
                }
                self.start = to;
                self.head = None;
                return Some((head, from..to));
            }
            if self.start == self.end {
                return None;
            }
            match self.front() {
                Front::Short => return None,
                Front::Noise(len) => {
                    self.dropped = self.dropped.saturating_add(len as u64);
                    self.consume(len);
                }
                Front::Header { head, len } => self.head = Some((head, len)),
            }
        }
    }

    fn body(&self, span: &Range<usize>) -> &[u8] {
        self.buffer.get(span.clone()).unwrap_or_default()
    }

    fn detach(&mut self, mut spare: Vec<u8>) -> Vec<u8> {
        let pending = self.buffer.get(self.start..self.end).unwrap_or_default();
        let len = pending.len();
        if spare.len() < len {
            spare.resize(len, 0);
        }
        if let Some(front) = spare.get_mut(..len) {
            front.copy_from_slice(pending);
        }
        (self.start, self.end) = (0, len);
        core::mem::replace(&mut self.buffer, spare)
    }

    fn accept_only(&mut self, session: Session) {
        self.accepted = Some(session);
        // Its head is looked at again, with other eyes.
        self.head = None;
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }

    fn restart(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::default() };
    }
}
