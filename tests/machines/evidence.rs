//! What is kept of a run, and what of a machine on request.

use guestline_tests::Guestline;
use serde_json::Value;

#[test]
fn an_attempt_keeps_output_console_and_facts() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "echo out; echo err >&2; echo on console > /dev/console"]);
    ran.assert_verdict(0, "passed");
    let read = |name: &str| std::fs::read_to_string(guestline.evidence(1).join(name)).unwrap();
    assert_eq!((read("stdout").as_str(), read("stderr").as_str()), ("out\n", "err\n"));
    assert!(read("console.log").contains("] on console"), "{}", read("console.log"));
    let facts: Value = serde_json::from_str(&read("facts.json")).unwrap();
    assert_eq!(facts["image"]["name"], "tiny");
    assert_eq!(facts["machine"]["memory_mib"], 256);
    assert!(facts["accelerator"]["accel"].is_string(), "{facts}");
}

#[test]
fn a_work_folder_is_kept_on_request() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "--keep", "true"]);
    ran.assert_verdict(0, "passed");
    let line = ran.stderr.lines().find(|line| line.starts_with("work folders kept: ")).unwrap();
    let folder = line.trim_start_matches("work folders kept: ");
    let command = std::fs::read_to_string(format!("{folder}/1/qemu.cmdline")).unwrap();
    for word in ["-nodefaults", "-no-user-config", "-sandbox on,obsolete=deny", "panic=pause"] {
        assert!(command.contains(word), "{command}");
    }
    // A later run does not sweep it.
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    assert!(std::path::Path::new(folder).exists());
}
