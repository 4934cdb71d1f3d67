//! Any frames of a guest into the host's session: no panic, no more data than was granted, and no channel that closes
//! twice. The first byte of a piece says channel and kind, the rest is the body.
#![no_main]

use guestline::link::fuzzing::{Effect, SessionState};
use guestline_protocol::{Frame, FrameHead, FrameKind, Session, Stream};
use std::collections::HashMap;

const WINDOW: u32 = 1000;

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let session = Session(7);
    let mut state = SessionState::new(session);
    let mut open: HashMap<u32, u64> = (1..5).map(|channel| (channel, 0)).collect();
    for channel in open.keys() {
        state.open(*channel, WINDOW);
    }
    for piece in &pieces {
        let Some((&first, body)) = piece.split_first() else { continue };
        let kind = match first >> 4 {
            0 => FrameKind::Data(Stream::Stdout),
            1 => FrameKind::Data(Stream::Stderr),
            2 => {
                state.cancel(u32::from(first & 7));
                continue;
            }
            _ => FrameKind::Message,
        };
        let head = FrameHead { session, channel: u32::from(first & 7), kind };
        let Ok(effects) = state.on_frame(&Frame { head, body }) else { return };
        for effect in effects {
            match effect {
                Effect::Reply { channel, last, .. } => {
                    assert!(open.contains_key(&channel));
                    if last {
                        open.remove(&channel);
                    }
                }
                Effect::Data { channel, .. } => {
                    let received = open.get_mut(&channel).expect("data of an open channel");
                    *received += body.len() as u64;
                    assert!(*received <= u64::from(WINDOW));
                }
                Effect::Granted { .. } => {}
            }
        }
    }
});
