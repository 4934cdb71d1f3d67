//! The same tests on this host, over ssh and over a serial line instead of in machines.

use crate::suites::{outcomes, suite};
use std::fs;

const TESTS: [(&str, &str); 3] = [
    (
        "a.checks",
        "#: timeout = '5s'\nyes: test -d /proc\nno: false\nskip: echo not here; exit 77\nslow: sleep 100\n#: requires = ['pristine']\npristine: true\n#: requires = ['tool.sh', 'kernel >= 2.6']\nneeds: true\n#: requires = ['tool.no-such-tool']\nlacks: true\n",
    ),
    ("files*", "#!/bin/sh\n#: files = ['data']\ncat data > \"$GUESTLINE_ARTIFACTS/copy\"\n"),
    ("data", "content\n"),
];

fn expected() -> Vec<(String, &'static str)> {
    let all = [
        ("a/lacks", "incompatible"),
        ("a/needs", "passed"),
        ("a/no", "failed (status 1)"),
        ("a/pristine", "incompatible"),
        ("a/skip", "skipped (not here)"),
        ("a/slow", "failed (timed out after 5 s)"),
        ("a/yes", "passed"),
        ("files", "passed"),
    ];
    all.into_iter().map(|(name, outcome)| (name.to_owned(), outcome)).collect()
}

#[track_caller]
fn assert_expected(ran: &guestline_tests::Ran) {
    let all = outcomes(ran);
    let all: Vec<_> = all
        .iter()
        .map(|(name, outcome)| {
            let outcome =
                if outcome.starts_with("incompatible") { "incompatible" } else { outcome };
            (name.clone(), outcome)
        })
        .collect();
    assert_eq!(all, expected(), "{}", ran.stderr);
}

#[test]
fn on_this_host_without_any_qemu() {
    let guestline = suite(&TESTS);
    // Nothing but what a shell needs is on the PATH.
    let bin = guestline.home().join("bin");
    fs::create_dir(&bin).unwrap();
    for tool in ["sh", "cat", "test", "sleep", "echo", "false", "true", "uname", "sed", "grep"] {
        let path = ["/bin", "/usr/bin"].iter().map(|folder| format!("{folder}/{tool}"));
        if let Some(path) = path.into_iter().find(|path| fs::metadata(path).is_ok()) {
            std::os::unix::fs::symlink(path, bin.join(tool)).unwrap();
        }
    }
    let guestline = guestline.with("PATH", &bin);
    let ran = guestline.run(&["run", "--message-format", "json", "--target", "host", "t"]);
    assert_expected(&ran);
    let copy = ran
        .events()
        .iter()
        .find(|event| event["event"] == "attempt-finished" && event["test"] == "files")
        .and_then(|event| {
            let folder = event["folder"].as_str()?;
            fs::read(std::path::Path::new(folder).join("artifacts/copy")).ok()
        });
    assert_eq!(copy.as_deref(), Some(&b"content\n"[..]));
    guestline.assert_nothing_left();
}
