//! Signals to the controller, and deaths of its parts.

use guestline_tests::{Guestline, wait_for};
use nix::sys::signal::{Signal, kill};

/// Starts a check that lasts, and returns when it runs in its machine.
fn started(guestline: &Guestline, args: &[&str]) -> guestline_tests::Running {
    let mut all = vec!["check"];
    all.extend(args);
    all.push("echo running; sleep 1000");
    started_as(guestline, &all)
}

/// The same for a whole command line, whose check says "running" first.
fn started_as(guestline: &Guestline, args: &[&str]) -> guestline_tests::Running {
    let mark = guestline.evidence(1).join("stdout");
    let running = guestline.start(args);
    wait_for("the check's first words", || {
        std::fs::read_to_string(&mark).ok().filter(|text| text.contains("running"))
    });
    running
}

#[test]
fn the_first_signal_aborts_and_leaves_nothing() {
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let guestline = Guestline::new();
        let running = started(&guestline, &[]);
        running.signal(signal);
        running.wait().assert_verdict(status, "aborted  echo running");
        guestline.assert_nothing_left();
    }
}

#[test]
fn an_interrupted_bisection_stops() {
    let guestline = Guestline::new();
    let running = started(&guestline, &["--bisect"]);
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 128);
    guestline.assert_nothing_left();
}

#[test]
fn two_signals_in_a_row_leave_nothing_either() {
    let guestline = Guestline::new();
    let running = started(&guestline, &[]);
    running.signal(Signal::SIGINT);
    // It may be gone already: the first one suffices.
    let _ = kill(running.pid(), Signal::SIGINT);
    assert_eq!(running.wait().status, 130);
    guestline.assert_nothing_left();
}

#[test]
fn a_reader_who_is_stuck_costs_the_test_nothing_and_holds_up_no_signal() {
    let guestline = Guestline::new();
    // Far more output than pipes and queues hold; nobody reads it until the run has ended.
    let line = "head -c 50000000 /dev/zero; echo end";
    let running = guestline.start(&["check", "--timeout", "3", line]);
    guestline.wait_for_qemu();
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert!(!guestline.qemus().is_empty(), "it was timed out");
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 130);
    guestline.assert_nothing_left();
}

#[test]
fn a_signal_while_the_image_is_made_aborts_and_leaves_nothing_half_made() {
    for args in [&["check", "true", "true"][..], &["image", "build", "tiny"]] {
        let guestline = Guestline::new();
        let cache = guestline.home().join("cache");
        let guestline = guestline.with("XDG_CACHE_HOME", &cache);
        let running = guestline.start(args);
        let images = cache.join("guestline/images/tiny");
        let half_made = || std::fs::read_dir(&images).map_or(0, Iterator::count);
        wait_for("an image that is being made", || (half_made() > 0).then_some(()));
        running.signal(Signal::SIGTERM);
        let ran = running.wait();
        assert_eq!(ran.status, 143, "{}", ran.stderr);
        assert!(ran.stderr.contains("aborted  "), "{}", ran.stderr);
        assert_eq!(half_made(), 0);
        guestline.assert_nothing_left();
    }
}

#[test]
fn a_signal_during_the_boot_aborts() {
    let guestline = Guestline::new();
    let running = guestline.start(&["check", "true"]);
    guestline.wait_for_qemu();
    running.signal(Signal::SIGTERM);
    running.wait().assert_verdict(143, "aborted");
    guestline.assert_nothing_left();
}

#[test]
fn what_waits_for_its_turn_is_aborted_too() {
    let guestline = Guestline::new();
    let running = guestline.start(&["check", "-j", "1", "sleep 1000", "true", "true"]);
    guestline.wait_for_qemu();
    running.signal(Signal::SIGINT);
    let ran = running.wait();
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("3 aborted"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn when_the_controller_is_killed_nothing_is_left() {
    let guestline = Guestline::new();
    let running = started(&guestline, &[]);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().status, 137);
    guestline.assert_nothing_left();
}

#[test]
fn time_in_which_the_controller_is_stopped_does_not_count() {
    let guestline = Guestline::new();
    let line = "echo running; sleep 2; echo end";
    let running = started_as(&guestline, &["check", "--timeout", "5", line]);
    running.signal(Signal::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_secs(7));
    running.signal(Signal::SIGCONT);
    let ran = running.wait();
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "running\nend\n");
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let guestline = Guestline::new().under(&["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]);
    let running = guestline.start(&["check", "sleep 3"]);
    guestline.wait_for_qemu();
    running.signal(Signal::SIGHUP);
    running.wait().assert_verdict(0, "passed");
}

#[test]
fn when_qemu_is_killed_from_outside_the_set_up_broke() {
    let guestline = Guestline::new();
    let running = started(&guestline, &[]);
    kill(guestline.wait_for_qemu(), Signal::SIGKILL).unwrap();
    running.wait().assert_verdict(125, "host: QEMU was killed by SIGKILL");
    guestline.assert_nothing_left();
}

#[test]
fn when_qemu_is_killed_during_the_boot_the_set_up_broke() {
    let guestline = Guestline::new();
    let running = guestline.start(&["check", "true"]);
    kill(guestline.wait_for_qemu(), Signal::SIGKILL).unwrap();
    running.wait().assert_verdict(125, "host: QEMU was killed by SIGKILL");
    guestline.assert_nothing_left();
}

#[test]
fn a_stopped_qemu_is_not_the_tests_timeout() {
    let guestline = Guestline::new();
    let running = started(&guestline, &["--timeout", "4"]);
    kill(guestline.wait_for_qemu(), Signal::SIGSTOP).unwrap();
    running.wait().assert_verdict(125, "host: timed out after 4 s; somebody stopped QEMU");
    guestline.assert_nothing_left();
}
