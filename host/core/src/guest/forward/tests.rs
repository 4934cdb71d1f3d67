//! Forwarding to a scripted guest.

use super::*;
use crate::link::scripted::{frame, hello};
use crate::link::{Lane, Transport, TransportKind};
use guestline_protocol::{
    ConnectedEvent, CreditEvent, DoneResponse, EndEvent, Frame, FrameHead, FrameKind, Framing,
    HEADROOM, PortFraming, Stream, decode,
};

const SOON: Duration = Duration::from_secs(4);

/// Granted at a time.
const CREDIT: u32 = 10_000;

/// Said to every piece.
const ANSWER: usize = 10;

/// What the guest got on its connection: all of it, or so many bytes.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    All(u64),
    Cancelled(u64),
}

/// A guest with a server that answers to every piece, and closes when it has read all.
async fn guest() -> (Guest, mpsc::UnboundedReceiver<Got>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (got, gets) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut framing = PortFraming::default();
        let mut buffer = [0; 4096];
        let (mut data, mut answered, mut all) = (0, 0, None);
        while let Ok(len @ 1..) = theirs.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            let mut out = Vec::new();
            while let Some(Frame { head, body }) = framing.next_frame() {
                let answer = FrameHead::message(head.session, head.channel);
                let request = match head.kind {
                    FrameKind::Message => Some(decode(body).unwrap()),
                    FrameKind::Data(_) => {
                        data += body.len() as u64;
                        let bytes = body.len() as u32;
                        out.extend(frame(answer, &Reply::Credit(CreditEvent { bytes })));
                        let head = FrameHead::data(head.session, head.channel, Stream::Stdout);
                        let said = vec![1; HEADROOM + ANSWER];
                        out.extend(PortFraming::default().seal(head, said, 0).unwrap());
                        answered += ANSWER as u64;
                        None
                    }
                };
                match request {
                    Some(Request::Hello(_)) => out.extend(frame(answer, &Reply::Hello(hello()))),
                    Some(Request::Connect(_)) => {
                        let connected = Reply::Connected(ConnectedEvent { credit: CREDIT });
                        out.extend(frame(answer, &connected));
                    }
                    Some(Request::End(EndEvent { total })) => all = Some(total),
                    Some(Request::Cancel(_)) => {
                        let _ = got.send(Got::Cancelled(data));
                    }
                    _ => {}
                }
                if all == Some(data) {
                    let _ = got.send(Got::All(data));
                    out.extend(frame(answer, &Reply::End(EndEvent { total: answered })));
                    out.extend(frame(answer, &Reply::Done(DoneResponse {})));
                    all = None;
                }
            }
            theirs.write_all(&out).await.unwrap();
        }
    });
    let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(ours));
    let (link, hello) = Link::open(transport).await.unwrap();
    (Guest::new(link, hello), gets)
}

#[tokio::test]
async fn what_a_client_sent_gets_through_though_it_reads_no_answer() {
    let (guest, mut gets) = guest().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let to = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port: 80 };
    let _forwarding = guest.forward(&HostTarget::Unix(path.clone()), to).await.unwrap();
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(&[7; 500_000]).await.unwrap();
    // With an answer that it has not read, and some of what it sent not fetched yet.
    drop(client);
    let got = tokio::time::timeout(SOON, gets.recv()).await.expect("an end");
    assert_eq!(got, Some(Got::All(500_000)));
}
