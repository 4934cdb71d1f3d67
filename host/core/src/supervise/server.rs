//! Serves clients on the link's socket: moves what [`super::proxy`] has judged.
//!
//! ```text
//! socket ── up: frames, in order ──> relayed channels of the machine's link
//!        <── write ── outbox ── one pump for each channel ──┘
//! ```
//! What waits for clients is bounded by the machine's [`Budget`]. When a client is gone, its channels are dropped, which
//! ends in the guest what they did.

mod client;
mod up;

use super::budget::Budget;
use crate::link::{Link, LinkError};
use crate::refusals::Refusals;
use client::Client;
use guestline_protocol::HelloResponse;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use up::Up;

/// At most so many clients at once; more wait. Each of them may have a frame under way, which takes memory.
const MAX_CLIENTS: usize = 128;

/// Whether the guest can be reached.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// Not now.
    Closed,
    /// Over this link; what is said to the agent is said in this session with it, counted.
    Open { epoch: u64, link: Link, hello: Box<HelloResponse>, heard: Instant },
}

impl Door {
    fn epoch(&self) -> Option<u64> {
        match self {
            Self::Closed => None,
            Self::Open { epoch, .. } => Some(*epoch),
        }
    }
}

/// What clients' traffic tells the owner.
#[derive(Debug, Clone)]
pub(super) enum Notice {
    /// The session with the agent is lost.
    SessionLost { epoch: u64, error: LinkError },
    /// The guest said that it is about to end or to boot.
    Leaving,
}

/// What every client needs.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) door: watch::Receiver<Door>,
    pub(super) notices: mpsc::UnboundedSender<Notice>,
    /// All clients are to go.
    pub(super) over: CancellationToken,
}

/// Takes clients until it is over.
pub(super) async fn accept(listener: UnixListener, around: Around) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let budget = Arc::new(Budget::default());
    let mut clients = JoinSet::new();
    let mut refusals = Refusals::default();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = around.over.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                while clients.try_join_next().is_some() {}
                let (around, budget) = (around.clone(), budget.clone());
                clients.spawn(async move {
                    let _place = place;
                    serve(stream, &around, &budget).await;
                });
            }
            // Those who are here go on.
            Err(error) => {
                if refusals.is_news() {
                    warn!(%error, "no client can be accepted for now");
                }
                refusals.pause().await;
            }
        }
    }
    while clients.join_next().await.is_some() {}
}

async fn serve(stream: UnixStream, around: &Around, budget: &Arc<Budget>) {
    let (reader, writer) = stream.into_split();
    let client = Arc::new(Client::new(around, budget));
    let writing = tokio::spawn(client::write(writer, client.clone()));
    let mut up = Up::new(client.clone(), around, budget);
    tokio::select! {
        // What it said before it left is heard, as far as nothing of it has to wait.
        biased;
        result = up.run(&reader) => {
            if let Err(error) = result {
                debug!(%error, "a client is cut off");
            }
        }
        () = closed(&reader) => {}
        () = client.cut.cancelled() => {}
    }
    up.leave();
    writing.abort();
}

/// Waits until the client has closed its end, be there something to read or not: what it has said last may wait for a
/// guest that takes nothing.
async fn closed(reader: &OwnedReadHalf) {
    // tokio counts the end of reading to this interest, and nothing else that a client would do.
    let _ = reader.ready(Interest::PRIORITY).await;
}

#[cfg(test)]
mod tests;
