//! Guests that panic, hang, reboot or power off in the middle of a check.

use guestline_tests::Guestline;

#[test]
fn a_panic_is_a_failed_check_with_the_panic_line() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "echo before; echo c > /proc/sysrq-trigger"]);
    ran.assert_verdict(1, "guest panicked");
    assert_eq!(ran.stdout(), "before\n");
    let line = "Kernel panic - not syncing: sysrq triggered crash";
    assert!(ran.stderr.contains(line), "{}", ran.stderr);
    assert!(ran.stderr.contains("after the check began)"), "{}", ran.stderr);
    let console = std::fs::read_to_string(guestline.evidence(1).join("console.log")).unwrap();
    assert!(console.contains(line), "{console}");
    guestline.assert_nothing_left();
}

#[test]
fn words_of_a_panic_alone_are_no_panic() {
    let guestline = Guestline::new();
    let line = "echo 'Kernel panic - not syncing: a joke' > /dev/console";
    guestline.run(&["check", line]).assert_verdict(0, "passed");
    let ran = guestline.run(&["check", &format!("{line}; false")]);
    ran.assert_verdict(1, "status 1");
}

#[test]
fn going_down_unannounced_is_a_failure_in_words() {
    for (line, reason) in [
        ("poweroff -f", "guest powered off"),
        ("poweroff; sleep 100", "guest powered off"),
        ("reboot -f", "guest rebooted"),
        ("reboot; sleep 100", "guest rebooted"),
    ] {
        let guestline = Guestline::new();
        guestline.run(&["check", line]).assert_verdict(1, reason);
        guestline.assert_nothing_left();
    }
}

#[test]
fn a_check_that_hangs_is_timed_out() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "--timeout", "2", "echo waiting; sleep 1000"]);
    ran.assert_verdict(1, "timed out after 2 s");
    assert_eq!(ran.stdout(), "waiting\n");
    guestline.assert_nothing_left();
}

#[test]
fn a_guest_that_leaves_its_agent_no_cpu_is_timed_out() {
    let guestline = Guestline::new();
    let line = "for n in $(seq 60); do sh -c 'renice -n -20 $$ >/dev/null; while :; do :; done' & done; wait";
    let ran = guestline.run(&["check", "--timeout", "3", line]);
    ran.assert_verdict(1, "timed out after 3 s");
    guestline.assert_nothing_left();
}

#[test]
fn the_agent_cannot_be_killed_from_inside() {
    let guestline = Guestline::new();
    // The kernel gives process 1 no signal that it does not handle (kill(2), notes).
    let ran = guestline.run(&["check", "kill -9 1; echo still here"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "still here\n");
}

#[test]
fn garbage_on_the_control_port_is_refused_to_a_second_opener() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "echo garbage > /dev/vport0p1 || echo refused"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "refused\n");
}

#[test]
fn more_cpus_than_the_host_has_are_no_excuse_for_a_check_that_spins() {
    let guestline = Guestline::new();
    let line = "for n in 1 2 3; do while :; do :; done & done; wait";
    let ran = guestline.run(&["check", "--cpus", "3", "--timeout", "4", line]);
    let verdict = ran.verdicts().join("");
    assert!(verdict.contains("timed out after 4 s"), "{verdict}");
    // On a host that is busy with other tests it may really have starved, and then it says for how long.
    assert!(ran.status == 1 || verdict.contains("the host gave QEMU no CPU for"), "{verdict}");
    guestline.assert_nothing_left();
}

#[test]
fn a_signal_that_kills_a_check_is_named() {
    let guestline = Guestline::new();
    guestline.run(&["check", "kill -SEGV $$"]).assert_verdict(1, "killed by SIGSEGV (11)");
}
