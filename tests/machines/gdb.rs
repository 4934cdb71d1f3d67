//! `--gdb`: machines that wait for a debugger.

use guestline_tests::{Guestline, wait_for};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The socket of the one machine there is, when it is there.
fn socket(guestline: &Guestline) -> PathBuf {
    let find = || {
        let qemus = guestline.qemus();
        let folder = std::fs::read_link(format!("/proc/{}/cwd", qemus.first()?)).ok()?;
        Some(folder.join("gdb")).filter(|socket| socket.exists())
    };
    wait_for("a socket for gdb", find)
}

/// Lets the guest go on, as `continue` does (GDB manual, "Remote Protocol").
fn go_on(socket: &Path) -> UnixStream {
    let mut gdb = UnixStream::connect(socket).unwrap();
    gdb.write_all(b"+$c#63").unwrap();
    let mut answer = [0];
    gdb.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+");
    gdb
}

#[test]
fn a_check_waits_for_its_debugger() {
    let guestline = Guestline::new();
    let running = guestline.start(&["check", "--gdb", "grep -q ' nokaslr' /proc/cmdline"]);
    let socket = socket(&guestline);
    // It would have been up by now.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let _gdb = go_on(&socket);
    let ran = running.wait();
    ran.assert_verdict(0, "passed");
    let line =
        format!("the machine waits for a debugger: gdb -ex 'target remote {}'", socket.display());
    assert!(ran.stderr.contains(&line), "{}", ran.stderr);
    guestline.assert_nothing_left();
    assert_eq!(guestline.run(&["check", "--gdb", "true", "true"]).status, 2);
    assert_eq!(guestline.run(&["check", "--gdb", "--timeout", "5", "true"]).status, 2);
}

#[test]
fn a_named_machine_waits_for_its_debugger() {
    let guestline = Guestline::new();
    let running = guestline.start(&["up", "m", "--gdb", "--cmdline", "one=1"]);
    let socket = socket(&guestline);
    // The real one, where there is one: a stop in the kernel's code, and on.
    let commands = ["set confirm off", "set architecture i386:x86-64", "detach"];
    let target = format!("target remote {}", socket.display());
    let words = std::iter::once(target.as_str()).chain(commands);
    let gdb = Command::new("gdb")
        .args(["-nx", "-batch"])
        .args(words.flat_map(|word| ["-ex", word]))
        .output();
    let _gdb = match gdb {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("0x000000000000fff0"), "{said}");
            None
        }
        Err(_) => Some(go_on(&socket)),
    };
    let ran = running.wait();
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("gdb -ex '{target}'")), "{}", ran.stderr);
    let ran = guestline.run(&["exec", "m", "--", "cat", "/proc/cmdline"]);
    assert!(ran.stdout().trim_end().ends_with(" nokaslr one=1"), "{}", ran.stdout());
    assert_eq!(guestline.run(&["down", "m"]).status, 0);
    guestline.assert_nothing_left();
}
