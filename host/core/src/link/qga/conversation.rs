//! The task that owns the stream to a qemu-guest-agent: one request, one answer.
//!
//! ```text
//! out of step ── FF, guest-sync-delimited with a drawn number ──> FF, that number ── in step
//!      ^──────────────── no answer in time, half an answer, too long an answer ──────┘
//! ```
//! The byte FF, which no UTF-8 has, ends whatever a reader was in the midst of, on both sides (QEMU
//! `qga/qapi-schema.json`, guest-sync-delimited).

use super::super::endpoint::{Endpoint, EndpointError};
use super::super::{Lane, LinkError};
use super::refusal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// Ends what came before it.
const SENTINEL: u8 = 0xff;

/// An answer to a sync is no longer, bytes.
const MAX_SYNC: usize = 4096;

/// One read.
const READ: usize = 64 * 1024;

/// How long is waited for a new agent before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(2);
const DIAL_AGAIN: Duration = Duration::from_millis(200);

/// What callers want of the task.
#[derive(Debug)]
pub(super) enum Order {
    /// A request, its answer being at most `max` bytes long.
    Ask {
        name: &'static str,
        line: String,
        max: usize,
        patience: Duration,
        /// None when nobody waits for it.
        reply: Option<oneshot::Sender<Result<Value, LinkError>>>,
    },
    /// Until an agent answers.
    Reopen { reply: oneshot::Sender<Result<(), LinkError>> },
}

pub(super) struct Conversation {
    stream: Option<Stream>,
    endpoint: Option<Endpoint>,
    in_step: bool,
}

struct Stream {
    lane: Lane,
    lines: Lines,
}

impl Conversation {
    pub(super) fn new(lane: Lane, endpoint: Option<Endpoint>) -> Self {
        let stream = Some(Stream { lane, lines: Lines::default() });
        Self { stream, endpoint, in_step: false }
    }

    /// Serves until nobody can ask any more.
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                // Who asked is gone, and what is not asked needs no answer.
                Order::Ask { reply: Some(reply), .. } if reply.is_closed() => {}
                Order::Ask { name, line, max, patience, reply } => {
                    let asked = tokio::time::timeout(patience, self.ask(name, &line, max)).await;
                    let answer =
                        asked.unwrap_or(Err(LinkError::NoAnswer { what: name, waited: patience }));
                    if let Err(error) = &answer
                        && !matches!(error, LinkError::Refused(_))
                    {
                        debug!(name, %error, "out of step with the qemu-guest-agent");
                        self.in_step = false;
                    }
                    if let Some(reply) = reply {
                        let _ = reply.send(answer);
                    }
                }
                Order::Reopen { mut reply } => {
                    let opened = tokio::select! {
                        opened = self.reopen() => opened,
                        () = reply.closed() => continue,
                    };
                    let _ = reply.send(opened);
                }
            }
        }
    }

    async fn ask(&mut self, name: &str, line: &str, max: usize) -> Result<Value, LinkError> {
        if !self.in_step {
            self.sync().await?;
        }
        // Until the whole answer is here the stream belongs to this request.
        self.in_step = false;
        let result = self.answer(name, line, max).await;
        self.in_step = matches!(result, Ok(_) | Err(LinkError::Refused(_)));
        result
    }

    async fn answer(&mut self, name: &str, line: &str, max: usize) -> Result<Value, LinkError> {
        let stream = self.stream()?;
        stream.write(format!("{line}\n").as_bytes()).await?;
        loop {
            let line = stream.line(max).await?;
            // What is neither an answer nor a refusal is noise, and passed over.
            let Ok(mut value) = serde_json::from_slice::<Value>(&line) else { continue };
            if let Some(error) = value.get("error") {
                return Err(refusal(name, error));
            }
            if let Some(answer) = value.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// Brings both ends into step: what is under way is answered to nobody.
    async fn sync(&mut self) -> Result<(), LinkError> {
        // 53 bits: a number that every JSON reader keeps.
        let id = (ulid::Ulid::generate().0 & ((1 << 53) - 1)) as u64;
        let line = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let stream = self.stream()?;
        let mut bytes = vec![SENTINEL];
        bytes.extend_from_slice(format!("{line}\n").as_bytes());
        stream.write(&bytes).await?;
        loop {
            stream.past_sentinel().await?;
            let Ok(line) = stream.line(MAX_SYNC).await else { continue };
            let value = serde_json::from_slice::<Value>(&line).unwrap_or_default();
            if value["return"].as_u64() == Some(id) {
                self.in_step = true;
                return Ok(());
            }
        }
    }

    /// A new start with whatever agent answers, over a new stream where the old one has ended.
    async fn reopen(&mut self) -> Result<(), LinkError> {
        loop {
            if self.stream.is_none() {
                let Some(endpoint) = &self.endpoint else { return Err(LinkError::Closed) };
                match dial(endpoint).await {
                    Ok(lane) => self.stream = Some(Stream { lane, lines: Lines::default() }),
                    Err(error) => {
                        debug!(%error, "no qemu-guest-agent yet");
                        tokio::time::sleep(DIAL_AGAIN).await;
                        continue;
                    }
                }
            }
            match tokio::time::timeout(TRY_AGAIN, self.sync()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    self.stream = None;
                    if self.endpoint.is_none() {
                        return Err(error);
                    }
                    tokio::time::sleep(DIAL_AGAIN).await;
                }
                // Nobody is there yet, or is busy.
                Err(_) => {}
            }
        }
    }

    fn stream(&mut self) -> Result<&mut Stream, LinkError> {
        if self.stream.as_ref().is_some_and(|stream| stream.lines.ended) {
            self.stream = None;
        }
        self.stream.as_mut().ok_or(LinkError::Closed)
    }
}

async fn dial(endpoint: &Endpoint) -> Result<Lane, EndpointError> {
    match endpoint {
        Endpoint::Qga(path) => endpoint.dial_qga(path).await,
        _ => Err(EndpointError::NoLink { endpoint: endpoint.clone() }),
    }
}

impl Stream {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let written = async {
            self.lane.writer.write_all(bytes).await?;
            self.lane.writer.flush().await
        };
        match written.await {
            Ok(()) => Ok(()),
            Err(_) => {
                self.lines.ended = true;
                Err(LinkError::Closed)
            }
        }
    }

    async fn line(&mut self, max: usize) -> Result<Vec<u8>, LinkError> {
        self.lines.line(&mut *self.lane.reader, max).await
    }

    async fn past_sentinel(&mut self) -> Result<(), LinkError> {
        self.lines.past_sentinel(&mut *self.lane.reader).await
    }
}

/// Bytes that have arrived, cut at newlines. Cancel safe.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// Bytes of it already searched.
    searched: usize,
    ended: bool,
}

impl Lines {
    /// The next line, without its end and without what a sentinel ended.
    async fn line(
        &mut self,
        reader: &mut (dyn AsyncRead + Send + Unpin),
        max: usize,
    ) -> Result<Vec<u8>, LinkError> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.pop();
                if let Some(at) = line.iter().rposition(|&byte| byte == SENTINEL) {
                    line.drain(..=at);
                }
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > max {
                (self.buffer, self.searched) = (Vec::new(), 0);
                let what = format!("an answer of more than {max} bytes");
                return Err(LinkError::Broken { what });
            }
            self.read(reader).await?;
        }
    }

    /// Drops everything up to the next sentinel.
    async fn past_sentinel(
        &mut self,
        reader: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<(), LinkError> {
        loop {
            self.searched = 0;
            if let Some(at) = self.buffer.iter().position(|&byte| byte == SENTINEL) {
                self.buffer.drain(..=at);
                return Ok(());
            }
            self.buffer.clear();
            self.read(reader).await?;
        }
    }

    async fn read(&mut self, reader: &mut (dyn AsyncRead + Send + Unpin)) -> Result<(), LinkError> {
        self.buffer.reserve(READ);
        match reader.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => {
                self.ended = true;
                Err(LinkError::Closed)
            }
        }
    }
}
