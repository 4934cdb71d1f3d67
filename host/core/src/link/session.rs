//! The task that owns a link's stream.

use super::LinkError;
use guestline_protocol::{Envelope, Framing, PortFraming, Reply, Session, decode};
use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tracing::{debug, trace};

/// Why the link ended, once it has.
pub(super) type EndWatch = watch::Receiver<Option<LinkError>>;

/// Unanswered requests and stray replies are no reason to trust a guest with memory.
const MAX_STRAY: u32 = 10_000;

/// A request to send, and where its replies go.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) id: u32,
    pub(super) body: Vec<u8>,
    pub(super) sender: mpsc::Sender<Reply>,
}

pub(super) fn start(stream: UnixStream, session: Session) -> (mpsc::Sender<Order>, EndWatch) {
    let (orders, receiver) = mpsc::channel(16);
    let (ended, end) = watch::channel(None);
    let (reader, writer) = stream.into_split();
    tokio::spawn(async move {
        let error = converse(reader, writer, session, receiver).await;
        debug!(%error, "link ended");
        ended.send_replace(Some(error));
    });
    (orders, end)
}

/// Which requests are under way, and what a body from the guest means for them: no I/O.
#[derive(Default)]
struct Requests {
    open: HashMap<u32, mpsc::Sender<Reply>>,
    stray: u32,
}

impl Requests {
    /// The reply in a body and who waits for it.
    fn on_body(&mut self, body: &[u8]) -> Result<Option<(mpsc::Sender<Reply>, Reply)>, LinkError> {
        let Envelope { id, body } =
            decode::<Reply>(body).map_err(|error| LinkError::Broken { what: error.to_string() })?;
        let receiver = match body.is_final() {
            true => self.open.remove(&id),
            false => self.open.get(&id).cloned(),
        };
        if receiver.is_none() {
            self.stray += 1;
            if self.stray > MAX_STRAY {
                let what = format!("{MAX_STRAY} replies to requests that nobody made");
                return Err(LinkError::Broken { what });
            }
        }
        Ok(receiver.map(|receiver| (receiver, body)))
    }
}

async fn converse(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    session: Session,
    mut orders: mpsc::Receiver<Order>,
) -> LinkError {
    let mut framing = PortFraming::default();
    framing.accept_only(session);
    let mut requests = Requests::default();
    let mut buffer = vec![0; 64 * 1024];
    // Bytes on their way to the guest. Writing and reading go on beside each other.
    let mut out: Vec<u8> = Vec::new();
    let mut dropped = 0;
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return LinkError::Closed,
                Ok(len) => {
                    trace!(len, "read");
                    framing.push(&buffer[..len]);
                    while let Some(frame) = framing.next_frame() {
                        match requests.on_body(&frame.body) {
                            // A caller that went away wants no reply.
                            Ok(Some((receiver, reply))) => {
                                let _ = receiver.send(reply).await;
                            }
                            Ok(None) => {}
                            Err(error) => return error,
                        }
                    }
                    if framing.dropped() > dropped {
                        dropped = framing.dropped();
                        debug!(dropped, "bytes of another session or noise");
                    }
                }
            },
            written = writer.write(&out), if !out.is_empty() => match written {
                Ok(0) | Err(_) => return LinkError::Closed,
                Ok(len) => { out.drain(..len); }
            },
            order = orders.recv(), if out.len() < guestline_protocol::MAX_FRAME_LEN => match order {
                Some(Order { id, body, sender }) => {
                    if framing.encode(session, &body, &mut out).is_ok() {
                        requests.open.insert(id, sender);
                    }
                }
                None => return LinkError::Closed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{ExecStartedEvent, PingResponse, encode};

    #[test]
    fn replies_find_their_request_until_the_last_one() {
        let mut requests = Requests::default();
        let (sender, _receiver) = mpsc::channel(1);
        requests.open.insert(3, sender);
        let started = Reply::ExecStarted(ExecStartedEvent { pid: 1 });
        let pong = Reply::Ping(PingResponse { token: 0, clock_us: 0 });
        let body = |id, reply: &Reply| encode(&Envelope { id, body: reply.clone() });
        assert!(requests.on_body(&body(4, &pong)).unwrap().is_none());
        assert!(requests.on_body(&body(3, &started)).unwrap().is_some());
        assert!(requests.on_body(&body(3, &pong)).unwrap().is_some());
        assert!(requests.on_body(&body(3, &pong)).unwrap().is_none());
        assert!(matches!(requests.on_body(b"\xff\xff"), Err(LinkError::Broken { .. })));
    }

    #[test]
    fn a_guest_that_only_strays_is_left() {
        let mut requests = Requests::default();
        let pong =
            encode(&Envelope { id: 9, body: Reply::Ping(PingResponse { token: 0, clock_us: 0 }) });
        let end = (0..=MAX_STRAY).find_map(|_| requests.on_body(&pong).err());
        assert!(matches!(end, Some(LinkError::Broken { .. })));
    }
}
