//! Any bytes, split anywhere, into the decoder: no panic, and no more dropped than was pushed.
#![no_main]

use guestline_protocol::{End, Framing, TtyFraming};

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut framing = TtyFraming::new(End::Host);
    let mut pushed = 0;
    for (now, piece) in (1..).zip(&pieces) {
        pushed += piece.len() as u64;
        framing.push(piece);
        while framing.next_frame().is_some() {}
        framing.due(now * 100, now % 3 != 0);
    }
    assert!(framing.dropped() <= pushed);
});
