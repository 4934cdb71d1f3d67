//! Requests of the script on the host, over the protocol.

use crate::rig::{Client, assert_error, rig, wait_until_gone};
use guestline_harness::lab::Side;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn hello_tells_version_side_and_machines_and_comes_first() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let mut client = Client::silent(&socket).await;
    let hello = client.ask(json!({"request": "hello", "version": 1, "client": "x"})).await;
    let wanted = json!({
        "reply": "hello", "version": 1, "side": "host", "machines": ["web"], "sides": ["host", "web"],
    });
    assert_eq!(hello, wanted);
    assert_error(&client.ask(json!({"request": "hello", "version": 1})).await, "protocol", "once");
    assert_eq!(client.hear().await, Value::Null);
    let mut client = Client::silent(&socket).await;
    let newer = client.ask(json!({"request": "hello", "version": 2})).await;
    assert_error(&newer, "version", "guest protocol 2 is not known here, only 1");
    assert_eq!(client.hear().await, Value::Null);
    let mut client = Client::silent(&socket).await;
    assert_error(&client.ask(json!({"request": "facts"})).await, "protocol", "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_give_output_apart_status_and_signals() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    let (last, stdout, stderr) = client.line("echo out; echo err >&2; exit 3").await;
    assert_eq!(last, json!({"reply": "exited", "status": 3}));
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
    let (last, ..) = client.line("kill -KILL $$").await;
    assert_eq!(last, json!({"reply": "exited", "status": 137, "signal": 9}));
    client.say(&json!({"request": "exec", "command": {"line": "printf '\\377'"}})).await;
    assert_eq!(client.hear().await["data"], json!({"base64": "/w=="}));
    assert_eq!(client.hear().await["status"], 0);
    let request = json!({
        "request": "exec", "machine": "web", "command": {"argv": ["sh", "-c", "echo $A-${HOME-none}; pwd; id -u; cat"]},
        "env": {"A": "b c", "HOME": null}, "cwd": "/usr", "user": "nobody",
    });
    let (last, stdout, _) = client.run(request).await;
    assert_eq!((last["status"].as_i64(), stdout.as_str()), (Some(0), "b c-none\n/usr\n65534\n"));
    let missing = json!({"request": "exec", "command": {"argv": ["/no/such/program"]}});
    assert_error(&client.ask(missing).await, "not-found", "web: ");
    let other = json!({"request": "exec", "machine": "db", "command": {"line": "true"}});
    assert_error(&client.ask(other).await, "no-machine", "no machine `db` in this test, but `web`");
    assert_eq!(client.line("true").await.0["status"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_in_piece_by_piece() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    client
        .say(&json!({"request": "exec", "command": {"line": "wc -c; echo done"}, "stdin": true}))
        .await;
    for _ in 0..50 {
        client.say(&json!({"request": "input", "data": "x".repeat(65536)})).await;
        assert_eq!(client.hear().await, json!({"reply": "taken"}));
    }
    let (last, stdout, _) = client.run(json!({"request": "end"})).await;
    assert_eq!((last["status"].as_i64(), stdout.trim()), (Some(0), "3276800\ndone"));
    // The next request may follow at once.
    assert_eq!(client.line("true").await.0["status"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_time_and_with_its_client() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let mut client = Client::open(&socket).await;
    let began = Instant::now();
    let slow =
        json!({"request": "exec", "command": {"line": "echo $$; sleep 1000"}, "timeout_ms": 300});
    let (last, pid, _) = client.run(slow).await;
    assert_error(&last, "timeout", "web: timed out after 300 ms, and was killed");
    assert!(began.elapsed() < Duration::from_secs(30));
    wait_until_gone(pid.trim().to_owned()).await;
    for stdin in [false, true] {
        let mut client = Client::open(&socket).await;
        let command = json!({"line": "echo $$; exec sleep 1000"});
        client.say(&json!({"request": "exec", "command": command, "stdin": stdin})).await;
        let pid = client.hear().await["data"].as_str().unwrap().trim().to_owned();
        if stdin {
            // A process that does not read does not hide that the client is gone.
            client.say(&json!({"request": "input", "data": "x".repeat(65536)})).await;
            client.hear().await;
            client.say(&json!({"request": "input", "data": "x".repeat(65536)})).await;
        }
        drop(client);
        wait_until_gone(pid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_as_cp_would() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    std::fs::write(rig.path("a"), "aa").unwrap();
    std::fs::create_dir(rig.path("b")).unwrap();
    std::fs::write(rig.path("b/c"), "c").unwrap();
    let copied = client
        .ask(json!({"request": "push", "from": [rig.path("a"), rig.path("b")], "to": rig.path("in/")}))
        .await;
    assert_eq!(
        (copied["reply"].as_str(), copied["trouble_count"].as_i64()),
        (Some("copied"), Some(0))
    );
    assert_eq!(std::fs::read_to_string(rig.path("in/b/c")).unwrap(), "c");
    let copied = client
        .ask(json!({"request": "pull", "from": [rig.path("in/.")], "to": rig.path("out/")}))
        .await;
    assert_eq!(copied["bytes"], 3, "{copied}");
    assert_eq!(std::fs::read_to_string(rig.path("out/a")).unwrap(), "aa");
    let several =
        json!({"request": "push", "from": [rig.path("a"), rig.path("b")], "to": rig.path("new")});
    assert_error(&client.ask(several).await, "usage", "end it with /");
    let relative = json!({"request": "push", "from": ["a"], "to": "/tmp/a"});
    assert_error(&client.ask(relative).await, "usage", "no path of the host");
    let none = json!({"request": "pull", "from": [rig.path("none")], "to": rig.path("x")});
    assert_error(&client.ask(none).await, "not-found", "web: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_waited_for_comes_or_its_last_attempt_is_told() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    let file = rig.path("file");
    let (there, made) = (json!({"file": file}), rig.path("file"));
    let making = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::write(made, "").unwrap();
    });
    let waited = client.ask(json!({"request": "wait", "until": there})).await;
    assert_eq!(waited["reply"], "waited", "{waited}");
    assert!(waited["attempts"].as_u64().unwrap() > 1);
    making.await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let waited = client.ask(json!({"request": "wait", "until": {"port": port}})).await;
    assert_eq!(waited["attempts"], 1);
    drop(listener);
    let closed = json!({"request": "wait", "until": {"port": port}, "timeout_ms": 200});
    assert_error(
        &client.ask(closed).await,
        "timeout",
        &format!("web: port {port}: not within 200 ms"),
    );
    let line = json!({"line": "echo still; echo waiting >&2; exit 5"});
    let (last, stdout, stderr) =
        client.run(json!({"request": "wait", "until": line, "timeout_ms": 200})).await;
    assert_error(&last, "timeout", "not within 200 ms: status 5, after ");
    assert_eq!((stdout.as_str(), stderr.as_str()), ("still\n", "waiting\n"));
    let hangs = json!({"request": "wait", "until": {"line": "sleep 1000"}, "timeout_ms": 200});
    assert_error(&client.ask(hangs).await, "timeout", "the first attempt had not ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_log_and_verdict() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    let facts = client.ask(json!({"request": "facts"})).await;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts["facts"]["kernel"], release.trim());
    assert_eq!(
        client.ask(json!({"request": "log", "text": "a\nb"})).await,
        json!({"reply": "done"})
    );
    for text in ["a", "b"] {
        let line = rig.lines.recv().await.unwrap();
        assert_eq!((line.side, line.text.as_str()), (Side::Host, text));
    }
    assert_eq!(rig.lab.verdict(), None);
    client.ask(json!({"request": "fail", "reason": "broken"})).await;
    let (side, verdict) = rig.lab.verdict().unwrap();
    assert_eq!(format!("{side}: {verdict:?}"), "host: Fail { reason: \"broken\" }");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_machines_one_is_to_be_named() {
    let mut rig = rig(&["db", "web"]).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    assert_error(&client.line("true").await.0, "no-machine", "name one of `db`, `web` with -m");
    let named = json!({"request": "exec", "machine": "db", "command": {"line": "true"}});
    assert_eq!(client.ask(named).await["status"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_has_ended_is_not_waited_for() {
    let mut rig = rig(&["db", "web"]).await;
    let socket = rig.serve(Side::Host);
    let requests = [
        json!({"request": "exec", "machine": "web", "command": {"line": "sleep 1000"}}),
        json!({"request": "wait", "machine": "web", "until": {"line": "false"}}),
    ];
    let mut waiting = Vec::new();
    for request in requests {
        let mut client = Client::open(&socket).await;
        client.say(&request).await;
        waiting.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.lab.machine_ended("web", "the guest panicked");
    for client in &mut waiting {
        let said = client.hear().await;
        assert_error(&said, "ended", "web: the machine has ended: the guest panicked");
    }
    let other = json!({"request": "exec", "machine": "db", "command": {"line": "true"}});
    assert_eq!(waiting[0].ask(other).await["status"], 0);
}
