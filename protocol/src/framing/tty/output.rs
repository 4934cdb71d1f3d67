//! Frames that the other end has not acknowledged, and when they are sent again.

use crate::framing::FrameHead;
use std::collections::VecDeque;

/// So many frames may be under way without an acknowledgement.
const WINDOW: usize = 8;

/// So many frames may wait for their turn before a sender of bulk is told to wait.
const QUEUE: usize = 4;

/// An acknowledgement is waited for so long at first, in milliseconds; on a line that was measured to be slow, longer.
const FIRST_WAIT_MS: u64 = 400;
const SLOWEST_WAIT_MS: u64 = 30_000;

/// Each repetition in vain doubles that, up to so long.
const LAST_WAIT_MS: u64 = 5_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    next: u32,
    /// The first `sent` are under way, the others wait for their turn.
    frames: VecDeque<Kept>,
    sent: usize,
    /// Bytes of all their bodies.
    len: usize,
    /// Repetitions since something was acknowledged.
    repetitions: u32,
    /// How long the line is given before the first of them.
    line_ms: u64,
    /// None while it is not known how late it is.
    repeat_at_ms: Option<u64>,
    /// When the frame was sent that was acknowledged last. One that was repeated says nothing of the line (Karn and
    /// Partridge, 1987): which of its copies was acknowledged is not known.
    timed_from_ms: Option<u64>,
}

/// A frame that comes again until it is acknowledged.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) sequence: u32,
    pub(super) head: FrameHead,
    pub(super) body: Vec<u8>,
    /// When it was sent first.
    sent_ms: Option<u64>,
    is_repeated: bool,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            next: 0,
            frames: VecDeque::new(),
            sent: 0,
            len: 0,
            repetitions: 0,
            line_ms: FIRST_WAIT_MS,
            repeat_at_ms: None,
            timed_from_ms: None,
        }
    }
}

impl Output {
    /// Keeps a frame, to be sent when it is its turn.
    pub(super) fn keep(&mut self, head: FrameHead, body: Vec<u8>) {
        let sequence = self.next;
        self.next = sequence.wrapping_add(1);
        self.len = self.len.saturating_add(body.len());
        self.frames.push_back(Kept { sequence, head, body, sent_ms: None, is_repeated: false });
    }

    /// The frame whose turn it is.
    pub(super) fn turn(&self) -> Option<&Kept> {
        // What was repeated twice in vain is asked after with one frame: the line may be slow, or nobody there.
        let window = if self.repetitions > 2 { 1 } else { WINDOW };
        self.frames.get(self.sent).filter(|_| self.sent < window)
    }

    /// It is sent.
    pub(super) fn sent(&mut self, now_ms: u64) {
        if let Some(kept) = self.frames.get_mut(self.sent) {
            kept.sent_ms.get_or_insert(now_ms);
            self.sent = self.sent.saturating_add(1);
            let at = now_ms.saturating_add(self.wait_ms());
            self.repeat_at_ms.get_or_insert(at);
        }
    }

    /// Everything before `ack` has arrived.
    pub(super) fn acknowledged(&mut self, ack: u32) {
        let first = self.frames.front().map_or(self.next, |kept| kept.sequence);
        let count = ack.wrapping_sub(first) as usize;
        let newest = count.checked_sub(1).and_then(|at| self.frames.get(at));
        // What was never sent has not arrived.
        let Some(sent_ms) = newest.and_then(|kept| kept.sent_ms) else { return };
        self.timed_from_ms = newest.filter(|kept| !kept.is_repeated).map(|_| sent_ms);
        for kept in self.frames.drain(..count) {
            self.len = self.len.saturating_sub(kept.body.len());
        }
        self.sent = self.sent.saturating_sub(count);
        self.repetitions = 0;
        self.repeat_at_ms = None;
    }

    /// Looks at the clock: what was not acknowledged in time has its turn again. While bytes wait to be written
    /// (`is_drained` is false) it cannot have been: a copy more would only make the line later.
    pub(super) fn look(&mut self, now_ms: u64, is_drained: bool) {
        if let Some(sent_ms) = self.timed_from_ms.take() {
            let took = now_ms.saturating_sub(sent_ms);
            self.line_ms = took.saturating_mul(2).clamp(FIRST_WAIT_MS, SLOWEST_WAIT_MS);
        }
        let is_late = self.repeat_at_ms.is_some_and(|at| at <= now_ms);
        if is_late && is_drained {
            self.repeat();
        }
        if is_late || self.repeat_at_ms.is_none() {
            let at = now_ms.saturating_add(self.wait_ms());
            self.repeat_at_ms = (!self.frames.is_empty()).then_some(at);
        }
    }

    fn repeat(&mut self) {
        for kept in self.frames.iter_mut().take(self.sent) {
            kept.is_repeated = true;
        }
        self.sent = 0;
        self.repetitions = self.repetitions.saturating_add(1);
    }

    fn wait_ms(&self) -> u64 {
        let doubled = self.line_ms.saturating_mul(1 << self.repetitions.min(8));
        doubled.min(LAST_WAIT_MS).max(self.line_ms)
    }

    /// When to look next.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        (!self.frames.is_empty()).then_some(self.repeat_at_ms.unwrap_or(0))
    }

    /// Nothing that was kept is sent any more.
    pub(super) fn forget(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// Bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_congested(&self) -> bool {
        self.frames.len() >= WINDOW.saturating_add(QUEUE)
    }
}
