//! Who writes what and when, over a socket in the place of a port.

use super::*;
use nix::sys::eventfd::EventFd;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

fn outlet() -> (Outlet, UnixStream) {
    let (ours, host) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    (Outlet::new(Arc::new(File::from(OwnedFd::from(ours)))), host)
}

/// Over a socket that keeps apart what was written apart.
fn outlet_of_pieces() -> (Outlet, UnixDatagram) {
    let (ours, host) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    (Outlet::new(Arc::new(File::from(OwnedFd::from(ours)))), host)
}

/// Each piece that was written.
fn pieces(host: &UnixDatagram) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 2 * TOGETHER];
    let next = || host.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec());
    std::iter::from_fn(next).collect()
}

/// What has come out, and what it was for.
fn write(outlet: &Outlet) -> Vec<Vec<u8>> {
    let mut done = Vec::new();
    outlet.write(&mut |buffer| done.push(buffer)).unwrap();
    done
}

fn read(host: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let end = host.read_to_end(&mut bytes);
    assert!(end.is_ok() || end.is_err_and(|error| is_transient(&error)));
    bytes
}

/// Reads and writes in turn until nothing is left.
fn all_that_comes(outlet: &Outlet, host: &mut UnixStream) -> Vec<u8> {
    let mut came = Vec::new();
    while outlet.has_output() {
        came.extend(read(host));
        write(outlet);
    }
    came.extend(read(host));
    came
}

#[test]
fn messages_go_together_and_before_data() {
    let (outlet, host) = outlet_of_pieces();
    outlet.data(b"data".to_vec());
    outlet.message(b"one ".to_vec(), false);
    outlet.message(b"two ".to_vec(), false);
    outlet.message(vec![b'.'; TOGETHER], false);
    assert!(outlet.has_output() && outlet.interest().contains(PollFlags::POLLOUT));
    write(&outlet);
    assert_eq!(pieces(&host), [b"one two ".as_slice(), &[b'.'; TOGETHER], b"data"]);
    assert!(!outlet.has_output());
    // The memory of pieces that were written is used again, and holds nothing of them.
    outlet.message(b"three ".to_vec(), false);
    outlet.message(b"four".to_vec(), false);
    write(&outlet);
    assert_eq!(pieces(&host), [b"three four"]);
}

#[test]
fn a_message_that_nobody_waits_for_goes_with_the_next_or_after_a_while() {
    let (mut outlet, host) = outlet_of_pieces();
    outlet.hold = Duration::from_secs(3600);
    outlet.message(b"credit ".to_vec(), true);
    write(&outlet);
    assert!(pieces(&host).is_empty() && outlet.held_until().is_some());
    outlet.message(b"answer".to_vec(), false);
    write(&outlet);
    assert_eq!(pieces(&host), [b"credit answer"]);
    outlet.hold = Duration::ZERO;
    outlet.message(b"credit".to_vec(), true);
    write(&outlet);
    assert_eq!(pieces(&host), [b"credit"]);
}

#[test]
fn what_is_not_taken_waits_in_order_and_is_taken_later() {
    let (outlet, mut host) = outlet();
    let data: Vec<u8> = (0..2_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    outlet.data(data.clone());
    assert!(write(&outlet).is_empty());
    outlet.message(b"message".to_vec(), false);
    let came = all_that_comes(&outlet, &mut host);
    // Half a frame is out: nothing comes between.
    assert!(came == [data.as_slice(), b"message"].concat());
}

#[test]
fn a_job_waits_until_its_own_frame_has_left() {
    let (outlet, host) = outlet();
    let stop = EventFd::new().unwrap();
    let (mut done, small) = (Vec::new(), outlet.data(vec![1; 100]));
    outlet.write_out(small, stop.as_fd(), &mut |buffer| done.push(buffer.len())).unwrap();
    assert_eq!(done, [100]);
    let large = outlet.data(vec![2; 4_000_000]);
    assert!(small < large && outlet.room() == 0);
    stop.write(1).unwrap();
    let stopped = outlet.write_out(large, stop.as_fd(), &mut |_| {}).unwrap_err();
    assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    drop(host);
    let gone = outlet.write_out(large, EventFd::new().unwrap().as_fd(), &mut |_| {}).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_new_session_drops_all_but_a_frame_that_is_half_out() {
    let (outlet, mut host) = outlet();
    outlet.data(vec![1; 2_000_000]);
    outlet.data(vec![2; 10]);
    assert!(write(&outlet).is_empty());
    outlet.forget();
    outlet.message(b"hello".to_vec(), false);
    let came = all_that_comes(&outlet, &mut host);
    assert!(came == [[1; 2_000_000].as_slice(), b"hello"].concat());
    let waits = outlet.data(vec![3; 2_000_000]);
    outlet.reset();
    assert!(!outlet.has_output());
    // Whoever waited for it does not wait any more.
    outlet.write_out(waits, EventFd::new().unwrap().as_fd(), &mut |_| {}).unwrap();
}
