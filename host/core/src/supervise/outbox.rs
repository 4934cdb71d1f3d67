//! What waits to be written to one client.
//!
//! Data that comes in small pieces is put together as long as it waits, so that what a piece costs beside its bytes is
//! bounded, too. It may overtake messages of its channel that way; no message overtakes data.

use super::budget::Budget;
use super::proxy::Opening;
use crate::link::data_buffer;
use guestline_protocol::{FrameHead, FrameKind, HEADROOM, Reply, Stream, encode};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What a message in the queue takes beside its bytes.
const OVERHEAD: usize = 128;

/// Small pieces of data share a buffer of so many bytes.
const SHARED: usize = 4096;

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) head: FrameHead,
    /// Whose it is; none of an answer that the guest knows nothing of.
    pub(super) opening: Option<Opening>,
    /// The body, with its head spare.
    pub(super) buffer: Vec<u8>,
    /// The last of its channel.
    pub(super) is_last: bool,
}

impl Outgoing {
    /// Bytes of data.
    pub(super) fn data_len(&self) -> usize {
        match self.head.kind {
            FrameKind::Message => 0,
            FrameKind::Data(_) => self.buffer.len() - HEADROOM,
        }
    }

    fn message_len(&self) -> usize {
        match self.head.kind {
            FrameKind::Message => self.buffer.len() + OVERHEAD,
            FrameKind::Data(_) => 0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: VecDeque<Outgoing>,
    /// Number of the first frame; they are counted from 0.
    first: u64,
    /// The last data frame of each stream, by number.
    tails: HashMap<(Opening, Stream), u64>,
    /// Bytes of messages.
    messages: usize,
    budget: Arc<Budget>,
}

impl Outbox {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        let (frames, tails) = (VecDeque::new(), HashMap::new());
        Self { frames, first: 0, tails, messages: 0, budget }
    }

    /// False when too many wait.
    #[must_use]
    pub(super) fn push_message(
        &mut self,
        head: FrameHead,
        opening: Option<Opening>,
        reply: &Reply,
    ) -> bool {
        let frame = Outgoing { head, opening, buffer: encode(reply), is_last: reply.is_final() };
        let len = frame.message_len();
        self.messages += len;
        self.frames.push_back(frame);
        self.budget.add_message(len, self.messages)
    }

    pub(super) fn push_data(
        &mut self,
        head: FrameHead,
        opening: Opening,
        stream: Stream,
        bytes: &[u8],
    ) {
        let tail = self.tails.get(&(opening, stream)).and_then(|number| {
            let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
            self.frames.get_mut(at)
        });
        if let Some(tail) = tail
            && tail.buffer.len() + bytes.len() <= SHARED
        {
            tail.buffer.extend_from_slice(bytes);
            return;
        }
        let mut buffer = data_buffer(bytes.len().max(SHARED - HEADROOM));
        buffer.extend_from_slice(bytes);
        self.tails.insert((opening, stream), self.first + self.frames.len() as u64);
        self.frames.push_back(Outgoing { head, opening: Some(opening), buffer, is_last: false });
    }

    /// The next frame to be written.
    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        let frame = self.frames.pop_front()?;
        let number = self.first;
        self.first += 1;
        if let (FrameKind::Data(stream), Some(opening)) = (frame.head.kind, frame.opening)
            && self.tails.get(&(opening, stream)) == Some(&number)
        {
            self.tails.remove(&(opening, stream));
        }
        self.forget(frame.message_len());
        Some(frame)
    }

    /// Nobody wants what waits.
    pub(super) fn clear(&mut self) {
        self.first += self.frames.len() as u64;
        self.frames.clear();
        self.tails.clear();
        self.forget(self.messages);
    }

    fn forget(&mut self, len: usize) {
        self.messages -= len;
        self.budget.drop_messages(len);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{CreditEvent, DoneResponse, Session};
    use proptest::prelude::*;

    const OPENING: Opening = Opening { channel: 1, number: 1 };

    fn outbox() -> (Outbox, Arc<Budget>) {
        let budget = Arc::new(Budget::default());
        (Outbox::new(budget.clone()), budget)
    }

    fn push(outbox: &mut Outbox, stream: Stream, bytes: &[u8]) {
        outbox.push_data(FrameHead::data(Session(7), 1, stream), OPENING, stream, bytes);
    }

    fn say(outbox: &mut Outbox, reply: &Reply) -> bool {
        outbox.push_message(FrameHead::message(Session(7), 1), Some(OPENING), reply)
    }

    #[test]
    fn pieces_of_a_byte_cost_little_more_than_their_bytes() {
        let (mut outbox, _) = outbox();
        for n in 0..256 * 1024 {
            push(&mut outbox, Stream::Stdout, &[n as u8]);
            push(&mut outbox, Stream::Stderr, &[1]);
        }
        let held: usize = outbox.frames.iter().map(|frame| frame.buffer.capacity()).sum();
        assert!(held < 600 * 1024, "{held}");
        assert!(outbox.frames.len() < 200, "{}", outbox.frames.len());
    }

    #[test]
    fn messages_are_bounded_and_given_back() {
        let (mut outbox, budget) = outbox();
        let credit = Reply::Credit(CreditEvent { bytes: 1 });
        let fit = (0..100_000).take_while(|_| say(&mut outbox, &credit)).count();
        assert!((10_000..50_000).contains(&fit), "{fit}");
        assert!(outbox.pop().is_some());
        drop(outbox);
        assert!(budget.is_untouched());
    }

    proptest! {
        /// Each stream comes as it was sent, and the last word after all of it.
        #[test]
        fn what_is_put_together_keeps_its_order(
            steps in prop::collection::vec((any::<bool>(), 0..6000_usize, 0..4_u8), 0..60),
        ) {
            let (mut outbox, budget) = outbox();
            let (mut sent, mut got) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            let mut take = |frame: Option<Outgoing>| {
                if let Some(Outgoing { head: FrameHead { kind: FrameKind::Data(stream), .. }, buffer, .. }) = frame {
                    got[usize::from(stream == Stream::Stderr)].extend_from_slice(&buffer[HEADROOM..]);
                }
            };
            let credit = Reply::Credit(CreditEvent { bytes: 1 });
            for (number, (second, len, then)) in steps.into_iter().enumerate() {
                let (stream, at) = if second { (Stream::Stderr, 1) } else { (Stream::Stdout, 0) };
                let bytes = vec![number as u8; len];
                push(&mut outbox, stream, &bytes);
                sent[at].extend(bytes);
                match then {
                    0 => take(outbox.pop()),
                    1 => prop_assert!(say(&mut outbox, &credit)),
                    _ => {}
                }
            }
            let done = Reply::Done(DoneResponse {});
            prop_assert!(say(&mut outbox, &done));
            let mut last = false;
            while let Some(frame) = outbox.pop() {
                prop_assert!(!last);
                last = frame.is_last;
                take(Some(frame));
            }
            prop_assert!(last);
            prop_assert_eq!(sent, got);
            prop_assert!(outbox.tails.is_empty());
            prop_assert!(budget.is_untouched());
        }
    }
}
