//! What came on a channel and waits for its taker. Small pieces of data are joined, so that it takes memory in
//! proportion to what was granted, and not to the frames in which the guest chose to send it.

use super::LinkError;
use guestline_protocol::{Reply, Stream};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Pieces are joined up to so many bytes. What is longer would be copied for nothing.
const JOINED: usize = 16 * 1024;

/// With so many pieces waiting, data joins the last of its stream even past data of the other: their order among
/// each other is lost then.
const MANY: usize = 1024;

/// What came, with what it takes of the budget, or why nothing comes any more.
#[derive(Debug)]
pub(super) enum Item {
    Reply { reply: Reply, len: usize },
    Data { stream: Stream, bytes: Vec<u8> },
    Lost(LinkError),
}

/// The taker's end.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Shared>);

/// The session's end.
#[derive(Debug)]
pub(super) struct InboxSender(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Nothing comes any more.
    is_over: bool,
    /// Nobody takes what comes.
    is_left: bool,
}

/// An empty one.
pub(super) fn inbox() -> (InboxSender, Inbox) {
    let shared = Arc::new(Shared::default());
    (InboxSender(shared.clone()), Inbox(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InboxSender {
    /// False when nobody takes it.
    pub(super) fn send(&self, item: Item) -> bool {
        let mut waiting = self.0.lock();
        if waiting.is_left {
            return false;
        }
        waiting.items.push_back(item);
        drop(waiting);
        self.0.arrived.notify_one();
        true
    }

    /// As [`InboxSender::send`], of data.
    pub(super) fn send_data(&self, stream: Stream, bytes: &[u8]) {
        let joined = match self.0.lock().last_piece(stream, bytes.len()) {
            Some(piece) => {
                piece.extend_from_slice(bytes);
                true
            }
            None => false,
        };
        if !joined {
            self.send(Item::Data { stream, bytes: bytes.to_vec() });
        }
    }
}

impl Waiting {
    /// A piece that has room for so much more of a stream.
    fn last_piece(&mut self, stream: Stream, len: usize) -> Option<&mut Vec<u8>> {
        let reach = if self.items.len() < MANY { 1 } else { 2 };
        for item in self.items.iter_mut().rev().take(reach) {
            match item {
                Item::Data { stream: of, bytes } if *of == stream => {
                    return (bytes.len() + len <= JOINED).then_some(bytes);
                }
                Item::Data { .. } => {}
                Item::Reply { .. } | Item::Lost(_) => return None,
            }
        }
        None
    }
}

impl Drop for InboxSender {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.arrived.notify_one();
    }
}

impl Inbox {
    /// The next item; none when nothing comes any more. Cancel safe.
    pub(super) async fn recv(&mut self) -> Option<Item> {
        loop {
            {
                let mut waiting = self.0.lock();
                if let Some(item) = waiting.items.pop_front() {
                    return Some(item);
                }
                if waiting.is_over {
                    return None;
                }
            }
            self.0.arrived.notified().await;
        }
    }

    /// Pieces that wait.
    #[cfg(test)]
    pub(super) fn pieces(&self) -> usize {
        self.0.lock().items.len()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.is_left = true;
        waiting.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::DoneResponse;
    use proptest::prelude::*;

    async fn data(inbox: &mut Inbox) -> (Stream, Vec<u8>) {
        match inbox.recv().await {
            Some(Item::Data { stream, bytes }) => (stream, bytes),
            other => panic!("{other:?}"),
        }
    }

    /// Bytes that the pieces of an inbox take.
    fn memory(inbox: &Inbox) -> usize {
        let waiting = inbox.0.lock();
        let bytes = waiting.items.iter().map(|item| match item {
            Item::Data { bytes, .. } => bytes.capacity(),
            _ => 0,
        });
        bytes.sum::<usize>() + waiting.items.capacity() * size_of::<Item>()
    }

    #[tokio::test]
    async fn a_million_tiny_pieces_take_about_a_million_bytes() {
        for streams in [[Stream::Stdout, Stream::Stdout], [Stream::Stdout, Stream::Stderr]] {
            let (sender, mut inbox) = inbox();
            for number in 0..1_000_000 {
                sender.send_data(streams[number % 2], &[number as u8]);
            }
            assert!(memory(&inbox) < 3_000_000, "{}", memory(&inbox));
            drop(sender);
            let mut found = 0;
            while let Some(Item::Data { bytes, .. }) = inbox.recv().await {
                found += bytes.len();
            }
            assert_eq!(found, 1_000_000);
        }
    }

    #[tokio::test]
    async fn nothing_passes_a_reply() {
        let (sender, mut inbox) = inbox();
        sender.send_data(Stream::Stdout, b"before");
        sender
            .send(Item::Reply { reply: guestline_protocol::Reply::Done(DoneResponse {}), len: 1 });
        sender.send_data(Stream::Stdout, b"after");
        assert_eq!(data(&mut inbox).await.1, b"before");
        assert!(matches!(inbox.recv().await, Some(Item::Reply { .. })));
        assert_eq!(data(&mut inbox).await.1, b"after");
    }

    #[tokio::test]
    async fn who_is_gone_is_known_on_both_sides() {
        let (sender, inbox) = inbox();
        drop(inbox);
        assert!(!sender.send(Item::Lost(LinkError::Closed)));
        let (sender, mut inbox) = super::inbox();
        let waiting = tokio::spawn(async move { inbox.recv().await.is_none() });
        tokio::task::yield_now().await;
        drop(sender);
        assert!(waiting.await.unwrap());
    }

    proptest! {
        /// However it is sent, each stream comes whole and in order, and few pieces are small.
        #[test]
        fn streams_come_whole(pieces in prop::collection::vec((any::<bool>(), 0..9_000usize), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (sender, mut inbox) = inbox();
            let (mut sent, mut found) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            for (number, (is_stderr, len)) in pieces.into_iter().enumerate() {
                let stream = if is_stderr { Stream::Stderr } else { Stream::Stdout };
                sender.send_data(stream, &vec![number as u8; len]);
                sent[usize::from(is_stderr)].extend(vec![number as u8; len]);
            }
            drop(sender);
            while let Some(Item::Data { stream, bytes }) = runtime.block_on(inbox.recv()) {
                prop_assert!(bytes.len() <= JOINED);
                found[usize::from(stream == Stream::Stderr)].extend(bytes);
            }
            prop_assert_eq!(sent, found);
        }
    }
}
