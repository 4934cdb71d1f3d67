//! What guests print, however much and whatever it is.

use guestline_tests::Guestline;
use std::process::Stdio;

#[test]
fn a_flood_of_100_mb_comes_through_whole() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "head -c 100000000 /dev/zero | tr '\\0' x; echo end"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout.len(), 100_000_004);
    assert!(ran.stdout.ends_with(b"xend\n"));
    let kept = std::fs::metadata(guestline.evidence(1).join("stdout")).unwrap().len();
    assert_eq!(kept, 100_000_004);
    guestline.assert_nothing_left();
}

#[test]
fn bytes_pass_through_a_pipe_as_they_are_and_are_kept() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "printf '\\377\\033[2J\\000end'; printf '\\376' >&2"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout, b"\xff\x1b[2J\0end");
    // The verdict has a line of its own although the output has no end of line.
    assert_eq!(ran.stderr.lines().next(), Some("\u{fffd}"));
    assert_eq!(std::fs::read(guestline.evidence(1).join("stdout")).unwrap(), ran.stdout);
    assert_eq!(std::fs::read(guestline.evidence(1).join("stderr")).unwrap(), b"\xfe");
}

#[test]
fn in_a_block_and_in_a_verdict_nothing_drives_the_terminal() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "printf '\\377\\033[2Jx\\n'", "printf '\u{1b}[31m'"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    assert!(ran.stderr.contains("\\xff\\u{1b}[2Jx"), "{}", ran.stderr);
}

#[test]
fn a_terminal_is_not_driven_by_a_guest() {
    // `script` runs a command line on a terminal of its own (script(1)); the program is `$0`.
    let script =
        r#"LINE="printf '\033[2Jx'" PROGRAM="$0" script -qec '"$PROGRAM" check "$LINE"' /dev/null"#;
    let ran = Guestline::new().under(&["sh", "-c", script]).run(&[]);
    assert_eq!(ran.status, 0, "{}{}", ran.stdout(), ran.stderr);
    // The verdict has a line of its own although the output has no end of line.
    assert!(ran.stdout().contains("\\u{1b}[2Jx\r\n"), "{:?}", ran.stdout());
    assert!(!ran.stdout().contains("\u{1b}[2J"), "{:?}", ran.stdout());
}

#[test]
fn a_child_that_holds_stdout_hangs_nothing() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "--timeout", "30", "echo first; sleep 1000 & exit 3"]);
    ran.assert_verdict(1, "status 3");
    assert_eq!(ran.stdout(), "first\n");
    assert!(ran.stderr.contains("a child still held its output open"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn json_lines_alone_are_on_stdout_and_fit_the_schema() {
    let guestline = Guestline::new();
    let line = "echo text; printf '\\377'; exit 1";
    let ran = guestline.run(&["check", "--message-format", "json", line, "true"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert_eq!(ran.stderr, "");
    let schema = include_str!("../../docs/events.schema.json");
    let schema = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let events = ran.events();
    for event in &events {
        let wrong: Vec<_> = validator.iter_errors(event).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{event:#}: {wrong:?}");
    }
    let named =
        |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!(named("run-started")[0]["tests"], 2);
    assert_eq!(named("machine-ready").len(), 2);
    assert!(named("output").iter().any(|event| event["text"] == "text\n"));
    assert!(named("output").iter().any(|event| event["base64"] == "/w=="));
    let failed = named("attempt-finished").into_iter().find(|event| event["number"] == 1).unwrap();
    assert_eq!((&failed["outcome"], &failed["reason"]), (&"failed".into(), &"status 1".into()));
    assert_eq!(named("run-finished")[0]["tally"]["passed"], 1);
    // Within an attempt the sequence has no gap.
    for attempt in named("attempt-started").iter().map(|event| &event["attempt"]) {
        let sequence: Vec<_> = events
            .iter()
            .filter(|event| event["attempt"] == *attempt)
            .filter_map(|event| event["sequence"].as_u64())
            .collect();
        assert_eq!(sequence, (0..sequence.len() as u64).collect::<Vec<_>>());
    }
    // The schema would find a wrong event.
    let wrong = serde_json::json!({ "schema": 1, "event": "run-finished" });
    assert!(!validator.is_valid(&wrong));
}

#[test]
fn a_report_that_is_lost_shows_in_the_status() {
    let guestline = Guestline::new();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let json = ["check", "--message-format", "json", "true"];
    let ran = guestline.run_onto(&json, full());
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("the report is lost"), "{}", ran.stderr);
    let ran = guestline.run_onto(&["check", "--bisect", "echo x"], full());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("the report is lost"), "{}", ran.stderr);
    let ran = guestline.run_onto(&["check", "echo x; false"], full());
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    guestline.assert_nothing_left();
}
