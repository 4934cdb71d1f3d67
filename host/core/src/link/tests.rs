//! The host's end against a scripted peer.

mod hostile;
mod lost;
mod slow;

use super::scripted::frame;
use super::*;
use guestline_protocol::{
    CreditEvent, DoneResponse, ErrorKind, Frame, FrameHead, FrameKind, Framing, HEADROOM,
    PingRequest, PingResponse, PortFraming, StatRequest, Stream, decode,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// Answers every request with what `answer` makes of it, until the stream ends.
fn peer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut answer: impl FnMut(FrameHead, Request) -> Vec<u8> + Send + 'static,
) {
    scripted::peer(stream, move |head, request| Some(answer(head, request)));
}

fn data(head: FrameHead, len: usize) -> Vec<u8> {
    let head = FrameHead { kind: FrameKind::Data(Stream::Stdout), ..head };
    PortFraming::default().seal(head, vec![0; HEADROOM + len], 0).unwrap()
}

fn hello(min: u16, max: u16) -> Reply {
    hello_of(1, min, max)
}

/// Of this incarnation of the agent.
fn hello_of(incarnation: u64, min: u16, max: u16) -> Reply {
    let build = "b\x1b[31m".to_owned();
    Reply::Hello(HelloResponse { min, max, build, incarnation, ..scripted::hello() })
}

fn no_session() -> Reply {
    Reply::Error(RemoteError::new(ErrorKind::NoSession, ""))
}

fn pong(token: u64) -> Reply {
    Reply::Ping(PingResponse { token, clock_us: 0 })
}

fn ping(token: u64) -> Request {
    Request::Ping(PingRequest { token })
}

/// A link to a peer that answers the hello, and everything else with what `answer` makes of it.
async fn open(
    mut answer: impl FnMut(FrameHead, Request) -> Vec<u8> + Send + 'static,
) -> (Link, HelloResponse) {
    let answer = move |head, request| match request {
        Request::Hello(_) => frame(head, &hello(1, 1)),
        other => answer(head, other),
    };
    try_open(answer).await.unwrap()
}

async fn try_open(
    answer: impl FnMut(FrameHead, Request) -> Vec<u8> + Send + 'static,
) -> Result<(Link, HelloResponse), LinkError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    peer(theirs, answer);
    Link::open(socket(ours)).await
}

fn socket(stream: UnixStream) -> Transport {
    Transport::stream(TransportKind::UnixSocket, Lane::socket(stream))
}

#[tokio::test]
async fn stale_bytes_before_the_hello_are_dropped() {
    let (link, _) = try_open(|head, request| match request {
        Request::Hello(_) => {
            // A whole stale frame, then one cut short, then the answer.
            let past = FrameHead { session: Session(head.session.0 ^ 1), ..head };
            let mut bytes = frame(past, &pong(666));
            let stale = frame(past, &pong(666));
            bytes.extend(&stale[..stale.len() - 1]);
            bytes.extend(frame(head, &hello(1, 1)));
            bytes
        }
        Request::Ping(ping) => frame(head, &pong(ping.token)),
        _ => Vec::new(),
    })
    .await
    .unwrap();
    assert_eq!(link.ask(&ping(5)).await.unwrap(), pong(5));
}

#[tokio::test]
async fn an_agent_of_another_version_is_named_with_both_ranges() {
    let error = try_open(|head, _| frame(head, &hello(2, 3))).await.unwrap_err();
    let LinkError::Version { build, source } = error else { panic!("{error:?}") };
    assert_eq!(build, "b\\u{1b}[31m");
    assert_eq!((source.ours, source.theirs), ((1, 1), (2, 3)));
}

#[tokio::test]
async fn a_hello_that_nobody_heard_is_said_again() {
    let mut heard = 0;
    let (link, _) = try_open(move |head, request| match request {
        Request::Hello(_) => {
            heard += 1;
            if heard < 3 { Vec::new() } else { frame(head, &hello(1, 1)) }
        }
        Request::Ping(ping) => frame(head, &pong(ping.token)),
        _ => Vec::new(),
    })
    .await
    .unwrap();
    assert_eq!(link.ask(&ping(5)).await.unwrap(), pong(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_the_link_and_every_wait() {
    let (link, _) = open(|head, _| {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend([0xff; 9]);
        PortFraming::default().seal(head, buffer, 0).unwrap()
    })
    .await;
    for token in [5, 6] {
        let error = link.ask(&ping(token)).await.unwrap_err();
        assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn data_that_was_not_granted_ends_the_link() {
    let (link, _) = open(|head, _| data(head, 101)).await;
    let mut channel = link.channel(&ping(1), 100).await.unwrap();
    let error = channel.next().await.unwrap_err();
    assert!(error.to_string().contains("beyond what was granted"), "{error}");
}

#[tokio::test]
async fn a_flood_of_replies_ends_the_link() {
    let (link, _) = open(|head, _| {
        let accepted = guestline_protocol::AcceptedEvent { connection: 1 };
        frame(head, &Reply::Accepted(accepted)).repeat(10_000)
    })
    .await;
    let _channel = link.channel(&ping(1), 0).await.unwrap();
    let error = link.end().await;
    assert!(error.to_string().contains("flood"), "{error}");
}

#[tokio::test]
async fn credit_is_given_back_as_data_is_taken() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (granted, mut grants) = mpsc::unbounded_channel();
    peer(theirs, move |head, request| match request {
        Request::Hello(_) => frame(head, &hello(1, 1)),
        Request::Credit(CreditEvent { bytes }) => {
            let _ = granted.send(bytes);
            Vec::new()
        }
        _ => data(head, 1000),
    });
    let (link, _) = Link::open(socket(ours)).await.unwrap();
    let mut channel = link.channel(&ping(1), 1000).await.unwrap();
    assert!(grants.try_recv().is_err());
    assert!(matches!(channel.next().await, Ok(Arrival::Data { bytes, .. }) if bytes.len() == 1000));
    assert_eq!(grants.recv().await, Some(1000));
}

#[tokio::test]
async fn an_agent_that_began_anew_ends_what_ran_and_can_be_opened_again() {
    let mut began_anew = false;
    let (link, _) = try_open(move |head, request| match request {
        Request::Hello(_) => frame(head, &hello(1, 1)),
        Request::Ping(ping) => frame(head, &pong(ping.token)),
        _ if !began_anew => {
            began_anew = true;
            frame(head, &no_session())
        }
        _ => frame(head, &Reply::Done(DoneResponse {})),
    })
    .await
    .unwrap();
    let stat = Request::Stat(StatRequest { path: b"/".to_vec().into(), follow: false });
    assert!(matches!(link.ask(&stat).await, Err(LinkError::Restarted)));
    assert!(matches!(link.ask(&stat).await, Err(LinkError::Restarted)));
    link.reopen().await.unwrap();
    assert_eq!(link.ask(&ping(7)).await.unwrap(), pong(7));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_silent_and_idle_is_given_up_and_a_busy_one_is_not() {
    for (pulse, given_up) in [(Pulse::Idle, true), (Pulse::Busy, false), (Pulse::Unknown, true)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        peer(theirs, |head, request| match request {
            Request::Hello(_) => frame(head, &hello(1, 1)),
            _ => Vec::new(),
        });
        let pulse = Box::new(move || pulse);
        let (link, _) = Link::open_watched(socket(ours), pulse).await.unwrap();
        let mut channel = link.channel(&ping(1), 0).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(600), channel.next()).await;
        match given_up {
            true => assert!(matches!(waited, Ok(Err(LinkError::Silent { .. })))),
            false => {
                assert!(waited.is_err());
                assert!(link.silence().is_some());
            }
        }
    }
}

#[tokio::test]
async fn a_small_request_that_is_not_answered_is_given_up_by_name() {
    let (link, _) = open(|_, _| Vec::new()).await;
    let error = link.ask_within(&ping(1), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.to_string(), "the agent did not answer a ping request within 50ms");
}

#[tokio::test]
async fn a_closed_stream_ends_every_wait() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Link::open(socket(ours)).await, Err(LinkError::Closed)));
}
