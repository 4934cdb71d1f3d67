//! Properties of both framings, and their golden bytes.

#![allow(clippy::unwrap_used, reason = "a test may")]

use guestline_protocol::{FrameTooLong, Framing, MAX_FRAME_LEN, PortFraming, Session, TtyFraming};
use proptest::prelude::*;

fn both() -> [Box<dyn Framing>; 2] {
    [Box::<PortFraming>::default(), Box::<TtyFraming>::default()]
}

fn drain(framing: &mut dyn Framing) -> Vec<(u64, Vec<u8>)> {
    std::iter::from_fn(|| framing.next_frame()).map(|f| (f.session.0, f.body)).collect()
}

/// Pushes `bytes` in pieces that end at `cuts`, as a transport would.
fn push_in_pieces(framing: &mut dyn Framing, bytes: &[u8], cuts: &[usize]) -> Vec<(u64, Vec<u8>)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let mut frames = Vec::new();
    for piece in cuts.windows(2) {
        framing.push(&bytes[piece[0]..piece[1]]);
        frames.extend(drain(framing));
    }
    frames
}

fn bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..6)
}

proptest! {
    #[test]
    fn frames_survive_any_split(
        bodies in bodies(), session in any::<u64>(), cuts in prop::collection::vec(any::<usize>(), 0..20)
    ) {
        for mut framing in both() {
            let mut bytes = Vec::new();
            for body in &bodies {
                framing.encode(Session(session), body, &mut bytes).unwrap();
            }
            let frames = push_in_pieces(&mut *framing, &bytes, &cuts);
            let wanted: Vec<_> = bodies.iter().map(|body| (session, body.clone())).collect();
            prop_assert_eq!(frames, wanted);
            prop_assert_eq!(framing.dropped(), 0);
        }
    }

    #[test]
    fn garbage_between_port_frames_is_dropped_and_counted(
        bodies in bodies(), noise in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(any::<usize>(), 0..20)
    ) {
        let mut framing = PortFraming::default();
        let mut bytes = noise.clone();
        for body in &bodies {
            framing.encode(Session(7), body, &mut bytes).unwrap();
            bytes.extend_from_slice(&noise);
        }
        // A frame behind all, so that nothing that looks like a beginning is left waiting.
        framing.encode(Session(7), b"end", &mut bytes).unwrap();
        let frames: Vec<_> =
            push_in_pieces(&mut framing, &bytes, &cuts).into_iter().map(|(_, body)| body).collect();
        let mut wanted = bodies.clone();
        wanted.push(b"end".to_vec());
        prop_assert_eq!(frames, wanted);
        prop_assert_eq!(framing.dropped(), (noise.len() * (bodies.len() + 1)) as u64);
    }

    #[test]
    fn garbage_between_tty_frames_is_dropped(
        bodies in bodies(), noise in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(any::<usize>(), 0..20)
    ) {
        let mut framing = TtyFraming::default();
        let mut bytes = noise.clone();
        for body in &bodies {
            framing.encode(Session(7), body, &mut bytes).unwrap();
            bytes.extend_from_slice(&noise);
        }
        let frames: Vec<_> =
            push_in_pieces(&mut framing, &bytes, &cuts).into_iter().map(|(_, body)| body).collect();
        prop_assert_eq!(frames, bodies);
    }

    #[test]
    fn a_stale_frame_cut_anywhere_swallows_nothing(
        stale in prop::collection::vec(any::<u8>(), 0..2000), cut in any::<usize>(), body in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        for mut framing in both() {
            let mut bytes = Vec::new();
            framing.encode(Session(1), &stale, &mut bytes).unwrap();
            bytes.truncate(cut % (bytes.len() + 1));
            framing.encode(Session(2), &body, &mut bytes).unwrap();
            framing.accept_only(Session(2));
            framing.push(&bytes);
            prop_assert_eq!(drain(&mut *framing), vec![(2, body.clone())]);
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        for mut framing in both() {
            push_in_pieces(&mut *framing, &bytes, &cuts);
            prop_assert!(framing.dropped() <= bytes.len() as u64);
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_another_tty_frame(body in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), bit in 0u8..8) {
        let mut framing = TtyFraming::default();
        let mut bytes = Vec::new();
        framing.encode(Session(7), &body, &mut bytes).unwrap();
        let at = 1 + at % (bytes.len() - 2);
        bytes[at] ^= 1u8 << bit;
        framing.push(&bytes);
        prop_assert_eq!(drain(&mut framing), vec![]);
    }
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_refused() {
    for mut framing in both() {
        let mut bytes = Vec::new();
        let body = vec![0xa5; MAX_FRAME_LEN];
        framing.encode(Session(1), &body, &mut bytes).unwrap();
        framing.push(&bytes);
        assert_eq!(drain(&mut *framing), [(1, body)]);

        bytes.clear();
        let refused = framing.encode(Session(1), &vec![0; MAX_FRAME_LEN + 1], &mut bytes);
        assert_eq!(refused, Err(FrameTooLong { len: MAX_FRAME_LEN + 1 }));
        assert!(bytes.is_empty());
    }
}

#[test]
fn a_header_that_claims_too_much_is_noise() {
    let mut framing = PortFraming::default();
    let mut header = vec![b'G', b'L', 1, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    header.extend_from_slice(&u32::MAX.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    framing.push(&header);
    let mut good = Vec::new();
    framing.encode(Session(1), b"good", &mut good).unwrap();
    framing.push(&good);
    assert_eq!(drain(&mut framing), [(1, b"good".to_vec())]);
    assert_eq!(framing.dropped(), 20);
}

#[test]
fn an_endless_run_on_a_tty_takes_no_memory_and_the_next_frame_is_found() {
    let mut framing = TtyFraming::default();
    let noise = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        framing.push(&noise);
        assert_eq!(drain(&mut framing), []);
    }
    let mut good = Vec::new();
    framing.encode(Session(1), b"good", &mut good).unwrap();
    framing.push(&good);
    assert_eq!(drain(&mut framing), [(1, b"good".to_vec())]);
    assert_eq!(framing.dropped(), 64 * 64 * 1024);
}

#[test]
fn the_layouts_are_the_documented_ones() {
    let session = Session(0x1122_3344_5566_7788);
    let mut port = Vec::new();
    PortFraming::default().encode(session, b"\x01\x00\x02", &mut port).unwrap();
    let mut wanted = b"GL\x01\x00\x88\x77\x66\x55\x44\x33\x22\x11\x03\x00\x00\x00".to_vec();
    wanted.extend_from_slice(&crc32fast::hash(&wanted).to_le_bytes());
    wanted.extend_from_slice(b"\x01\x00\x02");
    assert_eq!(port, wanted);

    let mut tty = Vec::new();
    TtyFraming::default().encode(session, b"\x01\x00\x02", &mut tty).unwrap();
    let mut data = b"\x88\x77\x66\x55\x44\x33\x22\x11\x01\x00\x02".to_vec();
    data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
    // One zero inside: the first group ends there, 9 bytes and the code in front.
    let mut wanted = vec![0, 10];
    wanted.extend_from_slice(&data[..9]);
    wanted.push(u8::try_from(data.len() - 10 + 1).unwrap());
    wanted.extend_from_slice(&data[10..]);
    wanted.push(0);
    assert_eq!(tty, wanted);
}
