//! All that a test may do to a running guest: one API for every front end.

use crate::link::{Link, LinkError, clean, unexpected};
use guestline_protocol::{
    ByteBuf, Command, ExecExitedEvent, ExecRequest, HelloResponse, PingRequest, PowerOffRequest,
    RemoteError, Reply, Request, Stream,
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A guest whose agent answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guest {
    link: Link,
    hello: HelloResponse,
}

/// What a process in the guest has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs, under this process id.
    Started {
        /// In the guest.
        pid: u32,
    },
    /// It wrote.
    Output {
        /// Where to.
        stream: Stream,
        /// What: any bytes.
        data: Vec<u8>,
    },
    /// It is gone; the last event.
    Exited(ExecExitedEvent),
    /// It could not be started; the last event.
    Refused(RemoteError),
}

/// A process in the guest.
#[derive(Debug)]
pub struct ExecHandle {
    replies: mpsc::Receiver<Reply>,
    link: Link,
}

impl ExecHandle {
    /// The next event. Not to be called after the last one. Cancel safe.
    ///
    /// # Errors
    /// Why the link ended, or broke.
    pub async fn next(&mut self) -> Result<ExecEvent, LinkError> {
        match self.replies.recv().await {
            Some(Reply::ExecStarted(started)) => Ok(ExecEvent::Started { pid: started.pid }),
            Some(Reply::ExecOutput(output)) => {
                Ok(ExecEvent::Output { stream: output.stream, data: output.data.into_vec() })
            }
            Some(Reply::ExecExited(exited)) => Ok(ExecEvent::Exited(exited)),
            Some(Reply::Error(error)) => Ok(ExecEvent::Refused(clean(error))),
            Some(other) => Err(unexpected(&other)),
            None => Err(self.link.end().await),
        }
    }
}

impl Guest {
    pub(crate) fn new(link: Link, hello: HelloResponse) -> Self {
        Self { link, hello }
    }

    /// What the agent said of itself.
    pub fn agent(&self) -> &HelloResponse {
        &self.hello
    }

    /// Starts a process: a line for `/bin/sh -c`, or a program and its arguments.
    ///
    /// # Errors
    /// A command over the limit of a frame, or why the link is gone.
    pub async fn exec(&self, command: Command) -> Result<ExecHandle, LinkError> {
        let request = ExecRequest { command, env: Vec::new(), cwd: None };
        let replies = self.link.request(Request::Exec(request)).await?;
        Ok(ExecHandle { replies, link: self.link.clone() })
    }

    /// Runs a program to its end and returns its exit and its standard output, which must be short: at most `limit` bytes
    /// are kept.
    ///
    /// # Errors
    /// [`LinkError`], also when the program cannot be started.
    pub async fn output(
        &self,
        argv: &[&str],
        limit: usize,
    ) -> Result<(ExecExitedEvent, Vec<u8>), LinkError> {
        let words = argv.iter().map(|word| ByteBuf::from(word.as_bytes().to_vec())).collect();
        let mut process = self.exec(Command::Argv(words)).await?;
        let mut kept = Vec::new();
        loop {
            match process.next().await? {
                ExecEvent::Output { stream: Stream::Stdout, data } => {
                    let room = limit.saturating_sub(kept.len());
                    kept.extend_from_slice(&data[..data.len().min(room)]);
                }
                ExecEvent::Exited(exited) => return Ok((exited, kept)),
                ExecEvent::Refused(error) => return Err(LinkError::Refused(error)),
                _ => {}
            }
        }
    }

    /// Asks for a sign of life and returns how long it took.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        let started = Instant::now();
        let token = u64::from(started.elapsed().subsec_nanos()) | 1 << 40;
        match self.link.ask(Request::Ping(PingRequest { token })).await? {
            Reply::Ping(pong) if pong.token == token => Ok(started.elapsed()),
            other => Err(unexpected(&other)),
        }
    }

    /// Powers the guest off. The machine's end tells when that is done.
    ///
    /// # Errors
    /// [`LinkError`], though not when the guest was quicker than its answer.
    pub async fn power_off(&self) -> Result<(), LinkError> {
        match self.link.ask(Request::PowerOff(PowerOffRequest {})).await {
            Ok(Reply::PowerOff(_)) | Err(LinkError::Closed) => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        }
    }
}
