//! Any bytes as a body: no panic, and what decodes encodes to something that decodes to the same.
#![no_main]

use guestline_protocol::{HEADROOM, Reply, Request, decode, encode};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    if let Ok(message) = decode::<Request>(body) {
        assert_eq!(decode(&encode(&message)[HEADROOM..]), Ok(message));
    }
    if let Ok(message) = decode::<Reply>(body) {
        assert_eq!(decode(&encode(&message)[HEADROOM..]), Ok(message));
    }
});
