//! Who may read, over a socket in the place of a port.

use super::*;
use crate::reading::Found;
use guestline_protocol::{HEADROOM, Session, Stream};
use nix::sys::eventfd::EventFd;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const JOB: u32 = 5;

fn port() -> (Bulk, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Bulk::port(File::from(OwnedFd::from(ours))), host)
}

fn send(host: &mut UnixStream, lens: &[usize]) {
    let frames = lens.iter().flat_map(|len| {
        let head = FrameHead::data(Session(7), JOB, Stream::Stdout);
        PortFraming::default().seal(head, vec![1; HEADROOM + len], 0).unwrap()
    });
    host.write_all(&frames.collect::<Vec<u8>>()).unwrap();
}

/// The length of the next frame that a job reads.
fn next(reading: &mut Reading) -> usize {
    let stop = EventFd::new().unwrap();
    match reading.next_frame(Vec::new(), stop.as_fd()) {
        Found::Frame(_, _, span) => span.len(),
        _ => panic!("no frame"),
    }
}

fn later(then: Instant) -> Instant {
    then + GRACE
}

#[test]
fn a_job_keeps_the_port_from_its_beginning_until_it_was_not_seen_for_a_while() {
    let (bulk, mut host) = port();
    let (mut watch, begun) = (Watch::default(), Instant::now());
    assert!(!watch.look(&bulk, begun));
    bulk.keep_for(JOB);
    assert!(!watch.look(&bulk, later(begun)));
    assert_eq!(bulk.interest(), None);
    send(&mut host, &[10]);
    assert_eq!(next(&mut bulk.borrow(JOB).unwrap()), 10);
    assert!(!bulk.visit());
    let seen = later(later(begun));
    assert!(!watch.look(&bulk, seen));
    // It writes what it read, and that takes long.
    assert!(!watch.look(&bulk, seen + GRACE / 2));
    assert!(watch.look(&bulk, later(seen)));
    assert_eq!(bulk.interest(), Some(PollFlags::POLLIN));
    // And has it again when it comes back.
    assert!(bulk.borrow(JOB).is_some());
}

#[test]
fn a_job_that_waits_for_what_comes_keeps_the_port() {
    let (bulk, _host) = port();
    let (mut watch, begun) = (Watch::default(), Instant::now());
    let reading = bulk.borrow(JOB);
    assert!(reading.is_some() && bulk.visit());
    assert!(!watch.look(&bulk, begun));
    assert!(!watch.look(&bulk, later(begun)));
    assert!(bulk.borrow(JOB + 1).is_none());
    drop(reading);
    assert!(watch.look(&bulk, later(begun)));
}

#[test]
fn frames_that_are_left_in_the_decoder_are_read_though_no_poll_shows_them() {
    let (bulk, mut host) = port();
    let (mut watch, begun) = (Watch::default(), Instant::now());
    send(&mut host, &[10, 20]);
    assert_eq!(next(&mut bulk.borrow(JOB).unwrap()), 10);
    bulk.give_back(JOB);
    assert!(bulk.wants_turn());
    assert!(watch.look(&bulk, begun));
    assert_eq!(next(&mut bulk.try_read().unwrap()), 20);
    assert!(!bulk.wants_turn() && !watch.look(&bulk, begun));
}

#[test]
fn what_was_handed_over_comes_before_what_is_read() {
    let (bulk, _host) = port();
    assert!(bulk.borrow(JOB).is_some());
    bulk.hand_over();
    bulk.give_back(JOB);
    assert!(bulk.borrow(JOB + 1).is_none() && bulk.wants_turn());
    bulk.keep_for(JOB + 1);
    bulk.dealt_with();
    assert!(bulk.borrow(JOB + 2).is_some());
}

#[test]
fn a_job_that_loses_the_port_to_the_poll_loop_sees_to_it_that_that_reads() {
    let (bulk, _host) = port();
    let reading = bulk.try_read();
    assert!(bulk.borrow(JOB).is_none() && bulk.wants_turn());
    drop(reading);
    assert!(bulk.borrow(JOB).is_some());
}
