//! The session against a guest that keeps to the rules, and against one that does not.

use super::*;
use crate::link::scripted::exited;
use guestline_protocol::{
    CreditEvent, DoneResponse, EndEvent, ExecStartedEvent, FrameHead, HEADROOM, ListResponse,
    PingResponse, RemoteError, encode,
};
use proptest::prelude::*;

const SESSION: Session = Session(7);

fn message(
    state: &mut SessionState,
    channel: u32,
    reply: &Reply,
) -> Result<Vec<Effect>, LinkError> {
    let head = FrameHead::message(SESSION, channel);
    state.on_frame(&Frame { head, body: &encode(reply)[HEADROOM..] })
}

fn data(state: &mut SessionState, channel: u32, len: usize) -> Result<Vec<Effect>, LinkError> {
    let head = FrameHead::data(SESSION, channel, Stream::Stdout);
    state.on_frame(&Frame { head, body: &vec![0; len] })
}

fn pong() -> Reply {
    Reply::Ping(PingResponse { token: 0, clock_us: 0 })
}

fn lasts(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Reply { last: true, .. })).count()
}

fn broken(result: &Result<Vec<Effect>, LinkError>) -> bool {
    matches!(result, Err(LinkError::Broken { .. }))
}

#[test]
fn an_exit_waits_for_the_output_before_it() {
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    let started = Reply::ExecStarted(ExecStartedEvent { pid: 1, credit: 9 });
    let effects = message(&mut state, 3, &started).unwrap();
    assert!(effects.contains(&Effect::Granted { channel: 3, bytes: 9 }));
    assert_eq!(message(&mut state, 3, &exited(10)).unwrap(), []);
    assert_eq!(lasts(&data(&mut state, 3, 6).unwrap()), 0);
    assert_eq!(lasts(&data(&mut state, 3, 4).unwrap()), 1);
    assert!(state.is_idle());
}

#[test]
fn what_was_not_granted_ends_the_session() {
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    assert!(data(&mut state, 3, 100).is_ok());
    assert!(broken(&data(&mut state, 3, 1)));
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    data(&mut state, 3, 100).unwrap();
    assert_eq!(state.use_data(3, 50), Some(CreditEvent { bytes: 50 }));
    assert!(data(&mut state, 3, 50).is_ok());
}

#[test]
fn ends_that_do_not_fit_the_data_end_the_session() {
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    data(&mut state, 3, 10).unwrap();
    assert!(broken(&message(&mut state, 3, &exited(9))));
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    message(&mut state, 3, &exited(5)).unwrap();
    assert!(broken(&data(&mut state, 3, 6)));
}

#[test]
fn a_guest_that_only_strays_is_left() {
    let mut state = SessionState::new(SESSION);
    let end = (0..=STRAY).find_map(|_| message(&mut state, 9, &pong()).err());
    assert!(matches!(end, Some(LinkError::Broken { .. })));
    let mut state = SessionState::new(SESSION);
    let end = (0..=STRAY).find_map(|_| data(&mut state, 9, 0).err());
    assert!(matches!(end, Some(LinkError::Broken { .. })));
}

#[test]
fn a_flood_of_replies_that_nobody_takes_ends_the_session() {
    let mut state = SessionState::new(SESSION);
    state.open(3, 0);
    let list = Reply::List(ListResponse { entries: vec![], more: true });
    let end = (0..=MAX_PENDING_COUNT).find_map(|_| message(&mut state, 3, &list).err());
    assert!(matches!(end, Some(LinkError::Broken { .. })));
    // Taken, they are no flood.
    let mut state = SessionState::new(SESSION);
    state.open(3, 0);
    for _ in 0..2 * MAX_PENDING_COUNT {
        for effect in message(&mut state, 3, &list).unwrap() {
            if let Effect::Reply { channel, len, .. } = effect {
                state.use_reply(channel, len);
            }
        }
    }
}

#[test]
fn a_cancelled_channel_ends_with_its_last_reply_whatever_is_missing() {
    let mut state = SessionState::new(SESSION);
    state.open(3, 100);
    assert!(state.cancel(3));
    assert!(!state.cancel(3));
    assert_eq!(data(&mut state, 3, 50).unwrap(), []);
    assert_eq!(lasts(&message(&mut state, 3, &exited(70)).unwrap()), 1);
    assert!(state.is_idle());
    // What is late is forgiven.
    assert_eq!(data(&mut state, 3, 20).unwrap(), []);
    // Cancelled while the exit waits for data that will be dropped.
    state.open(4, 100);
    message(&mut state, 4, &exited(70)).unwrap();
    assert!(!state.cancel(4));
    assert!(state.is_idle());
}

#[test]
fn an_agent_that_began_anew_is_told_from_a_broken_one() {
    let mut state = SessionState::new(SESSION);
    let error = Reply::Error(RemoteError::new(ErrorKind::NoSession, ""));
    assert!(matches!(message(&mut state, 1, &error), Err(LinkError::Restarted)));
}

proptest! {
    /// Any frames at all: no panic, no channel closes twice, and never more data than was granted.
    #[test]
    fn no_guest_confuses_the_session(frames in prop::collection::vec((0..4u8, 1..5u32, 0..200usize), 0..200)) {
        let mut state = SessionState::new(SESSION);
        let mut open = [true; 5];
        for channel in 1..5 {
            state.open(channel, 500);
        }
        let (mut received, mut used) = ([0; 5], [0; 5]);
        for (what, channel, len) in frames {
            let effects = match what {
                0 => message(&mut state, channel, &exited(len as u64)),
                1 => message(&mut state, channel, &Reply::End(EndEvent { total: len as u64 })),
                2 => message(&mut state, channel, &Reply::Done(DoneResponse {})),
                _ => data(&mut state, channel, len),
            };
            let Ok(effects) = effects else { return Ok(()) };
            for effect in effects {
                match effect {
                    Effect::Reply { channel, last, .. } => {
                        prop_assert!(open[channel as usize]);
                        open[channel as usize] = !last;
                    }
                    Effect::Data { channel, .. } => {
                        prop_assert!(open[channel as usize]);
                        received[channel as usize] += len;
                        prop_assert!(received[channel as usize] <= 500 + used[channel as usize]);
                        used[channel as usize] += len / 2;
                        let _ = state.use_data(channel, len / 2);
                    }
                    Effect::Granted { .. } => {}
                }
            }
        }
    }

    #[test]
    fn no_body_confuses_the_session(body in prop::collection::vec(any::<u8>(), 0..300), channel in 0..3u32) {
        let mut state = SessionState::new(SESSION);
        state.open(1, 10);
        let _ = state.on_frame(&Frame { head: FrameHead::message(SESSION, channel), body: &body });
    }
}
