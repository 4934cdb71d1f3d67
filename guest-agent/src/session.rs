//! What a request means: synchronous, without I/O. The poll loop feeds it frames and does what it
//! answers.

use guestline_protocol::{
    Envelope, ErrorKind, ExecRequest, Frame, HelloResponse, OLDEST_VERSION, PingResponse,
    PowerOffResponse, RemoteError, Reply, Request, Session, VERSION, common_version, decode,
};

/// What the poll loop has to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Forget everything of the sessions before: their processes, and replies not sent yet.
    Reset,
    Send(Envelope<Reply>),
    Spawn {
        id: u32,
        request: ExecRequest,
    },
    PowerOff,
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct SessionState {
    current: Session,
    init: bool,
}

impl SessionState {
    pub(crate) fn new(init: bool) -> Self {
        Self { current: Session::NONE, init }
    }

    pub(crate) fn current(&self) -> Session {
        self.current
    }

    /// The host went away: a new hello is needed.
    pub(crate) fn close(&mut self) {
        self.current = Session::NONE;
    }

    /// Takes a frame at the guest's wall-clock time `clock_us`.
    pub(crate) fn on_frame(&mut self, frame: &Frame, clock_us: u64) -> Vec<Action> {
        let Ok(Envelope { id, body }) = decode::<Request>(&frame.body) else {
            // Of a session gone by, or a message of a later version: the id is unknown in both.
            return Vec::new();
        };
        if let Request::Hello(hello) = &body {
            return match common_version((OLDEST_VERSION, VERSION), (hello.min, hello.max)) {
                Ok(_) if frame.session != Session::NONE => self.open(id, frame.session, clock_us),
                Ok(_) => vec![refuse(id, ErrorKind::Invalid, "a hello needs a session")],
                Err(error) => vec![refuse(id, ErrorKind::Version, &error.to_string())],
            };
        }
        if frame.session != self.current || self.current == Session::NONE {
            return vec![refuse(id, ErrorKind::NoSession, "say hello first")];
        }
        match body {
            Request::Hello(_) => Vec::new(),
            Request::Ping(ping) => {
                let pong = PingResponse { token: ping.token, clock_us };
                vec![Action::Send(Envelope { id, body: Reply::Ping(pong) })]
            }
            Request::Exec(request) => vec![Action::Spawn { id, request }],
            Request::PowerOff(_) => {
                let reply = Reply::PowerOff(PowerOffResponse {});
                vec![Action::Send(Envelope { id, body: reply }), Action::PowerOff]
            }
        }
    }

    fn open(&mut self, id: u32, session: Session, clock_us: u64) -> Vec<Action> {
        self.current = session;
        let hello = HelloResponse {
            min: OLDEST_VERSION,
            max: VERSION,
            build: crate::BUILD.to_owned(),
            features: 0,
            init: self.init,
            clock_us,
        };
        vec![Action::Reset, Action::Send(Envelope { id, body: Reply::Hello(hello) })]
    }
}

fn refuse(id: u32, kind: ErrorKind, message: &str) -> Action {
    let error = RemoteError { kind, errno: None, message: message.to_owned() };
    Action::Send(Envelope { id, body: Reply::Error(error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{HelloRequest, PingRequest, encode};

    fn frame(session: u64, body: Request) -> Frame {
        Frame { session: Session(session), body: encode(&Envelope { id: 5, body }) }
    }

    fn hello(min: u16, max: u16) -> Request {
        Request::Hello(HelloRequest { min, max, build: String::new(), features: 0 })
    }

    fn kind(actions: &[Action]) -> Option<ErrorKind> {
        match actions {
            [Action::Send(Envelope { id: 5, body: Reply::Error(error) })] => Some(error.kind),
            _ => None,
        }
    }

    #[test]
    fn nothing_is_done_before_a_hello_or_for_another_session() {
        let mut state = SessionState::new(true);
        let ping = || Request::Ping(PingRequest { token: 1 });
        assert_eq!(kind(&state.on_frame(&frame(7, ping()), 0)), Some(ErrorKind::NoSession));
        assert_eq!(kind(&state.on_frame(&frame(0, ping()), 0)), Some(ErrorKind::NoSession));
        assert!(matches!(state.on_frame(&frame(7, hello(1, 1)), 0)[..], [Action::Reset, _]));
        assert_eq!(kind(&state.on_frame(&frame(8, ping()), 0)), Some(ErrorKind::NoSession));
        assert!(matches!(
            state.on_frame(&frame(7, ping()), 9)[..],
            [Action::Send(Envelope {
                id: 5,
                body: Reply::Ping(PingResponse { token: 1, clock_us: 9 })
            })]
        ));
        state.close();
        assert_eq!(kind(&state.on_frame(&frame(7, ping()), 0)), Some(ErrorKind::NoSession));
    }

    #[test]
    fn a_version_apart_is_refused_by_name() {
        let mut state = SessionState::new(true);
        let answer = state.on_frame(&frame(7, hello(VERSION + 1, VERSION + 2)), 0);
        assert_eq!(kind(&answer), Some(ErrorKind::Version));
        let ping = Request::Ping(PingRequest { token: 1 });
        assert_eq!(kind(&state.on_frame(&frame(7, ping), 0)), Some(ErrorKind::NoSession));
    }

    #[test]
    fn what_is_no_message_is_nothing() {
        let mut state = SessionState::new(true);
        let garbage = Frame { session: Session(7), body: vec![0xff; 40] };
        assert_eq!(state.on_frame(&garbage, 0), []);
    }
}
