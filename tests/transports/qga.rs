//! A qemu-guest-agent by script: what the real one would do only on a bad day, and what nobody wants done on this host.

use crate::rig::soon;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use guestline::guest::{ExecEvent, FilesError, Guest, HostTarget, Log, PullOptions, PushOptions};
use guestline::link::{Lane, LinkError, QgaHandle, TransportKind};
use guestline_protocol::{
    Command, ErrorKind, ExecRequest, ExitStatus, IdentityRequest, PowerAction, SocketAddress,
    StdinSource, Stream, TerminalSize,
};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Names and arguments of what was asked, but for syncs.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Answers with the bytes that `script` makes of a request; syncs and guest-info go by themselves unless it says so.
fn fake(
    mut stream: UnixStream,
    mut script: impl FnMut(&str, &Value) -> Option<Vec<u8>> + Send + 'static,
) -> Asked {
    let asked = Asked::default();
    let record = asked.clone();
    tokio::spawn(async move {
        let (mut buffer, mut waiting) = (vec![0; 65536], Vec::new());
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            waiting.extend_from_slice(&buffer[..len]);
            while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                let start = line.iter().rposition(|&byte| byte == 0xff).map_or(0, |at| at + 1);
                let request: Value = serde_json::from_slice(&line[start..]).unwrap();
                let name = request["execute"].as_str().unwrap().to_owned();
                let arguments = &request["arguments"];
                let answer = script(&name, arguments).unwrap_or_else(|| match name.as_str() {
                    "guest-sync-delimited" => sync(arguments),
                    "guest-info" => ok(json!({ "version": "9.9\u{1b}[31m", "supported_commands": [
                        { "name": "guest-ping", "enabled": true, "success-response": true, "later": 1 } ] })),
                    _ => refuse("CommandNotFound", "no such command"),
                });
                if name != "guest-sync-delimited" && name != "guest-info" {
                    record.lock().unwrap().push((name, arguments.clone()));
                }
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    });
    asked
}

fn ok(value: Value) -> Vec<u8> {
    format!("{}\n", json!({ "return": value })).into_bytes()
}

fn refuse(class: &str, desc: &str) -> Vec<u8> {
    format!("{}\n", json!({ "error": { "class": class, "desc": desc } })).into_bytes()
}

fn sync(arguments: &Value) -> Vec<u8> {
    [vec![0xff], ok(arguments["id"].clone())].concat()
}

async fn handle(
    script: impl FnMut(&str, &Value) -> Option<Vec<u8>> + Send + 'static,
) -> (QgaHandle, Asked) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let asked = fake(theirs, script);
    let handle = soon("a session", QgaHandle::open(Lane::socket(ours), None)).await.unwrap();
    (handle, asked)
}

async fn guest(
    script: impl FnMut(&str, &Value) -> Option<Vec<u8>> + Send + 'static,
) -> (Guest, Asked) {
    let (handle, asked) = handle(script).await;
    (Guest::over_qga(handle), asked)
}

#[tokio::test]
async fn stale_bytes_before_the_session_are_dropped() {
    let (handle, _) = handle(|name, arguments| {
        (name == "guest-sync-delimited").then(|| {
            let mut bytes = b"half an ans".to_vec();
            // Answers of a life before: whole, and to a sync of another number.
            bytes.extend(ok(json!({ "pid": 7 })));
            bytes.extend(refuse("GenericError", "JSON parse error"));
            bytes.extend([vec![0xff], ok(json!(12345))].concat());
            bytes.extend(sync(arguments));
            bytes
        })
    })
    .await;
    assert_eq!(handle.info().version, "9.9\\u{1b}[31m");
    assert!(handle.info().commands["guest-ping"]);
}

#[tokio::test]
async fn noise_between_answers_is_passed_over() {
    let (handle, _) = handle(|name, _| {
        (name == "guest-ping").then(|| {
            let mut bytes = b"\n\nno json\n{\"event\":\"LATER\"}\n[]\n{}\n7\n".to_vec();
            bytes.extend(ok(json!({ "of": "the future" })));
            bytes
        })
    })
    .await;
    soon("a ping", handle.ping()).await.unwrap();
    soon("a ping", handle.ping()).await.unwrap();
}

#[tokio::test]
async fn a_late_answer_is_nobody_elses() {
    let mut late = true;
    let (handle, asked) = handle(move |name, arguments| match name {
        // The first goes unanswered, until the next sync.
        "guest-get-time" if std::mem::take(&mut late) => Some(Vec::new()),
        "guest-get-time" => Some(ok(json!(2_000_000_000))),
        "guest-sync-delimited" => Some([ok(json!(1_000)), sync(arguments)].concat()),
        _ => None,
    })
    .await;
    let guest = Guest::over_qga(handle.with_patience(Duration::from_millis(100)));
    let error = soon("no answer", guest.skew()).await.unwrap_err();
    assert_eq!(error.to_string(), "the agent did not answer a guest-get-time request within 100ms");
    // Two seconds after 1970, not a microsecond.
    let skew = soon("an answer", guest.skew()).await.unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64;
    assert!((now + skew.micros - 2_000_000).abs() < 60_000_000, "{skew:?}");
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn who_gives_up_waiting_disturbs_nobody() {
    let (handle, _) = handle(|name, _| (name == "guest-ping").then(|| ok(json!({})))).await;
    for _ in 0..50 {
        let _ = tokio::time::timeout(Duration::from_micros(50), handle.ping()).await;
    }
    let all: Vec<_> = (0..20)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.ping().await })
        })
        .collect();
    for ping in all {
        soon("a ping", ping).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_endless_line_is_an_error_and_not_the_end() {
    let mut first = true;
    let (handle, _) = handle(move |name, _| match name {
        "guest-ping" if std::mem::take(&mut first) => Some(vec![b'x'; 3_000_000]),
        "guest-ping" => Some(ok(json!({}))),
        _ => None,
    })
    .await;
    let error = soon("an end", handle.ping()).await.unwrap_err();
    assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
    soon("a ping", handle.ping()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_hangs_up_ends_every_wait() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let opening = tokio::spawn(QgaHandle::open(Lane::socket(ours), None));
    theirs.read_u8().await.unwrap();
    drop(theirs);
    let error = soon("an end", opening).await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::Closed), "{error:?}");
}

#[tokio::test]
async fn a_silent_agent_is_waited_for() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut opening = tokio::spawn(QgaHandle::open(Lane::socket(ours), None));
    let early = tokio::time::timeout(Duration::from_millis(2500), &mut opening).await;
    assert!(early.is_err());
    // It comes now, and finds all that was said meanwhile.
    fake(theirs, |_, _| None);
    soon("a session", opening).await.unwrap().unwrap();
}

fn shell(line: &str) -> ExecRequest {
    ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()))
}

#[tokio::test]
async fn a_process_is_looked_at_until_it_ends() {
    let mut looks = 0;
    let (guest, asked) = guest(move |name, _| match name {
        "guest-exec" => Some(ok(json!({ "pid": 42 }))),
        "guest-exec-status" => {
            looks += 1;
            Some(ok(match looks {
                1..4 => json!({ "exited": false }),
                _ => json!({ "exited": true, "exitcode": 3, "later": true,
                    "out-data": BASE64_STANDARD.encode("out"), "err-data": BASE64_STANDARD.encode("err") }),
            }))
        }
        _ => None,
    })
    .await;
    let output = soon("an end", guest.run(shell("echo"), b"input", 100)).await.unwrap();
    assert_eq!((output.exited.status, output.exited.total), (ExitStatus::Exited(3), 6));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    let asked = asked.lock().unwrap();
    assert_eq!(
        asked[0].1,
        json!({ "path": "/bin/sh", "arg": ["-c", "echo"], "capture-output": true,
        "input-data": BASE64_STANDARD.encode("input") })
    );
    assert_eq!(asked[1], ("guest-exec-status".to_owned(), json!({ "pid": 42 })));
    assert_eq!(asked.len(), 5);
}

#[tokio::test]
async fn events_of_a_process_and_what_cannot_go_in() {
    let (guest, _) = guest(|name, _| match name {
        "guest-exec" => Some(ok(json!({ "pid": 42 }))),
        "guest-exec-status" => Some(ok(json!({ "exited": false }))),
        _ => None,
    })
    .await;
    let cannot = |error: LinkError, what: &str| {
        assert_eq!(error.to_string(), format!("qemu-guest-agent cannot {what}"));
    };
    let mut process = guest.exec(shell("sleep 100")).await.unwrap();
    assert_eq!(process.next().await.unwrap(), ExecEvent::Started { pid: 42 });
    let mut input = process.take_input().unwrap();
    cannot(input.write(b"x").await.unwrap_err(), "stream standard input");
    input.signal(15, false);
    cannot(process.next().await.unwrap_err(), "send a signal to a process");
    input.resize(TerminalSize { columns: 1, rows: 1 });
    cannot(process.next().await.unwrap_err(), "give a process a terminal");
    process.cancel();
    cannot(process.next().await.unwrap_err(), "end a process");
    let mut wanted = shell("cat");
    wanted.stdin = StdinSource::Channel;
    cannot(guest.exec(wanted).await.unwrap_err(), "stream standard input");
}

#[tokio::test]
async fn what_it_cannot_do_is_a_named_error() {
    let (guest, asked) = guest(|_, _| None).await;
    assert_eq!(guest.transport(), TransportKind::Qga);
    assert!(guest.link().is_none());
    let path = b"/tmp/x";
    let errors = [
        guest.stat(path, true).await.unwrap_err(),
        guest.list(path).await.unwrap_err(),
        guest.make_folder(path, 0o755, true).await.unwrap_err(),
        guest.remove(path, true, true).await.unwrap_err(),
        guest.log(&Log::Journal, true, false).await.unwrap_err(),
        guest.samples(Duration::from_secs(1)).await.unwrap_err(),
        guest.add_entropy().await.unwrap_err(),
        guest.set_identity(IdentityRequest::default()).await.unwrap_err(),
        guest.connect(SocketAddress::Unix(path.to_vec().into())).await.unwrap_err(),
        guest.power(PowerAction::Off, true).await.unwrap_err(),
    ];
    for error in errors {
        let named = matches!(error, LinkError::Unsupported { transport: TransportKind::Qga, .. });
        assert!(named, "{error:?}");
    }
    let target = HostTarget::Unix("/nonexistent/x".into());
    let error =
        guest.forward(&target, SocketAddress::Unix(path.to_vec().into())).await.unwrap_err();
    assert_eq!(error.to_string(), "qemu-guest-agent cannot forward sockets");
    let folder = tempfile::tempdir().unwrap();
    let error = guest.push(folder.path(), b"/x", PushOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "qemu-guest-agent cannot move anything but a single file");
    assert_eq!(asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_shutdown_has_no_answer_and_a_refusal_has() {
    let (off, asked) = guest(|name, _| (name == "guest-shutdown").then(Vec::new)).await;
    soon("a shutdown", off.power_off()).await.unwrap();
    soon("a reboot", off.reboot()).await.unwrap();
    let modes: Vec<Value> = asked.lock().unwrap().iter().map(|(_, a)| a["mode"].clone()).collect();
    assert_eq!(modes, [json!("powerdown"), json!("reboot")]);
    let disabled = "Command guest-shutdown has been disabled";
    let script = |name: &str, _: &Value| {
        (name == "guest-shutdown").then(|| refuse("GenericError", disabled))
    };
    let error = soon("a refusal", guest(script).await.0.power_off()).await.unwrap_err();
    let LinkError::Refused(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn the_clock_is_set_and_file_systems_are_frozen() {
    let (guest, asked) = guest(|name, arguments| match name {
        "guest-get-time" => Some(ok(json!(1_000_000))),
        "guest-set-time" => Some(ok(json!({}))),
        "guest-fsfreeze-freeze-list" => {
            Some(ok(json!(i32::from(arguments["mountpoints"] == json!(["/data"])))))
        }
        "guest-fsfreeze-thaw" => Some(ok(json!(1))),
        _ => None,
    })
    .await;
    let skew = guest.set_clock().await.unwrap();
    assert!(skew.micros < -1_000_000_000_000_000);
    let set = asked.lock().unwrap()[1].clone();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
    assert!((now - set.1["time"].as_i64().unwrap()).abs() < 60_000_000_000, "{set:?}");
    guest.freeze(b"/data").await.unwrap();
    let error = guest.freeze(b"/proc").await.unwrap_err();
    assert_eq!(error.to_string(), "no file system that can be frozen is mounted at `/proc`");
    guest.thaw(b"/data").await.unwrap();
}

/// One file of a guest that is not there.
fn file_script(mut content: Vec<u8>) -> impl FnMut(&str, &Value) -> Option<Vec<u8>> + Send {
    let mut at = 0;
    move |name, arguments| match name {
        "guest-file-open" => {
            at = 0;
            if arguments["mode"] == "wb" {
                content.clear();
            }
            Some(ok(json!(1000)))
        }
        "guest-file-read" => {
            let count = arguments["count"].as_u64().unwrap() as usize;
            let end = content.len().min(at + count);
            let piece = &content[at..end];
            at = end;
            let answer = json!({ "count": piece.len(), "buf-b64": BASE64_STANDARD.encode(piece),
                "eof": at == content.len() });
            Some(ok(answer))
        }
        "guest-file-write" => {
            let bytes = BASE64_STANDARD.decode(arguments["buf-b64"].as_str().unwrap()).unwrap();
            // Takes less than it is given, as write(2) may.
            let taken = bytes.len().min(10_000);
            content.resize(content.len().max(at + taken), 0);
            content[at..at + taken].copy_from_slice(&bytes[..taken]);
            at += taken;
            Some(ok(json!({ "count": taken, "eof": false })))
        }
        "guest-file-seek" => {
            at += arguments["offset"].as_u64().unwrap() as usize;
            Some(ok(json!({ "position": at, "eof": false })))
        }
        "guest-file-flush" | "guest-file-close" => Some(ok(json!({}))),
        _ => None,
    }
}

#[tokio::test]
async fn a_file_goes_both_ways_in_pieces() {
    let (guest, asked) = guest(file_script(Vec::new())).await;
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    // With a hole, which is stepped over.
    let file = std::fs::File::create(&from).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 100_000], 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[8; 10], 1_000_000).unwrap();
    file.set_len(1_200_000).unwrap();
    let pushed = guest.push(&from, b"C:/x", PushOptions::default()).await.unwrap();
    assert_eq!((pushed.counts.bytes, pushed.counts.items), (1_200_000, 1));
    assert_eq!(pushed.troubles, []);
    assert!(asked.lock().unwrap().len() < 30);
    let pulled = guest.pull(b"C:/x", &to, PullOptions::default()).await.unwrap();
    assert_eq!((pulled.counts.bytes, pulled.troubles.len()), (1_200_000, 0));
    assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
    assert_eq!(guest.read(b"C:/x", 2_000_000).await.unwrap().len(), 1_200_000);
    let error = guest.read(b"C:/x", 1000).await.unwrap_err();
    assert!(matches!(error, FilesError::TooLong { .. }), "{error:?}");
    guest.write(b"C:/y", b"short", 0o644).await.unwrap();
    assert_eq!(guest.read(b"C:/y", 100).await.unwrap(), b"short");
    let open = |asked: &Asked, name: &str| {
        asked.lock().unwrap().iter().filter(|(asked, _)| asked == name).count()
    };
    assert_eq!(open(&asked, "guest-file-open"), open(&asked, "guest-file-close"));
    // What it cannot do to a file is told.
    let error = guest.write(b"C:/z", b"#!/bin/sh", 0o755).await.unwrap_err();
    assert!(error.to_string().contains("mode 755 was not set"), "{error}");
}

#[tokio::test]
async fn a_hostile_agent_writes_nothing_it_should_not() {
    for (count, bytes) in [(5, "abc"), (-1, "abc"), (3, "")] {
        let (guest, _) = guest(move |name, _| match name {
            "guest-file-open" => Some(ok(json!(1))),
            "guest-file-close" => Some(ok(json!({}))),
            "guest-file-read" => Some(ok(json!({ "count": count,
                "buf-b64": BASE64_STANDARD.encode(bytes), "eof": false }))),
            _ => None,
        })
        .await;
        let error = soon("an end", guest.read(b"/x", 1000)).await.unwrap_err();
        assert!(matches!(error, FilesError::Link(LinkError::Broken { .. })), "{error:?}");
    }
    let endless = |name: &str, _: &Value| match name {
        "guest-file-open" => Some(ok(json!(1))),
        "guest-file-close" => Some(ok(json!({}))),
        "guest-file-read" => Some(ok(json!({ "count": 4, "buf-b64": "AAAAAA==", "eof": false }))),
        _ => None,
    };
    let (guest, _) = guest(endless).await;
    let home = tempfile::tempdir().unwrap();
    let options = PullOptions { max_bytes: Some(1000), ..PullOptions::default() };
    let to = home.path().join("to");
    soon("an end", guest.pull(b"/dev/zero", &to, options)).await.unwrap_err();
    assert!(!Path::exists(&to));
}

#[tokio::test]
async fn output_that_was_cut_is_no_output() {
    let (guest, _) = guest(|name, _| match name {
        "guest-exec" => Some(ok(json!({ "pid": 1 }))),
        "guest-exec-status" => Some(ok(json!({ "exited": true, "exitcode": 0,
            "out-data": "eA==", "out-truncated": true }))),
        _ => None,
    })
    .await;
    let mut process = guest.exec(shell("yes")).await.unwrap();
    let _started = process.next().await.unwrap();
    let output = process.next().await.unwrap();
    assert_eq!(output, ExecEvent::Output { stream: Stream::Stdout, data: b"x".to_vec() });
    let error = process.next().await.unwrap_err().to_string();
    assert_eq!(error, "qemu-guest-agent cannot carry more than 16 MiB of a process's output");
}

#[tokio::test]
async fn facts_are_what_it_tells() {
    let (guest, _) = guest(|name, _| match name {
        "guest-get-osinfo" => Some(ok(json!({ "id": "mswindows", "name": "Microsoft Windows",
            "pretty-name": "Windows 11\u{1b}[31m", "version-id": "11", "machine": "x86_64",
            "kernel-release": "26100", "kernel-version": "10.0" }))),
        "guest-network-get-interfaces" => Some(ok(json!([{ "name": "Ethernet 2",
            "hardware-address": "52:54:00:12:34:56" }]))),
        _ => None,
    })
    .await;
    let facts = guest.facts().await.unwrap();
    assert_eq!((facts.kernel.as_str(), facts.machine.as_str()), ("26100", "x86_64"));
    assert_eq!(facts.os["ID"], "mswindows");
    assert!(!facts.os["PRETTY_NAME"].contains('\u{1b}'));
    assert_eq!(
        (facts.nics[0].name.as_str(), facts.nics[0].mac.as_str()),
        ("Ethernet_2", "52:54:00:12:34:56")
    );
    assert_eq!((facts.hostname.as_str(), facts.cpu.online.as_str()), ("", ""));
}
