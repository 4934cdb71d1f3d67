//! Pools: machines that are ready before a check wants them.

use crate::templates::flip;
use guestline_tests::{Guestline, Ran, named_by, shared_cache, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A pool, which ends with the test.
pub(crate) struct Pool<'a>(&'a Guestline);

impl<'a> Pool<'a> {
    pub(crate) fn start(guestline: &'a Guestline, options: &[&str]) -> Self {
        let ran = guestline.run(&[&["pool", "start"], options].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout().starts_with("pool "), "{}", ran.stdout());
        Self(guestline)
    }

    /// As it says itself; none when it is gone.
    fn status(&self) -> Option<Value> {
        let ran = self.0.run(&["pool", "list", "--json"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.events().into_iter().next()
    }

    /// Waits until so many are ready, and none is lent.
    pub(crate) fn wait_for(&self, ready: u64) {
        wait_for("ready machines", || {
            let status = self.status()?;
            (status["ready"] == ready && status["lent"] == 0).then_some(())
        });
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.status().unwrap()["pid"].as_i64().unwrap()).unwrap())
    }

    fn socket(&self) -> PathBuf {
        let runs = fs::read_dir(self.0.home().join("run/guestline")).unwrap();
        let mut sockets = runs.map(|run| run.unwrap().path().join("pool.sock"));
        sockets.find(|socket| socket.exists()).unwrap()
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        self.0.run(&["pool", "stop"]);
    }
}

fn check(guestline: &Guestline, words: &[&str]) -> Ran {
    guestline.run(&[&["check", "--message-format", "json"], words].concat())
}

fn event(ran: &Ran, name: &str) -> Value {
    let found = ran.events().into_iter().find(|event| event["event"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {}\n{}", ran.stdout(), ran.stderr))
}

fn is_pooled(ran: &Ran) -> bool {
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout(), ran.stderr);
    event(ran, "machine-ready")["pool"].is_object()
}

fn a_check_takes_a_ready_machine(guestline: &Guestline) {
    let pool = Pool::start(guestline, &["--size", "1"]);
    let mut names = Vec::new();
    for served in 1..=3 {
        pool.wait_for(1);
        let ran = check(guestline, &["test ! -e /mine && echo mine > /mine && cat /etc/hostname"]);
        assert!(is_pooled(&ran), "{}", ran.stdout());
        let ready = event(&ran, "machine-ready");
        assert_eq!(ready["pool"]["warm_up"], "true");
        assert!(ready["pool"]["ready_us"].as_u64().unwrap() > 0);
        assert!(ready["template"].is_string());
        names.push(event(&ran, "output")["text"].as_str().unwrap().to_owned());
        let facts = fs::read(guestline.evidence(1).join("facts.json")).unwrap();
        let facts: Value = serde_json::from_slice(&facts).unwrap();
        assert_eq!(facts["machine"]["pool"], ready["pool"]);
        assert_eq!(pool.status().unwrap()["served"], served);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3);
    // Other machines, and a boot, are none of the pool's.
    pool.wait_for(1);
    for other in [&["--memory", "200M", "true"][..], &["--fresh-reboot", "true"]] {
        assert!(!is_pooled(&check(guestline, other)));
    }
    assert_eq!(pool.status().unwrap()["ready"], 1);
    drop(pool);
    guestline.assert_nothing_left();
}

#[test]
fn checks_take_ready_machines() {
    a_check_takes_a_ready_machine(&Guestline::new());
}

#[test]
fn checks_take_ready_machines_of_the_oldest_qemu() {
    let qemu = named_by("GUESTLINE_OLDEST_QEMU");
    a_check_takes_a_ready_machine(&Guestline::new().with("GUESTLINE_QEMU", qemu));
}

#[test]
fn verdicts_are_as_without_a_pool() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "1"]);
    for (line, status, verdict) in [
        ("exit 3", 1, "failed"),
        ("exit 77", 4, "skipped"),
        ("echo c > /proc/sysrq-trigger", 1, "guest panicked"),
        ("reboot -f", 1, "rebooted"),
        ("kill -9 $$", 1, "killed by SIGKILL"),
    ] {
        pool.wait_for(1);
        guestline.run(&["check", line]).assert_verdict(status, verdict);
    }
    pool.wait_for(1);
    let ran = guestline.run(&["check", "--timeout", "1", "sleep 60"]);
    ran.assert_verdict(1, "failed");
    pool.wait_for(1);
    assert_eq!(pool.status().unwrap()["served"], 6);
    // Many at once: who finds none ready restores one.
    let lines = ["true", "true", "true", "true", "true", "true"];
    let ran = guestline.run(&[&["check"], &lines[..]].concat());
    assert_eq!((ran.status, ran.verdicts().len()), (0, 6), "{}", ran.stderr);
    drop(pool);
    guestline.assert_nothing_left();
}

#[test]
fn a_taker_that_is_killed_takes_its_machine_along() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "1"]);
    let before = guestline.qemus();
    let mut running = guestline.start(&["check", "echo up; sleep 60"]);
    assert_eq!(running.next_line(), "up");
    assert_eq!(pool.status().unwrap()["lent"], 1);
    kill(running.pid(), Signal::SIGKILL).unwrap();
    running.wait();
    wait_for("the end of its QEMU", || {
        before.iter().all(|pid| !guestline.qemus().contains(pid)).then_some(())
    });
    pool.wait_for(1);
    drop(pool);
    guestline.assert_nothing_left();
}

#[test]
fn a_keeper_that_is_killed_makes_no_test_fail() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "2"]);
    pool.wait_for(2);
    let keeper = pool.pid();
    let mut running = guestline.start(&["check", "echo up; sleep 60"]);
    assert_eq!(running.next_line(), "up");
    assert_eq!(pool.status().unwrap()["lent"], 1);
    kill(keeper, Signal::SIGKILL).unwrap();
    let ran = running.wait();
    ran.assert_verdict(125, "errored");
    assert!(
        ran.stderr.contains("host: QEMU was lost with the keeper of its pool"),
        "{}",
        ran.stderr
    );
    // The next ones do without.
    assert!(!is_pooled(&check(&guestline, &["true"])));
    assert!(pool.status().is_none());
    guestline.assert_nothing_left();
}

#[test]
fn a_keeper_that_is_stopped_holds_up_nobody() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "1"]);
    let other = Pool::start(&guestline, &["--size", "1", "--cpus", "2"]);
    pool.wait_for(1);
    let stopped = pool.pid();
    let mut running = guestline.start(&["check", "echo up; sleep 1"]);
    assert_eq!(running.next_line(), "up");
    assert_eq!(pool.status().unwrap()["lent"], 1);
    kill(stopped, Signal::SIGSTOP).unwrap();
    running.wait().assert_verdict(0, "passed");
    // Nor does a QEMU that nobody tells of.
    let listed = guestline.run(&["pool", "list"]);
    assert_eq!((listed.status, listed.stdout().lines().count()), (255, 2), "{}", listed.stdout());
    let told = format!("process {stopped}, does not answer as it should");
    assert!(listed.stderr.contains(&told), "{}", listed.stderr);
    assert!(listed.stderr.contains(&format!("`kill -9 {stopped}` ends it")), "{}", listed.stderr);
    let ran = guestline.run(&["pool", "stop"]);
    assert_eq!((ran.status, ran.stdout().lines().count()), (255, 1), "{}", ran.stdout());
    assert_eq!(check(&guestline, &["true"]).status, 0);
    kill(stopped, Signal::SIGKILL).unwrap();
    drop((pool, other));
    guestline.assert_nothing_left();
}

#[test]
fn a_machine_of_a_damaged_template_is_nobodys() {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache/guestline");
    fs::create_dir_all(&cache).unwrap();
    assert_eq!(guestline.run(&["check", "--fresh-reboot", "true"]).status, 0);
    std::os::unix::fs::symlink(shared_cache().join("guestline/images"), cache.join("images"))
        .unwrap();
    let guestline = guestline.with("XDG_CACHE_HOME", cache.parent().unwrap());
    let pool = Pool::start(&guestline, &["--size", "2"]);
    pool.wait_for(2);
    let first = guestline.qemus();
    let templates = fs::read_dir(cache.join("templates/1")).unwrap();
    let template = templates.map(|entry| entry.unwrap().path()).next().unwrap();
    flip(&template.join("ram"));
    let ran = check(&guestline, &["true"]);
    assert!(!is_pooled(&ran) && event(&ran, "template-dropped")["why"].is_string());
    // The pool's machines are of what was there before; none of them is anybody's, ever.
    for _ in 0..2 {
        assert!(!is_pooled(&check(&guestline, &["true"])));
    }
    wait_for("machines of the new one", || {
        (pool.status()?["ready"] == 2 && guestline.qemus().iter().all(|qemu| !first.contains(qemu)))
            .then_some(())
    });
    assert!(is_pooled(&check(&guestline, &["true"])));
    drop(pool);
    guestline.assert_nothing_left();
}

#[test]
fn a_ready_machine_that_dies_is_replaced() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "1"]);
    let first = guestline.wait_for_qemu();
    kill(first, Signal::SIGKILL).unwrap();
    // Perhaps before the keeper has seen it.
    assert_eq!(check(&guestline, &["true"]).status, 0);
    wait_for("another one", || {
        (pool.status()?["ready"] == 1 && !guestline.qemus().contains(&first)).then_some(())
    });
    assert!(is_pooled(&check(&guestline, &["true"])));
    // A guest that does not run any more is nobody's.
    pool.wait_for(1);
    kill(guestline.wait_for_qemu(), Signal::SIGSTOP).unwrap();
    let stopped = guestline.wait_for_qemu();
    let ran = check(&guestline, &["true"]);
    assert!(!is_pooled(&ran));
    wait_for("the end of it", || (!guestline.qemus().contains(&stopped)).then_some(()));
    drop(pool);
    guestline.assert_nothing_left();
}

#[test]
fn a_pool_that_stops_lets_checks_end() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "1"]);
    let again = guestline.run(&["pool", "start", "--size", "3"]);
    assert_eq!(again.status, 2, "{}", again.stderr);
    assert!(again.stderr.contains("there is a pool of such machines already"), "{}", again.stderr);
    assert!(again.stderr.contains("hint: `guestline pool list`"), "{}", again.stderr);
    let unknown = guestline.run(&["pool", "stop", "nonsense"]);
    assert_eq!(unknown.status, 255);
    assert!(unknown.stderr.contains("there is no pool `nonsense`"), "{}", unknown.stderr);
    let mut running = guestline.start(&["check", "echo up; sleep 6"]);
    assert_eq!(running.next_line(), "up");
    let id = pool.status().unwrap()["id"].as_str().unwrap().to_owned();
    let stopped = guestline.run(&["pool", "stop", &id[..6]]);
    let told = format!("pool {id} stops when the checks in 1 machine have ended\n");
    assert_eq!(stopped.stdout(), told);
    let listed = guestline.run(&["pool", "list"]).stdout();
    assert!(listed.contains("stops when the checks in its machines have ended"), "{listed}");
    running.wait().assert_verdict(0, "passed");
    wait_for("the end of the keeper", || pool.status().is_none().then_some(()));
    guestline.assert_nothing_left();
}

#[test]
fn what_a_keeper_is_told() {
    let guestline = Guestline::new();
    let pool = Pool::start(&guestline, &["--size", "2"]);
    pool.wait_for(2);
    let ask = |line: &str| {
        let mut stream = UnixStream::connect(pool.socket()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    };
    for (said, answered) in [
        ("{\"version\":1,\"request\":\"explode\"}\n", "\"answer\":\"error\""),
        ("{\"version\":9,\"request\":\"take\"}\n", "version 9 is not spoken here, 1 is"),
        ("nothing of the kind\n", "\"answer\":\"error\""),
        ("half a line", ""),
        ("", ""),
    ] {
        let answer = ask(said);
        assert!(answer.contains(answered) && answer.is_empty() == answered.is_empty(), "{answer}");
    }
    assert_eq!(pool.status().unwrap()["ready"], 2);
    // Somebody who asks for a machine and goes away has none.
    assert!(ask("{\"version\":1,\"request\":\"take\"}\n").contains("\"answer\":\"machine\""));
    pool.wait_for(2);
    assert!(ask("{\"version\":1,\"request\":\"taken\"}\n").contains("no machine was given"));
    // Others want the memory: one goes, and is not made anew at once.
    let answer = ask("{\"version\":1,\"request\":\"make-room\"}\n");
    assert!(answer.contains("others need the memory"), "{answer}");
    let listed = guestline.run(&["pool", "list"]).stdout();
    assert!(listed.contains("1/2") && listed.contains("others need the memory"), "{listed}");
    pool.wait_for(2);
    drop(pool);
    guestline.assert_nothing_left();
}
