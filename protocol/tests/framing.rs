//! Properties of both framings, and their documented layouts.

#![allow(clippy::unwrap_used, reason = "a test may")]

use guestline_protocol::{
    End, FrameHead, FrameTooLong, Framing, HEADROOM, MAX_FRAME_LEN, PortFraming, Session, Stream,
    TtyFraming,
};
use proptest::prelude::*;

/// A sender and a receiver of each kind.
fn both() -> [(Box<dyn Framing>, Box<dyn Framing>); 2] {
    [
        (Box::<PortFraming>::default(), Box::<PortFraming>::default()),
        (Box::new(TtyFraming::new(End::Host)), Box::new(TtyFraming::new(End::Guest))),
    ]
}

fn frame(framing: &mut dyn Framing, session: u64, body: &[u8]) -> Vec<u8> {
    sealed(framing, FrameHead::message(Session(session), 5), body).unwrap()
}

fn sealed(
    framing: &mut dyn Framing,
    head: FrameHead,
    body: &[u8],
) -> Result<Vec<u8>, FrameTooLong> {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend_from_slice(body);
    framing.seal(head, buffer, 1)
}

fn drain(framing: &mut dyn Framing) -> Vec<(u64, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(frame) = framing.next_frame() {
        frames.push((frame.head.session.0, frame.body.to_vec()));
    }
    frames
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

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..20)
}

proptest! {
    #[test]
    fn frames_survive_any_split(bodies in bodies(), session in 1..u64::MAX, cuts in cuts()) {
        for (mut sender, mut receiver) in both() {
            let mut bytes = Vec::new();
            for body in &bodies {
                bytes.extend(frame(&mut *sender, session, body));
            }
            let frames = push_in_pieces(&mut *receiver, &bytes, &cuts);
            let wanted: Vec<_> = bodies.iter().map(|body| (session, body.clone())).collect();
            prop_assert_eq!(frames, wanted);
            prop_assert_eq!(receiver.dropped(), 0);
        }
    }

    #[test]
    fn garbage_between_port_frames_is_dropped_and_counted(
        bodies in bodies(), noise in prop::collection::vec(any::<u8>(), 0..300), cuts in cuts()
    ) {
        let mut framing = PortFraming::default();
        let mut bytes = noise.clone();
        for body in &bodies {
            bytes.extend(frame(&mut framing, 7, body));
            bytes.extend_from_slice(&noise);
        }
        // A frame behind all, so that nothing that looks like a beginning is left waiting.
        bytes.extend(frame(&mut framing, 7, b"end"));
        let frames: Vec<_> =
            push_in_pieces(&mut framing, &bytes, &cuts).into_iter().map(|(_, body)| body).collect();
        let mut wanted = bodies.clone();
        wanted.push(b"end".to_vec());
        prop_assert_eq!(frames, wanted);
        prop_assert_eq!(framing.dropped(), (noise.len() * (bodies.len() + 1)) as u64);
    }

    #[test]
    fn a_stale_frame_cut_anywhere_swallows_nothing(
        stale in prop::collection::vec(any::<u8>(), 0..2000), cut in any::<usize>(), body in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        for (mut sender, mut receiver) in both() {
            let mut bytes = frame(&mut *sender, 1, &stale);
            bytes.truncate(cut % (bytes.len() + 1));
            bytes.extend(frame(&mut *sender, 2, &body));
            receiver.accept_only(Session(2));
            receiver.push(&bytes);
            prop_assert_eq!(drain(&mut *receiver), vec![(2, body.clone())]);
        }
    }

    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000), cuts in cuts()) {
        for (_, mut receiver) in both() {
            push_in_pieces(&mut *receiver, &bytes, &cuts);
            prop_assert!(receiver.dropped() <= bytes.len() as u64);
        }
    }

    #[test]
    fn a_flipped_bit_never_gives_another_tty_frame(body in prop::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), bit in 0u8..8) {
        let (mut sender, mut receiver) = (TtyFraming::new(End::Host), TtyFraming::new(End::Guest));
        let mut bytes = frame(&mut sender, 7, &body);
        let at = 1 + at % (bytes.len() - 2);
        bytes[at] ^= 1u8 << bit;
        receiver.push(&bytes);
        prop_assert_eq!(drain(&mut receiver), vec![]);
    }

    /// A buffer that is handed over keeps its body, and what came behind it is not lost.
    #[test]
    fn a_detached_buffer_loses_nothing(bodies in bodies(), cuts in cuts(), spare in 0..4000_usize) {
        for (mut sender, mut receiver) in both() {
            let mut bytes = Vec::new();
            for body in &bodies {
                bytes.extend(frame(&mut *sender, 3, body));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut found = Vec::new();
            for piece in cuts.windows(2) {
                receiver.push(&bytes[piece[0]..piece[1]]);
                while let Some((_, span)) = receiver.next_span() {
                    found.push(receiver.detach(vec![9; spare])[span].to_vec());
                }
            }
            prop_assert_eq!(&found, &bodies);
        }
    }

    /// Two ends over a line that loses, changes and adds bytes: every frame arrives once, in order.
    #[test]
    fn a_noisy_line_loses_nothing(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..30),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..30),
    ) {
        let mut ends = [TtyFraming::new(End::Host), TtyFraming::new(End::Guest)];
        let mut noise = noise.into_iter();
        let mut now = 1_u64;
        let mut wire: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
        let mut found = Vec::new();
        // As a host does, which waits for the answer to its hello.
        wire[0].extend(frame(&mut ends[0], 7, &bodies[0]));
        let mut rest = bodies[1..].iter();
        for _round in 0..2000 {
            if !found.is_empty() {
                for body in rest.by_ref() {
                    wire[0].extend(frame(&mut ends[0], 7, body));
                }
            }
            for from in 0..2 {
                let mut bytes = std::mem::take(&mut wire[from]);
                if !bytes.is_empty() && let Some((at, byte, how)) = noise.next() {
                    let at = at.index(bytes.len());
                    match how {
                        0 => bytes[at] ^= byte,
                        1 => bytes.insert(at, byte),
                        _ => bytes.truncate(at),
                    }
                }
                ends[1 - from].push(&bytes);
                let frames = drain(&mut ends[1 - from]);
                if from == 0 {
                    found.extend(frames.into_iter().map(|(_, body)| body));
                }
                // Undrained at times that keep no step with any wait.
                let is_drained = now.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0;
                let due = ends[1 - from].due(now, is_drained);
                wire[1 - from].extend(due);
            }
            now += 100;
            if found.len() >= bodies.len() {
                break;
            }
        }
        prop_assert_eq!(found, bodies);
    }
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_refused() {
    for (mut sender, mut receiver) in both() {
        let body = vec![0xa5; MAX_FRAME_LEN];
        let bytes = frame(&mut *sender, 1, &body);
        receiver.push(&bytes);
        assert_eq!(drain(&mut *receiver), [(1, body)]);

        let head = FrameHead::message(Session(1), 5);
        let refused = sealed(&mut *sender, head, &vec![0; MAX_FRAME_LEN + 1]);
        assert_eq!(refused, Err(FrameTooLong { len: MAX_FRAME_LEN + 1 }));
    }
}

#[test]
fn a_header_that_claims_too_much_is_noise() {
    let mut framing = PortFraming::default();
    let mut header = vec![b'G', b'L', 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
    header.extend_from_slice(&u32::MAX.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    framing.push(&header);
    let good = frame(&mut PortFraming::default(), 1, b"good");
    framing.push(&good);
    assert_eq!(drain(&mut framing), [(1, b"good".to_vec())]);
    assert_eq!(framing.dropped(), 24);
}

#[test]
fn an_endless_run_on_a_tty_takes_no_memory_and_the_next_frame_is_found() {
    let mut framing = TtyFraming::new(End::Guest);
    let noise = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        framing.push(&noise);
        assert_eq!(drain(&mut framing), []);
    }
    let good = frame(&mut TtyFraming::new(End::Host), 1, b"good");
    framing.push(&good);
    assert_eq!(drain(&mut framing), [(1, b"good".to_vec())]);
    assert_eq!(framing.dropped(), 64 * 64 * 1024);
}

#[test]
fn a_tty_that_echoes_gives_an_end_none_of_its_own_frames() {
    let mut host = TtyFraming::new(End::Host);
    let bytes = frame(&mut host, 7, b"hello");
    host.push(&bytes);
    assert_eq!(drain(&mut host), []);
}

#[test]
fn a_tty_holds_back_what_the_window_has_no_room_for() {
    let (mut host, mut guest) = (TtyFraming::new(End::Host), TtyFraming::new(End::Guest));
    let mut bytes = Vec::new();
    for number in 0..20_u8 {
        bytes.extend(frame(&mut host, 7, &[number]));
    }
    assert!(host.is_congested());
    let mut found = 0;
    for _ in 0..3 {
        guest.push(&std::mem::take(&mut bytes));
        found += drain(&mut guest).len();
        host.push(&guest.due(2, true));
        assert_eq!(drain(&mut host), []);
        bytes = host.due(2, true);
    }
    assert_eq!(found, 20);
    assert!(!host.is_congested() && host.deadline_ms().is_none());
}

#[test]
fn an_agent_that_began_anew_hands_out_frames_of_a_session_it_does_not_know() {
    let mut host = TtyFraming::new(End::Host);
    let _lost = frame(&mut host, 7, b"hello");
    let second = frame(&mut host, 7, b"ping");
    let mut guest = TtyFraming::new(End::Guest);
    guest.push(&second);
    assert_eq!(drain(&mut guest), [(7, b"ping".to_vec())]);
    // Its refusal arrives although it is in no sequence.
    host.accept_only(Session(7));
    let refusal = frame(&mut guest, 7, b"say hello");
    host.push(&refusal);
    assert_eq!(drain(&mut host), [(7, b"say hello".to_vec())]);
}

#[test]
fn the_layouts_are_the_documented_ones() {
    let head = FrameHead::data(Session(0x1122_3344_5566_7788), 0x0a0b_0c0d, Stream::Stderr);
    let port = sealed(&mut PortFraming::default(), head, b"\x01\x00\x02").unwrap();
    let mut wanted =
        b"GL\x01\x02\x88\x77\x66\x55\x44\x33\x22\x11\x0d\x0c\x0b\x0a\x03\x00\x00\x00".to_vec();
    wanted.extend_from_slice(&crc32fast::hash(&wanted).to_le_bytes());
    wanted.extend_from_slice(b"\x01\x00\x02");
    assert_eq!(port, wanted);

    let tty = sealed(&mut TtyFraming::new(End::Host), head, b"\x01\x00\x02").unwrap();
    let mut data = b"\x00\x02\x88\x77\x66\x55\x44\x33\x22\x11\x0d\x0c\x0b\x0a".to_vec();
    data.extend_from_slice(&[0; 8]);
    data.extend_from_slice(b"\x01\x00\x02");
    data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
    let mut wanted = vec![0];
    wanted.extend_from_slice(&cobs::encode_vec(&data));
    wanted.push(0);
    assert_eq!(tty, wanted);
}

#[test]
fn what_is_missing_of_a_frame_is_known_once_its_head_is_there() {
    let head = FrameHead::data(Session(7), 3, Stream::Stdout);
    let frame = PortFraming::default().seal(head, vec![5; HEADROOM + 1000], 0).unwrap();
    let mut framing = PortFraming::default();
    let give = |framing: &mut PortFraming, bytes: &[u8]| {
        framing.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        framing.filled(bytes.len());
        framing.next_span()
    };
    let (begin, rest) = frame.split_at(HEADROOM - 1);
    assert_eq!((give(&mut framing, begin), framing.missing()), (None, None));
    let (first, rest) = rest.split_at(101);
    assert_eq!((give(&mut framing, first), framing.missing()), (None, Some(900)));
    assert_eq!(give(&mut framing, rest), Some((head, HEADROOM..HEADROOM + 1000)));
    assert_eq!(framing.missing(), None);
}

/// A stale header without its last byte, which the next frame's first byte happens to be.
#[test]
fn a_stale_header_that_the_next_frame_completes_swallows_nothing() {
    let next = frame(&mut PortFraming::default(), 2, b"body");
    let stale = (3..100_000).map(|session| frame(&mut PortFraming::default(), session, b""));
    let mut bytes = stale.into_iter().find(|stale| stale[23] == next[0]).unwrap();
    bytes.truncate(23);
    bytes.extend(&next);
    let mut receiver = PortFraming::default();
    receiver.accept_only(Session(2));
    receiver.push(&bytes);
    assert_eq!(drain(&mut receiver), vec![(2, b"body".to_vec())]);
}
