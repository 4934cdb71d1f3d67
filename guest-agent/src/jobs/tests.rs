//! What the host may send to jobs.

use super::*;
use std::time::{Duration, Instant};

/// A job that takes all its input, and goes on until it is stopped.
fn start(jobs: &mut Jobs, channel: u32) -> u32 {
    let work = Box::new(|desk: &Desk| {
        loop {
            match desk.input() {
                Ok(input) => desk.used(input),
                Err(error) => return Reply::Error(error),
            }
        }
    });
    jobs.start(Session(7), channel, 0, true, None, work).unwrap()
}

/// The next word, of the job on this channel.
fn word(jobs: &mut Jobs, channel: u32) -> Word {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(said) = jobs.word() {
            assert_eq!(said.channel, channel);
            return said.word;
        }
        assert!(Instant::now() < deadline, "nothing is said");
        std::thread::yield_now();
    }
}

#[test]
fn all_windows_together_are_bounded_and_nobody_gets_none() {
    let mut jobs = Jobs::new().unwrap();
    let windows: Vec<u32> = (0..20).map(|channel| start(&mut jobs, channel)).collect();
    assert_eq!(windows[..3], [INPUT_WINDOW, INPUT_WINDOW / 2, INPUT_WINDOW / 4]);
    assert!(windows.iter().all(|window| *window >= LEAST_INPUT_WINDOW));
    let all: u32 = windows.iter().sum();
    assert!(all <= ALL_INPUT_WINDOWS + 20 * LEAST_INPUT_WINDOW);
    // What was granted to a job is free again when it has ended, and not when it is told to.
    for channel in [0, 1] {
        jobs.cancel(channel);
        assert!(matches!(word(&mut jobs, channel), Word::Reply(Reply::Error(_))));
    }
    let left = all - INPUT_WINDOW - INPUT_WINDOW / 2;
    assert_eq!(jobs.windows.load(Ordering::Acquire), left);
    assert_eq!(start(&mut jobs, 0), (ALL_INPUT_WINDOWS - left) / 2);
    jobs.end_session();
}

#[test]
fn what_a_job_used_is_granted_again() {
    let mut jobs = Jobs::new().unwrap();
    let window = start(&mut jobs, 1) as usize;
    jobs.input(1, Input { buffer: vec![0; window], span: 0..window }).unwrap();
    match word(&mut jobs, 1) {
        Word::Reply(Reply::Credit(credit)) => assert_eq!(credit.bytes as usize, window),
        _ => panic!("no credit"),
    }
    jobs.end_session();
}

#[test]
fn a_host_that_sends_more_than_its_window_is_told() {
    let mut jobs = Jobs::new().unwrap();
    let wait = Box::new(|desk: &Desk| {
        let _ = desk.credit(1);
        Reply::Error(RemoteError::new(ErrorKind::Cancelled, String::new()))
    });
    let window = jobs.start(Session(7), 2, 0, true, None, wait).unwrap();
    let mut send = |len: usize| jobs.input(2, Input { buffer: vec![0; len], span: 0..len });
    assert!(send(window as usize).is_ok());
    assert_eq!(send(1).unwrap_err().kind, ErrorKind::Protocol);
    jobs.end_session();
}
