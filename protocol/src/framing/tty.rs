//! COBS frames for ttys, where kernel messages, a getty or line noise may mix in at any byte.
//!
//! All numbers are little-endian.
//! ```text
//! 00  COBS( head | body | CRC-32 (IEEE 802.3) of head and body )  00
//!
//! head: offset  bytes
//!            0      1  sender: 0 host, 1 guest; what a tty echoes is known by it
//!            1      1  kind: 0 message, 1 data of stream 0, 2 data of stream 1, FF acknowledgement alone
//!            2      8  session
//!           10      4  channel
//!           14      4  sequence number, counted from 0 in each session and direction; FFFFFFFF when not in sequence
//!           18      4  the next sequence number that the sender of this frame expects: all before it have arrived
//! ```
//! COBS (Cheshire and Baker, 1999) leaves no zero byte inside, so a zero always is a boundary. The
//! zero in front closes whatever noise came before. What stands between two zeros and does not
//! check is dropped whole, and comes again: frames are kept until they are acknowledged, and all
//! of them are sent again when that takes too long (go-back-N, at most 8 under way; after a second
//! repetition in vain only the first, for as long as it takes). A session begins with sequence
//! number 0 in both directions; that is its hello.

mod input;
mod output;

use super::{CRC, FrameHead, FrameKind, FrameTooLong, Framing, HEADROOM, Session, u32_at, u64_at};
use crate::MAX_FRAME_LEN;
use core::ops::Range;
use input::Input;
use output::Output;

const HEAD_LEN: usize = 22;
const CRC_LEN: usize = 4;

/// The longest run without a zero that can still be a frame.
const MAX_ENCODED_LEN: usize = cobs::max_encoding_length(HEAD_LEN + MAX_FRAME_LEN + CRC_LEN);

/// A frame carries so much of a stream: noise costs that much again.
const DATA_LEN: usize = 1024;

/// The sequence number of a frame that is in no sequence.
const UNSEQUENCED: u32 = u32::MAX;

const KIND_ACK: u8 = 0xff;

/// One of the two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The controller.
    Host,
    /// The agent.
    Guest,
}

impl End {
    fn to_byte(self) -> u8 {
        match self {
            Self::Host => 0,
            Self::Guest => 1,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct TtyFraming {
    end: End,
    accepted: Option<Session>,
    /// The session that the sequence numbers belong to.
    session: Session,
    input: Input,
    /// The frame that was handed out last.
    frame: Vec<u8>,
    output: Output,
    /// Frames of the other end that checked.
    heard: u64,
    /// The next sequence number to arrive.
    expected: u32,
    ack_due: bool,
}

/// A run that checks.
struct Checked {
    kind: u8,
    session: Session,
    channel: u32,
    sequence: u32,
    ack: u32,
}

impl TtyFraming {
    /// The framing of one end.
    pub fn new(end: End) -> Self {
        Self {
            end,
            accepted: None,
            session: Session::NONE,
            input: Input::default(),
            frame: Vec::new(),
            output: Output::default(),
            heard: 0,
            expected: 0,
            ack_due: false,
        }
    }

    /// A session begins: nothing of the one before is owed.
    fn begin(&mut self, session: Session) {
        self.session = session;
        self.expected = 0;
        self.ack_due = false;
        self.output = Output::default();
    }

    fn write(&self, kind: u8, head: FrameHead, sequence: u32, body: &[u8], out: &mut Vec<u8>) {
        let mut data =
            Vec::with_capacity(HEAD_LEN.saturating_add(body.len()).saturating_add(CRC_LEN));
        data.push(self.end.to_byte());
        data.push(kind);
        data.extend_from_slice(&head.session.0.to_le_bytes());
        data.extend_from_slice(&head.channel.to_le_bytes());
        data.extend_from_slice(&sequence.to_le_bytes());
        data.extend_from_slice(&self.expected.to_le_bytes());
        data.extend_from_slice(body);
        data.extend_from_slice(&CRC.checksum(&data).to_le_bytes());
        out.push(0);
        out.extend_from_slice(&cobs::encode_vec(&data));
        out.push(0);
    }

    /// Sends what the window has room for.
    fn send_waiting(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        while let Some(kept) = self.output.turn() {
            self.write(kept.head.kind.to_byte(), kept.head, kept.sequence, &kept.body, out);
            self.output.sent(now_ms);
            self.ack_due = false;
        }
    }

    /// What a run between two zeros was before COBS, and whether it is to be handed out.
    fn take(&mut self, mut data: Vec<u8>) -> Option<FrameHead> {
        let body_end = data.len().checked_sub(CRC_LEN)?;
        let crc = u32_at(&data, body_end)?;
        data.truncate(body_end);
        if CRC.checksum(&data) != crc || data.len() < HEAD_LEN {
            return None;
        }
        let sender = *data.first()?;
        let checked = Checked {
            kind: *data.get(1)?,
            session: Session(u64_at(&data, 2)?),
            channel: u32_at(&data, 10)?,
            sequence: u32_at(&data, 14)?,
            ack: u32_at(&data, 18)?,
        };
        let accepted = self.accepted.is_none_or(|accepted| accepted == checked.session);
        let body_len = data.len().saturating_sub(HEAD_LEN);
        if sender == self.end.to_byte() || !accepted || body_len > MAX_FRAME_LEN {
            return None;
        }
        let head = self.sequence(&checked)?;
        self.frame = data;
        Some(head)
    }

    fn sequence(&mut self, frame: &Checked) -> Option<FrameHead> {
        let (session, channel) = (frame.session, frame.channel);
        let head =
            FrameKind::from_byte(frame.kind).map(|kind| FrameHead { session, channel, kind });
        if session == self.session {
            self.heard = self.heard.saturating_add(1);
            self.output.acknowledged(frame.ack);
        }
        if frame.kind == KIND_ACK {
            return None;
        }
        if frame.sequence == UNSEQUENCED {
            return head;
        }
        if session != self.session {
            if frame.sequence != 0 {
                // Of a session that this end knows nothing of: handed out, to be refused.
                return head;
            }
            self.begin(session);
        }
        // An acknowledgement is owed for what came again, too: the first one was lost.
        self.ack_due = true;
        if frame.sequence != self.expected {
            return None;
        }
        self.expected = self.expected.wrapping_add(1);
        head
    }
}

impl Framing for TtyFraming {
    fn seal(
        &mut self,
        head: FrameHead,
        buffer: Vec<u8>,
        now_ms: u64,
    ) -> Result<Vec<u8>, FrameTooLong> {
        let body = buffer.get(HEADROOM..).unwrap_or_default();
        if body.len() > MAX_FRAME_LEN {
            return Err(FrameTooLong { len: body.len() });
        }
        let mut out = Vec::new();
        if self.end == End::Host && head.session != self.session {
            self.begin(head.session);
        }
        if head.session == Session::NONE || head.session != self.session {
            self.write(head.kind.to_byte(), head, UNSEQUENCED, body, &mut out);
            return Ok(out);
        }
        self.output.keep(head, body.to_vec());
        self.send_waiting(now_ms, &mut out);
        Ok(out)
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        self.input.space(len)
    }

    fn filled(&mut self, len: usize) {
        self.input.filled(len);
    }

    fn next_span(&mut self) -> Option<(FrameHead, Range<usize>)> {
        while let Some(run) = self.input.next_run() {
            let (len, data) = (run.len(), cobs::decode_vec(run));
            match data.ok().and_then(|data| self.take(data)) {
                Some(head) => return Some((head, HEAD_LEN..self.frame.len())),
                None => self.input.count_dropped(len),
            }
        }
        None
    }

    fn body(&self, span: &Range<usize>) -> &[u8] {
        self.frame.get(span.clone()).unwrap_or_default()
    }

    fn detach(&mut self, spare: Vec<u8>) -> Vec<u8> {
        core::mem::replace(&mut self.frame, spare)
    }

    fn accept_only(&mut self, session: Session) {
        self.accepted = Some(session);
    }

    fn dropped(&self) -> u64 {
        self.input.dropped()
    }

    fn due(&mut self, now_ms: u64, is_drained: bool) -> Vec<u8> {
        let mut out = Vec::new();
        self.output.look(now_ms, is_drained);
        self.send_waiting(now_ms, &mut out);
        if core::mem::take(&mut self.ack_due) {
            let head = FrameHead::message(self.session, 0);
            self.write(KIND_ACK, head, UNSEQUENCED, &[], &mut out);
        }
        out
    }

    fn deadline_ms(&self) -> Option<u64> {
        if self.ack_due { Some(0) } else { self.output.deadline_ms() }
    }

    fn is_congested(&self) -> bool {
        self.output.is_congested()
    }

    fn kept(&self) -> usize {
        self.output.len()
    }

    fn heard(&self) -> u64 {
        self.heard
    }

    fn forget(&mut self) {
        self.output.forget();
    }

    fn data_len(&self) -> usize {
        DATA_LEN
    }

    fn restart(&mut self) {
        self.input.restart();
        let input = core::mem::take(&mut self.input);
        *self = Self { input, ..Self::new(self.end) };
    }
}

#[cfg(test)]
mod tests;
