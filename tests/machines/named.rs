//! Machines that stay up under a name: `up`, `exec`, `push`, `pull`, `logs`, `forward`, `ps`, `down`.

use crate::web::Web;
use guestline_tests::{Guestline, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_machine_is_up_until_it_is_taken_down() {
    let web = Web::up();
    let listed = web.0.run(&["ps"]).stdout();
    let row = listed.lines().nth(1).unwrap_or_default().to_owned();
    assert!(row.starts_with("web   ready  tiny"), "{listed}");
    assert_eq!(web.status()["state"], "ready");

    let again = web.0.run(&["up", "web"]);
    assert_eq!(again.status, 2);
    assert!(again.stderr.contains("`web` is up already"), "{}", again.stderr);
    let other = web.0.run(&["exec", "wep", "--", "true"]);
    assert_eq!(other.status, 255);
    assert!(other.stderr.contains("`wep` is not up"), "{}", other.stderr);
    assert!(other.stderr.contains("`web` is up; did you mean that?"), "{}", other.stderr);
    assert_eq!(web.0.run(&["down", "db"]).status, 255);
    assert_eq!(web.0.run(&["exec", "We b", "--", "true"]).status, 2);

    // What a machine runs does not go with the command that ran it, if it wants to stay.
    web.line("echo kept > /tmp/kept");
    assert_eq!(web.line("cat /tmp/kept"), "kept");
    let down = web.0.run(&["down", "web"]);
    assert!(down.stdout().starts_with("web is down: powered off"), "{}", down.stdout());
    web.0.assert_nothing_left();
    let gone = web.exec(&["--", "true"]);
    assert_eq!(gone.status, 255);
    assert!(gone.stderr.contains("`web` is not up; it was taken down"), "{}", gone.stderr);
    assert_eq!(web.0.run(&["ps"]).stdout().lines().count(), 1);
}

#[test]
fn a_command_has_its_own_status_output_and_input() {
    let web = Web::up();
    let ran = web.exec(&["--shell", "--", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.status, ran.stdout().as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(web.exec(&["--shell", "--", "kill -TERM $$"]).status, 143);
    let ran = web.exec(&["--", "nonesuch"]);
    assert_eq!(ran.status, 127);
    assert!(ran.stderr.contains("nonesuch"), "{}", ran.stderr);
    let ran = web.exec(&[
        "-e",
        "A=b c",
        "-C",
        "/etc",
        "-u",
        "nobody",
        "--shell",
        "--",
        "echo $A; pwd; id -un",
    ]);
    assert_eq!(ran.stdout(), "b c\n/etc\nnobody\n", "{}", ran.stderr);

    // Twenty megabytes, there and back.
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let echoed = web.0.run_with(&["exec", "web", "--", "cat"], &bytes);
    assert!(echoed.stdout == bytes, "{} bytes came back: {}", echoed.stdout.len(), echoed.stderr);
    // A command that does not read its input is not waited for by it.
    let (began, (reader, _hand)) = (Instant::now(), std::io::pipe().unwrap());
    let ran = web.0.run_from(&["exec", "web", "--", "true"], reader.into());
    assert_eq!(ran.status, 0);
    assert!(began.elapsed() < Duration::from_secs(10));
    // Nobody reads the output.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = web.0.run_onto(&["exec", "web", "-n", "--", "yes"], writer.into());
    assert_eq!((ran.status, ran.stderr.as_str()), (141, ""));

    let ran = web.exec(&["--timeout", "1", "--shell", "--", "sleep 1000 & sleep 1000"]);
    assert_eq!(ran.status, 255);
    assert!(ran.stderr.contains("web: timed out after 1 s"), "{}", ran.stderr);
    wait_for("the end of what was timed out", || (web.count("sleep 1000") == 0).then_some(()));
    web.down();
}

#[test]
fn signals_go_to_the_command_and_its_end_takes_all_with_it() {
    let web = Web::up();
    let mark = |line: &str| {
        let running = web.0.start(&["exec", "web", "--shell", "--", line]);
        wait_for("the command", || {
            web.line("cat /tmp/mark 2>/dev/null || true").eq("1").then_some(())
        });
        web.line("rm /tmp/mark");
        running
    };
    let trapped = "trap 'echo heard; exit 3' TERM; echo 1 > /tmp/mark; while :; do sleep 0.1; done";
    let running = mark(trapped);
    running.signal(Signal::SIGTERM);
    let ran = running.wait();
    assert_eq!((ran.status, ran.stdout().as_str()), (3, "heard\n"), "{}", ran.stderr);

    let stubborn = "trap '' INT; echo 1 > /tmp/mark; while :; do sleep 0.1; done";
    let running = mark(stubborn);
    running.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    let _ = kill(running.pid(), Signal::SIGINT);
    assert_eq!(running.wait().status, 137);

    // Killed without a chance to say so: what it started dies all the same, also what left its session.
    let running = mark("setsid sleep 4242 & sleep 4243 & echo 1 > /tmp/mark; wait");
    assert_eq!(web.count("sleep 424"), 3);
    running.signal(Signal::SIGKILL);
    running.wait();
    wait_for("the end of the tree", || (web.count("sleep 424") == 0).then_some(()));
    web.down();
}

#[test]
fn signals_that_were_ignored_pass_by() {
    let mut web = Web::up();
    web.0 = std::mem::take(&mut web.0).under(&["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"]);
    let line = "echo begun; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo ended";
    let begin = || {
        let mut running = web.0.start(&["exec", "web", "--shell", "--", line]);
        assert_eq!(running.next_line(), "begun");
        for signal in [Signal::SIGHUP, Signal::SIGINT] {
            kill(running.pid(), signal).unwrap();
        }
        running
    };
    // One that was not ignored still goes to the command.
    let running = begin();
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().status, 143);
    let running = begin();
    web.line("touch /tmp/go");
    let ran = running.wait();
    assert_eq!((ran.status, ran.stdout().as_str()), (0, "ended\n"), "{}", ran.stderr);
    web.down();
}

#[test]
fn many_clients_at_once_do_not_mind_each_other() {
    let web = Web::up();
    // One of them is stopped with its output unread, and holds nobody up.
    let mut stopped = web.0.start(&["exec", "web", "-n", "--", "yes"]);
    assert_eq!(stopped.next_line(), "y");
    stopped.signal(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        for digit in b'0'..b'8' {
            let web = &web;
            scope.spawn(move || {
                let line = format!("head -c 1000000 /dev/zero | tr '\\0' {}", char::from(digit));
                let ran = web.exec(&["-n", "--shell", "--", &line]);
                assert_eq!(ran.status, 0, "{}", ran.stderr);
                let all = ran.stdout.iter().all(|&byte| byte == digit);
                assert!(all && ran.stdout.len() == 1_000_000, "{} bytes", ran.stdout.len());
            });
        }
    });
    // A client that talks nonsense is cut off, and nobody else.
    let folder = std::fs::read_dir(web.0.home().join("run/guestline")).unwrap();
    let folder = folder.flatten().next().unwrap().path();
    let mut nonsense = UnixStream::connect(folder.join("link.sock")).unwrap();
    nonsense.write_all(&[0x47; 100_000]).unwrap();
    let mut unknown = UnixStream::connect(folder.join("ctl.sock")).unwrap();
    unknown.write_all(b"{\"version\":9,\"request\":\"explode\"}\n").unwrap();
    let mut answer = [0; 100];
    let len = unknown.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[..len]).contains("version 9 is not spoken here"));
    assert_eq!(web.line("echo fine"), "fine");
    let pings = web.0.run(&["ping", "web", "-c", "3", "-i", "1ms"]);
    assert!(pings.stdout().contains("3 answers: min "), "{}", pings.stdout());
    stopped.signal(Signal::SIGKILL);
    stopped.wait();
    web.down();
}

#[test]
fn files_go_in_and_come_out_as_they_were() {
    let web = Web::up();
    let home = web.0.home();
    let tree = home.join("tree");
    std::fs::create_dir_all(tree.join("a/empty")).unwrap();
    std::fs::write(tree.join("a/big"), vec![7; 3_000_000]).unwrap();
    std::fs::write(tree.join("a/secret"), "x").unwrap();
    std::fs::set_permissions(tree.join("a/secret"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("big", tree.join("a/link")).unwrap();
    let ran = web.0.run(&["push", "web", "tree", "/tmp/in/"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        web.line("readlink /tmp/in/tree/a/link; stat -c %a /tmp/in/tree/a/secret"),
        "big\n640"
    );
    let ran = web.0.run(&["pull", "web", "/tmp/in/tree", "back"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let mut diff = std::process::Command::new("diff");
    let diff = diff.args(["-r", "--no-dereference"]).arg(&tree).arg(home.join("back"));
    let diff = diff.output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home.join("back/a/secret")), 0o640);

    let spool = web.0.run_with(&["push", "web", "-", "/tmp/text"], b"from a pipe");
    assert_eq!(spool.status, 0, "{}", spool.stderr);
    assert_eq!(web.0.run(&["pull", "web", "/tmp/text", "-"]).stdout, b"from a pipe");
    for args in [["pull", "web", "/nonesuch", "."], ["push", "web", "/nonesuch", "/tmp"]] {
        let ran = web.0.run(&args);
        assert_eq!(ran.status, 255, "{}", ran.stderr);
        assert!(ran.stderr.contains("/nonesuch"), "{}", ran.stderr);
    }
    // One item that cannot be copied is named, and costs the others nothing.
    web.line("mkdir -p /tmp/out && mknod /tmp/out/null c 1 3 && echo y > /tmp/out/file");
    let ran = web.0.run(&["pull", "web", "/tmp/out", "out"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("web: null: "), "{}", ran.stderr);
    assert_eq!(std::fs::read(home.join("out/file")).unwrap(), b"y\n");
    web.down();
}

#[test]
fn a_terminal_has_a_size_and_comes_back_as_it_was() {
    let web = Web::up();
    let program = guestline_tests::named_by("GUESTLINE_PROGRAM");
    let inner = format!(
        "stty rows 30 cols 100; {} exec web -t -- sh -c 'tty; stty size; exit 5'; echo status $?; stty -a",
        program.display()
    );
    // script(1) runs it on a terminal of its own.
    let (keyboard, _hand) = std::io::pipe().unwrap();
    let ran = web.0.run_other("script", &["-qec", &inner, "/dev/null"], keyboard.into());
    let said = ran.stdout();
    assert!(said.contains("/dev/pts/0\r\n30 100\r\n"), "{said}");
    assert!(said.contains("status 5"), "{said}");
    assert!(said.contains(" icanon") && said.contains(" echo "), "{said}");
    // Without one, what would drive the terminal is escaped.
    let inner = format!("{} exec web -n -- printf 'a\\033[2Jb'", program.display());
    let (keyboard, _hand) = std::io::pipe().unwrap();
    let ran = web.0.run_other("script", &["-qec", &inner, "/dev/null"], keyboard.into());
    assert!(ran.stdout().contains("a\\u{1b}[2Jb"), "{}", ran.stdout());
    web.down();
}

#[test]
fn a_reboot_is_survived_and_an_end_is_told() {
    let web = Web::up();
    let running = web.0.start(&["exec", "web", "-n", "--", "sleep", "1000"]);
    wait_for("the command", || (web.count("sleep 1000") > 0).then_some(()));
    let rebooting = web.exec(&["-n", "--", "reboot"]);
    let sleeping = running.wait();
    for lost in [rebooting, sleeping] {
        // The command that reboots may have been told its own end before.
        if lost.status != 0 {
            assert_eq!(lost.status, 255);
            assert!(
                lost.stderr.contains("`web` rebooted, and what ran was lost"),
                "{}",
                lost.stderr
            );
        }
    }
    // New ones wait until it is back.
    assert!(web.line("cut -d. -f1 /proc/uptime").parse::<u32>().unwrap() < 60);
    let status = web.status();
    assert_eq!((&status["boot"], &status["state"]), (&2.into(), &"ready".into()), "{status}");
    let ran = web.0.run(&["power", "web", "reboot"]);
    assert!(ran.stdout().starts_with("web is back: kernel "), "{} {}", ran.stdout(), ran.stderr);
    assert_eq!(web.status()["boot"], 3);
    let console = web.0.run(&["logs", "web"]).stdout();
    assert_eq!(console.matches("reboot: Restarting system").count(), 2, "{console}");
    let kernel = web.0.run(&["logs", "web", "--kernel", "--clock", "both"]).stdout();
    assert!(kernel.contains("Z [    0.000000] Linux version "), "{kernel}");

    let off = web.exec(&["-n", "--", "sh", "-c", "poweroff; sleep 1000"]);
    assert_eq!(off.status, 255);
    assert!(off.stderr.contains("`web` is gone: it powered itself off"), "{}", off.stderr);
    web.0.assert_nothing_left();
    let gone = web.exec(&["--", "true"]);
    assert!(gone.stderr.contains("`web` is not up; it powered itself off "), "{}", gone.stderr);
}

#[test]
fn deaths_are_told_and_leave_nothing() {
    let web = Web::up();
    let ran = web.exec(&["-n", "--shell", "--", "echo c > /proc/sysrq-trigger"]);
    assert_eq!(ran.status, 255);
    let panic = "`web` is gone: it panicked: Kernel panic - not syncing: sysrq triggered crash";
    assert!(ran.stderr.contains(panic), "{}", ran.stderr);
    web.0.assert_nothing_left();

    // The supervisor is killed: its QEMU dies with it, and the name is free.
    assert_eq!(web.0.run(&["up", "web"]).status, 0);
    let pid = web.status()["pid"].as_i64().unwrap();
    let running = web.0.start(&["exec", "web", "-n", "--", "sleep", "1000"]);
    wait_for("the command", || (web.count("sleep 1000") > 0).then_some(()));
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let ran = running.wait();
    assert_eq!(ran.status, 255);
    assert!(ran.stderr.contains("its supervisor was killed"), "{}", ran.stderr);
    web.0.assert_nothing_left();
    let gone = web.exec(&["--", "true"]);
    assert!(gone.stderr.contains("its supervisor was killed"), "{}", gone.stderr);

    // Interrupted while it boots.
    let booting = web.0.start(&["up", "web"]);
    web.0.wait_for_qemu();
    booting.signal(Signal::SIGINT);
    let ran = booting.wait();
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    web.0.assert_nothing_left();
    let never = web.0.run(&["up", "web", "--fresh-reboot", "--boot-timeout", "200ms"]);
    assert_eq!(never.status, 125);
    assert!(never.stderr.contains("the agent did not answer within 200ms"), "{}", never.stderr);
    assert!(never.stderr.contains("--boot-timeout gives it more time"), "{}", never.stderr);
    web.0.assert_nothing_left();
}

#[test]
fn sockets_go_both_ways_without_a_network() {
    let web = Web::up();
    web.line("ip link set lo up; mkdir -p /srv && echo hello > /srv/index.html && httpd -p 127.0.0.1:80 -h /srv");
    let mut forwarding = web.0.start(&["forward", "web", "0", "80"]);
    let address = forwarding.next_line().split(' ').next().unwrap_or_default().to_owned();
    let get = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        let _ = stream.read_to_string(&mut page);
        page
    };
    assert!(get().ends_with("hello\n"), "{}", get());

    // A unix socket here that is one there, and the other way round.
    let here = web.0.home().join("here.sock");
    let mut inward = web.0.start(&["forward", "web", &here.display().to_string(), "127.0.0.1:80"]);
    inward.next_line();
    let mut stream = UnixStream::connect(&here).unwrap();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("hello\n"), "{page}");
    inward.signal(Signal::SIGINT);
    assert_eq!(inward.wait().status, 0);
    assert!(!here.exists());

    let server = web.0.home().join("server.sock");
    let listener = UnixListener::bind(&server).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"from the host\n").unwrap();
    });
    let target = server.display().to_string();
    let mut outward = web.0.start(&["forward", "web", "--from-guest", "7000", &target]);
    assert!(outward.next_line().starts_with("127.0.0.1:7000 in web is "));
    assert_eq!(web.line("nc 127.0.0.1 7000 < /dev/null"), "from the host");
    serving.join().unwrap();
    outward.signal(Signal::SIGTERM);
    assert_eq!(outward.wait().status, 0);
    forwarding.signal(Signal::SIGINT);
    assert_eq!(forwarding.wait().status, 0);
    web.down();
}

#[test]
fn an_up_machine_holds_nothing_of_who_started_it() {
    let guestline = Guestline::new();
    // A pipe that ends, and a descriptor that was inherited.
    let program = guestline_tests::named_by("GUESTLINE_PROGRAM");
    let line = format!("exec 9>&1; {} up web 2>&1 | cat; echo done", program.display());
    let nothing = Stdio::null();
    let ran = guestline.run_other("sh", &["-c", &line], nothing);
    assert!(
        ran.stdout().contains("web is up") && ran.stdout().ends_with("done\n"),
        "{}",
        ran.stdout()
    );
    let facts = guestline.run(&["facts", "web", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&facts.stdout()).unwrap();
    assert_eq!(facts["init"], "init");
    // Two at once, and both down together.
    assert_eq!(guestline.run(&["up", "db", "--memory", "192M"]).status, 0);
    assert_eq!(guestline.run(&["ps"]).stdout().lines().count(), 3);
    let down = guestline.run(&["down", "--all"]);
    assert_eq!((down.status, down.stdout().lines().count()), (0, 2), "{}", down.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn the_agent_comes_out_and_runs() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["agent", "extract", "agent"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let agent = guestline.home().join("agent");
    let version = std::process::Command::new(&agent).arg("--version").output().unwrap();
    assert!(version.status.success());
    let piped = guestline.run(&["agent", "extract", "-"]);
    assert!(piped.stdout == std::fs::read(&agent).unwrap());
    let unit = guestline.run(&["agent", "unit", "systemd", "--path", "/opt/agent"]).stdout();
    assert!(unit.contains("ExecStart=/opt/agent\n") && unit.contains("Delegate=yes\n"), "{unit}");
}

#[test]
fn an_agent_elsewhere_has_a_name_too() {
    let guestline = Guestline::new();
    let socket = guestline.home().join("agent.sock");
    let link = format!("unix:{}", socket.display());
    let mut agent = std::process::Command::new(guestline_tests::named_by("GUESTLINE_AGENT"))
        .args(["--link", &link])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the agent's socket", || socket.exists().then_some(()));
    let up = guestline.run(&["up", "here", "--connect", "unix:agent.sock"]);
    assert_eq!(up.status, 0, "{}", up.stderr);
    assert_eq!(guestline.run(&["exec", "here", "--", "pwd"]).stdout(), "/\n");
    let down = guestline.run(&["down", "here"]).stdout();
    assert!(down.starts_with("here is down: let go"), "{down}");
    // Its agent is still there, and ends now: so does the machine of that name.
    assert_eq!(guestline.run(&["up", "here", "--connect", &link]).status, 0);
    agent.kill().unwrap();
    agent.wait().unwrap();
    wait_for("the end", || (guestline.run(&["ps"]).stdout().lines().count() == 1).then_some(()));
    let gone = guestline.run(&["exec", "here", "--", "true"]);
    assert!(gone.stderr.contains("its link ended"), "{}", gone.stderr);
    guestline.assert_nothing_left();
    let nobody = guestline.run(&["up", "here", "--connect", "unix:/nonexistent"]);
    assert_eq!(nobody.status, 125, "{}", nobody.stderr);
}
