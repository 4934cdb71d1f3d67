//! Truth, fault and stage: what a test is, what goes wrong, and when. No cell of the table may have a wrong verdict.

use crate::suites::{outcomes, write};
use guestline_tests::{Guestline, wait_for};
use nix::sys::signal::{Signal, kill};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a test comes to by itself: its name here and its status.
const TRUTHS: [(&str, i32); 3] = [("passed", 0), ("failed", 1), ("skipped", 77)];

/// What goes wrong: its name here, and what does it in a guest.
const FAULTS: [(&str, &str); 7] = [
    ("none", "true"),
    ("panic", "echo c > /proc/sysrq-trigger; sleep 10"),
    ("poweroff", "poweroff -f; sleep 10"),
    ("reboot", "reboot -f; sleep 10"),
    ("hang", "sleep 1000"),
    ("signal", "kill -KILL $$"),
    ("status", "exit 9"),
];

const STAGES: [&str; 3] = ["setup", "test", "teardown"];

/// On the host a script has the guest do it, and makes nothing of it; what concerns no guest it does itself.
fn on_host(fault: &str, line: &str) -> String {
    match fault {
        "panic" | "poweroff" | "reboot" => format!("guest exec '{line}' > /dev/null 2>&1"),
        _ => line.to_owned(),
    }
}

/// The verdict that is right.
fn expected(truth: &'static str, fault: &str, stage: &str) -> &'static str {
    match (fault, stage) {
        ("none", _) => truth,
        (_, "test") => "failed",
        // It had been judged before.
        (_, "teardown") if truth != "passed" => truth,
        _ => "errored",
    }
}

#[test]
fn no_fault_of_a_guest_or_a_script_gives_a_wrong_verdict() {
    let guestline = Guestline::new();
    let suite = guestline.home().join("t");
    let mut right = BTreeMap::new();
    for side in ["guest", "host"] {
        for (truth, status) in TRUTHS {
            for (fault, line) in FAULTS {
                for stage in STAGES {
                    // It has half a minute, which is another test's matter.
                    if (fault, stage) == ("hang", "teardown") {
                        continue;
                    }
                    let name = format!("{side}-{truth}-{fault}-{stage}");
                    let line = if side == "host" { on_host(fault, line) } else { line.to_owned() };
                    let at = |this: &str| if this == stage { line.as_str() } else { "true" };
                    let header = format!("#!/bin/sh\n#: on = '{side}'\n#: timeout = '4s'\n");
                    let test = format!("{header}{}\nexit {status}\n", at("test"));
                    let part = |this: &str| format!("#!/bin/sh\n{}\n", at(this));
                    write(
                        &suite,
                        &[
                            (&format!("{name}*"), &test),
                            (&format!("{name}.setup*"), &part("setup")),
                            (&format!("{name}.teardown*"), &part("teardown")),
                        ],
                    );
                    right.insert(name, expected(truth, fault, stage));
                }
            }
        }
    }
    assert!(right.len() >= 100, "{}", right.len());
    let ran = guestline.run(&["run", "--message-format", "json", "t"]);
    let said: BTreeMap<_, _> = outcomes(&ran).into_iter().collect();
    let word = |name: &String| said.get(name).map_or("nothing", String::as_str);
    let wrong: Vec<_> = right
        .iter()
        .filter(|(name, right)| word(name).split(' ').next() != Some(**right))
        .map(|(name, right)| format!("{name}: {right} is right, and {} was said", word(name)))
        .collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_qemu_that_is_killed_is_never_the_tests_failure() {
    for side in ["guest", "host"] {
        for (truth, status) in TRUTHS {
            for stage in STAGES {
                let guestline = Guestline::new();
                let at = |this: &str| if this == stage { "sleep 3" } else { "true" };
                let test = format!("#!/bin/sh\n#: on = '{side}'\n{}\nexit {status}\n", at("test"));
                let part = |this: &str| format!("#!/bin/sh\n{}\n", at(this));
                let files = [
                    ("x*", test.as_str()),
                    ("x.setup*", &part("setup")),
                    ("x.teardown*", &part("teardown")),
                ];
                write(&guestline.home().join("t"), &files);
                let mut running = guestline.start(&["run", "--message-format", "json", "t"]);
                let ready = || running.next_line().contains("\"machine-ready\"").then_some(());
                wait_for("a machine", ready);
                std::thread::sleep(Duration::from_millis(700));
                kill(guestline.wait_for_qemu(), Signal::SIGKILL).unwrap();
                let ran = running.wait();
                let end = ran
                    .events()
                    .into_iter()
                    .find(|event| event["event"] == "test-finished")
                    .unwrap();
                let said = end["outcome"].as_str().unwrap();
                let cell = format!("{side} {truth} {stage}: {end}");
                match (stage, truth) {
                    // It had been judged before.
                    ("teardown", "failed" | "skipped") => assert_eq!(said, truth, "{cell}"),
                    // On the host the script may have ended well before the machine was seen to be gone.
                    _ => assert_eq!(said, "errored", "{cell}"),
                }
                guestline.assert_nothing_left();
            }
        }
    }
}
