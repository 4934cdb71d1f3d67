//! What is sent again, when and how often; and how long the decoder takes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may")]

use super::*;
use crate::Stream;
use std::time::{Duration, Instant};

const SESSION: Session = Session(7);

fn seal(framing: &mut TtyFraming, body: &[u8], now_ms: u64) -> Vec<u8> {
    let buffer = [&[0; HEADROOM], body].concat();
    framing.seal(FrameHead::data(SESSION, 5, Stream::Stdout), buffer, now_ms).unwrap()
}

fn bodies(framing: &mut TtyFraming, bytes: &[u8]) -> Vec<Vec<u8>> {
    framing.push(bytes);
    let mut found = Vec::new();
    while let Some(frame) = framing.next_frame() {
        found.push(frame.body.to_vec());
    }
    found
}

/// Two ends in one session, the host's hello being acknowledged.
fn ends() -> (TtyFraming, TtyFraming) {
    let (mut host, mut guest) = (TtyFraming::new(End::Host), TtyFraming::new(End::Guest));
    let hello = seal(&mut host, b"hello", 1);
    assert_eq!(bodies(&mut guest, &hello), [b"hello"]);
    let ack = guest.due(1, true);
    assert!(bodies(&mut host, &ack).is_empty());
    host.due(1, true);
    assert_eq!(host.deadline_ms(), None);
    (host, guest)
}

#[test]
fn what_is_not_acknowledged_is_sent_again_for_as_long_as_it_takes() {
    let (mut host, mut guest) = (TtyFraming::new(End::Host), TtyFraming::new(End::Guest));
    seal(&mut host, b"hello", 1);
    let (mut now, mut copies, mut pause) = (1, 0, 0);
    while now < 24 * 3600 * 1000 {
        let next = host.deadline_ms().unwrap();
        pause = next - now;
        now = next;
        let copy = host.due(now, true);
        assert_eq!(bodies(&mut TtyFraming::new(End::Guest), &copy), [b"hello"]);
        copies += 1;
    }
    assert_eq!(pause, 5_000);
    assert!(copies < 24 * 3600 / 5 + 10, "{copies}");
    let copy = host.due(now + pause, true);
    assert_eq!(bodies(&mut guest, &copy), [b"hello"]);
    let ack = guest.due(1, true);
    bodies(&mut host, &ack);
    assert_eq!(host.deadline_ms(), None);
}

#[test]
fn nothing_is_sent_again_before_it_is_written() {
    let (mut host, _) = ends();
    seal(&mut host, b"long", 1);
    let mut now = 1;
    for _ in 0..1000 {
        let next = host.deadline_ms().unwrap();
        assert!(next > now, "a deadline that has passed would make its caller spin");
        now = next;
        assert_eq!(host.due(now, false), []);
    }
    now = host.deadline_ms().unwrap();
    assert!(!host.due(now, true).is_empty());
}

#[test]
fn after_two_repetitions_in_vain_only_the_first_frame_is_repeated() {
    let (mut host, mut guest) = ends();
    let sent: Vec<u8> = (0..8).flat_map(|number| seal(&mut host, &[number], 1)).collect();
    let mut repeated = Vec::new();
    let mut now = 1;
    for _ in 0..4 {
        now = host.deadline_ms().unwrap();
        let copies = host.due(now, true);
        repeated.push(bodies(&mut ends().1, &copies).len());
    }
    assert_eq!(repeated, [8, 8, 1, 1]);
    // All had arrived, and only the acknowledgements were lost.
    assert_eq!(bodies(&mut guest, &sent).len(), 8);
    guest.due(now, true);
    let now = host.deadline_ms().unwrap();
    let copy = host.due(now, true);
    assert!(bodies(&mut guest, &copy).is_empty());
    let ack = guest.due(now, true);
    bodies(&mut host, &ack);
    assert_eq!((host.deadline_ms(), host.kept()), (None, 0));
}

/// A slow line: bytes leave our own queue for a buffer of the kernel's, and that at the line's speed.
struct Line {
    queue: Vec<u8>,
    kernel: Vec<u8>,
    bytes_per_second: u64,
    /// Bytes that were given to it.
    given: usize,
}

impl Line {
    const KERNEL: usize = 4096;

    fn new(bytes_per_second: u64) -> Self {
        Self { queue: Vec::new(), kernel: Vec::new(), bytes_per_second, given: 0 }
    }

    fn give(&mut self, bytes: &[u8]) {
        self.given += bytes.len();
        self.queue.extend(bytes);
    }

    /// What comes out at the other end in the millisecond that ends now.
    fn pass(&mut self, now_ms: u64) -> Vec<u8> {
        let all = |ms: u64| (ms * self.bytes_per_second / 1000) as usize;
        let len = (all(now_ms) - all(now_ms - 1)).min(self.kernel.len());
        let out = self.kernel.drain(..len).collect();
        let room = (Self::KERNEL - self.kernel.len()).min(self.queue.len());
        self.kernel.extend(self.queue.drain(..room));
        out
    }
}

#[test]
fn a_slow_line_carries_nothing_twice() {
    for bytes_per_second in [120, 960, 11_520] {
        let (mut host, mut guest) = ends();
        let (mut down, mut up) = (Line::new(bytes_per_second), Line::new(bytes_per_second));
        let (mut sent, mut arrived) = (0, 0);
        let mut now = 1;
        while arrived < 64 {
            now += 1;
            assert!(now < 64 * 1100 * 1000 / bytes_per_second * 3 / 2, "{arrived} arrived");
            // As a session does: data follows when the line has taken what went before.
            while sent < 64 && down.queue.is_empty() && !host.is_congested() {
                let bytes = seal(&mut host, &[sent; DATA_LEN], now);
                down.give(&bytes);
                sent += 1;
            }
            arrived += bodies(&mut guest, &down.pass(now)).len();
            bodies(&mut host, &up.pass(now));
            for (end, line) in [(&mut host, &mut down), (&mut guest, &mut up)] {
                if end.deadline_ms().is_some_and(|at| at <= now) {
                    let due = end.due(now, line.queue.is_empty());
                    line.give(&due);
                }
            }
        }
        let repeated = down.given as f64 / (64.0 * DATA_LEN as f64);
        assert!(repeated < 1.2, "{repeated:.2} times as much was sent at {bytes_per_second} B/s");
    }
}

#[test]
fn what_is_forgotten_does_not_come_again() {
    let (mut host, _) = ends();
    seal(&mut host, b"over", 1);
    assert_eq!(host.kept(), 4);
    host.forget();
    assert_eq!((host.kept(), host.deadline_ms()), (0, None));
    assert_eq!(host.due(1_000_000, true), []);
}

#[test]
fn an_acknowledgement_is_heard() {
    let (mut host, mut guest) = ends();
    let before = host.heard();
    let bytes = seal(&mut host, b"data", 2);
    bodies(&mut guest, &bytes);
    let ack = guest.due(2, true);
    assert!(bodies(&mut host, &ack).is_empty());
    assert_eq!(host.heard(), before + 1);
}

/// Each boundary used to move all that came behind it: this took hours.
#[test]
fn a_flood_of_zeros_and_of_tiny_runs_takes_time_in_proportion() {
    for flood in [vec![0; 1 << 20], [1, 0].repeat(1 << 19)] {
        let began = Instant::now();
        let mut framing = TtyFraming::new(End::Guest);
        for _ in 0..4 {
            assert!(bodies(&mut framing, &flood).is_empty());
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let good = seal(&mut TtyFraming::new(End::Host), b"good", 1);
        assert_eq!(bodies(&mut framing, &good), [b"good"]);
    }
}
