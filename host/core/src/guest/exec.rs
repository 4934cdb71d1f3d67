//! Processes in the guest.

use super::{Guest, Way};
use crate::link::qga::{QgaEvent, QgaProcess, QgaRefuser, unsupported};
use crate::link::{
    Arrival, ChannelReader, ChannelTeller, ChannelWriter, LinkError, OUTPUT_WINDOW, clean,
    data_buffer, unexpected,
};
use guestline_protocol::{
    CancelEvent, Command, ExecExitedEvent, ExecRequest, MAX_DATA_LEN, RemoteError, Reply, Request,
    SignalEvent, StdinSource, Stream, TerminalSize,
};

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

/// A process in the guest. Dropping it before its last event kills the process and all that it started; over a
/// qemu-guest-agent, which cannot end a process, it goes on.
#[derive(Debug)]
pub struct ExecHandle {
    source: Source,
    input: Option<ExecInput>,
}

#[derive(Debug)]
enum Source {
    Agent(ChannelReader),
    Qga(QgaProcess),
}

/// What goes into a process: its standard input, signals, the size of its terminal.
#[derive(Debug)]
pub struct ExecInput {
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Agent(ChannelWriter),
    /// What cannot be done is told by the process, as its next event.
    Qga(QgaRefuser),
}

const SIGNAL: &str = "send a signal to a process";
const RESIZE: &str = "give a process a terminal";
const CANCEL: &str = "end a process";
const STREAM: &str = "stream standard input";

/// What a process gave when it was run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub exited: ExecExitedEvent,
    /// Standard output, as much as was to be kept.
    pub stdout: Vec<u8>,
    /// Standard error, as much as was to be kept.
    pub stderr: Vec<u8>,
}

impl ExecHandle {
    /// The next event. Not to be called after the last one. Cancel safe.
    ///
    /// # Errors
    /// Why the link ended, or broke.
    pub async fn next(&mut self) -> Result<ExecEvent, LinkError> {
        let reader = match &mut self.source {
            Source::Agent(reader) => reader,
            Source::Qga(process) => {
                return Ok(match process.next().await? {
                    QgaEvent::Started { pid } => ExecEvent::Started { pid },
                    QgaEvent::Output { stream, data } => ExecEvent::Output { stream, data },
                    QgaEvent::Exited(exited) => ExecEvent::Exited(exited),
                    QgaEvent::Refused(error) => ExecEvent::Refused(error),
                });
            }
        };
        match reader.next().await? {
            Arrival::Data { stream, bytes } => Ok(ExecEvent::Output { stream, data: bytes }),
            Arrival::Reply(Reply::ExecStarted(started)) => {
                Ok(ExecEvent::Started { pid: started.pid })
            }
            Arrival::Reply(Reply::ExecExited(exited)) => Ok(ExecEvent::Exited(exited)),
            Arrival::Reply(Reply::Error(error)) => Ok(ExecEvent::Refused(clean(error))),
            Arrival::Reply(other) => Err(unexpected(&other)),
        }
    }

    /// Kills the process and all that it started; its exit still comes. Over a qemu-guest-agent, that it cannot is
    /// the next event.
    pub fn cancel(&self) {
        match &self.source {
            Source::Agent(reader) => reader.cancel(),
            Source::Qga(process) => process.refuse(CANCEL),
        }
    }

    /// What goes into it, for another task. Given once.
    pub fn take_input(&mut self) -> Option<ExecInput> {
        self.input.take()
    }
}

/// Signals and the like for a process, from another task than the one that writes its input. Cheap to clone. Does
/// nothing over a qemu-guest-agent.
#[derive(Debug, Clone)]
pub struct ExecControl {
    teller: Option<ChannelTeller>,
}

impl ExecControl {
    /// See [`ExecInput::signal`].
    pub fn signal(&self, signal: u8, group: bool) {
        self.tell(&Request::Signal(SignalEvent { signal, group }));
    }

    /// See [`ExecInput::resize`].
    pub fn resize(&self, size: TerminalSize) {
        self.tell(&Request::Resize(size));
    }

    /// See [`ExecHandle::cancel`].
    pub fn cancel(&self) {
        self.tell(&Request::Cancel(CancelEvent {}));
    }

    fn tell(&self, request: &Request) {
        if let Some(teller) = &self.teller {
            teller.tell(request);
        }
    }
}

impl ExecInput {
    /// For another task.
    pub fn control(&self) -> ExecControl {
        match &self.sink {
            Sink::Agent(writer) => ExecControl { teller: Some(writer.teller()) },
            Sink::Qga(_) => ExecControl { teller: None },
        }
    }

    /// Writes to its standard input, as fast as it reads. What it does not read any more is dropped.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let writer = match &mut self.sink {
            Sink::Agent(writer) => writer,
            Sink::Qga(_) => return Err(unsupported(STREAM)),
        };
        for piece in bytes.chunks(MAX_DATA_LEN) {
            let mut buffer = data_buffer(piece.len());
            buffer.extend_from_slice(piece);
            writer.send(buffer).await?;
        }
        Ok(())
    }

    /// Closes its standard input, when all that was written has been read.
    pub fn end(&self) {
        if let Sink::Agent(writer) = &self.sink {
            writer.end();
        }
    }

    /// Sends it a signal, or its whole process group.
    pub fn signal(&self, signal: u8, group: bool) {
        match &self.sink {
            Sink::Agent(writer) => writer.tell(&Request::Signal(SignalEvent { signal, group })),
            Sink::Qga(process) => process.refuse(SIGNAL),
        }
    }

    /// Its terminal has another size.
    pub fn resize(&self, size: TerminalSize) {
        match &self.sink {
            Sink::Agent(writer) => writer.tell(&Request::Resize(size)),
            Sink::Qga(process) => process.refuse(RESIZE),
        }
    }
}

impl Guest {
    /// Starts a process.
    ///
    /// # Errors
    /// A command over the limit of a frame, or why the link is gone.
    pub async fn exec(&self, mut request: ExecRequest) -> Result<ExecHandle, LinkError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => return Ok(over_qga(qga.exec(&request, &[]).await?)),
        };
        request.credit = link.window(OUTPUT_WINDOW);
        let credit = request.credit;
        let channel = link.channel(&Request::Exec(request), credit).await?;
        let (reader, writer) = channel.split();
        let input = Some(ExecInput { sink: Sink::Agent(writer) });
        Ok(ExecHandle { source: Source::Agent(reader), input })
    }

    /// Runs a process to its end, with `input` to read, and keeps at most `limit` bytes of each output.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] when it cannot be started.
    pub async fn run(
        &self,
        mut request: ExecRequest,
        input: &[u8],
        limit: usize,
    ) -> Result<ExecOutput, LinkError> {
        let mut process = match &self.way {
            Way::Agent(_) => {
                if !input.is_empty() {
                    request.stdin = StdinSource::Channel;
                }
                self.exec(request).await?
            }
            Way::Qga(qga) => {
                request.stdin = StdinSource::Closed;
                over_qga(qga.exec(&request, input).await?)
            }
        };
        let stdin = process.take_input().filter(|input| matches!(input.sink, Sink::Agent(_)));
        let feed = async {
            if let Some(mut stdin) = stdin
                && !input.is_empty()
            {
                // That the link has ended is told by the process.
                let _ = stdin.write(input).await;
                stdin.end();
            }
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let listen = async {
            loop {
                match process.next().await? {
                    ExecEvent::Started { .. } => {}
                    ExecEvent::Output { stream, data } => {
                        let kept = match stream {
                            Stream::Stdout => &mut stdout,
                            Stream::Stderr => &mut stderr,
                        };
                        let room = limit.saturating_sub(kept.len());
                        kept.extend_from_slice(&data[..data.len().min(room)]);
                    }
                    ExecEvent::Exited(exited) => return Ok(exited),
                    ExecEvent::Refused(error) => return Err(LinkError::Refused(error)),
                }
            }
        };
        let exited = {
            let mut listen = std::pin::pin!(listen);
            // The process's word ends it, also when it reads no more.
            tokio::select! {
                biased;
                exited = &mut listen => exited,
                () = feed => listen.await,
            }
        };
        Ok(ExecOutput { exited: exited?, stdout, stderr })
    }

    /// Runs a program to its end and returns its exit and its standard output, of which at most `limit` bytes are kept.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub async fn output(
        &self,
        argv: &[&str],
        limit: usize,
    ) -> Result<(ExecExitedEvent, Vec<u8>), LinkError> {
        let words = argv.iter().map(|word| word.as_bytes().to_vec().into()).collect();
        let output = self.run(ExecRequest::new(Command::Argv(words)), &[], limit).await?;
        Ok((output.exited, output.stdout))
    }
}

fn over_qga(process: QgaProcess) -> ExecHandle {
    let sink = Sink::Qga(process.refuser());
    ExecHandle { source: Source::Qga(process), input: Some(ExecInput { sink }) }
}
