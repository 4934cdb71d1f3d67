//! What is read, over a socket in the place of a port.

use super::*;
use guestline_protocol::{HEADROOM, PortFraming, Session, Stream};
use nix::sys::eventfd::EventFd;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

fn lane() -> (Reading, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let file = Arc::new(File::from(OwnedFd::from(ours)));
    (Reading::new(file, Box::new(PortFraming::default())), host)
}

fn frame(content: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend_from_slice(content);
    let head = FrameHead::data(Session(7), 5, Stream::Stdout);
    PortFraming::default().seal(head, buffer, 0).unwrap()
}

/// No two of its pieces are alike.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at / 251 + at) % 256).unwrap()).collect()
}

fn next(reading: &mut Reading, stop: &EventFd) -> Option<Vec<u8>> {
    match reading.next_frame(Vec::new(), stop.as_fd()) {
        Found::Frame(_, buffer, span) => Some(buffer[span].to_vec()),
        Found::Stopped | Found::Closed => None,
    }
}

#[test]
fn a_read_takes_what_is_there_and_says_whether_more_may_be() {
    let (mut reading, mut host) = lane();
    assert_eq!(reading.read(READ_LEN), Read::Nothing);
    host.write_all(&[0; 3 * READ_LEN]).unwrap();
    assert_eq!(reading.read(READ_LEN), Read::Some);
    assert_eq!(reading.read(usize::MAX), Read::Some);
    assert_eq!(reading.read(READ_LEN / 2), Read::Some);
    assert_eq!(reading.read(READ_LEN), Read::Last);
    assert_eq!(reading.read(READ_LEN), Read::Nothing);
    drop(host);
    assert_eq!(reading.read(READ_LEN), Read::Closed);
}

#[test]
fn frames_of_any_length_are_whole_though_they_come_in_odd_pieces() {
    let (mut reading, mut host) = lane();
    let lens = [0, 1, PORT_READ - HEADROOM, PORT_READ, READ_LEN + 1, 64 * PORT_READ, 200_000];
    let sent = lens.map(|len| frame(&content(len))).concat();
    let sender = std::thread::spawn(move || {
        for piece in sent.chunks(1013) {
            host.write_all(piece).unwrap();
        }
        host
    });
    let stop = EventFd::new().unwrap();
    for len in lens {
        assert!(next(&mut reading, &stop).unwrap() == content(len), "{len}");
    }
    drop(sender.join().unwrap());
    assert!(matches!(reading.next_frame(Vec::new(), stop.as_fd()), Found::Closed));
}

#[test]
fn who_waits_for_a_frame_can_be_stopped() {
    let (mut reading, mut host) = lane();
    host.write_all(&frame(&[1, 2, 3])[..5]).unwrap();
    let stop = EventFd::new().unwrap();
    stop.write(1).unwrap();
    assert!(matches!(reading.next_frame(Vec::new(), stop.as_fd()), Found::Stopped));
}

#[test]
fn what_a_host_left_behind_is_not_the_next_ones() {
    let (mut reading, mut host) = lane();
    host.write_all(&frame(&content(100))[..60]).unwrap();
    assert_eq!(reading.read(READ_LEN), Read::Last);
    host.write_all(&content(3 * PORT_READ)).unwrap();
    drop(host);
    reading.restart();
    assert_eq!(reading.read(READ_LEN), Read::Closed);
    assert!(reading.framing.next_span().is_none());
}
