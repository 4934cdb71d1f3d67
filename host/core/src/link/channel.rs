//! One request on the link: its replies, and data both ways.

use super::ids::ChannelId;
use super::inbox::{Inbox, Item};
use super::session::{DataOrder, Order};
use super::{Link, LinkError};
use guestline_protocol::{
    CancelEvent, EndEvent, HEADROOM, Reply, Request, Stream, encode, worth_granting,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::watch;

/// What comes on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A message.
    Reply(Reply),
    /// Data.
    Data {
        /// Of which stream.
        stream: Stream,
        /// Any bytes.
        bytes: Vec<u8>,
    },
}

/// One request. Dropping it before its last reply cancels it in the guest.
#[derive(Debug)]
pub struct Channel {
    reader: ChannelReader,
    writer: ChannelWriter,
}

/// What comes on a channel. Dropping it cancels the request.
#[derive(Debug)]
pub struct ChannelReader {
    id: Arc<ChannelId>,
    link: Link,
    inbox: Inbox,
    ended: bool,
    window: u32,
    /// Bytes that were taken, and that the session does not know of yet.
    used: usize,
    relayed: bool,
}

/// What goes out on a channel.
#[derive(Debug)]
pub struct ChannelWriter {
    id: Arc<ChannelId>,
    link: Link,
    /// All that the guest has granted so far.
    granted: watch::Receiver<u64>,
    sent: u64,
}

/// Sends requests on a channel, beside whoever sends its data. Does not keep it open. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChannelTeller {
    id: Arc<ChannelId>,
    link: Link,
}

/// An empty buffer for [`ChannelWriter::send`], with room for `len` bytes behind its head.
pub fn data_buffer(len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(HEADROOM + len);
    buffer.resize(HEADROOM, 0);
    buffer
}

impl Channel {
    pub(super) fn new(
        id: Arc<ChannelId>,
        link: Link,
        inbox: Inbox,
        granted: watch::Receiver<u64>,
        window: u32,
        relayed: bool,
    ) -> Self {
        link.windows.fetch_add(window as usize, Ordering::Relaxed);
        let writer = ChannelWriter { id: id.clone(), link: link.clone(), granted, sent: 0 };
        let reader = ChannelReader { id, link, inbox, ended: false, window, used: 0, relayed };
        Self { reader, writer }
    }

    /// The two directions, for two tasks.
    pub fn split(self) -> (ChannelReader, ChannelWriter) {
        (self.reader, self.writer)
    }

    /// See [`ChannelReader::next`].
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn next(&mut self) -> Result<Arrival, LinkError> {
        self.reader.next().await
    }

    /// The next reply, data before it being dropped. Cancel safe.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn reply(&mut self) -> Result<Reply, LinkError> {
        loop {
            if let Arrival::Reply(reply) = self.reader.next().await? {
                return Ok(reply);
            }
        }
    }

    /// Pieces that wait to be taken.
    #[cfg(test)]
    pub(super) fn pieces(&self) -> usize {
        self.reader.inbox.pieces()
    }

    /// Sends; see [`ChannelWriter::send`].
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn send(&mut self, buffer: Vec<u8>) -> Result<(), LinkError> {
        self.writer.send(buffer).await
    }
}

impl ChannelReader {
    /// The next thing that comes. Not to be called after the last reply. Cancel safe.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn next(&mut self) -> Result<Arrival, LinkError> {
        let channel = self.id.number();
        match self.inbox.recv().await {
            Some(Item::Reply { reply, len }) => {
                self.ended = reply.is_final();
                let _ = self.link.orders.send(Order::UsedReply { channel, len });
                Ok(Arrival::Reply(reply))
            }
            Some(Item::Data { stream, bytes }) => {
                self.use_up(bytes.len());
                Ok(Arrival::Data { stream, bytes })
            }
            Some(Item::Lost(error)) => {
                self.ended = true;
                Err(error)
            }
            None => {
                self.ended = true;
                Err(self.link.end().await)
            }
        }
    }

    /// The session is told when that makes it grant more: a wake-up for each piece would cost as much as the piece.
    fn use_up(&mut self, len: usize) {
        self.used += len;
        if !self.relayed && self.used as u64 >= worth_granting(self.window.into()) {
            let (channel, len) = (self.id.number(), std::mem::take(&mut self.used));
            let _ = self.link.orders.send(Order::UsedData { channel, len });
        }
    }

    /// Asks the guest to end what the channel does; its last reply still comes.
    pub fn cancel(&self) {
        self.link.tell(self.id.number(), &Request::Cancel(CancelEvent {}));
    }
}

impl Drop for ChannelReader {
    fn drop(&mut self) {
        self.link.windows.fetch_sub(self.window as usize, Ordering::Relaxed);
        let _ = self.link.orders.send(Order::Drop { channel: self.id.number(), ended: self.ended });
    }
}

impl ChannelWriter {
    /// Sends data, made with [`data_buffer`], as the guest grants credit for it. What the guest does not want any more,
    /// since the channel has ended, is dropped.
    ///
    /// # Errors
    /// Why the link ended.
    ///
    /// # Cancel safety
    /// Not cancel safe: some of the data may have been sent.
    pub async fn send(&mut self, mut buffer: Vec<u8>) -> Result<(), LinkError> {
        while buffer.len() > HEADROOM {
            let credit = match self.granted.wait_for(|granted| *granted > self.sent).await {
                Ok(granted) => *granted - self.sent,
                Err(_) => return Ok(()),
            };
            let len = (buffer.len() - HEADROOM)
                .min(usize::try_from(credit).unwrap_or(usize::MAX))
                .min(guestline_protocol::MAX_DATA_LEN);
            let rest = match len < buffer.len() - HEADROOM {
                true => {
                    let tail = buffer.split_off(HEADROOM + len);
                    let mut rest = data_buffer(tail.len());
                    rest.extend_from_slice(&tail);
                    rest
                }
                false => Vec::new(),
            };
            self.sent += len as u64;
            let order = DataOrder { channel: self.id.number(), stream: Stream::Stdout, buffer };
            if self.link.data.send(order).await.is_err() {
                return Err(self.link.end().await);
            }
            buffer = rest;
        }
        Ok(())
    }

    /// Says that no more data comes.
    pub fn end(&self) {
        self.link.tell(self.id.number(), &Request::End(EndEvent { total: self.sent }));
    }

    /// Grants the guest more data, on a channel of [`Link::relay`].
    pub fn grant(&self, bytes: u32) {
        let _ = self.link.orders.send(Order::Grant { channel: self.id.number(), bytes });
    }

    /// For requests on this channel from another task.
    pub fn teller(&self) -> ChannelTeller {
        ChannelTeller { id: self.id.clone(), link: self.link.clone() }
    }

    /// A request on this channel, such as a signal.
    pub fn tell(&self, request: &Request) {
        self.link.tell(self.id.number(), request);
    }
}

impl ChannelTeller {
    /// A request on this channel, such as a signal.
    pub fn tell(&self, request: &Request) {
        self.link.tell(self.id.number(), request);
    }
}

impl Link {
    /// Sends a request that belongs to an open channel. That the link is gone is told by the channel.
    fn tell(&self, channel: u32, request: &Request) {
        let _ = self.orders.send(Order::Tell { channel, buffer: encode(request) });
    }
}
