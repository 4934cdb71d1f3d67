//! Sessions that were recorded with each released version, played again: the host's side to today's agent, and the
//! agent's side to today's host.
//!
//! `protocol/released/N/sessions/NAME` has a frame in a line: `>` from the host or `<` from the guest, the channel, the kind
//! (`m` a message, `0` and `1` data of a stream), the body in hexadecimal. While a version is not released,
//! `GUESTLINE_BLESS=1` records it anew. Clocks, process ids and build ids are what they were; what is compared is
//! which messages come, in which order, and the data.

use crate::raw::{self, Agent, Came, SESSION};
use guestline::link::{Arrival, Lane, Link, Transport, TransportKind};
use guestline_protocol::tree::{
    RecordTag, TreeContentEnd, TreeItem, TreeKind, record, record_head,
};
use guestline_protocol::{
    ByteBuf, CancelEvent, Command, EndEvent, ExecRequest, FileTime, FrameHead, FrameKind, Framing,
    HEADROOM, ListRequest, MakeFolderRequest, OLDEST_VERSION, PingRequest, PortFraming,
    PullRequest, PushRequest, RemoveRequest, Reply, Request, StatRequest, StdinSource, Stream,
    TreeCounts, VERSION, decode, encode,
};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where recorded sessions put their file.
const FOLDER: &str = "/tmp/guestline-recorded";

#[derive(Debug, Clone, PartialEq)]
struct Line {
    from_host: bool,
    channel: u32,
    kind: FrameKind,
    body: Vec<u8>,
}

impl Line {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [direction, channel, kind, body] = words[..] else { panic!("{line}") };
        let kind = match kind {
            "m" => FrameKind::Message,
            "0" => FrameKind::Data(Stream::Stdout),
            "1" => FrameKind::Data(Stream::Stderr),
            other => panic!("{other}"),
        };
        let body = (0..body.len() / 2)
            .map(|at| u8::from_str_radix(&body[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        Self { from_host: direction == ">", channel: channel.parse().unwrap(), kind, body }
    }

    fn to_text(&self) -> String {
        let direction = if self.from_host { ">" } else { "<" };
        let kind = match self.kind {
            FrameKind::Message => "m",
            FrameKind::Data(Stream::Stdout) => "0",
            FrameKind::Data(Stream::Stderr) => "1",
        };
        self.body.iter().fold(format!("{direction} {} {kind} ", self.channel), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

fn folder(version: u16) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/released");
    root.join(format!("{version}/sessions"))
}

/// All sessions of all released versions.
fn sessions() -> Vec<(PathBuf, Vec<Line>)> {
    let mut found = Vec::new();
    for version in OLDEST_VERSION..=VERSION {
        for entry in std::fs::read_dir(folder(version)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#')).map(Line::parse);
            found.push((path.clone(), lines.collect()));
        }
    }
    assert!(!found.is_empty());
    found
}

/// Channel and number of each message, and all data of each stream.
type Gist = (Vec<(u32, u8)>, HashMap<(u32, FrameKind), Vec<u8>>);

/// Channel, and a request or data.
type Said = (u32, Result<Request, Vec<u8>>);

/// What one side says in a row, as far as it must be the same: which messages, in order, and the data of each stream.
fn gist(lines: &[Line]) -> Gist {
    let (mut messages, mut data) = (Vec::new(), HashMap::new());
    for line in lines {
        match line.kind {
            FrameKind::Message => messages.push((line.channel, line.body[0])),
            kind => {
                let all: &mut Vec<u8> = data.entry((line.channel, kind)).or_default();
                all.extend(&line.body);
            }
        }
    }
    (messages, data)
}

/// Rows of lines from the host, each with what the guest answered to it.
fn turns(lines: &[Line]) -> Vec<(Vec<Line>, Vec<Line>)> {
    let mut turns: Vec<(Vec<Line>, Vec<Line>)> = Vec::new();
    for line in lines {
        match turns.last_mut() {
            Some((_, answers)) if !line.from_host => answers.push(line.clone()),
            Some((asked, answers)) if answers.is_empty() => asked.push(line.clone()),
            _ => turns.push((vec![line.clone()], Vec::new())),
        }
    }
    turns
}

fn say(agent: &mut Agent, line: &Line) {
    let head = FrameHead { session: SESSION, channel: line.channel, kind: line.kind };
    agent.send_frame(head, &line.body);
}

/// Hears until as many messages and bytes have come as were recorded.
fn hear(agent: &mut Agent, wanted: &[Line]) -> Vec<Line> {
    let count = |lines: &[Line]| {
        let messages = lines.iter().filter(|line| line.kind == FrameKind::Message).count();
        let data = lines.iter().filter(|line| line.kind != FrameKind::Message);
        (messages, data.map(|line| line.body.len()).sum::<usize>())
    };
    let mut heard = Vec::new();
    while count(&heard).0 < count(wanted).0 || count(&heard).1 < count(wanted).1 {
        heard.push(line_of(agent));
    }
    heard
}

fn line_of(agent: &mut Agent) -> Line {
    let (channel, came) = agent.next();
    let (kind, body) = match came {
        Came::Reply(reply) => (FrameKind::Message, encode(&reply)[HEADROOM..].to_vec()),
        Came::Data(stream, bytes) => (FrameKind::Data(stream), bytes),
    };
    Line { from_host: false, channel, kind, body }
}

#[test]
fn todays_agent_answers_every_host_of_the_past() {
    let _turn = turn();
    for (path, lines) in sessions() {
        let _ = std::fs::remove_dir_all(FOLDER);
        let mut agent = Agent::start();
        for (asked, wanted) in turns(&lines) {
            for line in &asked {
                say(&mut agent, line);
            }
            let heard = hear(&mut agent, &wanted);
            assert_eq!(gist(&heard), gist(&wanted), "{}: after {asked:?}", path.display());
        }
    }
    let _ = std::fs::remove_dir_all(FOLDER);
}

#[tokio::test(flavor = "multi_thread")]
async fn todays_host_understands_every_agent_of_the_past() {
    for (path, lines) in sessions() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(play(theirs, lines.clone()));
        let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(ours));
        let (link, _) = Link::open(transport).await.unwrap();
        let requests =
            lines.iter().filter(|line| line.from_host && line.kind == FrameKind::Message);
        for line in requests {
            let request: Request = decode(&line.body).unwrap();
            if request.is_on_channel() || matches!(request, Request::Hello(_)) {
                continue;
            }
            let mut channel = link.channel(&request, 1 << 20).await.unwrap();
            let mut heard = Vec::new();
            loop {
                let (kind, body, last) = match channel.next().await.unwrap() {
                    Arrival::Reply(reply) => {
                        let body = encode(&reply)[HEADROOM..].to_vec();
                        (FrameKind::Message, body, reply.is_final())
                    }
                    Arrival::Data { stream, bytes } => (FrameKind::Data(stream), bytes, false),
                };
                heard.push(Line { from_host: false, channel: line.channel, kind, body });
                if last {
                    break;
                }
            }
            let of_channel = |line: &&Line, channel| !line.from_host && line.channel == channel;
            let wanted: Vec<Line> =
                lines.iter().filter(|found| of_channel(found, line.channel)).cloned().collect();
            assert_eq!(gist(&heard), gist(&wanted), "{}: {request:?}", path.display());
        }
    }
}

/// An agent of the past: answers each request with what was recorded for it.
async fn play(mut stream: tokio::net::UnixStream, lines: Vec<Line>) {
    let mut opening: Vec<u32> = Vec::new();
    for line in lines.iter().filter(|line| line.from_host && line.kind == FrameKind::Message) {
        if !decode::<Request>(&line.body).unwrap().is_on_channel() {
            opening.push(line.channel);
        }
    }
    let mut opening = opening.into_iter();
    let mut framing = PortFraming::default();
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
        framing.push(&buffer[..len]);
        let mut out = Vec::new();
        while let Some(frame) = framing.next_frame() {
            let Ok(request) = decode::<Request>(frame.body) else { continue };
            if request.is_on_channel() {
                continue;
            }
            let recorded = opening.next().unwrap();
            for line in lines.iter().filter(|line| !line.from_host && line.channel == recorded) {
                let head = FrameHead { channel: frame.head.channel, kind: line.kind, ..frame.head };
                let mut body = vec![0; HEADROOM];
                body.extend(&line.body);
                out.extend(PortFraming::default().seal(head, body, 0).unwrap());
            }
        }
        stream.write_all(&out).await.unwrap();
    }
}

/// Recorded sessions share a folder.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Records what today's agent answers; only on request, and then for a version that is not released.
#[test]
fn recording() {
    if std::env::var_os("GUESTLINE_BLESS").is_none() {
        return;
    }
    let _turn = turn();
    let path = |name: &str| ByteBuf::from(format!("{FOLDER}{name}").into_bytes());
    let mut reading = ExecRequest::new(raw::sh("cat; exit 3"));
    (reading.stdin, reading.credit) = (StdinSource::Channel, 4096);
    let mut argv = ExecRequest::new(Command::Argv(vec![b"no-such-program".to_vec().into()]));
    argv.credit = 4096;
    let file = TreeItem {
        path: ByteBuf::new(),
        kind: TreeKind::File { len: 5 },
        mode: 0o640,
        uid: 0,
        gid: 0,
        modified: FileTime { seconds: 1_700_000_000, nanos: 5 },
    };
    let mut tree = record(RecordTag::Item, &file);
    tree.extend(record_head(RecordTag::Content, 5));
    tree.extend(b"hello");
    let end =
        TreeContentEnd { len: 5, hash: guestline_checksum::Checksum::of(b"hello"), error: None };
    tree.extend(record(RecordTag::ContentEnd, &end));
    tree.extend(record(RecordTag::End, &TreeCounts { items: 1, troubles: 0, bytes: 5 }));
    let sessions: [(&str, Vec<Vec<Said>>); 2] = [
        (
            "exec",
            vec![
                vec![(1, Ok(raw::hello(1, 1)))],
                vec![(2, Ok(Request::Ping(PingRequest { token: 9 })))],
                vec![(3, Ok(raw::exec(raw::sh("echo out; echo err >&2; exit 42"))))],
                vec![(4, Ok(raw::exec(raw::sh("kill -TERM $$"))))],
                vec![
                    (5, Ok(Request::Exec(reading))),
                    (5, Err(b"to be read\n".to_vec())),
                    (5, Ok(Request::End(EndEvent { total: 11 }))),
                ],
                vec![(6, Ok(Request::Exec(argv)))],
                vec![
                    (7, Ok(raw::exec(raw::sh("sleep 1000")))),
                    (7, Ok(Request::Cancel(CancelEvent {}))),
                ],
            ],
        ),
        (
            "files",
            vec![
                vec![(1, Ok(raw::hello(1, 1)))],
                vec![(
                    2,
                    Ok(Request::MakeFolder(MakeFolderRequest {
                        path: path(""),
                        mode: 0o755,
                        parents: true,
                    })),
                )],
                vec![
                    (
                        3,
                        Ok(Request::Push(PushRequest {
                            path: path("/file"),
                            into: false,
                            owners: true,
                        })),
                    ),
                    (3, Err(tree)),
                ],
                vec![(4, Ok(Request::Stat(StatRequest { path: path("/file"), follow: false })))],
                vec![(5, Ok(Request::List(ListRequest { path: path("") })))],
                vec![(
                    6,
                    Ok(Request::Pull(PullRequest {
                        path: path("/file"),
                        follow: false,
                        credit: 65_536,
                    })),
                )],
                vec![(
                    7,
                    Ok(Request::Remove(RemoveRequest {
                        path: path(""),
                        recursive: true,
                        missing_ok: false,
                    })),
                )],
                vec![(8, Ok(Request::Stat(StatRequest { path: path("/file"), follow: false })))],
            ],
        ),
    ];
    std::fs::create_dir_all(folder(VERSION)).unwrap();
    for (name, turns) in sessions {
        let mut agent = Agent::start();
        let mut text = String::new();
        for turn in turns {
            let channel = turn[0].0;
            for (channel, what) in turn {
                let (kind, body) = match what {
                    Ok(request) => (FrameKind::Message, encode(&request)[HEADROOM..].to_vec()),
                    Err(data) => (FrameKind::Data(Stream::Stdout), data),
                };
                let line = Line { from_host: true, channel, kind, body };
                say(&mut agent, &line);
                text += &format!("{}\n", line.to_text());
            }
            let (mut last, mut got, mut total) = (false, 0, 0);
            while !last || got < total {
                let line = line_of(&mut agent);
                text += &format!("{}\n", line.to_text());
                assert_eq!(line.channel, channel);
                match line.kind {
                    FrameKind::Message => {
                        let reply: Reply = decode(&line.body).unwrap();
                        last |= reply.is_final();
                        total = total.max(reply.total().unwrap_or(0));
                    }
                    FrameKind::Data(_) => got += line.body.len() as u64,
                }
            }
        }
        std::fs::write(folder(VERSION).join(name), text).unwrap();
    }
}
