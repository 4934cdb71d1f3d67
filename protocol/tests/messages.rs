//! Golden bytes of every message of every released version, and what decoding makes of anything.
//!
//! `released/N/messages/` is what version N sends: it never changes. While a version is not released,
//! `GUESTLINE_BLESS=1 cargo test -p guestline-protocol` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test may")]

use guestline_protocol::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn bytes(text: &str) -> ByteBuf {
    ByteBuf::from(text.as_bytes().to_vec())
}

fn requests() -> Vec<(&'static str, Request)> {
    let hello = HelloRequest { min: 1, max: 1, build: "0.1.0".into(), features: 0, bulk: true };
    let mut shell = ExecRequest::new(Command::Shell(bytes("true")));
    shell.env = vec![
        EnvChange { name: bytes("LANG"), value: Some(bytes("C.UTF-8")) },
        EnvChange { name: bytes("TERM"), value: None },
    ];
    shell.credit = 262_144;
    let argv = ExecRequest {
        command: Command::Argv(vec![bytes("ls"), ByteBuf::from(vec![0xff])]),
        env: vec![],
        clear_env: true,
        cwd: Some(bytes("/tmp")),
        user: Some("nobody".into()),
        group: Some("5".into()),
        groups: Some(vec!["audio".into()]),
        umask: Some(0o027),
        limits: vec![ResourceLimit { resource: Resource::OpenFiles, soft: 64, hard: u64::MAX }],
        stdin: StdinSource::Channel,
        terminal: Some(TerminalSize { columns: 80, rows: 25 }),
        credit: 1,
    };
    let kexec = PowerAction::Kexec {
        kernel: bytes("/boot/vmlinuz"),
        initrd: Some(bytes("/boot/initrd")),
        cmdline: None,
    };
    let identity = IdentityRequest {
        hostname: Some("web".into()),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        nics: vec![NicIdentity {
            name: "eth0".into(),
            mac: Some([0x52, 0x54, 0, 1, 2, 3]),
            ipv4: Some(([10, 0, 0, 2], 24)),
            ipv6: Some(([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], 64)),
            router: Some([10, 0, 0, 1]),
            up: true,
        }],
        hosts: Some("127.0.0.1 localhost\n".into()),
    };
    let path = || bytes("/etc/hosts");
    vec![
        ("hello", Request::Hello(hello)),
        ("attach", Request::Attach(AttachRequest {})),
        ("ping", Request::Ping(PingRequest { token: 300 })),
        ("cancel", Request::Cancel(CancelEvent {})),
        ("credit", Request::Credit(CreditEvent { bytes: 65_536 })),
        ("end", Request::End(EndEvent { total: 7 })),
        ("exec-shell", Request::Exec(shell)),
        ("exec-argv", Request::Exec(argv)),
        ("signal", Request::Signal(SignalEvent { signal: 15, group: true })),
        ("resize", Request::Resize(TerminalSize { columns: 132, rows: 50 })),
        ("push", Request::Push(PushRequest { path: path(), into: false, owners: true })),
        ("pull", Request::Pull(PullRequest { path: path(), follow: true, credit: 1_048_576 })),
        ("stat", Request::Stat(StatRequest { path: path(), follow: false })),
        ("list", Request::List(ListRequest { path: bytes("/etc") })),
        (
            "make-folder",
            Request::MakeFolder(MakeFolderRequest { path: path(), mode: 0o755, parents: true }),
        ),
        (
            "remove",
            Request::Remove(RemoveRequest { path: path(), recursive: true, missing_ok: false }),
        ),
        (
            "follow-kernel",
            Request::Follow(FollowRequest {
                source: LogSource::Kernel,
                from_start: true,
                follow: true,
                credit: 9,
            }),
        ),
        (
            "follow-file",
            Request::Follow(FollowRequest {
                source: LogSource::File(path()),
                from_start: false,
                follow: true,
                credit: 9,
            }),
        ),
        ("facts", Request::Facts(FactsRequest {})),
        ("sample", Request::Sample(SampleRequest { interval_ms: 1000 })),
        ("set-clock", Request::SetClock(SetClockRequest { clock_us: 1_700_000_000_000_000 })),
        (
            "add-entropy",
            Request::AddEntropy(AddEntropyRequest { seed: ByteBuf::from(vec![7; 32]) }),
        ),
        ("identity", Request::Identity(identity)),
        ("power-off", Request::Power(PowerRequest { action: PowerAction::Off, force: false })),
        ("reboot", Request::Power(PowerRequest { action: PowerAction::Reboot, force: true })),
        ("kexec", Request::Power(PowerRequest { action: kexec, force: false })),
        ("freeze", Request::Freeze(FreezeRequest { path: bytes("/") })),
        ("thaw", Request::Thaw(ThawRequest { path: bytes("/") })),
        (
            "connect-tcp",
            Request::Connect(ConnectRequest {
                address: SocketAddress::Tcp { host: "127.0.0.1".into(), port: 80 },
                credit: 9,
            }),
        ),
        (
            "connect-unix",
            Request::Connect(ConnectRequest {
                address: SocketAddress::Unix(bytes("/run/x.sock")),
                credit: 9,
            }),
        ),
        (
            "listen",
            Request::Listen(ListenRequest {
                address: SocketAddress::Tcp { host: "::1".into(), port: 0 },
            }),
        ),
        ("accept", Request::Accept(AcceptRequest { connection: 3, credit: 9 })),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let hello = HelloResponse {
        min: 1,
        max: 1,
        build: "abc".into(),
        features: 0,
        init: true,
        bulk: true,
        incarnation: 99,
        clock_us: 1_700_000_000_000_000,
    };
    let usage = ResourceUsage { user_us: 1, system_us: 2, max_rss_kib: 3 };
    let exited = |status| ExecExitedEvent {
        status,
        output_held: false,
        cancelled: false,
        elapsed_us: 4400,
        usage,
        total: 12,
    };
    let killed = ExitStatus::Signaled { signal: 11, core_dumped: true };
    let error = RemoteError {
        kind: ErrorKind::NotFound,
        errno: Some(2),
        message: "no `nginx` in PATH".into(),
    };
    let trouble =
        LinkTroubleEvent { kernel: "6.1.0".into(), lacks: vec!["module `virtio_console`".into()] };
    let info = FileInfo {
        kind: FileKind::Symlink,
        mode: 0o777,
        uid: 0,
        gid: 5,
        len: 3,
        stored: 512,
        links: 1,
        modified: FileTime { seconds: -1, nanos: 5 },
        device: Some(DeviceNumber { major: 8, minor: 1 }),
        target: Some(bytes("bin")),
    };
    let counts = TreeCounts { items: 3, troubles: 1, bytes: 1 << 33 };
    let troubles = vec![ItemTrouble { path: bytes("a/b"), error: error.clone() }];
    let sample = SampleEvent {
        clock_us: 1,
        cpu_busy_us: 2,
        cpu_idle_us: 3,
        memory_total_kib: 4,
        memory_available_kib: 5,
        runnable: 6,
    };
    vec![
        ("hello", Reply::Hello(hello)),
        ("attach", Reply::Attach(AttachResponse {})),
        ("ping", Reply::Ping(PingResponse { token: 300, clock_us: 5 })),
        ("credit", Reply::Credit(CreditEvent { bytes: 65_536 })),
        ("done", Reply::Done(DoneResponse {})),
        ("error", Reply::Error(error)),
        ("end", Reply::End(EndEvent { total: 7 })),
        ("link-trouble", Reply::LinkTrouble(trouble)),
        ("exec-started", Reply::ExecStarted(ExecStartedEvent { pid: 77, credit: 262_144 })),
        ("exec-exited", Reply::ExecExited(exited(ExitStatus::Exited(127)))),
        ("exec-killed", Reply::ExecExited(exited(killed))),
        ("push-started", Reply::PushStarted(PushStartedEvent { credit: 1_048_576 })),
        ("push-done", Reply::PushDone(PushDoneResponse { counts, troubles: troubles.clone() })),
        ("pull-done", Reply::PullDone(PullDoneResponse { counts, troubles, total: 1 << 34 })),
        ("stat", Reply::Stat(info.clone())),
        (
            "list",
            Reply::List(ListResponse {
                entries: vec![FolderEntry { name: bytes("lib"), info: Some(info) }],
                more: false,
            }),
        ),
        ("facts", Reply::Facts(FactsResponse { facts: vec![("machine".into(), bytes("x86_64"))] })),
        ("sample", Reply::Sample(sample)),
        ("set-clock", Reply::SetClock(SetClockResponse { before_us: 17 })),
        ("leaving", Reply::Leaving(LeavingResponse {})),
        ("connected", Reply::Connected(ConnectedEvent { credit: 9 })),
        ("listening", Reply::Listening(ListeningEvent { port: Some(4000) })),
        ("accepted", Reply::Accepted(AcceptedEvent { connection: 3 })),
    ]
}

fn body<T: serde::Serialize>(message: &T) -> Vec<u8> {
    encode(message)[HEADROOM..].to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn released(version: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("released/{version}/messages"))
}

/// Name and bytes of each message of one direction.
fn golden(version: u16, direction: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(released(version).join(direction)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
}

fn bless(direction: &str, lines: &[(String, String)]) {
    let text = lines.iter().fold(String::new(), |text, (name, hex)| text + name + " " + hex + "\n");
    std::fs::create_dir_all(released(VERSION)).unwrap();
    std::fs::write(released(VERSION).join(direction), text).unwrap();
}

#[test]
fn every_message_has_its_golden_bytes_and_comes_back() {
    let ours = [
        (
            "requests.hex",
            requests().iter().map(|(n, m)| ((*n).to_owned(), hex(&body(m)))).collect::<Vec<_>>(),
        ),
        (
            "replies.hex",
            replies().iter().map(|(n, m)| ((*n).to_owned(), hex(&body(m)))).collect::<Vec<_>>(),
        ),
    ];
    for (direction, lines) in &ours {
        if std::env::var_os("GUESTLINE_BLESS").is_some() {
            bless(direction, lines);
        }
        let golden = golden(VERSION, direction);
        let ours: BTreeMap<String, String> = lines.iter().cloned().collect();
        assert_eq!(ours, golden, "{direction} of version {VERSION}");
    }
    for (_, message) in requests() {
        assert_eq!(decode(&body(&message)).as_ref(), Ok(&message));
    }
    for (_, message) in replies() {
        assert_eq!(decode(&body(&message)).as_ref(), Ok(&message));
    }
}

#[test]
fn every_variant_is_among_them() {
    // Variants are numbered from 0 without a gap; the first byte of a body is the number.
    let numbers = |bodies: Vec<Vec<u8>>| {
        let mut numbers: Vec<u8> = bodies.iter().map(|body| body[0]).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let requests = numbers(requests().iter().map(|(_, m)| body(m)).collect());
    assert_eq!(requests, (0..=26).collect::<Vec<u8>>());
    assert!(decode::<Request>(&[27]).is_err());
    let replies = numbers(replies().iter().map(|(_, m)| body(m)).collect());
    assert_eq!(replies, (0..=21).collect::<Vec<u8>>());
    assert!(decode::<Reply>(&[22]).is_err());
}

#[test]
fn messages_of_every_released_version_are_understood() {
    for version in OLDEST_VERSION..=VERSION {
        let from_hex = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2)
                .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
                .collect()
        };
        for (name, hex) in golden(version, "requests.hex") {
            assert!(decode::<Request>(&from_hex(&hex)).is_ok(), "request {name} of {version}");
        }
        for (name, hex) in golden(version, "replies.hex") {
            assert!(decode::<Reply>(&from_hex(&hex)).is_ok(), "reply {name} of {version}");
        }
    }
}

#[test]
fn bytes_after_a_message_are_an_error() {
    let mut body = body(&Request::Ping(PingRequest { token: 1 }));
    body.push(0);
    let error = decode::<Request>(&body).unwrap_err();
    assert_eq!(error.to_string(), "a frame of 3 bytes holds no message of protocol version 1");
}

#[test]
fn a_length_beyond_the_body_or_the_limit_allocates_nothing() {
    // A facts text of a claimed 2^60 bytes.
    let body = [15, 1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(decode::<Reply>(&body).is_err());
    // More entries than a piece of a list may have, of two bytes each.
    let mut body = vec![14, 0x81, 0x02];
    body.extend([0; 2 * 257]);
    body.push(0);
    assert!(decode::<Reply>(&body).is_err());
    let mut body = vec![14, 0x80, 0x02];
    body.extend([0; 2 * 256]);
    body.push(0);
    assert!(decode::<Reply>(&body).is_ok());
}

proptest! {
    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode::<Request>(&body);
        let _ = decode::<Reply>(&body);
    }

    #[test]
    fn a_message_cut_short_is_refused(at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let all = replies();
        let body = body(&all[at.index(all.len())].1);
        prop_assert!(decode::<Reply>(&body[..cut.index(body.len())]).is_err());
    }
}
