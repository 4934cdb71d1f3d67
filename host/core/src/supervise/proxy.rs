//! One client of a named machine, as an agent would take it: synchronous, without I/O.
//!
//! ```text
//! client's channel 5 ── open ──> relayed channel of the machine's link ──> agent
//!                    <── replies, data; credit both ways goes through from end to end ──
//! ```
//! The client is held to what the guest granted, and to the rules of the protocol: who breaks them is cut off, and
//! nobody else. What the guest may send is what was passed on of the client's grants, the rest waits for the machine's
//! [`Budget`]; the link holds the guest to that.

mod proxied;

use super::budget::Budget;
use crate::link::Arrival;
use guestline_protocol::{
    ByteBuf, ErrorKind, FrameHead, FrameKind, RemoteError, Reply, Request, Session, decode,
};
use proxied::Proxied;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A channel of a client, told from earlier ones of its id: what is late for one of them is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Opening {
    pub(super) channel: u32,
    /// Counts the channels that the client opened.
    pub(super) number: u64,
}

/// What is to be done with a frame of the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Answer a hello as soon as the guest is there; [`ProxyState::open`] then.
    Hello { session: Session, channel: u32 },
    /// Answer without the guest, in this session.
    Answer { head: FrameHead, reply: Reply },
    /// Open a channel.
    Open { opening: Opening, request: Box<Request>, window: u32 },
    /// Pass a request on that belongs to an open channel.
    Tell { channel: u32, request: Request },
    /// Pass on that no more data comes.
    End { channel: u32 },
    /// Grant the guest more.
    Grant { channel: u32, bytes: u32 },
    /// Pass the frame's body on as data; with `last`, that no more comes, too.
    Data { channel: u32, last: bool },
}

/// The client broke the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client broke the protocol: {what}")]
pub(super) struct Violation {
    what: &'static str,
}

/// One client's session and channels.
#[derive(Debug)]
pub(super) struct ProxyState {
    session: Session,
    /// The epoch in which the session was opened: the supervisor's own session with the agent, counted.
    epoch: u64,
    /// Those whose last reply has not been written.
    channels: HashMap<u32, Proxied>,
    openings: u64,
    /// Connections that this client was told of, and may accept.
    offered: HashSet<u32>,
    /// File systems that it is freezing, and that it froze.
    freezing: HashMap<Opening, ByteBuf>,
    frozen: Vec<ByteBuf>,
    /// The client has left.
    gone: bool,
    budget: Arc<Budget>,
}

impl ProxyState {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            session: Session::NONE,
            epoch: 0,
            channels: HashMap::new(),
            openings: 0,
            offered: HashSet::new(),
            freezing: HashMap::new(),
            frozen: Vec::new(),
            gone: false,
            budget,
        }
    }

    /// The epoch in which the session was opened: the supervisor's own session with the agent, counted.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A hello is about to be answered. True when that ends what was before, false when it is said again.
    pub(super) fn open(&mut self, session: Session, epoch: u64) -> bool {
        if self.session == session && self.epoch == epoch {
            return false;
        }
        if self.epoch != epoch {
            self.forget_frozen();
        }
        self.close_all();
        (self.session, self.epoch) = (session, epoch);
        true
    }

    /// The client has left. Gives what it froze and did not thaw.
    pub(super) fn leave(&mut self) -> Vec<ByteBuf> {
        self.close_all();
        self.session = Session::NONE;
        self.gone = true;
        std::mem::take(&mut self.frozen)
    }

    /// What was frozen for the client only after it had left.
    pub(super) fn frozen_late(&mut self) -> Vec<ByteBuf> {
        if self.gone { std::mem::take(&mut self.frozen) } else { Vec::new() }
    }

    /// A frame of the client; `epoch` is the present one, when the guest is there.
    pub(super) fn on_frame(
        &mut self,
        head: FrameHead,
        body: &[u8],
        epoch: Option<u64>,
    ) -> Result<Option<Action>, Violation> {
        match head.kind {
            FrameKind::Message => self.on_message(head, body, epoch),
            FrameKind::Data(_) => self.on_data(head, body.len()),
        }
    }

    fn on_data(&mut self, head: FrameHead, len: usize) -> Result<Option<Action>, Violation> {
        let channel = head.channel;
        if head.session != self.session {
            return Ok(None);
        }
        // Late data for what is over is dropped, as the agent does.
        let Some(open) = self.channels.get_mut(&channel) else { return Ok(None) };
        if len > open.send.left() {
            return Err(Violation { what: "data beyond what was granted" });
        }
        open.send.spend(len);
        if open.total.is_some_and(|total| total < open.send.sent()) {
            return Err(Violation { what: "data after its end" });
        }
        let last = open.total == Some(open.send.sent());
        Ok(Some(Action::Data { channel, last }))
    }

    fn on_message(
        &mut self,
        head: FrameHead,
        body: &[u8],
        epoch: Option<u64>,
    ) -> Result<Option<Action>, Violation> {
        let channel = head.channel;
        let refuse = |error| Ok(Some(Action::Answer { head, reply: Reply::Error(error) }));
        let refuse_as = |kind, message: &str| refuse(RemoteError::new(kind, message));
        let request = decode::<Request>(body);
        if let Ok(Request::Hello(hello)) = &request {
            return match hello.judge(head.session) {
                Ok(_) => Ok(Some(Action::Hello { session: head.session, channel })),
                Err(error) => refuse(error),
            };
        }
        let stands = self.session != Session::NONE && head.session == self.session;
        if !stands || epoch != Some(self.epoch) {
            return refuse_as(ErrorKind::NoSession, "say hello first");
        }
        if channel == 0 {
            return refuse_as(ErrorKind::Protocol, "channel 0 is the guest's own");
        }
        match request {
            Err(error) => refuse_as(ErrorKind::Unsupported, &error.to_string()),
            Ok(Request::Attach(_)) => {
                refuse_as(ErrorKind::Unsupported, "there is no bulk port here")
            }
            Ok(request) if request.is_on_channel() => self.on_open_channel(channel, request),
            Ok(_) if self.channels.contains_key(&channel) => {
                Err(Violation { what: "a request on a channel that is open" })
            }
            Ok(Request::Accept(accept)) if !self.offered.remove(&accept.connection) => {
                refuse_as(ErrorKind::Invalid, "no such connection")
            }
            Ok(_) if !self.budget.open_channel() => {
                refuse_as(ErrorKind::Busy, "too many channels are open in this machine")
            }
            Ok(request) => Ok(Some(self.on_request(channel, request))),
        }
    }

    fn on_request(&mut self, channel: u32, mut request: Request) -> Action {
        self.openings += 1;
        let opening = Opening { channel, number: self.openings };
        match &request {
            Request::Freeze(freeze) => {
                self.freezing.insert(opening, freeze.path.clone());
            }
            Request::Thaw(thaw) => self.frozen.retain(|path| *path != thaw.path),
            _ => {}
        }
        let mut open = Proxied::new(opening);
        let mut window = 0;
        if let Some(credit) = credit_of(&mut request) {
            open.owed = (*credit).into();
            window = open.pass_on(&self.budget);
            *credit = window;
        }
        self.channels.insert(channel, open);
        Action::Open { opening, request: Box::new(request), window }
    }

    fn on_open_channel(
        &mut self,
        channel: u32,
        request: Request,
    ) -> Result<Option<Action>, Violation> {
        // The channel may just have ended.
        let Some(open) = self.channels.get_mut(&channel) else { return Ok(None) };
        match request {
            Request::Credit(credit) => {
                open.owed = open.owed.saturating_add(credit.bytes.into());
                let bytes = open.pass_on(&self.budget);
                Ok((bytes > 0).then_some(Action::Grant { channel, bytes }))
            }
            Request::End(end) => {
                let sent = open.send.sent();
                if end.total < sent || open.total.replace(end.total).is_some() {
                    return Err(Violation { what: "an end that is none" });
                }
                // Else it waits for the data.
                Ok((end.total == sent).then_some(Action::End { channel }))
            }
            request => Ok(Some(Action::Tell { channel, request })),
        }
    }

    /// Does a channel wait for the budget?
    pub(super) fn is_short(&self) -> bool {
        self.channels.values().any(|open| open.owed > 0)
    }

    /// What the guest may be granted now, on channels that had to wait for the budget.
    pub(super) fn pass_on(&mut self) -> Vec<(u32, u32)> {
        let short = self.channels.iter_mut().filter(|(_, open)| open.owed > 0);
        let granted = short.map(|(&channel, open)| (channel, open.pass_on(&self.budget)));
        granted.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Something that came from the guest. Gives the head of the frame in which it goes to the client; none when the
    /// channel is not the client's any more.
    pub(super) fn on_arrival(&mut self, opening: Opening, arrival: &Arrival) -> Option<FrameHead> {
        if let Arrival::Reply(reply) = arrival
            && let Some(path) = self.freezing.remove(&opening)
            && matches!(reply, Reply::Done(_))
        {
            self.frozen.push(path);
        }
        if self.session == Session::NONE {
            return None;
        }
        let channel = opening.channel;
        let open = find(&mut self.channels, opening)?;
        match arrival {
            Arrival::Data { stream, bytes } => {
                let len = bytes.len() as u64;
                open.lent = open.lent.saturating_sub(len);
                open.queued += len;
                Some(FrameHead::data(self.session, channel, *stream))
            }
            Arrival::Reply(reply) => {
                open.send.grant(reply.credit());
                if let Reply::Accepted(accepted) = reply {
                    self.offered.insert(accepted.connection);
                }
                if reply.is_final() {
                    open.end(&self.budget);
                }
                Some(FrameHead::message(self.session, channel))
            }
        }
    }

    /// A frame with so much data was written to the client, or the last one of the channel.
    pub(super) fn on_written(&mut self, opening: Opening, len: usize, is_last: bool) {
        let Some(open) = find(&mut self.channels, opening) else { return };
        open.queued = open.queued.saturating_sub(len as u64);
        open.settle(&self.budget);
        let is_over = is_last || (open.queued == 0 && self.session == Session::NONE);
        if is_over {
            self.channels.remove(&opening.channel);
            self.budget.close_channel();
        }
    }

    /// The agent does not know the session of this epoch any more, so the client's is over too. Gives what to tell it on
    /// the channel; none when it has begun anew since.
    pub(super) fn on_restart(&mut self, channel: u32, epoch: u64) -> Option<(FrameHead, Reply)> {
        if self.session == Session::NONE || self.epoch != epoch {
            return None;
        }
        let head = FrameHead::message(self.session, channel);
        self.session = Session::NONE;
        // What came before is still told.
        self.channels.retain(|_, open| {
            open.end(&self.budget);
            let is_told = open.queued == 0;
            if is_told {
                self.budget.close_channel();
            }
            !is_told
        });
        // The guest that froze them is gone.
        self.forget_frozen();
        let error = RemoteError::new(ErrorKind::NoSession, "the guest was started anew");
        Some((head, Reply::Error(error)))
    }

    fn forget_frozen(&mut self) {
        self.freezing.clear();
        self.frozen.clear();
    }

    fn close_all(&mut self) {
        for (_, open) in self.channels.drain() {
            self.budget.give_back(open.pooled);
            self.budget.close_channel();
        }
        self.offered.clear();
        self.budget.announce();
    }
}

impl Drop for ProxyState {
    fn drop(&mut self) {
        self.close_all();
    }
}

fn find(channels: &mut HashMap<u32, Proxied>, opening: Opening) -> Option<&mut Proxied> {
    channels.get_mut(&opening.channel).filter(|open| open.opening == opening)
}

/// The credit that comes with a request.
fn credit_of(request: &mut Request) -> Option<&mut u32> {
    match request {
        Request::Exec(exec) => Some(&mut exec.credit),
        Request::Pull(pull) => Some(&mut pull.credit),
        Request::Follow(follow) => Some(&mut follow.credit),
        Request::Connect(connect) => Some(&mut connect.credit),
        Request::Accept(accept) => Some(&mut accept.credit),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
