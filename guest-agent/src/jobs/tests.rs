//! What the host may send to jobs.

use super::*;

/// A job that takes input and goes on until it is stopped.
fn start(jobs: &mut Jobs, channel: u32) -> u32 {
    let work = Box::new(|desk: &Desk| match desk.input() {
        Ok(_) => panic!("nobody sends any"),
        Err(error) => Reply::Error(error),
    });
    jobs.start(Session(7), channel, 0, true, None, work).unwrap()
}

#[test]
fn all_windows_together_are_bounded_and_nobody_gets_none() {
    let mut jobs = Jobs::new().unwrap();
    let windows: Vec<u32> = (0..20).map(|channel| start(&mut jobs, channel)).collect();
    assert_eq!(windows[..3], [INPUT_WINDOW, INPUT_WINDOW / 2, INPUT_WINDOW / 4]);
    assert!(windows.iter().all(|window| *window >= LEAST_INPUT_WINDOW));
    let all: u32 = windows.iter().sum();
    assert!(all <= ALL_INPUT_WINDOWS + 20 * LEAST_INPUT_WINDOW);
    assert!(jobs.input(0, Input { buffer: Vec::new(), span: 0..0 }).is_ok());
    jobs.end_session();
    assert_eq!(start(&mut jobs, 0), INPUT_WINDOW);
    jobs.end_session();
}

#[test]
fn a_host_that_sends_more_than_its_window_is_told() {
    let mut jobs = Jobs::new().unwrap();
    start(&mut jobs, 1);
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
