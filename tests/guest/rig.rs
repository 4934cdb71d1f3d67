//! A lab whose guests are this host, and a client that speaks the protocol by hand.

use guestline::guest::Guest;
use guestline::link::{Lane, Link, Transport, TransportKind};
use guestline_harness::lab::{Announce, Expected, Lab, LogLine, Side, serve};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Rig {
    pub(crate) lab: Arc<Lab>,
    pub(crate) lines: mpsc::Receiver<LogLine>,
    pub(crate) announced: Arc<Announced>,
    pub(crate) cancel: CancellationToken,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) guests: Vec<Guest>,
    servers: Vec<JoinHandle<()>>,
    agents: Vec<Child>,
}

#[derive(Debug, Default)]
pub(crate) struct Announced(pub(crate) Mutex<Vec<(String, Expected)>>);

impl Announce for Announced {
    fn announce(&self, machine: &str, what: Expected) {
        self.0.lock().unwrap().push((machine.to_owned(), what));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

pub(crate) fn guest(name: &str) -> Side {
    Side::Guest(name.to_owned())
}

/// A guest over the other end of a socket.
pub(crate) async fn guest_over(stream: std::os::unix::net::UnixStream) -> Guest {
    stream.set_nonblocking(true).unwrap();
    let stream = UnixStream::from_std(stream).unwrap();
    let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(stream));
    let (link, hello) = Link::open(transport).await.unwrap();
    Guest::new(link, hello)
}

/// Machines that are this host; each is a side of the test, beside the host's.
pub(crate) async fn rig(machines: &[&str]) -> Rig {
    let (mut guests, mut agents) = (Vec::new(), Vec::new());
    for name in machines {
        let (stream, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = std::process::Command::new(guestline_tests::named_by("GUESTLINE_AGENT"));
        command.args(["--link", "fd:0"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        agents.push(command.spawn().unwrap());
        guests.push((name.to_string(), guest_over(stream).await));
    }
    let mut rig = rig_of(guests);
    rig.agents = agents;
    rig
}

pub(crate) fn rig_of(guests: Vec<(String, Guest)>) -> Rig {
    let sides: Vec<_> = guests.iter().map(|(name, _)| guest(name)).chain([Side::Host]).collect();
    let announced = Arc::new(Announced::default());
    let all = guests.iter().map(|(_, guest)| guest.clone()).collect();
    let (lab, lines) = Lab::new(guests, sides, announced.clone());
    Rig {
        guests: all,
        lab,
        lines,
        announced,
        cancel: CancellationToken::new(),
        // Of mode 0700, as tempfile makes them.
        folder: tempfile::Builder::new().prefix("gl").tempdir().unwrap(),
        servers: Vec::new(),
        agents: Vec::new(),
    }
}

impl Rig {
    /// Serves a side, and says where.
    pub(crate) fn serve(&mut self, side: Side) -> PathBuf {
        let socket = self.folder.path().join(format!("{side}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = serve(listener, self.lab.clone(), side, self.cancel.clone());
        self.servers.push(tokio::spawn(serving));
        socket
    }

    /// Ends the attempt; every server ends with it, soon.
    pub(crate) async fn end(&mut self) {
        self.cancel.cancel();
        for server in self.servers.drain(..) {
            tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// A client that speaks by hand.
pub(crate) struct Client {
    pub(crate) reader: BufReader<OwnedReadHalf>,
    pub(crate) writer: OwnedWriteHalf,
}

impl Client {
    /// That has not said hello.
    pub(crate) async fn silent(socket: &Path) -> Self {
        let (reader, writer) = UnixStream::connect(socket).await.unwrap().into_split();
        Self { reader: BufReader::new(reader), writer }
    }

    pub(crate) async fn open(socket: &Path) -> Self {
        let mut client = Self::silent(socket).await;
        let hello = client.ask(json!({"request": "hello", "version": 1})).await;
        assert_eq!(hello["reply"], "hello", "{hello}");
        client
    }

    pub(crate) async fn say(&mut self, request: &Value) {
        self.writer.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }

    /// The next reply; null when the server has hung up.
    pub(crate) async fn hear(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.reader.read_line(&mut line)).await;
        match read.expect("an answer in time") {
            Ok(0) | Err(_) => Value::Null,
            Ok(_) => serde_json::from_str(&line).unwrap(),
        }
    }

    /// The one reply.
    pub(crate) async fn ask(&mut self, request: Value) -> Value {
        self.say(&request).await;
        self.hear().await
    }

    /// The last reply, and what was output before it.
    pub(crate) async fn run(&mut self, request: Value) -> (Value, String, String) {
        self.say(&request).await;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            let reply = self.hear().await;
            match (reply["reply"].as_str(), reply["stream"].as_str()) {
                (Some("output"), Some("stdout")) => stdout += reply["data"].as_str().unwrap(),
                (Some("output"), Some("stderr")) => stderr += reply["data"].as_str().unwrap(),
                _ => return (reply, stdout, stderr),
            }
        }
    }

    pub(crate) async fn line(&mut self, line: &str) -> (Value, String, String) {
        self.run(json!({"request": "exec", "command": {"line": line}})).await
    }
}

/// Asserts the kind of an error, and a piece of its message.
#[track_caller]
pub(crate) fn assert_error(reply: &Value, kind: &str, piece: &str) {
    assert_eq!((&reply["reply"], &reply["kind"]), (&"error".into(), &kind.into()), "{reply}");
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains(piece), "no `{piece}` in `{message}`");
}

pub(crate) fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

pub(crate) async fn wait_until_gone(pid: String) {
    tokio::task::spawn_blocking(move || {
        guestline_tests::wait_for("the end of a process", || is_gone(&pid).then_some(()));
    })
    .await
    .unwrap();
}
