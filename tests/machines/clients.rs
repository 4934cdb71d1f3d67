//! Clients that leave, in every way, and what becomes of what they did in the machine.

use crate::kernels::cloud_kernel;
use crate::web::Web;
use guestline_tests::{named_by, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn what_a_client_did_ends_with_it_though_it_reads_nothing() {
    let web = Web::up();
    let mut stopped =
        web.0.start(&["exec", "web", "-n", "--shell", "--", "setsid sleep 4242 & yes"]);
    assert_eq!(stopped.next_line(), "y");
    stopped.signal(Signal::SIGSTOP);
    assert_eq!(web.count("sleep 4242"), 2);
    stopped.signal(Signal::SIGKILL);
    stopped.wait();
    wait_for("the end of its tree", || (web.count("sleep 4242") == 0).then_some(()));
    assert_eq!(web.count("yes"), 0);
    web.down();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_froze_goes_on_when_it_leaves() {
    let web = Web::up();
    web.mount_ext4(8);
    // Whoever writes to it waits, and cannot be killed.
    let frozen = || {
        web.line(
            "rm -f /tmp/went; (touch /mnt/x && touch /tmp/went) > /dev/null 2>&1 & \
             sleep 0.3; [ -e /tmp/went ] && echo goes on || echo frozen",
        )
    };
    assert_eq!(frozen(), "goes on");
    let guest = web.session().await;
    guest.freeze(b"/mnt").await.unwrap();
    let again = guest.freeze(b"/mnt").await.unwrap_err().to_string();
    assert!(again.contains("is frozen already"), "{again}");
    // Who did not freeze it, does not thaw it by leaving.
    let other = web.session().await;
    other.freeze(b"/mnt").await.unwrap_err();
    drop(other);
    assert_eq!(frozen(), "frozen");
    guest.thaw(b"/mnt").await.unwrap();
    assert_eq!(frozen(), "goes on");
    guest.freeze(b"/mnt").await.unwrap();
    assert_eq!(frozen(), "frozen");
    drop(guest);
    wait_for("the thaw", || (frozen() == "goes on").then_some(()));
    let nothing = web.session().await.freeze(b"/proc").await.unwrap_err().to_string();
    assert_eq!(nothing, "file system `proc` at `/proc` cannot be frozen");
    web.down();
}

/// Seconds of CPU time that a process has used.
fn cpu_seconds(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, a hundred to the second (proc_pid_stat(5)).
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) / 100
}

#[test]
fn a_forward_that_may_open_no_more_files_says_so_once_and_waits() {
    let web = Web::up();
    web.line("ip link set lo up; mkdir -p /srv && echo hello > /srv/index.html && httpd -p 127.0.0.1:80 -h /srv");
    let socket = web.0.home().join("here.sock");
    let program = named_by("GUESTLINE_PROGRAM");
    let line = format!(
        "ulimit -n 20; echo $$ > pid; exec {} forward web {} 80",
        program.display(),
        socket.display()
    );
    // Nothing is asserted before it has ended: a scope waits for its threads.
    let (ran, used, page) = std::thread::scope(|scope| {
        let forwarding = scope.spawn(|| web.0.run_other("sh", &["-c", &line], Stdio::null()));
        wait_for("the socket", || socket.exists().then_some(()));
        let pid =
            std::fs::read_to_string(web.0.home().join("pid")).unwrap().trim().parse().unwrap();
        let crowd: Vec<UnixStream> =
            (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        std::thread::sleep(Duration::from_secs(3));
        let used = cpu_seconds(pid);
        drop(crowd);
        let page = wait_for("a connection", || {
            let mut stream = UnixStream::connect(&socket).ok()?;
            stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).ok()?;
            page.ends_with("hello\n").then_some(page)
        });
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        (forwarding.join().unwrap(), used, page)
    });
    assert!(used < 1, "{used} s");
    assert!(page.contains(" 200 OK"), "{page}");
    let said = "guestline: no connection can be accepted for now: Too many open files";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{}", ran.stderr);
    assert_eq!(ran.status, 0);
    web.down();
}

#[test]
fn a_log_that_is_not_there_is_named() {
    let web = Web::up();
    for (log, what) in [
        ("--journal", "web: this guest has no journal of systemd: journalctl: not found"),
        (
            "--syslog",
            "web: this guest has no syslog: neither `/var/log/syslog` nor `/var/log/messages` is there",
        ),
    ] {
        for follow in [&[][..], &["-f"]] {
            let ran = web.0.run(&[&["logs", "web", log], follow].concat());
            assert_eq!(ran.status, 255, "{}", ran.stderr);
            assert!(ran.stderr.contains(what), "{}", ran.stderr);
        }
    }
    web.line("echo hello > /var/log/messages");
    let ran = web.0.run(&["logs", "web", "--syslog"]);
    assert!(ran.stdout().ends_with(" hello\n"), "{}{}", ran.stdout(), ran.stderr);
    web.down();
}

#[test]
fn another_kernel_takes_over_under_the_same_name() {
    let web = Web::up();
    let kernel = cloud_kernel().display().to_string();
    assert_eq!(web.0.run(&["push", "web", &kernel, "/tmp/vmlinuz"]).status, 0);
    // Its own files are the next one's.
    web.line("cd / && find . -xdev -path ./tmp -prune -o -print | cpio -o -H newc > /tmp/initrd 2> /dev/null");
    let ran = web.0.run(&["power", "web", "kexec", "/tmp/vmlinuz", "--initrd", "/tmp/initrd"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout().starts_with("web is back: kernel "), "{}", ran.stdout());
    // Nothing of the one before is left.
    assert_eq!(web.line("ls /tmp"), "");
    let status = web.status();
    assert_eq!((&status["boot"], &status["state"]), (&2.into(), &"ready".into()), "{status}");
    let ran = web.0.run(&["power", "web", "kexec", "/bin/busybox"]);
    assert_eq!(ran.status, 255);
    assert!(
        ran.stderr.contains("web: `/bin/busybox` is no kernel that kexec takes"),
        "{}",
        ran.stderr
    );
    assert_eq!(web.status()["boot"], 2);
    web.down();
}
