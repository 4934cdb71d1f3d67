//! The host's end against a scripted peer.

use super::*;
use guestline_protocol::{Framing, PingRequest, PingResponse, PortFraming, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers requests with what `answer` makes of them, until the stream ends.
fn peer(
    mut stream: UnixStream,
    mut answer: impl FnMut(Session, Envelope<Request>) -> Vec<u8> + Send + 'static,
) {
    tokio::spawn(async move {
        let mut framing = PortFraming::default();
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            while let Some(frame) = framing.next_frame() {
                let bytes = answer(frame.session, decode(&frame.body).unwrap());
                stream.write_all(&bytes).await.unwrap();
            }
        }
    });
}

fn frame(session: Session, id: u32, body: Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    PortFraming::default().encode(session, &encode(&Envelope { id, body }), &mut bytes).unwrap();
    bytes
}

fn hello(min: u16, max: u16) -> Reply {
    let build = "b\x1b[31m".to_owned();
    Reply::Hello(HelloResponse { min, max, build, features: 0, init: true, clock_us: 0 })
}

async fn open(
    answer: impl FnMut(Session, Envelope<Request>) -> Vec<u8> + Send + 'static,
) -> Result<(Link, HelloResponse), LinkError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    peer(theirs, answer);
    Link::open(ours).await
}

#[tokio::test]
async fn stale_bytes_before_the_hello_are_dropped() {
    let (link, _) = open(|session, request| match request.body {
        Request::Hello(_) => {
            // A whole stale frame, then one cut short, then the answer.
            let pong = Reply::Ping(PingResponse { token: 666, clock_us: 0 });
            let mut bytes = frame(Session(session.0 ^ 1), request.id, pong.clone());
            let stale = frame(Session(session.0 ^ 1), request.id, pong);
            bytes.extend(&stale[..stale.len() - 1]);
            bytes.extend(frame(session, request.id, hello(1, 1)));
            bytes
        }
        Request::Ping(ping) => {
            let pong = PingResponse { token: ping.token, clock_us: 0 };
            frame(session, request.id, Reply::Ping(pong))
        }
        _ => Vec::new(),
    })
    .await
    .unwrap();
    let reply = link.ask(Request::Ping(PingRequest { token: 5 })).await.unwrap();
    assert_eq!(reply, Reply::Ping(PingResponse { token: 5, clock_us: 0 }));
}

#[tokio::test]
async fn an_agent_of_another_version_is_named_with_both_ranges() {
    let error = open(|session, request| frame(session, request.id, hello(2, 3))).await.unwrap_err();
    let LinkError::Version { build, source } = error else { panic!("{error:?}") };
    assert_eq!(build, "b\\u{1b}[31m");
    assert_eq!((source.ours, source.theirs), ((1, 1), (2, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_the_link_and_every_wait() {
    let (link, _) = open(|session, request| match request.body {
        Request::Hello(_) => frame(session, request.id, hello(1, 1)),
        _ => {
            let mut bytes = Vec::new();
            PortFraming::default().encode(session, &[0xff; 9], &mut bytes).unwrap();
            bytes
        }
    })
    .await
    .unwrap();
    let error = link.ask(Request::Ping(PingRequest { token: 5 })).await.unwrap_err();
    assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
    let again = link.ask(Request::Ping(PingRequest { token: 6 })).await.unwrap_err();
    assert!(matches!(again, LinkError::Broken { .. }), "{again:?}");
}

#[tokio::test]
async fn a_closed_stream_ends_every_wait() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Link::open(ours).await, Err(LinkError::Closed)));
}
