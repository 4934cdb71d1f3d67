//! Sides of a test that find each other, and what a guest may not do.

use crate::rig::{Client, assert_error, guest, rig, rig_of};
use guestline_harness::lab::{Side, Verdict, enter};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn sides_meet_and_hand_each_other_values() {
    let mut rig = rig_of(Vec::new());
    let sides = [Side::Host, guest("a"), guest("b")];
    (rig.lab, rig.lines) =
        guestline_harness::lab::Lab::new([], sides.clone(), rig.announced.clone());
    let mut clients = Vec::new();
    for side in sides {
        clients.push(Client::open(&rig.serve(side)).await);
    }
    let [host, a, b] = &mut clients[..] else { panic!() };
    for _ in 0..3 {
        let sync = || json!({"request": "sync", "name": "ready"});
        let all = tokio::join!(host.ask(sync()), a.ask(sync()), b.ask(sync()));
        let done = json!({"reply": "done"});
        assert_eq!(all, (done.clone(), done.clone(), done));
    }
    let awaited = tokio::spawn({
        let mut other = Client::open(&rig.folder.path().join("a.sock")).await;
        async move { other.ask(json!({"request": "await", "key": "address"})).await }
    });
    host.ask(json!({"request": "send", "key": "address", "value": {"base64": "/w=="}})).await;
    let value = json!({"reply": "value", "value": {"base64": "/w=="}});
    assert_eq!(awaited.await.unwrap(), value);
    assert_eq!(b.ask(json!({"request": "await", "key": "address"})).await, value);
    // In vain.
    let alone = host.ask(json!({"request": "sync", "name": "x", "timeout_ms": 100})).await;
    assert_error(&alone, "timeout", "`x`: not all were there within 100 ms: `a`, `b` did not come");
    let none = host.ask(json!({"request": "await", "key": "none", "timeout_ms": 100})).await;
    assert_error(&none, "timeout", "`none`: no value within 100 ms");
    // One that hung up is not there.
    let mut gone = Client::open(&rig.folder.path().join("host.sock")).await;
    gone.say(&json!({"request": "sync", "name": "y"})).await;
    drop(gone);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sync = || json!({"request": "sync", "name": "y", "timeout_ms": 200});
    let (a_said, b_said) = tokio::join!(a.ask(sync()), b.ask(sync()));
    assert_error(&a_said, "timeout", "not all were there within 200 ms: `host`");
    assert_error(&b_said, "timeout", "not all were there within 200 ms: `host`");
    // One that has ended will never come.
    a.say(&json!({"request": "sync", "name": "z"})).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.lab.side_ended(&guest("b"));
    assert_error(&a.hear().await, "ended", "`b` has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wait_ends_with_the_attempt_and_with_a_verdict() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let inside = rig.serve(guest("web"));
    let waits = [
        json!({"request": "sync", "name": "x"}),
        json!({"request": "await", "key": "x"}),
        json!({"request": "wait", "until": {"line": "false"}}),
        json!({"request": "exec", "command": {"line": "sleep 1000"}}),
    ];
    let mut waiting = Vec::new();
    for request in waits {
        let mut client = Client::open(&socket).await;
        client.say(&request).await;
        waiting.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut client = Client::open(&inside).await;
    client.ask(json!({"request": "skip", "reason": "no disk"})).await;
    for client in waiting.drain(..2) {
        let mut client = client;
        assert_error(&client.hear().await, "ended", "`web` has ended the test: skipped: no disk");
    }
    let verdict = Verdict::Skip { reason: "no disk".to_owned() };
    assert_eq!(rig.lab.verdict(), Some((guest("web"), verdict)));
    let began = Instant::now();
    rig.end().await;
    assert!(began.elapsed() < Duration::from_secs(5));
    for mut client in waiting {
        assert_error(&client.hear().await, "ended", "the test has ended");
        assert_eq!(client.hear().await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_may_only_talk() {
    let mut rig = rig(&["web"]).await;
    let mut client = Client::silent(&rig.serve(guest("web"))).await;
    let hello = client.ask(json!({"request": "hello", "version": 1})).await;
    assert_eq!((&hello["side"], &hello["machines"]), (&json!("web"), &json!([])));
    let file = rig.path("file");
    for (what, request) in [
        ("exec", json!({"request": "exec", "command": {"line": format!("touch {file}")}})),
        ("push", json!({"request": "push", "from": ["/etc/passwd"], "to": file})),
        ("pull", json!({"request": "pull", "from": ["/etc/passwd"], "to": file})),
        ("wait", json!({"request": "wait", "until": {"line": format!("touch {file}")}})),
        ("reboot", json!({"request": "reboot"})),
        ("poweroff", json!({"request": "poweroff"})),
        ("facts", json!({"request": "facts"})),
    ] {
        let wanted = format!("`{what}` is not allowed inside a machine");
        assert_error(&client.ask(request).await, "not-allowed", &wanted);
    }
    assert!(!std::path::Path::new(&file).exists());
    assert!(rig.announced.0.lock().unwrap().is_empty());
    for request in [
        json!({"request": "log", "text": "x"}),
        json!({"request": "send", "key": "a", "value": "b"}),
        json!({"request": "skip", "reason": "x"}),
        json!({"request": "fail", "reason": "x"}),
    ] {
        assert_eq!(client.ask(request).await, json!({"reply": "done"}));
    }
    assert_eq!(rig.lines.recv().await.unwrap().side, guest("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_put_into_a_machine_and_reaches_its_side() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(guest("web"));
    let mut host = Client::open(&rig.serve(Side::Host)).await;
    let program = std::fs::read(guestline_tests::named_by("GUESTLINE_GUEST")).unwrap();
    let machine = rig.guests[0].clone();
    let folder = rig.path("inside");
    for _ in 0..2 {
        // Twice, as after a reboot.
        let _listening = enter(&machine, &folder, &program, &socket).await.unwrap();
        let line = format!(
            "export PATH={folder}:$PATH GUESTLINE_SOCKET={folder}/socket; guest log from within && \
             guest send a=1 && guest sync -t 60 here; guest exec true; echo $?"
        );
        let mut other = Client::open(&rig.folder.path().join("host.sock")).await;
        let sync = other.ask(json!({"request": "sync", "name": "here"}));
        let ((last, stdout, stderr), synced) = tokio::join!(host.line(&line), sync);
        assert_eq!((last["status"].as_i64(), stdout.as_str()), (Some(0), "255\n"), "{stderr}");
        assert!(stderr.contains("not allowed inside a machine"), "{stderr}");
        assert_eq!(synced, json!({"reply": "done"}));
        assert_eq!(rig.lines.recv().await.unwrap().text, "from within");
    }
}
