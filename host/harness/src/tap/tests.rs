use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> (Vec<TapEvent>, TapEnd) {
    let mut parser = TapParser::new();
    let mut events = parser.push(text.as_bytes());
    let (more, end) = parser.finish();
    events.extend(more);
    (events, end)
}

/// Each result in a word.
fn results(text: &str) -> Vec<String> {
    let word = |event: TapEvent| match (event.outcome, event.todo) {
        (Outcome::Passed, false) => format!("ok {}", event.name),
        (Outcome::Passed, true) => format!("ok-todo {}", event.name),
        (Outcome::Skipped { reason }, _) => format!("skip {} {reason}", event.name),
        (_, true) => format!("todo {}", event.name),
        _ => format!("not {}", event.name),
    };
    parse(text).0.into_iter().map(word).collect()
}

fn verdict(text: &str, status: u8) -> String {
    let said = crate::suite::settings::Statuses::default().outcome(status, "last line");
    let outcome = judge(&parse(text).1, said);
    format!("{} {}", outcome.word(), outcome.why()).trim().to_owned()
}

#[test]
fn plain_tap() {
    let text = "TAP version 13
1..6
ok 1 - first
not ok 2 second # TODO later
  ---
  message: 'not ok 9 within'
  ...
ok 3 # SKIP no device
ok 4 - a \\# b # skip: why
# ok not a result
okay this is text
not ok 5 - XFAIL is no word of the name
ok
";
    assert_eq!(
        results(text),
        [
            "ok first",
            "todo second",
            "skip 3 no device",
            "skip a # b why",
            "not XFAIL is no word of the name",
            "ok 6"
        ]
    );
    assert_eq!(verdict(text, 0), "failed 1 of 6 results failed: XFAIL is no word of the name");
}

#[test]
fn subtests_of_tap_14_have_the_name_of_what_they_are_a_part_of() {
    let text = "TAP version 14
1..2
    # Subtest: foo.tap
    1..2
    ok 1 - a
        1..1
        not ok 1 - deep
    not ok 2 - b
not ok 1 - foo.tap
ok 2 - bar
";
    assert_eq!(results(text), ["ok foo.tap/a", "not foo.tap/b/deep", "ok bar"]);
    assert_eq!(verdict(text, 1), "failed 1 of 3 results failed: foo.tap/b/deep");
}

#[test]
fn kunit_in_the_kernels_log() {
    let text = "[    0.060000] KTAP version 1
[    0.060000] 1..1
[    0.060000]     KTAP version 1
[    0.060000]     # Subtest: example
[    0.060000]     1..3
[    0.061000] random: crng init done
<6>[    0.061000]     # initializing
[    0.061000][    T1]     ok 1 example_simple_test
[    0.062000]     # example_skip_test: EXPECTATION FAILED
[    0.062000]     ok 2 example_skip_test # SKIP this test should be skipped
[    0.062000]     ok 3 example_known # XFAIL broken
[    0.063000] # example: pass:1 fail:0 skip:1 total:2
[    0.063000] ok 1 example
";
    assert_eq!(
        results(text),
        [
            "ok example/example_simple_test",
            "skip example/example_skip_test this test should be skipped",
            "ok-todo example/example_known"
        ]
    );
    assert_eq!(verdict(text, 0), "passed");
}

#[test]
fn kselftest_nests_behind_hashes() {
    let text = "TAP version 13
1..2
# timeout set to 45
# selftests: timers: posix_timers
# TAP version 13
# 1..2
# # Testing posix timers.
# ok 1 check_itimer
# not ok 2 check_timer
# # Totals: pass:1 fail:1
not ok 1 selftests: timers: posix_timers # exit=1
ok 2 selftests: timers: other # SKIP
";
    assert_eq!(
        results(text),
        [
            "ok selftests: timers: posix_timers/check_itimer",
            "not selftests: timers: posix_timers/check_timer",
            "skip selftests: timers: other "
        ]
    );
}

#[test]
fn what_is_missing_is_a_failure() {
    assert_eq!(verdict("1..3\nok 1\nok 2\n", 0), "failed 3 results were planned, and 2 came");
    assert_eq!(verdict("ok 1\nok 2\n1..2\n", 0), "passed");
    assert_eq!(verdict("ok 1\nok 2\n", 0), "failed there is no plan, so results may be missing");
    assert_eq!(verdict("1..3\nok 1\nok 3\nok 4\n", 0), "failed result 2 is missing");
    assert_eq!(verdict("1..2\nok 1\nok 1\n", 0), "failed result 1 stands twice or too late");
    assert_eq!(verdict("1..2\n1..2\nok 1\nok 2\n", 0), "failed it has two plans, 1..2 and 1..2");
    assert_eq!(verdict("hello\n", 0), "failed no TAP in its output");
    assert_eq!(verdict("hello\n", 3), "failed status 3, and no TAP in its output");
    assert_eq!(verdict("", 77), "skipped last line");
    assert_eq!(verdict("1..1\nok 1\n", 2), "failed status 2, though no result failed");
    assert_eq!(
        verdict("1..2\nok 1\nBail out! no disk\nok 2\n", 0),
        "failed it bailed out: no disk"
    );
    assert_eq!(verdict("1..0 # SKIP no kvm here\n", 0), "skipped no kvm here");
    assert_eq!(verdict("1..0\n", 0), "skipped");
    assert_eq!(
        verdict("1..2\nok 1 # SKIP a\nok 2 # SKIP b\n", 0),
        "skipped all 2 results were skipped: b"
    );
    assert_eq!(verdict("1..1\nnot ok 1 # TODO x\n", 0), "passed");
    assert_eq!(
        verdict("1..1\n    1..2\n    ok 1 a\nok 1 outer\n", 0),
        "failed 2 results were planned, and 1 came"
    );
    // It died before the result that these are a part of.
    assert_eq!(results("1..1\n    1..2\n    ok 1 a\n    not ok 2 b\n"), ["ok a", "not b"]);
    // What it is made of failed, and it says that it did not.
    assert_eq!(
        verdict("1..1\n    1..1\n    not ok 1 a\nok 1 b\n", 0),
        "failed 1 of 1 results failed: b/a"
    );
}

#[test]
fn what_is_endless_or_deep_is_bounded() {
    let deep: String = (0..200).map(|depth| format!("{}ok 1\n", "  ".repeat(depth))).collect();
    let _ = parse(&deep);
    let long = format!("1..1\nok 1 {}\n", "x".repeat(1 << 20));
    assert!(parse(&long).0[0].name.len() <= MAX_NAME_LEN + 8);
    let many: String = "ok\n".repeat(MAX_TOLD + 5);
    let (events, end) = parse(&many);
    assert_eq!((events.len(), end.results), (MAX_TOLD, MAX_TOLD as u64 + 5));
    let _ = parse("1..99999999999999999999999\nok 99999999999999999999999 x\n");
}

proptest! {
    #[test]
    fn it_may_come_in_any_pieces(
        lines in prop::collection::vec("(    |  |# |\\[ 1\\.2\\] )?(ok|not ok|1\\.\\.[0-9]|---|\\.\\.\\.|# Subtest: x|Bail out!|TAP version 13)( [0-9])?( - n)?( # (SKIP|TODO) w)?|.{0,10}", 0..20),
        cuts in prop::collection::vec(0..300_usize, 0..5),
    ) {
        let text = lines.join("\n");
        let whole = parse(&text);
        let mut parser = TapParser::new();
        let mut events = Vec::new();
        let mut at = 0;
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.sort_unstable();
        for cut in cuts {
            events.extend(parser.push(&text.as_bytes()[at..cut]));
            at = cut;
        }
        events.extend(parser.push(&text.as_bytes()[at..]));
        let (more, end) = parser.finish();
        events.extend(more);
        prop_assert_eq!((events, end), whole);
    }
}
