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
//! of them are sent again when that takes too long (go-back-N, at most 8 under way). A
//! session begins with sequence number 0 in both directions; that is its hello.

use super::{CRC, FrameHead, FrameKind, FrameTooLong, Framing, HEADROOM, Session, u32_at, u64_at};
use crate::MAX_FRAME_LEN;
use core::ops::Range;
use std::collections::VecDeque;

const HEAD_LEN: usize = 22;
const CRC_LEN: usize = 4;

/// The longest run without a zero that can still be a frame.
const MAX_ENCODED_LEN: usize = cobs::max_encoding_length(HEAD_LEN + MAX_FRAME_LEN + CRC_LEN);

/// So many frames may be under way without an acknowledgement.
const WINDOW: usize = 8;

/// So many frames may wait for their turn before a sender of bulk is told to wait.
const QUEUE: usize = 4;

/// A frame carries so much of a stream: noise costs that much again.
const DATA_LEN: usize = 1024;

/// Frames are sent again after so long without progress, in milliseconds, doubled each time.
const FIRST_RETRY_MS: u64 = 400;
const LAST_RETRY_MS: u64 = 5_000;

/// After so many times without an answer nothing is sent until the other side is heard.
const MAX_RETRIES: u32 = 40;

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
    output: Output,
    /// The next sequence number to arrive.
    expected: u32,
    ack_due: bool,
}

/// Bytes that arrive, cut at zeros.
#[derive(Debug, Default)]
struct Input {
    buffer: Vec<u8>,
    len: usize,
    /// Bytes of `buffer` already searched for a zero.
    searched: usize,
    /// A run over [`MAX_ENCODED_LEN`] is under way: drop up to the next zero.
    overlong: bool,
    /// The frame that was handed out last.
    frame: Vec<u8>,
    dropped: u64,
}

/// Frames that are not acknowledged.
#[derive(Debug, Default)]
struct Output {
    next: u32,
    /// The first [`WINDOW`] at most have been sent; the others wait.
    frames: VecDeque<Kept>,
    sent: usize,
    retries: u32,
    retry_at_ms: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    sequence: u32,
    head: FrameHead,
    body: Vec<u8>,
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
            output: Output::default(),
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
        while self.output.sent < WINDOW
            && let Some(kept) = self.output.frames.get(self.output.sent)
        {
            self.write(kept.head.kind.to_byte(), kept.head, kept.sequence, &kept.body, out);
            self.output.sent = self.output.sent.saturating_add(1);
            self.ack_due = false;
            if self.output.retry_at_ms.is_none() {
                self.output.retry_at_ms = Some(now_ms.saturating_add(FIRST_RETRY_MS));
            }
        }
    }

    /// Everything before `ack` has arrived.
    fn acknowledged(&mut self, ack: u32) {
        let output = &mut self.output;
        let first = output.frames.front().map_or(output.next, |kept| kept.sequence);
        let count = ack.wrapping_sub(first) as usize;
        if count == 0 || count > output.sent {
            return;
        }
        output.frames.drain(..count);
        output.sent = output.sent.saturating_sub(count);
        output.retries = 0;
        // The next look finds out when.
        output.retry_at_ms = (output.sent > 0).then_some(0);
    }

    /// What a run between two zeros is, and whether it is to be handed out.
    fn take(&mut self, run: &[u8]) -> Option<FrameHead> {
        let mut data = cobs::decode_vec(run).ok()?;
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
        self.input.frame = data;
        Some(head)
    }

    fn sequence(&mut self, frame: &Checked) -> Option<FrameHead> {
        let (session, channel) = (frame.session, frame.channel);
        let head =
            FrameKind::from_byte(frame.kind).map(|kind| FrameHead { session, channel, kind });
        if session == self.session {
            self.acknowledged(frame.ack);
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
        let sequence = self.output.next;
        self.output.next = sequence.wrapping_add(1);
        self.output.frames.push_back(Kept { sequence, head, body: body.to_vec() });
        self.send_waiting(now_ms, &mut out);
        Ok(out)
    }

    fn space(&mut self, len: usize) -> &mut [u8] {
        let wanted = self.input.len.saturating_add(len);
        if wanted > self.input.buffer.len() {
            self.input.buffer.resize(wanted, 0);
        }
        self.input.buffer.get_mut(self.input.len..).unwrap_or_default()
    }

    fn filled(&mut self, len: usize) {
        self.input.len = self.input.len.saturating_add(len).min(self.input.buffer.len());
    }

    fn next_span(&mut self) -> Option<(FrameHead, Range<usize>)> {
        loop {
            let input = &mut self.input;
            let arrived = input.buffer.get(..input.len).unwrap_or_default();
            let unsearched = arrived.get(input.searched..).unwrap_or_default();
            let Some(zero) = unsearched.iter().position(|&byte| byte == 0) else {
                input.searched = input.len;
                if input.overlong || input.len > MAX_ENCODED_LEN {
                    input.overlong = true;
                    input.dropped = input.dropped.saturating_add(input.len as u64);
                    (input.len, input.searched) = (0, 0);
                    input.buffer = Vec::new();
                }
                return None;
            };
            let end = input.searched.saturating_add(zero);
            let run = arrived.get(..end).unwrap_or_default().to_vec();
            let next = end.saturating_add(1);
            input.buffer.copy_within(next..input.len, 0);
            input.len = input.len.saturating_sub(next);
            input.searched = 0;
            let overlong = core::mem::take(&mut input.overlong) || run.len() > MAX_ENCODED_LEN;
            if run.is_empty() {
                continue;
            }
            match self.take(&run) {
                Some(head) if !overlong => {
                    return Some((head, HEAD_LEN..self.input.frame.len()));
                }
                _ => self.input.dropped = self.input.dropped.saturating_add(run.len() as u64),
            }
        }
    }

    fn body(&self, span: &Range<usize>) -> &[u8] {
        self.input.frame.get(span.clone()).unwrap_or_default()
    }

    fn detach(&mut self, spare: Vec<u8>) -> Vec<u8> {
        core::mem::replace(&mut self.input.frame, spare)
    }

    fn accept_only(&mut self, session: Session) {
        self.accepted = Some(session);
    }

    fn dropped(&self) -> u64 {
        self.input.dropped
    }

    fn due(&mut self, now_ms: u64) -> Vec<u8> {
        let mut out = Vec::new();
        if self.output.retry_at_ms == Some(0) {
            self.output.retry_at_ms = Some(now_ms.saturating_add(FIRST_RETRY_MS));
        }
        if self.output.retry_at_ms.is_some_and(|at| at <= now_ms) {
            self.output.retries = self.output.retries.saturating_add(1);
            self.output.retry_at_ms = None;
            if self.output.retries <= MAX_RETRIES {
                let wait = FIRST_RETRY_MS << self.output.retries.min(8);
                self.output.sent = 0;
                self.output.retry_at_ms = Some(now_ms.saturating_add(wait.min(LAST_RETRY_MS)));
            }
        }
        self.send_waiting(now_ms, &mut out);
        if core::mem::take(&mut self.ack_due) {
            let head = FrameHead::message(self.session, 0);
            self.write(KIND_ACK, head, UNSEQUENCED, &[], &mut out);
        }
        out
    }

    fn deadline_ms(&self) -> Option<u64> {
        if self.ack_due { Some(0) } else { self.output.retry_at_ms }
    }

    fn is_congested(&self) -> bool {
        self.output.frames.len() >= WINDOW.saturating_add(QUEUE)
    }

    fn data_len(&self) -> usize {
        DATA_LEN
    }

    fn restart(&mut self) {
        let dropped = self.input.dropped;
        *self = Self::new(self.end);
        self.input.dropped = dropped;
    }
}
