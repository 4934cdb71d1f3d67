//! `--fail-on`: what the guest's kernel did while a test passed.

use guestline_tests::Guestline;

#[test]
fn a_kernel_that_is_tainted_meanwhile_fails_the_test() {
    let guestline = Guestline::new();
    let taint = "echo 64 > /proc/sys/kernel/tainted";
    let check =
        |options: &[&str], line: &str| guestline.run(&[&["check"], options, &[line]].concat());
    check(&[], taint).assert_verdict(0, "passed");
    let ran = check(&["--fail-on", "taint"], taint);
    ran.assert_verdict(1, "the kernel was tainted: U (a program asked for it)");
    assert!(ran.stderr.contains("guestline check --fail-on taint "), "{}", ran.stderr);
    // Another bit than those of warnings and oopses.
    check(&["--fail-on", "warn,oops"], taint).assert_verdict(0, "passed");
    check(&["--fail-on", "taint"], "true").assert_verdict(0, "passed");
    // What a warning leaves, should its words be lost.
    let warned = "echo 512 > /proc/sys/kernel/tainted";
    check(&["--fail-on", "warn"], warned).assert_verdict(1, "the kernel warned");
    // A test that fails by itself, or is skipped, keeps its own reason.
    let ran = check(&["--fail-on=taint"], "echo 64 > /proc/sys/kernel/tainted; exit 3");
    ran.assert_verdict(1, "status 3");
    let ran =
        check(&["--fail-on=taint", "--allow-none"], "echo 64 > /proc/sys/kernel/tainted; exit 77");
    ran.assert_verdict(0, "skipped");
    assert_eq!(check(&["--fail-on=panic"], "true").status, 2);
    guestline.assert_nothing_left();
}

#[test]
fn what_a_program_writes_to_the_log_is_not_the_kernels() {
    let guestline = Guestline::new();
    let line = "for level in 0 1 4; do echo \"<$level>WARNING: CPU: 0 PID: 1 at x.c:1\" > /dev/kmsg; \
                echo \"<$level>BUG: kernel NULL pointer dereference [#1]\" > /dev/kmsg; done; \
                dmesg | grep -q NULL";
    guestline.run(&["check", "--fail-on", "warn,taint,oops", line]).assert_verdict(0, "passed");
    guestline.assert_nothing_left();
}
