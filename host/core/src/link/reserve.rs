//! The reserve link: a serial line on which an agent without a port tells what it lacks, and then serves.

use crate::text::printable;
use guestline_protocol::{End, Framing, Reply, TtyFraming, decode};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

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

/// Reads the line until an agent tells its trouble; none when the line ends before. Cancel safe but for what was read:
/// a trouble that is half told then is lost.
pub async fn listen(stream: &mut UnixStream) -> Option<ReserveTrouble> {
    let mut framing = TtyFraming::new(End::Host);
    let mut buffer = vec![0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
        framing.push(&buffer[..len]);
        while let Some(frame) = framing.next_frame() {
            if let Ok(Reply::LinkTrouble(trouble)) = decode(frame.body) {
                let lacks = trouble.lacks.iter().take(MAX_LACKS).map(|text| printable(text));
                let lacks = lacks.collect();
                return Some(ReserveTrouble { kernel: printable(&trouble.kernel), lacks });
            }
        }
    }
    None
}
