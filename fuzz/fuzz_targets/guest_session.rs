//! Any frames of a host into the agent's session: no panic, nothing is carried out before a hello, and nothing of another
//! session. The first byte of a piece says session and kind, the rest is the body.
#![no_main]

use guestline_agent::session::{Action, SessionState};
use guestline_protocol::{FrameHead, FrameKind, Session, Stream};

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut state = SessionState::default();
    for piece in &pieces {
        let Some((&first, body)) = piece.split_first() else { continue };
        let session = Session(u64::from(first & 3));
        let kind = match first >> 6 {
            0 => FrameKind::Data(Stream::Stdout),
            _ => FrameKind::Message,
        };
        let before = state.current();
        let head = FrameHead { session, channel: u32::from(first >> 2 & 7), kind };
        match state.on_frame(head, body, 1) {
            Some(Action::Carry { channel, .. }) => {
                assert!(session == before && before != Session::NONE && channel != 0);
            }
            Some(Action::Data { .. }) => assert!(session == before && before != Session::NONE),
            Some(Action::Hello { .. }) => {
                assert_ne!(session, Session::NONE);
                state.open(session);
            }
            _ => {}
        }
    }
});
