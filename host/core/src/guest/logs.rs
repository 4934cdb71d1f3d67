//! Logs of the guest as they grow, each line with both clocks.

use super::{ExecEvent, ExecHandle, Guest};
use crate::clock::now_us;
use crate::link::{Arrival, Channel, LinkError, WINDOW, clean, unexpected};
use crate::text::escape;
use guestline_protocol::log::LogParser;
use guestline_protocol::{
    ByteBuf, Command, ErrorKind, ExecRequest, ExitStatus, FollowRequest, LogSource, RemoteError,
    Reply, Request, Stream,
};
use std::collections::VecDeque;

/// A line is cut after so many bytes.
const MAX_LINE_LEN: usize = 64 * 1024;

/// Where syslog writes: on Debian, and elsewhere.
const SYSLOGS: [&str; 2] = ["/var/log/syslog", "/var/log/messages"];

/// What is asked of a transport here.
const READ_LOGS: &str = "read logs as they grow";

/// A log of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Log {
    /// The kernel's (/dev/kmsg).
    Kernel,
    /// The journal of systemd, by its own `journalctl`.
    Journal,
    /// The file that syslog writes: `/var/log/syslog`, or `/var/log/messages`.
    Syslog,
    /// Any file, over its rotation.
    File(Vec<u8>),
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Host's wall clock when it came, microseconds since 1970.
    pub host_us: u64,
    /// Guest's wall clock: when the guest wrote it, where the log says so, or when the agent read it.
    pub guest_us: u64,
    /// Its text without the end of the line; any bytes.
    pub text: Vec<u8>,
}

impl LogLine {
    /// The text as it may be shown.
    pub fn to_text(&self) -> String {
        escape(&self.text)
    }
}

/// A log that is read. Dropping it ends that.
#[derive(Debug)]
pub struct LogStream {
    source: Source,
    lines: VecDeque<LogLine>,
    /// A line whose end has not come.
    partial: Vec<u8>,
    partial_us: u64,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    Agent { channel: Channel, parser: LogParser, kernel: bool },
    Journal { process: ExecHandle, stderr: Vec<u8> },
}

impl Guest {
    /// Reads a log, from its start or from now on, to its end or, with `follow`, as it grows.
    ///
    /// # Errors
    /// [`LinkError`]; that there is no such log is told by [`LogStream::next`].
    pub async fn log(
        &self,
        log: &Log,
        from_start: bool,
        follow: bool,
    ) -> Result<LogStream, LinkError> {
        self.link_to(READ_LOGS)?;
        let source = match log {
            Log::Journal => {
                let lines = if from_start { "--lines=all" } else { "--lines=0" };
                let mut words = vec!["journalctl", "--quiet", "--output=json", "--no-pager", lines];
                words.extend(follow.then_some("--follow"));
                let words = words.into_iter().map(|word| ByteBuf::from(word.as_bytes()));
                let process = self.exec(ExecRequest::new(Command::Argv(words.collect()))).await?;
                Source::Journal { process, stderr: Vec::new() }
            }
            Log::Kernel => self.follow(LogSource::Kernel, from_start, follow).await?,
            Log::File(path) => {
                self.follow(LogSource::File(ByteBuf::from(path.clone())), from_start, follow)
                    .await?
            }
            Log::Syslog => {
                let source = LogSource::File(ByteBuf::from(self.syslog().await?));
                self.follow(source, from_start, follow).await?
            }
        };
        let (lines, partial) = (VecDeque::new(), Vec::new());
        Ok(LogStream { source, lines, partial, partial_us: 0, ended: false })
    }

    async fn syslog(&self) -> Result<&'static [u8], LinkError> {
        for path in SYSLOGS {
            match self.stat(path.as_bytes(), true).await {
                Ok(_) => return Ok(path.as_bytes()),
                Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let [first, second] = SYSLOGS;
        let message =
            format!("this guest has no syslog: neither `{first}` nor `{second}` is there");
        Err(refused(ErrorKind::NotFound, message))
    }

    async fn follow(
        &self,
        source: LogSource,
        from_start: bool,
        follow: bool,
    ) -> Result<Source, LinkError> {
        let kernel = source == LogSource::Kernel;
        let link = self.link_to(READ_LOGS)?;
        let credit = link.window(WINDOW);
        let request = Request::Follow(FollowRequest { source, from_start, follow, credit });
        let channel = link.channel(&request, credit).await?;
        Ok(Source::Agent { channel, parser: LogParser::default(), kernel })
    }
}

impl LogStream {
    /// The next line; none at the end. Cancel safe.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] when there is no such log.
    pub async fn next(&mut self) -> Result<Option<LogLine>, LinkError> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), LinkError> {
        match &mut self.source {
            Source::Agent { channel, parser, kernel } => match channel.next().await? {
                Arrival::Data { bytes, .. } => {
                    let records = parser
                        .push(&bytes)
                        .map_err(|error| LinkError::Broken { what: error.to_string() })?;
                    let kernel = *kernel;
                    for record in records {
                        match kernel {
                            true => self.push_line(record.clock_us, record.text),
                            false => self.push_piece(record.clock_us, &record.text),
                        }
                    }
                }
                // How much there was; all of it has come before.
                Arrival::Reply(Reply::End(_)) => {}
                Arrival::Reply(Reply::Done(_)) => self.end(),
                Arrival::Reply(Reply::Error(error)) => {
                    return Err(LinkError::Refused(clean(error)));
                }
                Arrival::Reply(other) => return Err(unexpected(&other)),
            },
            Source::Journal { process, stderr } => match process.next().await? {
                ExecEvent::Output { stream: Stream::Stdout, data } => {
                    let clock_us = now_us();
                    self.push_piece(clock_us, &data);
                }
                ExecEvent::Output { data, .. } => {
                    let room = 1024_usize.saturating_sub(stderr.len());
                    stderr.extend_from_slice(&data[..data.len().min(room)]);
                }
                ExecEvent::Exited(exited) if exited.status == ExitStatus::Exited(0) => self.end(),
                ExecEvent::Exited(_) => {
                    let message = format!("journalctl: {}", escape(stderr).trim());
                    return Err(refused(ErrorKind::System, message));
                }
                ExecEvent::Refused(error) if error.kind == ErrorKind::NotFound => {
                    let message = format!("this guest has no journal of systemd: {error}");
                    return Err(refused(ErrorKind::NotFound, message));
                }
                ExecEvent::Refused(error) => return Err(LinkError::Refused(error)),
                ExecEvent::Started { .. } => {}
            },
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        if !self.partial.is_empty() {
            let text = std::mem::take(&mut self.partial);
            self.push_line(self.partial_us, text);
        }
    }

    /// A piece of text that may end anywhere.
    fn push_piece(&mut self, clock_us: u64, text: &[u8]) {
        for piece in text.split_inclusive(|&byte| byte == b'\n') {
            let (line, whole) = match piece {
                [line @ .., b'\n'] => (line, true),
                line => (line, false),
            };
            let room = MAX_LINE_LEN.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&line[..line.len().min(room)]);
            self.partial_us = clock_us;
            if whole {
                let text = std::mem::take(&mut self.partial);
                self.push_line(clock_us, text);
            }
        }
    }

    fn push_line(&mut self, guest_us: u64, text: Vec<u8>) {
        let host_us = now_us();
        let line = match self.source {
            Source::Journal { .. } => journal_line(host_us, guest_us, &text),
            Source::Agent { .. } => LogLine { host_us, guest_us, text },
        };
        self.lines.push_back(line);
    }
}

fn refused(kind: ErrorKind, message: String) -> LinkError {
    LinkError::Refused(RemoteError::new(kind, message))
}

/// An entry of the journal in its JSON form (systemd.journal-fields(7)) as "name\[pid]: message".
fn journal_line(host_us: u64, read_us: u64, text: &[u8]) -> LogLine {
    let Ok(entry) = serde_json::from_slice::<serde_json::Value>(text) else {
        return LogLine { host_us, guest_us: read_us, text: text.to_vec() };
    };
    let field = |name: &str| entry[name].as_str().unwrap_or_default();
    let message = match &entry["MESSAGE"] {
        // Bytes that are no UTF-8 come as numbers.
        serde_json::Value::Array(bytes) => {
            bytes.iter().map(|byte| byte.as_u64().unwrap_or(0) as u8).collect()
        }
        message => message.as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    let mut line = field("SYSLOG_IDENTIFIER").as_bytes().to_vec();
    if !field("_PID").is_empty() {
        line.extend(format!("[{}]", field("_PID")).into_bytes());
    }
    line.extend(b": ");
    line.extend(message);
    let guest_us = field("__REALTIME_TIMESTAMP").parse().unwrap_or(read_us);
    LogLine { host_us, guest_us, text: line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_journal_becomes_a_line() {
        let entry = br#"{"SYSLOG_IDENTIFIER":"sshd","_PID":"7","MESSAGE":"hello","__REALTIME_TIMESTAMP":"1700000000000001"}"#;
        let line = journal_line(1, 2, entry);
        assert_eq!(
            (line.text.as_slice(), line.guest_us),
            (&b"sshd[7]: hello"[..], 1_700_000_000_000_001)
        );
        let line = journal_line(1, 2, br#"{"SYSLOG_IDENTIFIER":"x","MESSAGE":[255,10]}"#);
        assert_eq!(line.text, b"x: \xff\n");
        assert_eq!(journal_line(1, 2, b"no json").text, b"no json");
    }
}
