//! One stream each way, with its framing and what waits to be written.

use crate::link::transport::Lane;
use guestline_protocol::{FrameHead, Framing};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// What a frame that waits takes beside its bytes.
const OVERHEAD: usize = 64;

/// See the module.
pub(super) struct Port {
    pub(super) lane: Lane,
    pub(super) framing: Box<dyn Framing>,
    pub(super) out: Out,
}

impl Port {
    pub(super) fn new(lane: Lane, framing: Box<dyn Framing>) -> Self {
        Self { lane, framing, out: Out::default() }
    }

    pub(super) fn send(&mut self, head: FrameHead, buffer: Vec<u8>, now_ms: u64) {
        // A body over the limit was refused where it was made.
        if let Ok(bytes) = self.framing.seal(head, buffer, now_ms) {
            self.out.push(bytes);
        }
    }

    /// Should what is not urgent wait?
    pub(super) fn is_busy(&self) -> bool {
        !self.out.is_empty() || self.framing.is_congested()
    }

    /// Bytes of memory that what was sent and not taken by the guest holds.
    pub(super) fn backlog(&self) -> usize {
        self.out.len.saturating_add(self.framing.kept())
    }

    /// Drops what waits: its session is over.
    pub(super) fn forget(&mut self) {
        self.out.forget();
        self.framing.forget();
    }
}

/// Bytes that wait to be written.
#[derive(Default)]
pub(super) struct Out {
    frames: VecDeque<Vec<u8>>,
    /// Bytes of the first one that are written.
    written: usize,
    /// Bytes of all, with what they take beside.
    len: usize,
    /// Since when nothing was written though something waited.
    stands_since: Option<Instant>,
}

impl Out {
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        self.stands_since.get_or_insert_with(Instant::now);
        self.len += bytes.len() + OVERHEAD;
        self.frames.push_back(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops what waits but for a frame that is half out: the guest must never see half of one.
    fn forget(&mut self) {
        self.frames.truncate(usize::from(self.written > 0));
        self.len = self.frames.iter().map(|frame| frame.len() + OVERHEAD).sum();
        if self.frames.is_empty() {
            self.stands_since = None;
        }
    }

    /// Writes once, and tells for how long nothing could be written before. Cancel safe.
    pub(super) async fn write(
        &mut self,
        writer: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> io::Result<Duration> {
        let Some(first) = self.frames.front() else { return std::future::pending().await };
        let len = writer.write(&first[self.written..]).await?;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += len;
        if self.written >= first.len() {
            self.len -= first.len() + OVERHEAD;
            self.frames.pop_front();
            self.written = 0;
        }
        let now = Instant::now();
        let stood = self.stands_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.stands_since = (!self.frames.is_empty()).then_some(now);
        Ok(stood)
    }
}

/// Reads once. Cancel safe.
pub(super) async fn read(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    framing: &mut Box<dyn Framing>,
    len: usize,
) -> io::Result<usize> {
    let len = reader.read(framing.space(len)).await?;
    framing.filled(len);
    Ok(len)
}

/// A future that may not be there; then it is never ready.
pub(super) struct OptionFuture<F>(pub(super) Option<F>);

impl<F: Future> OptionFuture<F> {
    pub(super) async fn wait(self) -> F::Output {
        match self.0 {
            Some(future) => future.await,
            None => std::future::pending().await,
        }
    }
}
