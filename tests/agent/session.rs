//! The session, frame by frame: channels, credit, cancelling, and hosts that keep to nothing.

use crate::raw::{Agent, Came, SESSION, attach, exec, hello, is_gone, sh, wait_until_gone};
use guestline_protocol::{
    CancelEvent, Command, EndEvent, ErrorKind, ExecRequest, ExitStatus, FrameHead, MAX_FRAME_LEN,
    PingRequest, PullRequest, PushRequest, Reply, Request, Session, StatRequest, StdinSource,
    Stream, VERSION,
};
use std::io::Write;

fn kind(reply: &Reply) -> Option<ErrorKind> {
    match reply {
        Reply::Error(error) => Some(error.kind),
        _ => None,
    }
}

#[test]
fn output_streams_and_status_come_back() {
    let mut agent = Agent::open();
    let (exited, stdout, stderr) = agent.exec(2, sh("echo out; echo err >&2; exit 42"));
    assert_eq!(exited.status, ExitStatus::Exited(42));
    assert!(!exited.output_held && !exited.cancelled && exited.elapsed_us > 0);
    assert!(exited.total == 8 && exited.usage.max_rss_kib > 0);
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let (exited, ..) = agent.exec(3, sh("kill -KILL $$"));
    assert_eq!(exited.status, ExitStatus::Signaled { signal: 9, core_dumped: false });
}

#[test]
fn no_more_output_comes_than_was_granted() {
    let mut agent = Agent::open();
    let mut request = ExecRequest::new(sh("head -c 100000 /dev/zero"));
    request.credit = 1000;
    agent.send(SESSION, 2, &Request::Exec(request));
    let mut got = 0;
    while got < 1000 {
        if let (2, Came::Data(_, bytes)) = agent.next() {
            got += bytes.len();
        }
    }
    assert_eq!(got, 1000);
    // Nothing more, and neither is the exit told before its output.
    agent.assert_alive();
    std::thread::sleep(std::time::Duration::from_millis(300));
    agent.assert_alive();
    agent.grant(2, 99_000);
    let (reply, stdout, _) = agent.end(2);
    assert_eq!(stdout.len(), 99_000);
    assert!(matches!(reply, Reply::ExecExited(exited) if exited.total == 100_000));
}

#[test]
fn input_beyond_what_was_granted_ends_the_channel_and_nothing_else() {
    let mut agent = Agent::open();
    let mut request = ExecRequest::new(sh("sleep 1000"));
    request.stdin = StdinSource::Channel;
    agent.send(SESSION, 2, &Request::Exec(request));
    let Reply::ExecStarted(started) = agent.reply(2) else { panic!() };
    let pid = started.pid.to_string();
    let all = vec![b'x'; started.credit as usize];
    for piece in all.chunks(MAX_FRAME_LEN) {
        agent.data(2, piece);
    }
    // The pipe took some of it, for which credit came; more than that was not granted.
    for _ in 0..3 {
        agent.data(2, &vec![b'x'; 200_000]);
    }
    assert_eq!(kind(&agent.end(2).0), Some(ErrorKind::Protocol));
    wait_until_gone(&pid);
    agent.assert_alive();
}

#[test]
fn a_cancelled_process_dies_with_all_that_it_started() {
    let mut agent = Agent::open();
    let line =
        "setsid sh -c 'sleep 1000 & echo $!; wait' & sh -c '(sleep 1000 & echo $!) &'; sleep 1000";
    agent.send(SESSION, 2, &exec(sh(line)));
    let mut said = String::new();
    while said.lines().count() < 2 || !said.ends_with('\n') {
        if let (2, Came::Data(_, bytes)) = agent.next() {
            said += &String::from_utf8(bytes).unwrap();
        }
    }
    let pids: Vec<&str> = said.lines().collect();
    assert!(pids.iter().all(|pid| !is_gone(pid)));
    agent.send(SESSION, 2, &Request::Cancel(CancelEvent {}));
    let (reply, ..) = agent.end(2);
    assert!(matches!(reply, Reply::ExecExited(ref exited) if exited.cancelled), "{reply:?}");
    for pid in pids {
        wait_until_gone(pid);
    }
}

#[test]
fn a_daemon_that_was_left_on_purpose_survives_its_command_and_the_session() {
    let mut agent = Agent::open();
    let (_, stdout, _) =
        agent.exec(2, sh("setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"));
    let pid = String::from_utf8(stdout).unwrap().trim().to_owned();
    agent.send(Session(42), 3, &hello(1, 1));
    assert!(matches!(agent.reply(3), Reply::Hello(_)));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!is_gone(&pid));
    let _ = std::process::Command::new("kill").arg(&pid).status();
}

#[test]
fn a_child_that_holds_stdout_is_given_its_grace_and_nothing_that_was_written_is_lost() {
    let mut agent = Agent::open();
    let started = std::time::Instant::now();
    let line = "head -c 60000 /dev/zero; sleep 1000 & echo $! >&2";
    let (exited, stdout, stderr) = agent.exec(2, sh(line));
    assert!(exited.output_held);
    assert_eq!(stdout.len(), 60_000);
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
    let pid = String::from_utf8(stderr).unwrap();
    let _ = std::process::Command::new("kill").arg(pid.trim()).status();
}

#[test]
fn many_at_once_and_a_flood_beside_a_ping() {
    let mut agent = Agent::open();
    for channel in 100..108 {
        let line = format!("head -c 1000000 /dev/zero; exit {}", channel - 100);
        agent.send(SESSION, channel, &exec(sh(&line)));
    }
    agent.send(SESSION, 50, &Request::Ping(PingRequest { token: 1 }));
    let (mut exits, mut len, mut pinged) = (0, [0; 8], false);
    while exits < 8 {
        let (channel, came) = agent.next();
        match came {
            Came::Data(_, bytes) => len[channel as usize - 100] += bytes.len(),
            Came::Reply(Reply::ExecExited(exited)) => {
                let status = u8::try_from(channel - 100).unwrap();
                assert_eq!(exited.status, ExitStatus::Exited(status));
                assert_eq!(exited.total, 1_000_000);
                exits += 1;
            }
            Came::Reply(Reply::Ping(_)) => pinged = true,
            Came::Reply(_) => {}
        }
    }
    while len != [1_000_000; 8] {
        if let (channel, Came::Data(_, bytes)) = agent.next() {
            len[channel as usize - 100] += bytes.len();
        }
    }
    assert!(pinged);
}

#[test]
fn one_process_too_many_is_busy() {
    let mut agent = Agent::open();
    for channel in 100..165 {
        agent.send(SESSION, channel, &exec(sh("sleep 100")));
    }
    let busy = (0..65).find_map(|_| match agent.next() {
        (_, Came::Reply(Reply::Error(error))) => Some(error.kind),
        _ => None,
    });
    assert_eq!(busy, Some(ErrorKind::Busy));
}

#[test]
fn a_channel_that_is_open_is_not_opened_again() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper(2);
    let stat = StatRequest { path: b"/".to_vec().into(), follow: false };
    agent.send(SESSION, 2, &Request::Stat(stat));
    assert_eq!(kind(&agent.reply(2)), Some(ErrorKind::Protocol));
    assert!(!is_gone(&pid));
    // Channel 0 is the guest's own.
    agent.send(SESSION, 0, &exec(sh("true")));
    assert_eq!(kind(&agent.reply(0)), Some(ErrorKind::Protocol));
    agent.assert_alive();
}

#[test]
fn a_new_hello_kills_what_the_old_session_ran_and_its_words_are_not_heard() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper(2);
    let other = Session(42);
    agent.send(other, 3, &hello(1, 1));
    let (head, came) = agent.frame();
    assert_eq!(head.session, other);
    assert!(matches!(came, Came::Reply(Reply::Hello(_))));
    wait_until_gone(&pid);
    // The old session is over.
    agent.send(SESSION, 4, &Request::Ping(PingRequest { token: 1 }));
    assert_eq!(kind(&agent.reply(4)), Some(ErrorKind::NoSession));
}

#[test]
fn the_same_hello_again_is_answered_again_and_resets_nothing() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper(2);
    agent.send(SESSION, 1, &hello(1, VERSION));
    assert!(matches!(agent.reply(1), Reply::Hello(_)));
    agent.assert_alive();
    assert!(!is_gone(&pid));
}

#[test]
fn a_bulk_port_that_is_none_is_answered_for_nobody() {
    // Over a single stream there is no port to join: nothing is sent twice, nothing breaks.
    let mut agent = Agent::open();
    agent.send(SESSION, 5, &attach());
    agent.assert_alive();
}

#[test]
fn versions_apart_are_refused_by_name() {
    let mut agent = Agent::start();
    agent.send(SESSION, 1, &hello(VERSION + 1, VERSION + 5));
    let Reply::Error(error) = agent.reply(1) else { panic!() };
    assert_eq!(error.kind, ErrorKind::Version);
    assert!(error.message.contains("1 to 1"), "{error}");
}

#[test]
fn a_request_of_a_later_version_is_refused_on_its_channel() {
    let mut agent = Agent::open();
    agent.send_frame(FrameHead::message(SESSION, 9), &[200, 1, 2, 3]);
    assert_eq!(kind(&agent.reply(9)), Some(ErrorKind::Unsupported));
    agent.assert_alive();
}

#[test]
fn a_push_that_is_no_tree_or_is_cancelled_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let push = |path: &std::path::Path| {
        let path = path.as_os_str().as_encoded_bytes().to_vec().into();
        Request::Push(PushRequest { path, into: false, owners: false })
    };
    let mut agent = Agent::open();
    agent.send(SESSION, 2, &push(&path));
    assert!(matches!(agent.reply(2), Reply::PushStarted(_)));
    agent.data(2, &[9, 9, 9, 9, 9, 9]);
    assert_eq!(kind(&agent.reply(2)), Some(ErrorKind::Protocol));
    agent.send(SESSION, 3, &push(&path));
    assert!(matches!(agent.reply(3), Reply::PushStarted(_)));
    agent.send(SESSION, 3, &Request::Cancel(CancelEvent {}));
    assert_eq!(kind(&agent.end(3).0), Some(ErrorKind::Cancelled));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    agent.send(SESSION, 4, &push(std::path::Path::new("relative")));
    assert_eq!(kind(&agent.end(4).0), Some(ErrorKind::Invalid));
    agent.assert_alive();
}

#[test]
fn a_pull_keeps_to_its_credit_and_says_how_much_it_sent() {
    let mut agent = Agent::open();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 300_000]).unwrap();
    let path = file.path().as_os_str().as_encoded_bytes().to_vec().into();
    agent.send(SESSION, 2, &Request::Pull(PullRequest { path, follow: false, credit: 1000 }));
    let mut got = 0;
    while got < 1000 {
        if let (2, Came::Data(_, bytes)) = agent.next() {
            got += bytes.len();
        }
    }
    agent.assert_alive();
    agent.grant(2, 1 << 20);
    let mut total = None;
    while total.is_none_or(|total| got < total) {
        match agent.next() {
            (2, Came::Data(Stream::Stdout, bytes)) => got += bytes.len(),
            (2, Came::Reply(Reply::PullDone(done))) => {
                assert_eq!((done.counts.items, done.counts.bytes), (1, 300_000));
                total = usize::try_from(done.total).ok();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(Some(got), total);
}

#[test]
fn what_is_late_for_a_channel_that_is_over_is_nothing() {
    let mut agent = Agent::open();
    agent.exec(2, sh("true"));
    agent.data(2, b"late");
    agent.send(SESSION, 2, &Request::Cancel(CancelEvent {}));
    agent.send(SESSION, 2, &Request::End(EndEvent { total: 4 }));
    agent.grant(2, 7);
    agent.grant(99, u32::MAX);
    agent.assert_alive();
}

#[test]
fn garbage_of_any_kind_leaves_the_agent_alive() {
    let mut agent = Agent::open();
    let mut seed: u64 = 88172645463325252;
    let mut noise = Vec::new();
    for _ in 0..200_000 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.push(seed.to_le_bytes()[0]);
    }
    agent.stream.write_all(&noise).unwrap();
    agent.assert_alive();
    // Frames that check and hold noise, short and as long as they may be.
    for len in [0, 1, 2, 3, 10, 1000, MAX_FRAME_LEN] {
        agent.send_frame(FrameHead::message(SESSION, 60), &noise[..len.min(noise.len())]);
    }
    agent.assert_alive();
}

#[test]
fn the_service_ends_with_its_socket_and_what_it_ran_with_it() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper(2);
    agent.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(agent.child.wait().unwrap().success());
    wait_until_gone(&pid);
}

#[test]
fn argv_is_taken_as_bytes() {
    let mut agent = Agent::open();
    let words = [&b"printf"[..], b"%s", b"\xff "].map(|word| word.to_vec().into());
    assert_eq!(agent.exec(2, Command::Argv(words.to_vec())).1, b"\xff ");
}

#[test]
fn wrong_arguments_are_told() {
    let run = |args: &[&str]| {
        let agent = guestline_tests::named_by("GUESTLINE_AGENT");
        std::process::Command::new(agent).args(args).output().unwrap()
    };
    let wrong = run(&["--what"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("unknown argument `--what`"));
    assert_eq!(run(&["--link", "fd:x"]).status.code(), Some(2));
    assert_eq!(run(&["--link", "carrier-pigeon"]).status.code(), Some(2));
    let closed = run(&["--link", "fd:99"]);
    assert_eq!(closed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&closed.stderr).contains("descriptor 99 is not open"));
    assert!(
        String::from_utf8_lossy(&run(&["--version"]).stdout).starts_with("guestline-agent 0.1.0 (")
    );
}
