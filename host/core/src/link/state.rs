//! What frames of the guest mean for the channels that are open: synchronous, without I/O, and the place where
//! the guest is held to what it was granted.

use super::LinkError;
use guestline_protocol::{
    CreditEvent, ErrorKind, Frame, FrameKind, ReceiveCredit, Reply, Session, Stream, decode,
};
use std::collections::{HashMap, VecDeque};

/// So many frames for channels that nobody opened are forgiven in a session, and so many more for each channel
/// that was cancelled while data was under way.
const STRAY: u64 = 1_000;
const STRAY_PER_CANCEL: u64 = 1_000;

/// Replies that nobody has taken yet may hold so many bytes, in all channels together.
const MAX_PENDING: usize = 8 * 1024 * 1024;

/// And there may be so many of them.
const MAX_PENDING_COUNT: usize = 4096;

/// What the owner of the streams has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// A reply for whoever opened the channel; `last` closes it. `len` bytes are pending until they are used.
    Reply {
        /// Of this channel.
        channel: u32,
        /// What it is.
        reply: Reply,
        /// Bytes that it takes of the budget.
        len: usize,
        /// It closes the channel.
        last: bool,
    },
    /// The body of the frame is data for whoever opened the channel.
    Data {
        /// Of this channel.
        channel: u32,
        /// And this stream.
        stream: Stream,
    },
    /// The guest granted credit.
    Granted {
        /// On this channel.
        channel: u32,
        /// So many bytes.
        bytes: u32,
    },
}

/// The channels of one session.
#[derive(Debug)]
pub struct SessionState {
    session: Session,
    channels: HashMap<u32, Channel>,
    stray_left: u64,
    /// Replies handed out or held, and not taken yet: bytes and number of each channel, and of all.
    pending: HashMap<u32, (usize, usize)>,
    pending_len: usize,
    pending_count: usize,
}

#[derive(Debug)]
struct Channel {
    receive: ReceiveCredit,
    /// Replies that wait for data which they follow, and all behind them.
    held: VecDeque<(Reply, usize)>,
    /// Somebody else's: grants of the guest are handed out as the replies they are.
    relayed: bool,
    /// Nobody wants what comes; the last reply is waited for.
    cancelled: bool,
}

impl SessionState {
    /// Without channels.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            channels: HashMap::new(),
            stray_left: STRAY,
            pending: HashMap::new(),
            pending_len: 0,
            pending_count: 0,
        }
    }

    /// Its nonce.
    pub fn session(&self) -> Session {
        self.session
    }

    /// A channel is opened by a request that grants so much credit.
    pub fn open(&mut self, channel: u32, window: u32) {
        self.insert(channel, window, false);
    }

    /// As [`SessionState::open`], on behalf of somebody who keeps the accounts of both directions.
    pub fn open_relayed(&mut self, channel: u32, window: u32) {
        self.insert(channel, window, true);
    }

    fn insert(&mut self, channel: u32, window: u32, relayed: bool) {
        let receive = ReceiveCredit::new(window);
        let held = VecDeque::new();
        self.channels.insert(channel, Channel { receive, held, relayed, cancelled: false });
    }

    /// Is a channel open?
    pub fn is_open(&self, channel: u32) -> bool {
        self.channels.contains_key(&channel)
    }

    /// So many are open.
    pub fn open_count(&self) -> usize {
        self.channels.len()
    }

    /// Is no channel open?
    pub fn is_idle(&self) -> bool {
        self.channels.is_empty()
    }

    /// Nobody wants what comes on a channel. True when the guest is to be told.
    pub fn cancel(&mut self, channel: u32) -> bool {
        let (len, count) = self.pending.remove(&channel).unwrap_or_default();
        self.pending_len = self.pending_len.saturating_sub(len);
        self.pending_count = self.pending_count.saturating_sub(count);
        let Some(open) = self.channels.get_mut(&channel) else { return false };
        let first = !std::mem::replace(&mut open.cancelled, true);
        // What is held would wait for data that is not counted any more.
        let ended = open.held.iter().any(|(reply, _)| reply.is_final());
        if first {
            self.forgive(STRAY_PER_CANCEL);
        }
        if ended {
            self.channels.remove(&channel);
        }
        first && !ended
    }

    /// So many bytes of data were used on a channel. Gives the credit to send.
    pub fn use_data(&mut self, channel: u32, len: usize) -> Option<CreditEvent> {
        self.channels.get_mut(&channel)?.receive.use_up(len)
    }

    /// Whoever a channel is relayed for grants more. Gives the credit to send.
    pub fn grant(&mut self, channel: u32, bytes: u32) -> Option<CreditEvent> {
        self.channels.get_mut(&channel)?.receive.grant(bytes);
        Some(CreditEvent { bytes })
    }

    /// A reply of so many bytes was taken.
    pub fn use_reply(&mut self, channel: u32, len: usize) {
        let Some((all, count)) = self.pending.get_mut(&channel) else { return };
        *all = all.saturating_sub(len);
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.pending.remove(&channel);
        }
        self.pending_len = self.pending_len.saturating_sub(len);
        self.pending_count = self.pending_count.saturating_sub(1);
    }

    /// A frame of this session.
    ///
    /// # Errors
    /// [`LinkError::Broken`] when the guest breaks the rules, [`LinkError::Restarted`] when it knows nothing of the
    /// session.
    pub fn on_frame(&mut self, frame: &Frame<'_>) -> Result<Vec<Effect>, LinkError> {
        match frame.head.kind {
            FrameKind::Message => self.on_message(frame),
            FrameKind::Data(stream) => self.on_data(frame, stream),
        }
    }

    fn on_message(&mut self, frame: &Frame<'_>) -> Result<Vec<Effect>, LinkError> {
        let reply: Reply =
            decode(frame.body).map_err(|error| LinkError::broken(error.to_string()))?;
        let (channel, len) = (frame.head.channel, frame.body.len());
        if matches!(&reply, Reply::Error(error) if error.kind == ErrorKind::NoSession) {
            return Err(LinkError::Restarted);
        }
        let Some(open) = self.channels.get_mut(&channel) else {
            return self.stray().map(|()| Vec::new());
        };
        let bytes = reply.credit();
        if matches!(reply, Reply::Credit(_)) && !open.relayed {
            return Ok(vec![Effect::Granted { channel, bytes }]);
        }
        if open.cancelled {
            // Data before it is not waited for: it may have been dropped on either side.
            if reply.is_final() {
                self.channels.remove(&channel);
                return Ok(vec![Effect::Reply { channel, reply, len: 0, last: true }]);
            }
            return Ok(Vec::new());
        }
        let (all, count) = self.pending.entry(channel).or_default();
        *all = all.saturating_add(len);
        *count += 1;
        self.pending_len = self.pending_len.saturating_add(len);
        self.pending_count += 1;
        if self.pending_len > MAX_PENDING || self.pending_count > MAX_PENDING_COUNT {
            return Err(LinkError::broken("a flood of replies".to_owned()));
        }
        if reply.total().is_some_and(|total| total < open.receive.received()) {
            return Err(LinkError::broken("an end before the data that was sent".to_owned()));
        }
        if reply.total().is_some_and(|total| total > open.receive.granted()) {
            return Err(LinkError::broken("an end after more data than was granted".to_owned()));
        }
        open.held.push_back((reply, len));
        let mut effects = self.release(channel);
        if bytes > 0 {
            effects.push(Effect::Granted { channel, bytes });
        }
        Ok(effects)
    }

    fn on_data(&mut self, frame: &Frame<'_>, stream: Stream) -> Result<Vec<Effect>, LinkError> {
        let channel = frame.head.channel;
        // Empty data says nothing and costs no credit.
        if frame.body.is_empty() {
            return self.stray().map(|()| Vec::new());
        }
        let Some(open) = self.channels.get_mut(&channel) else {
            return self.stray().map(|()| Vec::new());
        };
        let received = open.receive.receive(frame.body.len());
        received.map_err(|overdrawn| LinkError::broken(overdrawn.to_string()))?;
        if open.cancelled {
            return Ok(Vec::new());
        }
        let after_end = open.held.iter().filter_map(|(reply, _)| reply.total());
        if after_end.into_iter().any(|total| total < open.receive.received()) {
            return Err(LinkError::broken("data after its end".to_owned()));
        }
        let mut effects = vec![Effect::Data { channel, stream }];
        effects.extend(self.release(channel));
        Ok(effects)
    }

    /// The replies that need not wait any more.
    fn release(&mut self, channel: u32) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(open) = self.channels.get_mut(&channel) else { return effects };
        while let Some((reply, _)) = open.held.front()
            && reply.total().is_none_or(|total| total <= open.receive.received())
        {
            let Some((reply, len)) = open.held.pop_front() else { break };
            let last = reply.is_final();
            effects.push(Effect::Reply { channel, reply, len, last });
            if last {
                self.channels.remove(&channel);
                break;
            }
        }
        effects
    }

    /// A frame for a channel that is not open: late, or made up.
    ///
    /// # Errors
    /// [`LinkError::Broken`] when there are too many.
    pub fn stray(&mut self) -> Result<(), LinkError> {
        match self.stray_left.checked_sub(1) {
            Some(left) => {
                self.stray_left = left;
                Ok(())
            }
            None => {
                Err(LinkError::broken("a flood of replies to requests that nobody made".to_owned()))
            }
        }
    }

    /// So many more frames for channels that are not open are no wonder.
    pub fn forgive(&mut self, strays: u64) {
        self.stray_left = self.stray_left.saturating_add(strays);
    }
}

#[cfg(test)]
mod tests;
