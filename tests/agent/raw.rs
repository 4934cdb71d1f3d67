//! An agent that runs as a service on its standard input, spoken to frame by frame.

use guestline_protocol::{
    AttachRequest, Command, CreditEvent, ExecExitedEvent, ExecRequest, FrameHead, FrameKind,
    Framing, HEADROOM, HelloRequest, PingRequest, PortFraming, Reply, Request, Session, Stream,
    VERSION, decode, encode,
};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

pub(crate) const SESSION: Session = Session(0x1234_5678_9abc_def0);

/// What came in one frame.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Came {
    Reply(Reply),
    Data(Stream, Vec<u8>),
}

pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) stream: UnixStream,
    framing: PortFraming,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running agent, and the other end of its socket.
pub(crate) fn spawn() -> (Child, UnixStream) {
    let (stream, theirs) = UnixStream::pair().unwrap();
    let mut command = std::process::Command::new(guestline_tests::named_by("GUESTLINE_AGENT"));
    command.args(["--link", "fd:0"]).stdin(Stdio::from(OwnedFd::from(theirs)));
    (command.spawn().unwrap(), stream)
}

impl Agent {
    pub(crate) fn start() -> Self {
        let (child, stream) = spawn();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { child, stream, framing: PortFraming::default() }
    }

    pub(crate) fn open() -> Self {
        let mut agent = Self::start();
        agent.send(SESSION, 1, &hello(1, VERSION));
        let (_, came) = agent.next();
        assert!(matches!(came, Came::Reply(Reply::Hello(ref hello)) if !hello.init && !hello.bulk));
        agent
    }

    pub(crate) fn send(&mut self, session: Session, channel: u32, request: &Request) {
        self.send_frame(FrameHead::message(session, channel), &encode(request)[HEADROOM..]);
    }

    pub(crate) fn data(&mut self, channel: u32, bytes: &[u8]) {
        self.send_frame(FrameHead::data(SESSION, channel, Stream::Stdout), bytes);
    }

    pub(crate) fn send_frame(&mut self, head: FrameHead, body: &[u8]) {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(body);
        let bytes = PortFraming::default().seal(head, buffer, 0).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// Head and content of the next frame.
    pub(crate) fn frame(&mut self) -> (FrameHead, Came) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(frame) = self.framing.next_frame() {
                let came = match frame.head.kind {
                    FrameKind::Message => Came::Reply(decode(frame.body).unwrap()),
                    FrameKind::Data(stream) => Came::Data(stream, frame.body.to_vec()),
                };
                return (frame.head, came);
            }
            let len = self.stream.read(&mut buffer).expect("an answer in time");
            assert_ne!(len, 0, "the agent hung up");
            self.framing.push(&buffer[..len]);
        }
    }

    /// Channel and content of the next frame.
    pub(crate) fn next(&mut self) -> (u32, Came) {
        let (head, came) = self.frame();
        (head.channel, came)
    }

    /// The next reply on a channel; data and other channels' are dropped.
    pub(crate) fn reply(&mut self, channel: u32) -> Reply {
        loop {
            if let (found, Came::Reply(reply)) = self.next()
                && found == channel
            {
                return reply;
            }
        }
    }

    /// The last reply on a channel, with the data before it.
    pub(crate) fn end(&mut self, channel: u32) -> (Reply, Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let (found, came) = self.next();
            if found != channel {
                continue;
            }
            match came {
                Came::Data(Stream::Stdout, bytes) => stdout.extend(bytes),
                Came::Data(Stream::Stderr, bytes) => stderr.extend(bytes),
                Came::Reply(reply) if reply.is_final() => return (reply, stdout, stderr),
                Came::Reply(_) => {}
            }
        }
    }

    /// Runs a command to its exit and returns its output too.
    pub(crate) fn exec(
        &mut self,
        channel: u32,
        command: Command,
    ) -> (ExecExitedEvent, Vec<u8>, Vec<u8>) {
        self.send(SESSION, channel, &exec(command));
        match self.end(channel) {
            (Reply::ExecExited(exited), stdout, stderr) => (exited, stdout, stderr),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a process that lasts, and returns its id.
    pub(crate) fn start_sleeper(&mut self, channel: u32) -> String {
        self.send(SESSION, channel, &exec(sh("echo $$; exec sleep 1000")));
        loop {
            if let (_, Came::Data(_, bytes)) = self.next() {
                return String::from_utf8(bytes).unwrap().trim().to_owned();
            }
        }
    }

    pub(crate) fn grant(&mut self, channel: u32, bytes: u32) {
        self.send(SESSION, channel, &Request::Credit(CreditEvent { bytes }));
    }

    pub(crate) fn assert_alive(&mut self) {
        self.send(SESSION, 77, &Request::Ping(PingRequest { token: 7 }));
        let reply = self.reply(77);
        assert!(matches!(reply, Reply::Ping(pong) if pong.token == 7 && pong.clock_us > 0));
    }
}

pub(crate) fn hello(min: u16, max: u16) -> Request {
    Request::Hello(HelloRequest { min, max, build: "test".into(), features: 0, bulk: false })
}

pub(crate) fn attach() -> Request {
    Request::Attach(AttachRequest {})
}

/// With credit for a megabyte.
pub(crate) fn exec(command: Command) -> Request {
    let mut request = ExecRequest::new(command);
    request.credit = 1 << 20;
    Request::Exec(request)
}

pub(crate) fn sh(line: &str) -> Command {
    Command::Shell(line.as_bytes().to_vec().into())
}

/// Is a process gone? Whoever inherited it may not have reaped it yet.
pub(crate) fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

pub(crate) fn wait_until_gone(pid: &str) {
    guestline_tests::wait_for("the end of a process", || is_gone(pid).then_some(()));
}
