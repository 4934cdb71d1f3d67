//! Peers that keep to nothing: they harm neither the server nor other peers.

use crate::rig::{Client, assert_error, guest, rig, rig_of};
use guestline_harness::lab::Side;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

async fn assert_served(socket: &Path) {
    let mut client = Client::open(socket).await;
    assert_eq!(client.ask(json!({"request": "log", "text": "x"})).await, json!({"reply": "done"}));
}

/// What the server says to these bytes before it hangs up.
async fn answer(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an end");
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_with_an_error_and_the_end() {
    let mut rig = rig_of(Vec::new());
    let socket = rig.serve(Side::Host);
    for garbage in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"{\"request\":\"hello\"}\n",
        b"{\"request\":\"hello\",\"version\":1,\"extra\":0}\n",
        b"{\"request\":\"hello\",\"version\":-1}\n",
    ] {
        let said: Value = serde_json::from_str(&answer(&socket, garbage).await).unwrap();
        assert_error(&said, "protocol", "this is no request");
    }
    let deep = [vec![b'['; 500_000], vec![b'\n']].concat();
    assert!(answer(&socket, &deep).await.contains("this is no request"));
    assert_served(&socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_end_is_cut_off() {
    let mut rig = rig_of(Vec::new());
    let socket = rig.serve(guest("web"));
    // What was sent in vain may take the last words with it, when the connection is cut.
    let said = answer(&socket, &vec![b'x'; 3 << 20]).await;
    assert!(said.is_empty() || said.contains("a line is longer than 1048576 bytes"), "{said}");
    assert_served(&socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_and_silence_hinder_nobody() {
    let mut rig = rig_of(Vec::new());
    let socket = rig.serve(Side::Host);
    let mut half = Client::open(&socket).await;
    half.writer.write_all(b"{\"request\":\"lo").await.unwrap();
    let mut silent = Client::silent(&socket).await;
    for _ in 0..20 {
        assert_served(&socket).await;
    }
    half.writer.write_all(b"g\",\"text\":\"y\"}\n").await.unwrap();
    assert_eq!(half.hear().await, json!({"reply": "done"}));
    // Who says nothing at all does not keep a place for ever.
    assert_error(&silent.hear().await, "protocol", "no hello came");
    let mut cut = Client::open(&socket).await;
    cut.writer.write_all(b"{\"request\":\"fail\",\"reason\":\"x\"}").await.unwrap();
    drop(cut);
    let began = Instant::now();
    rig.end().await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(rig.lab.verdict(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_refused_and_others_served_again() {
    let mut rig = rig_of(Vec::new());
    let (socket, other) = (rig.serve(guest("web")), rig.serve(Side::Host));
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(Client::open(&socket).await);
    }
    let mut refused = Client::silent(&socket).await;
    assert_error(&refused.hear().await, "limit", "64 connections of this side already");
    // Another side has places of its own.
    assert_served(&other).await;
    drop(held);
    assert_served_again(&socket).await;
    // Thousands, one after the other and at once.
    let storm: Vec<_> = (0..20)
        .map(|_| {
            let socket = socket.clone();
            tokio::spawn(async move {
                for _ in 0..150 {
                    if let Ok(mut stream) = UnixStream::connect(&socket).await {
                        let _ = stream.write_all(b"garbage\n").await;
                    }
                }
            })
        })
        .collect();
    assert_served(&other).await;
    for one in storm {
        one.await.unwrap();
    }
    assert_served_again(&socket).await;
}

/// Connections that were dropped may still have their places.
async fn assert_served_again(socket: &Path) {
    for _ in 0..200 {
        if Client::silent(socket).await.ask_hello().await["reply"] == "hello" {
            return assert_served(socket).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no place became free");
}

impl Client {
    async fn ask_hello(&mut self) -> Value {
        let hello = json!({"request": "hello", "version": 1});
        let _ = self.writer.write_all(format!("{hello}\n").as_bytes()).await;
        self.hear().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_ahead_of_their_turn_are_done_in_turn() {
    let mut rig = rig_of(Vec::new());
    let mut client = Client::open(&rig.serve(guest("web"))).await;
    let line = json!({"request": "send", "key": "a", "value": "b"}).to_string() + "\n";
    let writer = client.writer;
    let writing = tokio::spawn(async move {
        let mut writer = writer;
        writer.write_all(line.repeat(50_000).as_bytes()).await.unwrap();
        writer
    });
    for _ in 0..50_000 {
        let mut reply = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut client.reader, &mut reply).await.unwrap();
        assert_eq!(reply, "{\"reply\":\"done\"}\n");
    }
    drop(writing.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_waits_alone() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let mut flood = Client::open(&socket).await;
    flood.say(&json!({"request": "exec", "command": {"line": "yes"}})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut client = Client::open(&socket).await;
    assert_eq!(client.line("echo beside").await.1, "beside\n");
    let began = Instant::now();
    rig.end().await;
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_out_of_turn_ends_the_connection_and_the_command() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let mut client = Client::open(&socket).await;
    let nobody = client.ask(json!({"request": "input", "data": "x"})).await;
    assert_error(&nobody, "protocol", "no command runs");
    let exec =
        json!({"request": "exec", "command": {"line": "echo $$; exec sleep 1000"}, "stdin": true});
    for wrong in [
        vec![json!({"request": "facts"})],
        vec![json!({"request": "input", "data": "x".repeat(65537)})],
    ] {
        let mut client = Client::open(&socket).await;
        client.say(&exec).await;
        let pid = client.hear().await["data"].as_str().unwrap().trim().to_owned();
        for request in wrong {
            client.say(&request).await;
        }
        let said = client.hear().await;
        assert_error(&said, "protocol", "input");
        assert_eq!(client.hear().await, Value::Null);
        crate::rig::wait_until_gone(pid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_or_too_much_is_refused_by_name() {
    let mut rig = rig_of(Vec::new());
    let mut client = Client::open(&rig.serve(guest("web"))).await;
    let long = "x".repeat(65537);
    for request in [
        json!({"request": "log", "text": long}),
        json!({"request": "send", "key": long, "value": ""}),
        json!({"request": "send", "key": "a", "value": long}),
        json!({"request": "skip", "reason": long}),
        json!({"request": "fail", "reason": long}),
    ] {
        assert_error(&client.ask(request).await, "limit", "longer than 65536 bytes");
    }
    let sync = client.ask(json!({"request": "sync", "name": "x"})).await;
    assert_error(&sync, "usage", "`web` is no side of this test");
    for number in 0..1024 {
        client.ask(json!({"request": "send", "key": number.to_string(), "value": ""})).await;
    }
    let more = client.ask(json!({"request": "send", "key": "more", "value": ""})).await;
    assert_error(&more, "limit", "there are 1024 keys already");
    let again = client.ask(json!({"request": "send", "key": "7", "value": "x"})).await;
    assert_eq!(again, json!({"reply": "done"}));
}
