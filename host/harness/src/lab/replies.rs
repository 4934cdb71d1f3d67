//! Replies to a client, a line each.

use guestline_guest::protocol::{ErrorKind, MAX_LINE, Reply};
use std::io;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;

pub(super) struct Replies {
    writer: OwnedWriteHalf,
    /// A line was begun and is not at its end: nothing else can be said any more.
    is_amid_line: bool,
}

impl Replies {
    pub(super) fn new(writer: OwnedWriteHalf) -> Self {
        Self { writer, is_amid_line: false }
    }

    /// Waits while the client is behind. Given up in mid-line, it is the last.
    pub(super) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        if self.is_amid_line {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let line = to_line(reply)?;
        self.is_amid_line = true;
        self.writer.write_all(&line).await?;
        self.is_amid_line = false;
        Ok(())
    }

    /// Last words, for a client that listens.
    pub(super) fn try_send(&mut self, reply: &Reply) {
        if let (false, Ok(line)) = (self.is_amid_line, to_line(reply)) {
            let _ = self.writer.try_write(&line);
        }
    }
}

pub(super) fn to_line(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    if line.len() > MAX_LINE {
        let message = format!("the answer is longer than {MAX_LINE} bytes");
        line = serde_json::to_vec(&Reply::error(ErrorKind::Limit, message))?;
    }
    line.push(b'\n');
    Ok(line)
}
