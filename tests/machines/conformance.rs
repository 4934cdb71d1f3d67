//! The test API of each version, as its frozen suite holds it.

use crate::suites::outcomes;
use guestline_tests::{Guestline, right};
use serde_json::Value;

const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/api-1");

/// What does not pass.
const OTHERS: [(&str, &str); 5] = [
    ("host-skips", "skipped (does not apply)"),
    ("known", "failed (status 1)"),
    ("lines/lacks", "incompatible"),
    ("skips", "skipped (does not apply)"),
    ("with-arguments", "incompatible"),
];

#[test]
fn api_1_is_as_it_was() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["run", "--message-format", "json", SUITE]);
    let wrong: Vec<_> = outcomes(&ran)
        .into_iter()
        .filter(|(name, outcome)| {
            let other = OTHERS.iter().find(|(known, _)| known == name);
            let right = other.map_or("passed", |(_, outcome)| outcome);
            !outcome.starts_with(right) || (right == "passed" && outcome != right)
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", ran.stderr);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let artifact = ran.events().iter().any(|event| {
        let folder = event["folder"].as_str().unwrap_or_default();
        event["test"] == "variables" && std::path::Path::new(folder).join("artifacts/file").exists()
    });
    assert!(artifact);
    guestline.assert_nothing_left();
}

#[test]
fn api_1_lists_as_it_did() {
    let guestline = Guestline::new();
    let listed = right(&guestline.run(&["list", "--json", SUITE]));
    let told: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = include_str!("../conformance/api-1/expected.jsonl");
    // Keys that are added later change nothing.
    for (line, told) in expected.lines().zip(&told) {
        let expected: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        for (key, value) in expected {
            assert_eq!(told[&key], value, "{key} of {told}");
        }
    }
    assert_eq!(expected.lines().count(), told.len());
}
