//! Any bytes, split anywhere, into the decoder: no panic, and no more dropped than was pushed.
#![no_main]

use guestline_protocol::{Framing, TtyFraming};

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut framing = TtyFraming::default();
    let mut pushed = 0;
    for piece in &pieces {
        pushed += piece.len() as u64;
        framing.push(piece);
        while framing.next_frame().is_some() {}
    }
    assert!(framing.dropped() <= pushed);
});
