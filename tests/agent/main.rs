//! The real agent over a socket pair: the session, processes, floods, children that hold stdout; no machine.
#![allow(clippy::unwrap_used, reason = "a test may")]

use guestline_protocol::{
    ByteBuf, Command, Envelope, ErrorKind, ExecExitedEvent, ExecRequest, ExitStatus, Frame,
    Framing, HelloRequest, MAX_FRAME_LEN, PingRequest, PortFraming, Reply, Request, Session,
    Stream, VERSION, decode, encode,
};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const SESSION: Session = Session(0x1234_5678_9abc_def0);

/// An agent that runs as a service on its standard input.
struct Agent {
    child: Child,
    stream: UnixStream,
    framing: PortFraming,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let mut command = std::process::Command::new(guestline_tests::named_by("GUESTLINE_AGENT"));
        command.args(["--fd", "0"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { child: command.spawn().unwrap(), stream, framing: PortFraming::default() }
    }

    fn open() -> Self {
        let mut agent = Self::start();
        agent.send(SESSION, 1, hello(1, VERSION));
        let reply = agent.reply();
        assert!(matches!(reply.body, Reply::Hello(ref hello) if !hello.init), "{reply:?}");
        agent
    }

    fn send(&mut self, session: Session, id: u32, body: Request) {
        let mut bytes = Vec::new();
        self.framing.encode(session, &encode(&Envelope { id, body }), &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn frame(&mut self) -> Frame {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(frame) = self.framing.next_frame() {
                return frame;
            }
            let len = self.stream.read(&mut buffer).expect("an answer in time");
            assert_ne!(len, 0, "the agent hung up");
            self.framing.push(&buffer[..len]);
        }
    }

    fn reply(&mut self) -> Envelope<Reply> {
        decode(&self.frame().body).unwrap()
    }

    /// Runs a command to its exit and returns its output too.
    fn exec(&mut self, id: u32, command: Command) -> (ExecExitedEvent, Vec<u8>, Vec<u8>) {
        let request = ExecRequest { command, env: vec![], cwd: None };
        self.send(SESSION, id, Request::Exec(request));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let reply = self.reply();
            assert_eq!(reply.id, id);
            match reply.body {
                Reply::ExecStarted(_) => {}
                Reply::ExecOutput(output) => match output.stream {
                    Stream::Stdout => stdout.extend(output.data.into_vec()),
                    Stream::Stderr => stderr.extend(output.data.into_vec()),
                },
                Reply::ExecExited(exited) => return (exited, stdout, stderr),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Starts a process that lasts, and returns its id.
    fn start_sleeper(&mut self) -> String {
        let request = ExecRequest { command: sh("echo $$; sleep 1000"), env: vec![], cwd: None };
        self.send(SESSION, 2, Request::Exec(request));
        loop {
            if let Reply::ExecOutput(output) = self.reply().body {
                return String::from_utf8(output.data.into_vec()).unwrap().trim().to_owned();
            }
        }
    }

    fn refused(&mut self, request: ExecRequest) -> ErrorKind {
        self.send(SESSION, 9, Request::Exec(request));
        match self.reply().body {
            Reply::Error(error) => error.kind,
            other => panic!("{other:?}"),
        }
    }

    fn assert_alive(&mut self) {
        self.send(SESSION, 77, Request::Ping(PingRequest { token: 7 }));
        let reply = self.reply();
        assert!(matches!(reply.body, Reply::Ping(pong) if pong.token == 7 && pong.clock_us > 0));
    }
}

fn hello(min: u16, max: u16) -> Request {
    Request::Hello(HelloRequest { min, max, build: "test".into(), features: 0 })
}

fn bytes(text: &str) -> ByteBuf {
    ByteBuf::from(text.as_bytes().to_vec())
}

fn sh(line: &str) -> Command {
    Command::Shell(bytes(line))
}

#[test]
fn output_streams_and_status_come_back() {
    let mut agent = Agent::open();
    let (exited, stdout, stderr) = agent.exec(2, sh("echo out; echo err >&2; exit 42"));
    assert_eq!(exited.status, ExitStatus::Exited(42));
    assert!(!exited.output_held && exited.elapsed_us > 0);
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let (exited, ..) = agent.exec(3, sh("kill -KILL $$"));
    assert_eq!(exited.status, ExitStatus::Signaled { signal: 9, core_dumped: false });
}

#[test]
fn argv_environment_and_folder_are_taken_as_bytes() {
    let mut agent = Agent::open();
    let argv = Command::Argv(vec![bytes("printf"), bytes("%s"), ByteBuf::from(vec![0xff, b' '])]);
    assert_eq!(agent.exec(2, argv).1, b"\xff ");
    let command = sh("printf %s \"$X\"; pwd");
    let env = vec![(bytes("X"), ByteBuf::from(vec![0xfe]))];
    agent.send(SESSION, 3, Request::Exec(ExecRequest { command, env, cwd: Some(bytes("/usr")) }));
    let mut said = Vec::new();
    loop {
        match agent.reply().body {
            Reply::ExecOutput(output) => said.extend(output.data.into_vec()),
            Reply::ExecExited(_) => break,
            _ => {}
        }
    }
    assert_eq!(said, b"\xfe/usr\n");
}

#[test]
fn what_cannot_be_run_is_an_error_as_data() {
    let mut agent = Agent::open();
    let request = |command| ExecRequest { command, env: vec![], cwd: None };
    let argv = |words: &[&str]| Command::Argv(words.iter().map(|word| bytes(word)).collect());
    assert_eq!(agent.refused(request(argv(&["no-such-program"]))), ErrorKind::NotFound);
    assert_eq!(agent.refused(request(argv(&["/etc/passwd"]))), ErrorKind::NotExecutable);
    assert_eq!(agent.refused(request(argv(&[]))), ErrorKind::Invalid);
    assert_eq!(agent.refused(request(argv(&[""]))), ErrorKind::Invalid);
    assert_eq!(agent.refused(request(argv(&["a\0b"]))), ErrorKind::Invalid);
    assert_eq!(agent.refused(request(sh("a\0b"))), ErrorKind::Invalid);
    let nowhere = ExecRequest { cwd: Some(bytes("/nowhere")), ..request(sh("true")) };
    assert_eq!(agent.refused(nowhere), ErrorKind::Invalid);
    for name in ["", "A=B", "A\0B"] {
        let env = vec![(bytes(name), bytes("x"))];
        assert_eq!(agent.refused(ExecRequest { env, ..request(sh("true")) }), ErrorKind::Invalid);
    }
    agent.assert_alive();
}

#[test]
fn a_child_that_holds_stdout_is_given_its_grace_and_nothing_that_was_written_is_lost() {
    let mut agent = Agent::open();
    let started = Instant::now();
    let line = "head -c 60000 /dev/zero; sleep 1000 & echo $! >&2";
    let (exited, stdout, stderr) = agent.exec(2, sh(line));
    assert!(exited.output_held);
    assert_eq!(stdout.len(), 60000);
    assert!(started.elapsed() < Duration::from_secs(10));
    let pid = String::from_utf8(stderr).unwrap();
    let _ = std::process::Command::new("kill").arg(pid.trim()).status();
}

#[test]
fn many_at_once_and_a_flood_beside_a_ping() {
    let mut agent = Agent::open();
    for id in 100..108 {
        let command = sh(&format!("head -c 1000000 /dev/zero; exit {}", id - 100));
        agent.send(SESSION, id, Request::Exec(ExecRequest { command, env: vec![], cwd: None }));
    }
    agent.send(SESSION, 50, Request::Ping(PingRequest { token: 1 }));
    let (mut exits, mut len, mut pinged) = (0, [0; 8], false);
    while exits < 8 {
        let Envelope { id, body } = agent.reply();
        match body {
            Reply::ExecOutput(output) => len[id as usize - 100] += output.data.len(),
            Reply::ExecExited(exited) => {
                assert_eq!(exited.status, ExitStatus::Exited(u8::try_from(id - 100).unwrap()));
                assert_eq!(len[id as usize - 100], 1_000_000);
                exits += 1;
            }
            Reply::Ping(_) => pinged = true,
            _ => {}
        }
    }
    assert!(pinged);
}

#[test]
fn one_process_too_many_is_busy() {
    let mut agent = Agent::open();
    for id in 100..165 {
        let request = ExecRequest { command: sh("sleep 100"), env: vec![], cwd: None };
        agent.send(SESSION, id, Request::Exec(request));
    }
    let busy = (0..65).map(|_| agent.reply()).find_map(|reply| match reply.body {
        Reply::Error(error) => Some(error.kind),
        _ => None,
    });
    assert_eq!(busy, Some(ErrorKind::Busy));
}

#[test]
fn a_new_hello_kills_what_the_old_session_ran_and_its_words_are_not_heard() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper();
    let other = Session(42);
    agent.send(other, 3, hello(1, 1));
    let frame = agent.frame();
    assert_eq!(frame.session, other);
    assert!(matches!(decode::<Reply>(&frame.body).unwrap().body, Reply::Hello(_)));
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    guestline_tests::wait_for("the end of the old session's process", || gone().then_some(()));
    // The old session is over.
    agent.send(SESSION, 4, Request::Ping(PingRequest { token: 1 }));
    let reply = agent.reply();
    assert!(matches!(reply.body, Reply::Error(ref error) if error.kind == ErrorKind::NoSession));
}

#[test]
fn versions_apart_are_refused_by_name() {
    let mut agent = Agent::start();
    agent.send(SESSION, 1, hello(VERSION + 1, VERSION + 5));
    let Reply::Error(error) = agent.reply().body else { panic!() };
    assert_eq!(error.kind, ErrorKind::Version);
    assert!(error.message.contains("1 to 1"), "{error}");
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
        let mut bytes = Vec::new();
        agent.framing.encode(SESSION, &noise[..len.min(noise.len())], &mut bytes).unwrap();
        agent.stream.write_all(&bytes).unwrap();
    }
    agent.assert_alive();
}

#[test]
fn the_service_ends_with_its_socket_and_what_it_ran_with_it() {
    let mut agent = Agent::open();
    let pid = agent.start_sleeper();
    agent.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(agent.child.wait().unwrap().success());
    let gone = || {
        // Whoever inherited it may not have reaped it yet.
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    };
    guestline_tests::wait_for("the end of the process", || gone().then_some(()));
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
    assert_eq!(run(&["--fd", "x"]).status.code(), Some(2));
    let closed = run(&["--fd", "99"]);
    assert_eq!(closed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&closed.stderr).contains("descriptor 99 is not open"));
    assert!(
        String::from_utf8_lossy(&run(&["--version"]).stdout).starts_with("guestline-agent 0.1.0 (")
    );
}
