//! The oldest QEMU that is promised to work, Debian 12's own 7.2: all that machines are asked to do, once each.

use crate::web::Web;
use guestline::machine::OLDEST_QEMU;
use guestline_tests::{Guestline, oldest_qemu};

fn with_oldest() -> Guestline {
    Guestline::new().with("GUESTLINE_QEMU", oldest_qemu())
}

#[test]
fn checks_are_judged_alike() {
    let guestline = with_oldest();
    // The machine itself tells which QEMU made it.
    let ran = guestline.run(&["check", "cat /sys/class/dmi/id/product_version"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), format!("pc-q35-{OLDEST_QEMU}\n"));
    let facts = std::fs::read(guestline.evidence(1).join("facts.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
    assert_eq!(facts["qemu"], OLDEST_QEMU.to_string());

    // From now on it is restored, over a descriptor instead of a file.
    let ran = guestline.run(&["check", "--message-format", "json", "test $(nproc) = 1"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let ready = ran.events().into_iter().find(|event| event["event"] == "machine-ready").unwrap();
    assert!(ready["template"].is_string(), "{ready}");

    let ran = guestline.run(&["check", "--cpus", "2", "test $(nproc) = 2", "exit 3", "exit 77"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("1 passed, 1 failed, 1 skipped"), "{}", ran.stderr);
    let ran = guestline.run(&["check", "echo c > /proc/sysrq-trigger"]);
    ran.assert_verdict(1, "guest panicked");
    assert!(ran.stderr.contains("Kernel panic - not syncing"), "{}", ran.stderr);
    guestline.run(&["check", "--timeout", "2", "sleep 60"]).assert_verdict(1, "timed out");
    guestline.assert_nothing_left();
}

#[test]
fn a_named_machine_works_alike() {
    let web = Web::up_by(with_oldest());
    assert_eq!(web.line("cat /sys/class/dmi/id/product_version"), format!("pc-q35-{OLDEST_QEMU}"));
    assert_eq!(web.exec(&["--shell", "--", "exit 7"]).status, 7);

    // Through the bulk port, there and back.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    std::fs::write(web.0.home().join("bytes"), &bytes).unwrap();
    for words in [&["push", "web", "bytes", "/tmp/"], &["pull", "web", "/tmp/bytes", "back"]] {
        let ran = web.0.run(words);
        assert_eq!(ran.status, 0, "{words:?}: {}", ran.stderr);
    }
    assert!(std::fs::read(web.0.home().join("back")).unwrap() == bytes);

    let ran = web.0.run(&["power", "web", "reboot"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(web.line("ls -A /tmp"), "");
    web.down();
}
