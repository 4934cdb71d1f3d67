//! Reboots and power-offs, with an agent that only pretends: the real one would reboot this host.

use crate::rig::{Client, assert_error, guest_over, rig_of};
use guestline_harness::lab::{Expected, Side};
use guestline_protocol::{
    ErrorKind, Frame, FrameKind, Framing, HelloResponse, LeavingResponse, PingResponse,
    PortFraming, PowerAction, RemoteError, Reply, Request, Session, decode, encode,
};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Answers so many times more after it has said that it goes down.
const LINGERS: u32 = 2;

/// An agent that is up, goes down slowly when it is told to, and comes back unless it is broken.
fn pretend(mut stream: UnixStream, comes_back: bool) {
    let (mut boot, mut session, mut lingers) = (1, Session(0), None);
    let mut framing = PortFraming::default();
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        framing.push(&buffer[..len]);
        let mut answers = Vec::new();
        while let Some(Frame { head, body }) = framing.next_frame() {
            if head.kind != FrameKind::Message {
                continue;
            }
            if lingers == Some(0) {
                (lingers, boot, session) = (None, boot + 1, Session(0));
                if !comes_back {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
            }
            lingers = lingers.map(|times: u32| times - 1);
            let reply = match decode(body).unwrap() {
                Request::Hello(_) => {
                    session = head.session;
                    Reply::Hello(HelloResponse {
                        min: 1,
                        max: 1,
                        build: "pretends".to_owned(),
                        features: 0,
                        init: true,
                        bulk: false,
                        incarnation: boot,
                        clock_us: 0,
                    })
                }
                _ if head.session != session => {
                    Reply::Error(RemoteError::new(ErrorKind::NoSession, "no session"))
                }
                Request::Ping(ping) => {
                    Reply::Ping(PingResponse { token: ping.token, clock_us: boot })
                }
                Request::Power(power) => {
                    assert!(matches!(power.action, PowerAction::Reboot | PowerAction::Off));
                    lingers = Some(LINGERS);
                    Reply::Leaving(LeavingResponse {})
                }
                _ => continue,
            };
            answers.extend(PortFraming::default().seal(head, encode(&reply), 0).unwrap());
        }
        if stream.write_all(&answers).is_err() {
            return;
        }
    }
}

async fn rig(comes_back: bool) -> crate::rig::Rig {
    let (stream, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || pretend(theirs, comes_back));
    rig_of(vec![("web".to_owned(), guest_over(stream).await)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_announced_and_waited_for() {
    let mut rig = rig(true).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    for _ in 0..2 {
        assert_eq!(client.ask(json!({"request": "reboot"})).await, json!({"reply": "done"}));
    }
    let web = |what| ("web".to_owned(), what);
    let (reboot, back) = (web(Expected::Reboot), web(Expected::Back));
    let wanted = [reboot.clone(), back.clone(), reboot, back];
    assert_eq!(*rig.announced.0.lock().unwrap(), wanted);
    assert_eq!(rig.guests[0].agent().incarnation, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_come_back_is_told() {
    let mut rig = rig(false).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    let said = client.ask(json!({"request": "reboot", "timeout_ms": 2000})).await;
    assert_error(&said, "timeout", "web: rebooted, and its agent does not answer within 2 s");
    let wanted = [("web".to_owned(), Expected::Reboot)];
    assert_eq!(*rig.announced.0.lock().unwrap(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_off_is_announced() {
    let mut rig = rig(true).await;
    let mut client = Client::open(&rig.serve(Side::Host)).await;
    assert_eq!(client.ask(json!({"request": "poweroff"})).await, json!({"reply": "done"}));
    let wanted = [("web".to_owned(), Expected::PowerOff)];
    assert_eq!(*rig.announced.0.lock().unwrap(), wanted);
}
