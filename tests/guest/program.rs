//! The static program `guest`, as a script on the host runs it.

use crate::rig::{Rig, guest, rig};
use guestline_harness::lab::{Side, Verdict};
use guestline_tests::{Ran, named_by, wait_for};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

async fn shell(rig: &Rig, socket: &Path, script: &str, input: &'static [u8]) -> Ran {
    let folder: PathBuf = rig.folder.path().join("bin");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(named_by("GUESTLINE_GUEST"), folder.join("guest")).unwrap();
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(rig.folder.path()).env("PATH", path);
    command.env("GUESTLINE_SOCKET", socket).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = std::thread::spawn(move || {
            let _ = stdin.write_all(input);
        });
        let ran = Ran::from(child.wait_with_output().unwrap());
        writing.join().unwrap();
        ran
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_combines_steps_on_both_sides() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let script = "set -e
        mkdir here; echo content > here/file
        guest push here/file \"$PWD/there/\"
        guest exec -C \"$PWD\" 'cat there/file; echo err >&2'
        guest pull \"$PWD/there/file\" back; cat back
        guest exec -i 'tr a-z A-Z'
        guest exec -- printf '%s\\n' 'a  b' '$HOME'
        guest wait --file \"$PWD/there/file\"
        guest send key='a value'; guest await key
        guest log something was done
        guest --json exec 'echo x; exit 4' || echo status $?
        guest facts | head -c 1
        guest exec yes | head -c 4";
    let ran = shell(&rig, &socket, script, b"loud\n").await;
    let wanted = "content\ncontent\nLOUD\na  b\n$HOME\na value\n\
        {\"status\":4,\"stderr\":\"\",\"stdout\":\"x\\n\"}\nstatus 4\n{y\ny\n";
    assert_eq!((ran.status, ran.stdout().as_str()), (0, wanted), "{}", ran.stderr);
    assert_eq!(ran.stderr, "err\n");
    assert_eq!(rig.lines.recv().await.unwrap().text, "something was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_tell_the_command_from_guestline() {
    let mut rig = rig(&["db", "web"]).await;
    let socket = rig.serve(Side::Host);
    for (script, status, said) in [
        ("guest -m web exec 'exit 254'", 254, ""),
        ("guest -m web exec 'kill -TERM $$'", 143, ""),
        ("guest -m web exec -- /no/such", 127, "guest: web: "),
        (
            "guest -m web exec -t 200ms 'sleep 100'",
            124,
            "guest: web: timed out after 200 ms, and was killed\n",
        ),
        (
            "guest -m web wait -t 200ms 'echo so; exit 1'",
            124,
            "so\nguest: web: `echo so; exit 1`: not within 200 ms: status 1",
        ),
        (
            "guest exec true",
            255,
            "guest: this test has several machines: name one of `db`, `web` with -m\n",
        ),
        (
            "guest -m other exec true",
            255,
            "guest: there is no machine `other` in this test, but `db`, `web`\n",
        ),
        ("guest frobnicate", 255, "guest: there is no verb `frobnicate`; see `guest --help`\n"),
        ("guest await -t 100ms none", 124, "guest: `none`: no value within 100 ms\n"),
        ("guest -m web pull /no/such .", 255, "guest: web: "),
        (
            "unset GUESTLINE_SOCKET; guest exec true",
            255,
            "guest: GUESTLINE_SOCKET is not set: this runs only within a test: guestline run …\n",
        ),
        (
            "GUESTLINE_SOCKET=/no/such guest exec true",
            255,
            "guest: nobody answers at `/no/such`: No such file or directory (os error 2); has its test ended?\n",
        ),
    ] {
        let ran = shell(&rig, &socket, script, b"").await;
        assert_eq!(ran.status, status, "{script}: {}", ran.stderr);
        assert!(ran.stderr.starts_with(said) && ran.stdout.is_empty(), "{script}: {}", ran.stderr);
    }
    let ran = shell(&rig, &socket, "guest --json -m other facts", b"").await;
    let error = r#"{"error":{"kind":"no-machine","message":"there is no machine `other` in this test, but `db`, `web`"}}"#;
    assert_eq!((ran.status, ran.stdout().trim(), ran.stderr.as_str()), (255, error, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_ends_the_script_and_counts_whatever_that_returns() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let ran = shell(&rig, &socket, "set -e; guest skip no such disk; echo never", b"").await;
    assert_eq!((ran.status, ran.stdout().as_str()), (77, ""));
    let skip = Verdict::Skip { reason: "no such disk".to_owned() };
    assert_eq!(rig.lab.verdict(), Some((Side::Host, skip)));
    let ran = shell(&rig, &socket, "guest fail -- -1 is too few || exit 0", b"").await;
    assert_eq!(ran.status, 0);
    let fail = Verdict::Fail { reason: "-1 is too few".to_owned() };
    assert_eq!(rig.lab.verdict(), Some((Side::Host, fail)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_script_takes_its_command_with_it() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let script = "guest exec 'echo $$ > pid.new; mv pid.new pid; exec sleep 1000' & \
        while [ ! -e pid ]; do sleep 0.05; done; kill -INT $!; kill -TERM $!; wait $!; echo $?";
    let script = script.replace("pid", &rig.path("pid"));
    let ran = shell(&rig, &socket, &script, b"").await;
    assert_eq!(ran.stdout(), "143\n", "{}", ran.stderr);
    let pid = std::fs::read_to_string(rig.path("pid")).unwrap().trim().to_owned();
    crate::rig::wait_until_gone(pid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_scripts_meet() {
    let mut rig = rig(&["web"]).await;
    let (host, web) = (rig.serve(Side::Host), rig.serve(guest("web")));
    let (a, b) = tokio::join!(
        shell(
            &rig,
            &host,
            "guest sync ready && guest send a=1 && guest sync done && echo host",
            b""
        ),
        shell(&rig, &web, "guest sync ready && guest await a && guest sync done && echo web", b""),
    );
    assert_eq!((a.stdout().as_str(), b.stdout().as_str()), ("host\n", "1\nweb\n"), "{a:?} {b:?}");
    // The end of the attempt is told to who still waits.
    let waiting = shell(&rig, &host, "touch waits; guest sync never", b"");
    let ending = async {
        let waits = rig.path("waits");
        let there = move || Path::new(&waits).exists().then_some(());
        tokio::task::spawn_blocking(move || wait_for("a script", there)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        rig.cancel.cancel();
    };
    let (ran, ()) = tokio::join!(waiting, ending);
    assert_eq!((ran.status, ran.stderr.as_str()), (255, "guest: the test has ended\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_the_same_command_by_a_verb_and_by_a_name() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let program = named_by("GUESTLINE_PROGRAM");
    let script = format!(
        "g={}; mkdir by; ln -s $g by/guest
        $g guest exec -e A=1 'echo $A; exit 3'; echo $?
        by/guest --json exec 'exit 4'; echo $?
        $g guest --help | head -n 1; $g guest exec --help | head -n 1; $g guest -V
        $g guest exec -v true; echo $?",
        program.display()
    );
    let ran = shell(&rig, &socket, &script, b"").await;
    let wanted = format!(
        "1\n3\n{{\"status\":4,\"stderr\":\"\",\"stdout\":\"\"}}\n4\n\
        Do something in a machine of the running test, or tell the test something\n\
        Run a command in a machine, with its output and exit status\nguest {}\n255\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(ran.stdout(), wanted, "{}", ran.stderr);
    assert_eq!(ran.stderr, "guest: exec: there is no option -v here; see `guest exec --help`\n");
}
