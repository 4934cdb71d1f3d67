//! Golden bytes of every message, and decoding of anything.
//!
//! `GUESTLINE_BLESS=1 cargo test -p guestline-protocol` writes the golden files anew; do that only
//! in a commit that also raises `VERSION`.

#![allow(clippy::unwrap_used, reason = "a test may")]

use guestline_protocol::{
    ByteBuf, Command, Envelope, ErrorKind, ExecExitedEvent, ExecOutputEvent, ExecRequest,
    ExecStartedEvent, ExitStatus, HelloRequest, HelloResponse, LinkTroubleEvent, PingRequest,
    PingResponse, PowerOffRequest, PowerOffResponse, RemoteError, Reply, Request, Stream, decode,
    encode,
};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::path::Path;

fn bytes(text: &str) -> ByteBuf {
    ByteBuf::from(text.as_bytes().to_vec())
}

fn requests() -> Vec<(&'static str, Request)> {
    let hello = HelloRequest { min: 1, max: 1, build: "0.1.0".into(), features: 0 };
    let shell = ExecRequest {
        command: Command::Shell(bytes("true")),
        env: vec![(bytes("LANG"), bytes("C.UTF-8"))],
        cwd: None,
    };
    let argv = ExecRequest {
        command: Command::Argv(vec![bytes("ls"), ByteBuf::from(vec![0xff])]),
        env: vec![],
        cwd: Some(bytes("/tmp")),
    };
    vec![
        ("hello-request", Request::Hello(hello)),
        ("ping-request", Request::Ping(PingRequest { token: 300 })),
        ("exec-request-shell", Request::Exec(shell)),
        ("exec-request-argv", Request::Exec(argv)),
        ("power-off-request", Request::PowerOff(PowerOffRequest {})),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let hello = HelloResponse {
        min: 1,
        max: 1,
        build: "abc".into(),
        features: 0,
        init: true,
        clock_us: 1_700_000_000_000_000,
    };
    let exited = |status| ExecExitedEvent { status, output_held: false, elapsed_us: 4400 };
    let killed = ExitStatus::Signaled { signal: 11, core_dumped: true };
    let error = RemoteError {
        kind: ErrorKind::NotFound,
        errno: Some(2),
        message: "no `nginx` in PATH".into(),
    };
    let trouble =
        LinkTroubleEvent { kernel: "6.1.0".into(), lacks: vec!["module `virtio_console`".into()] };
    vec![
        ("hello-response", Reply::Hello(hello)),
        ("ping-response", Reply::Ping(PingResponse { token: 300, clock_us: 5 })),
        ("exec-started-event", Reply::ExecStarted(ExecStartedEvent { pid: 77 })),
        (
            "exec-output-event",
            Reply::ExecOutput(ExecOutputEvent { stream: Stream::Stderr, data: bytes("hi\n") }),
        ),
        ("exec-exited-event", Reply::ExecExited(exited(ExitStatus::Exited(127)))),
        ("exec-exited-event-signal", Reply::ExecExited(exited(killed))),
        ("power-off-response", Reply::PowerOff(PowerOffResponse {})),
        ("error", Reply::Error(error)),
        ("link-trouble-event", Reply::LinkTrouble(trouble)),
    ]
}

fn check_golden(name: &str, body: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"));
    let mut text = body.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    text.push('\n');
    if std::env::var_os("GUESTLINE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("no golden bytes at {}: {error}", path.display()));
    assert_eq!(text, golden, "bytes of `{name}` changed");
}

#[test]
fn every_message_has_its_golden_bytes_and_comes_back() {
    let mut names = Vec::new();
    for (name, body) in requests() {
        let message = Envelope { id: 9, body };
        check_golden(name, &encode(&message));
        assert_eq!(decode(&encode(&message)).as_ref(), Ok(&message));
        names.push(format!("{name}.hex"));
    }
    for (name, body) in replies() {
        let message = Envelope { id: 9, body };
        check_golden(name, &encode(&message));
        assert_eq!(decode(&encode(&message)).as_ref(), Ok(&message));
        names.push(format!("{name}.hex"));
    }
    // No golden file is forgotten when a message goes.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "golden/{name} belongs to no message");
    }
}

#[test]
fn bytes_after_a_message_are_an_error() {
    let mut body = encode(&Envelope { id: 1, body: Request::Ping(PingRequest { token: 1 }) });
    body.push(0);
    let error = decode::<Request>(&body).unwrap_err();
    assert_eq!(error.to_string(), "a frame of 4 bytes holds no message of protocol version 1");
}

#[test]
fn a_length_beyond_the_body_allocates_nothing() {
    // ExecOutput with a claimed 2^60 bytes of data.
    let body = [1, 3, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(decode::<Reply>(&body).is_err());
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
        let body = encode(&Envelope { id: 9, body: all[at.index(all.len())].1.clone() });
        prop_assert!(decode::<Reply>(&body[..cut.index(body.len())]).is_err());
    }
}
