//! One client of a named machine, as an agent would take it: synchronous, without I/O.
//!
//! ```text
//! client's channel 5 ── open ──> relayed channel of the machine's link ──> agent
//!                    <── replies, data; credit both ways goes through from end to end ──
//! ```
//! The client is held to what the guest granted, and to the rules of the protocol: who breaks them is cut off, and
//! nobody else. What the guest may send is what the client granted; the link holds it to that.

use crate::link::Arrival;
use guestline_protocol::{
    ByteBuf, ErrorKind, FrameHead, FrameKind, MAX_CHANNELS, OLDEST_VERSION, RemoteError, Reply,
    Request, SendCredit, Session, VERSION, common_version, decode,
};
use std::collections::{HashMap, HashSet};

/// A client may have granted so many bytes that have not reached it: the most that is kept for it.
const MAX_GRANTED: u64 = 64 * 1024 * 1024;

/// What is to be done with a frame of the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Answer a hello as soon as the guest is there; [`ProxyState::open`] then.
    Hello { session: Session, channel: u32 },
    /// Answer without the guest, in this session.
    Answer { head: FrameHead, reply: Reply },
    /// Open a channel.
    Open { channel: u32, request: Box<Request>, window: u32 },
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
    /// The boot of the guest in which the session was opened.
    boot: u64,
    channels: HashMap<u32, Proxied>,
    /// Connections that this client was told of, and may accept.
    offered: HashSet<u32>,
    /// File systems that it froze.
    frozen: Vec<ByteBuf>,
    /// Granted by the client and not passed to it yet, all channels.
    granted: u64,
}

#[derive(Debug)]
struct Proxied {
    /// What the guest granted the client.
    send: SendCredit,
    /// The client sends so many bytes in all. It says so as a message, which may come before the data.
    total: Option<u64>,
    /// What the client granted the guest, less what has come.
    granted: u64,
}

impl Default for ProxyState {
    fn default() -> Self {
        Self {
            session: Session::NONE,
            boot: 0,
            channels: HashMap::new(),
            offered: HashSet::new(),
            frozen: Vec::new(),
            granted: 0,
        }
    }
}

impl ProxyState {
    /// The boot of the guest in which the session was opened.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    /// A hello is about to be answered. True when that ends what was before, false when it is said again.
    pub(super) fn open(&mut self, session: Session, boot: u64) -> bool {
        if self.session == session && self.boot == boot {
            return false;
        }
        let frozen = std::mem::take(&mut self.frozen);
        *self = Self { session, boot, frozen, ..Self::default() };
        true
    }

    /// What the client froze and did not thaw.
    pub(super) fn frozen(&mut self) -> Vec<ByteBuf> {
        std::mem::take(&mut self.frozen)
    }

    /// A frame of the client; `boot` is the guest's, when it is there.
    pub(super) fn on_frame(
        &mut self,
        head: FrameHead,
        body: &[u8],
        boot: Option<u64>,
    ) -> Result<Option<Action>, Violation> {
        match head.kind {
            FrameKind::Message => self.on_message(head, body, boot),
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
        boot: Option<u64>,
    ) -> Result<Option<Action>, Violation> {
        let channel = head.channel;
        let refuse = |kind, message: &str| {
            let error = RemoteError { kind, errno: None, message: message.to_owned() };
            Ok(Some(Action::Answer { head, reply: Reply::Error(error) }))
        };
        let request = decode::<Request>(body);
        if let Ok(Request::Hello(hello)) = &request {
            if head.session == Session::NONE {
                return refuse(ErrorKind::Invalid, "a hello needs a session");
            }
            let range = (OLDEST_VERSION, VERSION);
            if let Err(error) = common_version(range, (hello.min, hello.max)) {
                return refuse(ErrorKind::Version, &error.to_string());
            }
            return Ok(Some(Action::Hello { session: head.session, channel }));
        }
        let stands = self.session != Session::NONE && head.session == self.session;
        if !stands || boot != Some(self.boot) {
            return refuse(ErrorKind::NoSession, "say hello first");
        }
        if channel == 0 {
            return refuse(ErrorKind::Protocol, "channel 0 is the guest's own");
        }
        match request {
            Err(error) => refuse(ErrorKind::Unsupported, &error.to_string()),
            Ok(Request::Attach(_)) => refuse(ErrorKind::Unsupported, "there is no bulk port here"),
            Ok(request) if request.is_on_channel() => self.on_open_channel(channel, request),
            Ok(_) if self.channels.contains_key(&channel) => {
                Err(Violation { what: "a request on a channel that is open" })
            }
            Ok(_) if self.channels.len() >= MAX_CHANNELS => {
                refuse(ErrorKind::Busy, "too many channels are open")
            }
            Ok(Request::Accept(accept)) if !self.offered.remove(&accept.connection) => {
                refuse(ErrorKind::Invalid, "no such connection")
            }
            Ok(request) => self.on_request(channel, request).map(Some),
        }
    }

    fn on_request(&mut self, channel: u32, request: Request) -> Result<Action, Violation> {
        match &request {
            Request::Freeze(freeze) => self.frozen.push(freeze.path.clone()),
            Request::Thaw(thaw) => self.frozen.retain(|path| *path != thaw.path),
            _ => {}
        }
        let window = window_of(&request);
        let proxied = Proxied { send: SendCredit::default(), total: None, granted: 0 };
        self.channels.insert(channel, proxied);
        self.grant(channel, window)?;
        Ok(Action::Open { channel, request: Box::new(request), window })
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
                self.grant(channel, credit.bytes)?;
                Ok(Some(Action::Grant { channel, bytes: credit.bytes }))
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

    fn grant(&mut self, channel: u32, bytes: u32) -> Result<(), Violation> {
        let Some(open) = self.channels.get_mut(&channel) else { return Ok(()) };
        open.granted = open.granted.saturating_add(bytes.into());
        self.granted = self.granted.saturating_add(bytes.into());
        match self.granted > MAX_GRANTED {
            true => Err(Violation { what: "more credit than there is memory for" }),
            false => Ok(()),
        }
    }

    /// Something that came from the guest. Gives the head of the frame in which it goes to the client; none when the
    /// channel is not the client's any more.
    pub(super) fn on_arrival(&mut self, channel: u32, arrival: &Arrival) -> Option<FrameHead> {
        let open = self.channels.get_mut(&channel)?;
        match arrival {
            Arrival::Data { stream, bytes } => {
                let len = (bytes.len() as u64).min(open.granted);
                open.granted -= len;
                self.granted = self.granted.saturating_sub(len);
                Some(FrameHead::data(self.session, channel, *stream))
            }
            Arrival::Reply(reply) => {
                open.send.grant(reply.credit());
                if let Reply::Accepted(accepted) = reply {
                    self.offered.insert(accepted.connection);
                }
                if reply.is_final() {
                    self.granted = self.granted.saturating_sub(open.granted);
                    self.channels.remove(&channel);
                }
                Some(FrameHead::message(self.session, channel))
            }
        }
    }

    /// The agent does not know the session of this boot any more, so the client's is over too. Gives what to tell it on
    /// the channel; none when it has begun anew since.
    pub(super) fn on_restart(&mut self, channel: u32, boot: u64) -> Option<(FrameHead, Reply)> {
        let head = FrameHead::message(self.session, channel);
        let open = self.session != Session::NONE && self.boot == boot;
        open.then(|| {
            // The guest that froze them is gone.
            *self = Self::default();
            let message = "the guest was started anew".to_owned();
            let error = RemoteError { kind: ErrorKind::NoSession, errno: None, message };
            (head, Reply::Error(error))
        })
    }
}

/// The credit that comes with a request.
fn window_of(request: &Request) -> u32 {
    match request {
        Request::Exec(exec) => exec.credit,
        Request::Pull(pull) => pull.credit,
        Request::Follow(follow) => follow.credit,
        Request::Connect(connect) => connect.credit,
        Request::Accept(accept) => accept.credit,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
