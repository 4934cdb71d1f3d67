//! How a session begins: the hello, said until it is answered, and the bulk port joined.

use super::port::Port;
use super::task::Task;
use super::{Opened, Reopened};
use crate::link::ids::OWN;
use crate::link::state::SessionState;
use crate::link::{LinkError, TransportKind, clean, draw_session, unexpected};
use crate::text::printable;
use guestline_protocol::{
    AttachRequest, Frame, FrameHead, HEADROOM, HelloRequest, HelloResponse, MAX_FRAME_LEN,
    OLDEST_VERSION, Reply, Request, VERSION, common_version, decode, encode,
};
use std::time::Duration;
use tokio::time::Instant;

/// A hello that was not answered is said again: the first one may have come before the agent did.
const HELLO_AGAIN: Duration = Duration::from_millis(500);

/// Where a session stands.
pub(super) enum Phase {
    Opening(Opening),
    /// `bulk`: data takes the bulk port.
    Open {
        bulk: bool,
    },
    /// For this reason.
    Lost(LinkError),
}

/// A session that is being opened.
pub(super) struct Opening {
    done: Opened,
    channel: u32,
    hello: Option<HelloResponse>,
    attached: bool,
    again: Instant,
    /// How often the hello was said.
    said: u32,
    /// The guest was put back to an earlier moment, and may be in the midst of a frame.
    is_restored: bool,
}

/// As long as any frame. It begins none.
const FILLER_LEN: usize = HEADROOM + MAX_FRAME_LEN;

impl Task {
    /// A new session, with a hello.
    pub(super) fn begin(&mut self, done: Opened, is_restored: bool) {
        self.state = SessionState::new(draw_session());
        let session = self.state.session();
        for port in std::iter::once(&mut self.control).chain(&mut self.bulk) {
            port.framing.accept_only(session);
            port.forget();
        }
        let channel = self.own_channel();
        let (hello, attached, again) = (None, false, Instant::now());
        let opening = Opening { done, channel, hello, attached, again, said: 0, is_restored };
        self.phase = Phase::Opening(opening);
    }

    pub(super) fn own_channel(&mut self) -> u32 {
        self.next_own = self.next_own.wrapping_add(1) | OWN;
        self.next_own
    }

    /// Says hello when it is time to; returns when to look again.
    pub(super) fn greet(&mut self, now: Instant) -> Option<Instant> {
        let Phase::Opening(opening) = &mut self.phase else { return None };
        if opening.again > now {
            return Some(opening.again);
        }
        opening.again = now + HELLO_AGAIN;
        let (again, channel) = (opening.again, opening.channel);
        let is_first = opening.said == 0;
        // A tty's frames end by themselves.
        let fills = opening.is_restored && opening.said == 1 && self.kind != TransportKind::Tty;
        opening.said = opening.said.saturating_add(1);
        if fills {
            self.fill_up();
        }
        self.say_hello(channel, is_first || fills);
        Some(again)
    }

    /// Ends the frame that the guest may be in the midst of, on each port.
    fn fill_up(&mut self) {
        for port in std::iter::once(&mut self.control).chain(&mut self.bulk) {
            port.out.push(vec![0; FILLER_LEN]);
        }
    }

    /// Says it on both ports; again only where the one before is written, and the framing does not repeat it itself.
    fn say_hello(&mut self, channel: u32, is_first: bool) {
        let hello = HelloRequest {
            min: OLDEST_VERSION,
            max: VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            features: 0,
            bulk: self.bulk.is_some(),
        };
        let head = FrameHead::message(self.state.session(), channel);
        let now = self.now_ms();
        let may_say =
            |port: &Port| is_first || (port.out.is_empty() && port.framing.deadline_ms().is_none());
        if may_say(&self.control) {
            self.control.send(head, encode(&Request::Hello(hello)), now);
        }
        if let Some(bulk) = self.bulk.as_mut().filter(|bulk| may_say(bulk)) {
            bulk.send(head, encode(&Request::Attach(AttachRequest {})), now);
        }
    }

    pub(super) fn on_opening(&mut self, reply: Reply) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        let outcome = match reply {
            Reply::Hello(answer) => {
                match common_version((OLDEST_VERSION, VERSION), (answer.min, answer.max)) {
                    Ok(_) => {
                        opening.hello = Some(answer);
                        None
                    }
                    Err(source) => {
                        Some(LinkError::Version { build: printable(&answer.build), source })
                    }
                }
            }
            Reply::Attach(_) => {
                opening.attached = true;
                None
            }
            Reply::Error(error) => Some(LinkError::Refused(clean(error))),
            other => Some(unexpected(&other)),
        };
        if let Some(error) = outcome {
            return self.lose(error);
        }
        let may_open = |hello: &HelloResponse| opening.attached || !hello.bulk;
        if let Some(hello) = opening.hello.take_if(|hello| may_open(hello) || self.bulk.is_none()) {
            self.open(hello);
        }
    }

    fn open(&mut self, hello: HelloResponse) {
        let bulk = hello.bulk && self.bulk.is_some();
        let before = self.incarnation.replace(hello.incarnation);
        let began_anew = before.is_some_and(|before| before != hello.incarnation);
        self.noise = self.dropped();
        if let Phase::Opening(opening) = std::mem::replace(&mut self.phase, Phase::Open { bulk }) {
            // Each hello that was said has an answer on each port.
            self.state.forgive(2 * u64::from(opening.said));
            let _ = opening.done.send(Ok(Reopened { hello, began_anew }));
        }
    }

    /// Fails what is outstanding: the session is over, and whoever is at the other end may be greeted anew.
    pub(super) fn lose(&mut self, error: LinkError) {
        if let Phase::Opening(opening) =
            std::mem::replace(&mut self.phase, Phase::Lost(error.clone()))
        {
            let _ = opening.done.send(Err(error.clone()));
        }
        self.callers.fail(&error);
        self.state = SessionState::new(self.state.session());
        self.credits.forget();
        for port in std::iter::once(&mut self.control).chain(&mut self.bulk) {
            port.forget();
        }
        self.silence.end(Instant::now());
    }
}

/// While a session is being opened, the answer to that.
pub(super) fn opening_reply(phase: &Phase, frame: &Frame<'_>) -> Result<Option<Reply>, LinkError> {
    match phase {
        Phase::Opening(opening) if opening.channel == frame.head.channel => {
            decode(frame.body).map(Some).map_err(|error| LinkError::broken(error.to_string()))
        }
        _ => Ok(None),
    }
}
