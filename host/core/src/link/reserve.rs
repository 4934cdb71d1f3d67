//! The reserve link: a serial line on which an agent without a port tells what it lacks.

use super::printable;
use guestline_protocol::{Framing, Reply, Session, TtyFraming, decode};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// At most so many things are shown of what a guest says it lacks.
const MAX_LACKS: usize = 8;

/// What an agent without a port tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveTrouble {
    /// The kernel that the guest runs, as it says.
    pub kernel: String,
    /// What it lacks, as it says.
    pub lacks: Vec<String>,
}

/// Reads the line for as long as the machine lives; the receiver gets the first trouble told.
pub fn listen(mut stream: UnixStream) -> oneshot::Receiver<ReserveTrouble> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let mut sender = Some(sender);
        let mut framing = TtyFraming::default();
        framing.accept_only(Session::NONE);
        let mut buffer = vec![0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            framing.push(&buffer[..len]);
            while let Some(frame) = framing.next_frame() {
                let Ok(message) = decode::<Reply>(&frame.body) else {
                    continue;
                };
                let Reply::LinkTrouble(trouble) = message.body else {
                    continue;
                };
                let lacks = trouble.lacks.iter().take(MAX_LACKS).map(|text| printable(text));
                let trouble =
                    ReserveTrouble { kernel: printable(&trouble.kernel), lacks: lacks.collect() };
                if let Some(sender) = sender.take() {
                    let _ = sender.send(trouble);
                }
            }
        }
    });
    receiver
}
