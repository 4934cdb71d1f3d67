//! One side's socket: connections are accepted and counted, those beyond the limit told so.

use super::replies::to_line;
use super::session::Session;
use super::{Lab, Side};
use guestline_guest::protocol::{ErrorKind, MAX_CONNECTIONS, Reply};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// When no connection can be accepted, as for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves one side until it is cancelled, which ends every wait of it and all that it had running. The socket is to be
/// in a folder that only this user can enter: whoever can connect is this side.
pub async fn serve(listener: UnixListener, lab: Arc<Lab>, side: Side, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match (accepted, places.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let session = Session::new(stream, lab.clone(), side.clone());
                let cancel = cancel.clone();
                connections.spawn(async move {
                    session.run(&cancel).await;
                    drop(place);
                });
            }
            (Ok((stream, _)), Err(_)) => refuse(&stream),
            (Err(error), _) => {
                debug!(%side, %error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// A new connection has room for a line.
fn refuse(stream: &UnixStream) {
    let message = format!("there are {MAX_CONNECTIONS} connections of this side already");
    if let Ok(line) = to_line(&Reply::error(ErrorKind::Limit, message)) {
        let _ = stream.try_write(&line);
    }
}
