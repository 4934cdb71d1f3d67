use super::*;
use serde_json::{Value, json};

/// One of each, all fields given.
fn requests() -> Vec<Request> {
    let machine = || Some("web".to_owned());
    let bytes = || Data(b"\xff".to_vec());
    let copy =
        || CopyRequest { machine: machine(), from: vec!["/a".into(), bytes()], to: "/b".into() };
    let wait = |until| Request::Wait(WaitRequest { machine: None, until, timeout_ms: Some(1) });
    let exec = |command| {
        Request::Exec(ExecRequest {
            machine: machine(),
            command,
            env: [("A".to_owned(), Some("b".into())), ("C".to_owned(), None)].into(),
            cwd: Some("/".into()),
            user: Some("me".to_owned()),
            stdin: true,
            timeout_ms: Some(1),
        })
    };
    vec![
        Request::Hello { version: 1, client: Some("guest".to_owned()) },
        exec(Command::Line("true".into())),
        exec(Command::Argv(vec!["ls".into(), bytes()])),
        Request::Input { data: bytes() },
        Request::End {},
        Request::Push(copy()),
        Request::Pull(copy()),
        wait(Until::Line("true".into())),
        wait(Until::Port(80)),
        wait(Until::File("/x".into())),
        wait(Until::Unit("sshd".to_owned())),
        Request::Log { text: "x".to_owned() },
        Request::Reboot { machine: machine(), timeout_ms: Some(1) },
        Request::Poweroff { machine: machine() },
        Request::Facts { machine: None },
        Request::Skip { reason: "x".to_owned() },
        Request::Fail { reason: "x".to_owned() },
        Request::Sync { name: "x".to_owned(), timeout_ms: Some(1) },
        Request::Send { key: "x".to_owned(), value: bytes() },
        Request::Await { key: "x".to_owned(), timeout_ms: None },
    ]
}

const KINDS: [ErrorKind; 13] = [
    ErrorKind::Version,
    ErrorKind::Protocol,
    ErrorKind::Usage,
    ErrorKind::NoMachine,
    ErrorKind::NotAllowed,
    ErrorKind::Limit,
    ErrorKind::Timeout,
    ErrorKind::Ended,
    ErrorKind::Link,
    ErrorKind::Refused,
    ErrorKind::NotFound,
    ErrorKind::NotExecutable,
    ErrorKind::Other,
];

fn replies() -> Vec<Reply> {
    let list = vec!["web".to_owned()];
    let trouble = Trouble { path: "x".into(), error: "no".to_owned() };
    let mut all = vec![
        Reply::Hello { version: 1, side: "host".to_owned(), machines: list.clone(), sides: list },
        Reply::Output { stream: Stream::Stderr, data: Data(b"\xff".to_vec()) },
        Reply::Taken {},
        Reply::Exited { status: 137, signal: Some(9) },
        Reply::Copied { items: 1, bytes: 2, troubles: vec![trouble], trouble_count: 1 },
        Reply::Waited { attempts: 1, elapsed_ms: 2 },
        Reply::Facts { facts: json!({"kernel": "6.1"}) },
        Reply::Value { value: "x".into() },
        Reply::Done {},
    ];
    all.extend(KINDS.map(|kind| Reply::error(kind, "no")));
    all
}

fn schema() -> jsonschema::Validator {
    let text = include_str!("../../../docs/guest-protocol.schema.json");
    let schema: Value = serde_json::from_str(text).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn messages_keep_to_the_schema_and_come_back() {
    let schema = schema();
    for request in requests() {
        let json = serde_json::to_value(&request).unwrap();
        schema.validate(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(serde_json::from_value::<Request>(json).unwrap(), request);
    }
    for reply in replies() {
        let json = serde_json::to_value(&reply).unwrap();
        schema.validate(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(serde_json::from_value::<Reply>(json).unwrap(), reply);
    }
}

#[test]
fn the_lines_are_these() {
    let requests = requests().into_iter().map(|request| serde_json::to_string(&request).unwrap());
    let replies = replies().into_iter().map(|reply| serde_json::to_string(&reply).unwrap());
    insta::assert_snapshot!(requests.chain(replies).collect::<Vec<_>>().join("\n"));
}

#[test]
fn what_a_controller_does_not_know_is_refused_by_code_and_schema_alike() {
    let schema = schema();
    for request in requests() {
        let mut json = serde_json::to_value(&request).unwrap();
        json["frobnicate"] = true.into();
        assert!(serde_json::from_value::<Request>(json.clone()).is_err(), "{json}");
        assert!(!schema.is_valid(&json), "{json}");
    }
    for wrong in [
        json!({}),
        json!({"request": "frobnicate"}),
        json!({"request": "exec"}),
        json!({"request": "exec", "command": {"line": "a", "argv": []}}),
        json!({"request": "exec", "command": "a"}),
        json!({"request": "wait", "until": {"port": 65536}}),
        json!({"request": "sync", "name": "x", "timeout_ms": -1}),
        json!({"request": "input", "data": {"base64": "x"}}),
        json!({"request": "hello", "version": "1"}),
    ] {
        assert!(serde_json::from_value::<Request>(wrong.clone()).is_err(), "{wrong}");
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
}

#[test]
fn a_client_passes_over_what_it_does_not_know() {
    let reply = json!({"reply": "error", "kind": "newer", "message": "x", "more": 1});
    assert_eq!(
        serde_json::from_value::<Reply>(reply).unwrap(),
        Reply::error(ErrorKind::Other, "x")
    );
}

#[test]
fn the_worst_piece_fits_into_a_line() {
    let data = Data(vec![1; MAX_PIECE]);
    let line = serde_json::to_vec(&Reply::Output { stream: Stream::Stdout, data }).unwrap();
    assert!(line.len() < MAX_LINE);
}

#[test]
fn the_documentation_has_every_message_and_its_examples_are_right() {
    let docs = include_str!("../../../docs/guest.md");
    let messages = requests().into_iter().map(|request| serde_json::to_value(request).unwrap());
    let messages =
        messages.chain(replies().into_iter().map(|reply| serde_json::to_value(reply).unwrap()));
    for message in messages {
        for (name, value) in message.as_object().unwrap() {
            let word = if matches!(name.as_str(), "request" | "reply" | "kind") {
                value.as_str().unwrap()
            } else {
                name
            };
            let is_there = docs.contains(&format!("`{word}`"));
            assert!(is_there || ["stream", "message"].contains(&word), "{word}");
        }
    }
    let schema = schema();
    let lines = docs.lines().filter_map(|line| line.strip_prefix("> ").or(line.strip_prefix("< ")));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let message: Value = serde_json::from_str(line).unwrap();
        schema.validate(&message).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}
