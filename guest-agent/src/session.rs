//! What frames mean: synchronous, without I/O. The poll loop feeds it frames and does what it answers.
//!
//! ```text
//! no session ── hello ──> session ── hello with another nonce ──> reset, session
//!      ^──────────── the host closes its end ──┘
//! ```
//! It knows which session stands and judges every message against that; what a request does is its owner's.

use guestline_protocol::{
    AttachResponse, ErrorKind, FrameHead, FrameKind, HelloRequest, HelloResponse, OLDEST_VERSION,
    PingResponse, RemoteError, Reply, Request, Session, Stream, VERSION, decode,
};

/// What the poll loop has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer on the lane that the frame came by.
    Send {
        /// On this channel.
        channel: u32,
        /// With this.
        reply: Reply,
    },
    /// Open the bulk port, if it comes in time, then answer.
    Hello {
        /// On this channel.
        channel: u32,
        /// The host has a bulk port.
        bulk: bool,
    },
    /// Data of this session takes the bulk lane.
    Join {
        /// Answer on this channel.
        channel: u32,
    },
    /// Carry out a request.
    Carry {
        /// On this channel.
        channel: u32,
        /// What.
        request: Request,
    },
    /// The frame's body is data for a channel.
    Data {
        /// This one.
        channel: u32,
        /// Its stream; input has only one.
        stream: Stream,
    },
}

/// One end of the conversation.
#[derive(Debug)]
pub struct SessionState {
    current: Session,
    /// The session that the bulk port was joined to; it may be told before the hello on the other port.
    attached: Session,
}

impl Default for SessionState {
    fn default() -> Self {
        Self { current: Session::NONE, attached: Session::NONE }
    }
}

impl SessionState {
    /// The session that stands, or none.
    pub fn current(&self) -> Session {
        self.current
    }

    /// The host went away: a new hello is needed.
    pub fn close(&mut self) {
        *self = Self::default();
    }

    /// Takes a frame at the guest's wall-clock time `clock_us`.
    pub fn on_frame(&mut self, head: FrameHead, body: &[u8], clock_us: u64) -> Option<Action> {
        let channel = head.channel;
        let stream = match head.kind {
            FrameKind::Message => return self.on_message(head, body, clock_us),
            FrameKind::Data(stream) => stream,
        };
        // Data of a session gone by is nobody's.
        (head.session == self.current && self.current != Session::NONE)
            .then_some(Action::Data { channel, stream })
    }

    fn on_message(&mut self, head: FrameHead, body: &[u8], clock_us: u64) -> Option<Action> {
        let channel = head.channel;
        let request = decode::<Request>(body);
        if let Ok(Request::Hello(hello)) = &request {
            return Some(self.on_hello(head, hello));
        }
        if let Ok(Request::Attach(_)) = &request {
            self.attached = head.session;
            return Some(Action::Join { channel });
        }
        if head.session != self.current || self.current == Session::NONE {
            return Some(refuse(channel, ErrorKind::NoSession, "say hello first"));
        }
        if channel == 0 {
            return Some(refuse(channel, ErrorKind::Protocol, "channel 0 is the guest's own"));
        }
        match request {
            // Of a later version, which was not agreed upon, or no message at all.
            Err(error) => Some(refuse(channel, ErrorKind::Unsupported, &error.to_string())),
            Ok(Request::Ping(ping)) => {
                let pong = PingResponse { token: ping.token, clock_us };
                Some(Action::Send { channel, reply: Reply::Ping(pong) })
            }
            Ok(request) => Some(Action::Carry { channel, request }),
        }
    }

    fn on_hello(&mut self, head: FrameHead, hello: &HelloRequest) -> Action {
        let channel = head.channel;
        match hello.judge(head.session) {
            Ok(_) => Action::Hello { channel, bulk: hello.bulk },
            Err(error) => Action::Send { channel, reply: Reply::Error(error) },
        }
    }

    /// A hello is about to be answered. True when it opens a session, false when it says again what stands.
    pub fn open(&mut self, session: Session) -> bool {
        let new = self.current != session;
        self.current = session;
        new
    }

    /// Is the bulk port joined to the session that stands?
    pub fn is_attached(&self) -> bool {
        self.attached == self.current && self.current != Session::NONE
    }
}

/// The answer to a hello.
pub fn hello(init: bool, bulk: bool, incarnation: u64, clock_us: u64) -> Reply {
    Reply::Hello(HelloResponse {
        min: OLDEST_VERSION,
        max: VERSION,
        build: crate::BUILD.to_owned(),
        features: 0,
        init,
        bulk,
        incarnation,
        clock_us,
    })
}

/// The answer to joining the bulk port.
pub fn joined() -> Reply {
    Reply::Attach(AttachResponse {})
}

fn refuse(channel: u32, kind: ErrorKind, message: &str) -> Action {
    let error = RemoteError::new(kind, message);
    Action::Send { channel, reply: Reply::Error(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{AttachRequest, HEADROOM, PingRequest, encode};

    fn take(state: &mut SessionState, session: u64, body: Request) -> Option<Action> {
        let head = FrameHead::message(Session(session), 5);
        let action = state.on_frame(head, &encode(&body)[HEADROOM..], 9);
        if let Some(Action::Hello { .. }) = action {
            state.open(Session(session));
        }
        action
    }

    fn say_hello(min: u16, max: u16) -> Request {
        Request::Hello(HelloRequest { min, max, build: String::new(), features: 0, bulk: false })
    }

    fn kind(action: Option<Action>) -> Option<ErrorKind> {
        match action {
            Some(Action::Send { channel: 5, reply: Reply::Error(error) }) => Some(error.kind),
            _ => None,
        }
    }

    fn ping() -> Request {
        Request::Ping(PingRequest { token: 1 })
    }

    #[test]
    fn nothing_is_done_before_a_hello_or_for_another_session() {
        let mut state = SessionState::default();
        assert_eq!(kind(take(&mut state, 7, ping())), Some(ErrorKind::NoSession));
        assert_eq!(kind(take(&mut state, 0, ping())), Some(ErrorKind::NoSession));
        assert!(matches!(take(&mut state, 7, say_hello(1, 1)), Some(Action::Hello { .. })));
        assert_eq!(kind(take(&mut state, 8, ping())), Some(ErrorKind::NoSession));
        let pong = Reply::Ping(PingResponse { token: 1, clock_us: 9 });
        assert_eq!(take(&mut state, 7, ping()), Some(Action::Send { channel: 5, reply: pong }));
        state.close();
        assert_eq!(kind(take(&mut state, 7, ping())), Some(ErrorKind::NoSession));
    }

    #[test]
    fn a_version_apart_is_refused_by_name() {
        let mut state = SessionState::default();
        let answer = take(&mut state, 7, say_hello(VERSION + 1, VERSION + 2));
        assert_eq!(kind(answer), Some(ErrorKind::Version));
        assert_eq!(kind(take(&mut state, 7, ping())), Some(ErrorKind::NoSession));
    }

    #[test]
    fn a_hello_that_is_said_again_resets_nothing() {
        let mut state = SessionState::default();
        assert!(state.open(Session(7)));
        assert!(!state.open(Session(7)));
        assert!(state.open(Session(8)));
    }

    #[test]
    fn the_bulk_port_may_be_joined_before_the_hello() {
        let mut state = SessionState::default();
        take(&mut state, 7, Request::Attach(AttachRequest {}));
        assert!(!state.is_attached());
        take(&mut state, 7, say_hello(1, 1));
        assert!(state.is_attached());
        take(&mut state, 8, say_hello(1, 1));
        assert!(!state.is_attached());
    }

    #[test]
    fn what_is_no_message_is_refused_on_its_channel_and_stale_data_is_nothing() {
        let mut state = SessionState::default();
        state.open(Session(7));
        let garbage = FrameHead::message(Session(7), 5);
        assert_eq!(kind(state.on_frame(garbage, &[0xff; 40], 0)), Some(ErrorKind::Unsupported));
        let data = |session| FrameHead::data(Session(session), 5, Stream::Stdout);
        assert_eq!(state.on_frame(data(6), b"x", 0), None);
        let fresh = Action::Data { channel: 5, stream: Stream::Stdout };
        assert_eq!(state.on_frame(data(7), b"x", 0), Some(fresh));
    }
}
