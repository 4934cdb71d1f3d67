//! COBS frames for ttys, where kernel messages and line noise may mix in.
//!
//! ```text
//! 00  COBS( session, 8 bytes LE | body | CRC-32 (IEEE 802.3) of session and body, 4 bytes LE )  00
//! ```
//! COBS (Cheshire and Baker, 1999) leaves no zero byte inside, so a zero always is a boundary. The
//! zero in front closes whatever noise came before. What stands between two zeros and does not
//! check is dropped whole.

use super::{Frame, FrameTooLong, Framing, Session, u32_at, u64_at};
use crate::MAX_FRAME_LEN;

const SESSION_LEN: usize = 8;
const CRC_LEN: usize = 4;

/// The longest run without a zero that can still be a frame.
const MAX_ENCODED_LEN: usize = cobs::max_encoding_length(SESSION_LEN + MAX_FRAME_LEN + CRC_LEN);

/// See the module.
#[derive(Debug, Default)]
pub struct TtyFraming {
    /// Bytes since the last boundary that has been looked at.
    buffer: Vec<u8>,
    /// Bytes of `buffer` already searched for a zero.
    searched: usize,
    /// A run over [`MAX_ENCODED_LEN`] is under way: drop up to the next zero.
    overlong: bool,
    accepted: Option<Session>,
    dropped: u64,
}

impl TtyFraming {
    fn check(&self, run: &[u8]) -> Option<Frame> {
        let mut data = cobs::decode_vec(run).ok()?;
        let body_end = data.len().checked_sub(CRC_LEN)?;
        let crc = u32_at(&data, body_end)?;
        data.truncate(body_end);
        if crc32fast::hash(&data) != crc {
            return None;
        }
        let session = Session(u64_at(&data, 0)?);
        let body = data.split_off(SESSION_LEN);
        let accepted = self.accepted.is_none_or(|accepted| accepted == session);
        (accepted && body.len() <= MAX_FRAME_LEN).then_some(Frame { session, body })
    }

    fn drop_bytes(&mut self, len: usize) {
        self.dropped = self.dropped.saturating_add(len as u64);
    }
}

impl Framing for TtyFraming {
    fn encode(&self, session: Session, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameTooLong> {
        if body.len() > MAX_FRAME_LEN {
            return Err(FrameTooLong { len: body.len() });
        }
        let mut data = Vec::with_capacity(SESSION_LEN + body.len() + CRC_LEN);
        data.extend_from_slice(&session.0.to_le_bytes());
        data.extend_from_slice(body);
        data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
        out.push(0);
        out.extend_from_slice(&cobs::encode_vec(&data));
        out.push(0);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(zero) = unsearched.iter().position(|&byte| byte == 0) else {
                self.searched = self.buffer.len();
                if self.overlong || self.buffer.len() > MAX_ENCODED_LEN {
                    self.overlong = true;
                    self.drop_bytes(self.buffer.len());
                    self.buffer = Vec::new();
                    self.searched = 0;
                }
                return None;
            };
            let end = self.searched.saturating_add(zero);
            let rest = self.buffer.split_off(end.saturating_add(1));
            let mut run = core::mem::replace(&mut self.buffer, rest);
            run.truncate(end);
            self.searched = 0;
            let overlong = core::mem::take(&mut self.overlong) || run.len() > MAX_ENCODED_LEN;
            if run.is_empty() {
                continue;
            }
            match self.check(&run) {
                Some(frame) if !overlong => return Some(frame),
                _ => self.drop_bytes(run.len()),
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
