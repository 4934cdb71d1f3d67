use super::*;
use proptest::prelude::*;

fn guest(name: &str) -> Side {
    Side::Guest(name.to_owned())
}

fn board() -> Board {
    Board::new([Side::Host, guest("web")])
}

#[test]
fn all_must_come_before_any_goes_on_and_a_name_can_be_used_again() {
    let mut board = board();
    for _ in 0..3 {
        let host = board.arrive(&Side::Host, "here").unwrap();
        assert_eq!(board.progress(&host), Progress::Waiting);
        assert_eq!(board.missing(&host), [guest("web")]);
        let other = board.arrive(&guest("web"), "elsewhere").unwrap();
        assert_eq!(board.progress(&host), Progress::Waiting);
        board.withdraw(&other);
        let web = board.arrive(&guest("web"), "here").unwrap();
        // The next round has begun before the last is left.
        let next = board.arrive(&guest("web"), "here").unwrap();
        for ticket in [host, web] {
            assert_eq!(board.progress(&ticket), Progress::Met);
            board.withdraw(&ticket);
        }
        assert_eq!(board.progress(&next), Progress::Waiting);
        board.withdraw(&next);
        assert!(board.meetings.is_empty());
    }
}

#[test]
fn who_gave_up_is_not_there() {
    let mut board = board();
    let first = board.arrive(&Side::Host, "here").unwrap();
    let second = board.arrive(&Side::Host, "here").unwrap();
    board.withdraw(&first);
    assert_eq!(board.missing(&second), [guest("web")]);
    board.withdraw(&second);
    let web = board.arrive(&guest("web"), "here").unwrap();
    assert_eq!(board.progress(&web), Progress::Waiting);
}

#[test]
fn who_is_alone_meets_at_once() {
    let mut board = Board::new([Side::Host]);
    let ticket = board.arrive(&Side::Host, "here").unwrap();
    assert_eq!(board.progress(&ticket), Progress::Met);
    let error = board.arrive(&guest("web"), "here").unwrap_err();
    assert_eq!(error.to_string(), "`web` is no side of this test");
}

#[test]
fn who_waits_for_a_side_that_has_ended_waits_in_vain() {
    let mut board = board();
    let host = board.arrive(&Side::Host, "here").unwrap();
    board.side_ended(&guest("web"));
    let why = "`web` has ended, and will not come".to_owned();
    assert_eq!(board.progress(&host), Progress::Hopeless(why));
}

#[test]
fn a_verdict_ends_every_wait_and_a_failure_outranks_a_skip() {
    let mut board = board();
    let host = board.arrive(&Side::Host, "here").unwrap();
    let skip = Verdict::Skip { reason: "no disk".to_owned() };
    let fail = |reason: &str| Verdict::Fail { reason: reason.to_owned() };
    board.send("there", b"x").unwrap();
    board.record(&guest("web"), skip.clone()).unwrap();
    let why = "`web` has ended the test: skipped: no disk".to_owned();
    assert_eq!(board.progress(&host), Progress::Hopeless(why.clone()));
    assert_eq!(board.value("key"), Err(why));
    assert_eq!(board.value("there"), Ok(Some(&b"x"[..])));
    board.record(&Side::Host, fail("first")).unwrap();
    board.record(&Side::Host, fail("second")).unwrap();
    board.record(&Side::Host, skip).unwrap();
    assert_eq!(board.verdict(), Some(&(Side::Host, fail("first"))));
}

#[test]
fn what_a_side_can_leave_is_bounded() {
    let mut board = board();
    let long = "x".repeat(MAX_VALUE + 1);
    let too_long = |what| BoardError::TooLong { what };
    assert_eq!(board.send(&long, b""), Err(too_long("the key")));
    assert_eq!(board.send("key", long.as_bytes()), Err(too_long("the value")));
    assert!(board.arrive(&Side::Host, &long).is_err());
    assert!(board.record(&Side::Host, Verdict::Fail { reason: long }).is_err());
    for number in 0..MAX_KEYS {
        board.send(&number.to_string(), b"").unwrap();
        board.arrive(&Side::Host, &number.to_string()).unwrap();
    }
    board.send("0", b"again").unwrap();
    board.arrive(&Side::Host, "0").unwrap();
    assert_eq!(board.send("more", b""), Err(BoardError::TooMany { what: "keys" }));
    let error = board.arrive(&Side::Host, "more").unwrap_err();
    assert_eq!(error.to_string(), "there are 1024 meeting points already");
}

#[derive(Debug, Clone)]
enum Step {
    Arrive(usize, u8),
    Withdraw(usize),
}

proptest! {
    /// Against the rule itself: a meeting is met at the very arrival that makes all sides present.
    #[test]
    fn nobody_is_let_through_alone(steps in prop::collection::vec(
        prop_oneof![
            (0..3_usize, 0..2_u8).prop_map(|(side, name)| Step::Arrive(side, name)),
            (0..8_usize).prop_map(Step::Withdraw),
        ],
        0..40,
    )) {
        let sides = [Side::Host, guest("a"), guest("b")];
        let mut board = Board::new(sides.clone());
        let mut waiting: Vec<(Ticket, usize, u8)> = Vec::new();
        for step in steps {
            match step {
                Step::Arrive(side, name) => {
                    let ticket = board.arrive(&sides[side], &name.to_string()).unwrap();
                    waiting.push((ticket, side, name));
                    let all = (0..3).all(|side| waiting.iter().any(|(_, s, n)| *s == side && *n == name));
                    for (ticket, _, _) in waiting.iter().filter(|(_, _, other)| *other == name) {
                        let wanted = if all { Progress::Met } else { Progress::Waiting };
                        prop_assert_eq!(board.progress(ticket), wanted);
                    }
                    if all {
                        waiting.retain(|(_, _, other)| *other != name);
                    }
                }
                Step::Withdraw(at) if at < waiting.len() => {
                    let (ticket, _, _) = waiting.remove(at);
                    board.withdraw(&ticket);
                }
                Step::Withdraw(_) => {}
            }
        }
        for (ticket, _, _) in &waiting {
            prop_assert_eq!(board.progress(ticket), Progress::Waiting);
            board.withdraw(ticket);
        }
        prop_assert!(board.meetings.is_empty());
    }
}
