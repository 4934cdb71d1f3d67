//! Lines that are slow: the guest is not silent while our own bytes are on their way.

use super::*;
use tokio::io::duplex;

/// A peer that reads so many bytes every five seconds, and answers a request when it has all of it.
fn slow_peer(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, piece: usize) {
    tokio::spawn(async move {
        let mut framing = PortFraming::default();
        let mut buffer = vec![0; piece];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            while let Some(Frame { head, body }) = framing.next_frame() {
                let reply = match decode(body).unwrap() {
                    Request::Hello(_) => hello(1, 1),
                    _ => Reply::Done(DoneResponse {}),
                };
                stream.write_all(&frame(head, &reply)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
}

fn entropy(len: usize) -> Request {
    let seed = guestline_protocol::ByteBuf::from(vec![1; len]);
    Request::AddEntropy(guestline_protocol::AddEntropyRequest { seed })
}

#[tokio::test(start_paused = true)]
async fn a_large_request_on_a_slow_line_is_no_silence() {
    let (ours, theirs) = duplex(512);
    slow_peer(theirs, 4096);
    let (reader, writer) = tokio::io::split(ours);
    let transport = Transport::stream(TransportKind::Stdio, Lane::of(reader, writer));
    // Idle is what a guest is that waits for bytes.
    let pulse = Box::new(|| Pulse::Idle);
    let (link, _) = Link::open_watched(transport, pulse).await.unwrap();
    let began = Instant::now();
    let mut channel = link.channel(&entropy(200_000), 0).await.unwrap();
    assert_eq!(channel.reply().await.unwrap(), Reply::Done(DoneResponse {}));
    assert!(began.elapsed() > Duration::from_secs(240), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_nothing_of_a_large_request_is_silent() {
    let (ours, theirs) = duplex(512);
    let (mut theirs, write) = tokio::io::split(theirs);
    let _kept = tokio::spawn(async move {
        let mut write = write;
        let mut framing = PortFraming::default();
        let mut buffer = [0; 512];
        let len = theirs.read(&mut buffer).await.unwrap();
        framing.push(&buffer[..len]);
        let head = framing.next_frame().unwrap().head;
        write.write_all(&frame(head, &hello(1, 1))).await.unwrap();
        std::future::pending::<()>().await;
    });
    let (reader, writer) = tokio::io::split(ours);
    let transport = Transport::stream(TransportKind::Stdio, Lane::of(reader, writer));
    let (link, _) = Link::open(transport).await.unwrap();
    let began = Instant::now();
    let mut channel = link.channel(&entropy(200_000), 0).await.unwrap();
    assert!(matches!(channel.reply().await, Err(LinkError::Silent { .. })));
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
}
