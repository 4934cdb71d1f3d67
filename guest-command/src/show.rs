//! Does one request and shows its answer: as a program does, or as one JSON object.

use crate::arguments::Invocation;
use crate::protocol::{ErrorKind, Reply, Request, Stream, Trouble};
use crate::{Connection, ConnectionError, Data, FAILED, TIMED_OUT, stdin};
use serde_json::{Value, json};
use std::io::{self, Write};

/// As a script says that its test does not apply, and that it failed.
const SKIPPED: u8 = 77;
const SAID_NO: u8 = 1;

/// Something could not be copied.
const INCOMPLETE: u8 = 1;

/// As of a program that the lack of a reader killed.
const BROKEN_PIPE: u8 = 128 + 13;

/// As JSON, so much of each output is kept.
const MAX_KEPT: usize = 16 * 1024 * 1024;

/// What was kept of the output, for the JSON.
#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn add(&mut self, stream: Stream, data: &[u8]) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let room = MAX_KEPT.saturating_sub(kept.len());
        self.truncated |= data.len() > room;
        kept.extend_from_slice(&data[..data.len().min(room)]);
    }

    fn into(self, object: &mut Value) {
        object["stdout"] = value(&Data(self.stdout));
        object["stderr"] = value(&Data(self.stderr));
        if self.truncated {
            object["truncated"] = true.into();
        }
    }
}

/// Sends the request, shows what comes and returns the exit status.
pub(crate) fn perform(
    invocation: &Invocation,
    connection: Connection,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let mut kept = Kept::default();
    let last = match converse(invocation, connection, &mut kept, out, err) {
        Ok(last) => last,
        Err(Stopped::Connection(error)) => {
            return failure(error.word(), &error.to_string(), invocation.json, out, err);
        }
        Err(Stopped::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return BROKEN_PIPE;
        }
        Err(Stopped::Output(error)) => {
            let message = format!("cannot write the output: {error}");
            return failure("output", &message, false, out, err);
        }
    };
    let status = status(&invocation.request, &last);
    let shown = match invocation.json {
        true => show_json(&invocation.request, &last, kept, out),
        false => show(&last, out, err),
    };
    match shown {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => BROKEN_PIPE,
        Err(_) => FAILED,
        Ok(()) => status,
    }
}

/// Says that Guestline failed.
pub(crate) fn failure(
    kind: &str,
    message: &str,
    as_json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    // There is nobody else to tell.
    let _ = match as_json {
        true => writeln!(out, "{}", json!({"error": {"kind": kind, "message": message}})),
        false => writeln!(err, "guest: {message}"),
    };
    FAILED
}

enum Stopped {
    Connection(ConnectionError),
    Output(io::Error),
}

impl From<ConnectionError> for Stopped {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

/// Sends the request and passes output on, up to the last reply.
fn converse(
    invocation: &Invocation,
    mut connection: Connection,
    kept: &mut Kept,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Reply, Stopped> {
    connection.send(&invocation.request)?;
    let reads = matches!(&invocation.request, Request::Exec(exec) if exec.stdin);
    let pump = match reads {
        true => Some(stdin::pump(connection.writer().map_err(Stopped::Output)?)),
        false => None,
    };
    loop {
        match connection.reply()? {
            Reply::Taken {} => {
                // The thread has ended with its input.
                let _ = pump.as_ref().map(|taken| taken.send(()));
            }
            Reply::Output { stream, data } if invocation.json => kept.add(stream, &data.0),
            // The output of an attempt in vain is no result.
            Reply::Output { stream: Stream::Stdout, data }
                if !matches!(invocation.request, Request::Wait(_)) =>
            {
                write(out, &data.0).map_err(Stopped::Output)?;
            }
            Reply::Output { data, .. } => write(err, &data.0).map_err(Stopped::Output)?,
            last => return Ok(last),
        }
    }
}

fn write(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn status(request: &Request, last: &Reply) -> u8 {
    match last {
        Reply::Exited { status, .. } => *status,
        Reply::Copied { troubles, trouble_count, .. } => {
            if troubles.is_empty() && *trouble_count == 0 { 0 } else { INCOMPLETE }
        }
        Reply::Error { kind, .. } => match (kind, request) {
            (ErrorKind::Timeout, _) => TIMED_OUT,
            (ErrorKind::NotFound, Request::Exec(_)) => 127,
            (ErrorKind::NotExecutable, Request::Exec(_)) => 126,
            _ => FAILED,
        },
        _ => match request {
            Request::Skip { .. } => SKIPPED,
            Request::Fail { .. } => SAID_NO,
            _ => 0,
        },
    }
}

fn show(last: &Reply, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    match last {
        Reply::Error { message, .. } => writeln!(err, "guest: {message}"),
        Reply::Copied { troubles, trouble_count, .. } => {
            for Trouble { path, error } in troubles {
                let path = String::from_utf8_lossy(&path.0);
                let at = if path.is_empty() { String::new() } else { format!("{path}: ") };
                writeln!(err, "guest: {}{error}", printable(&at))?;
            }
            let told = troubles.len() as u64;
            match trouble_count.saturating_sub(told) {
                0 => Ok(()),
                more => writeln!(err, "guest: and {more} more"),
            }
        }
        Reply::Facts { facts } => {
            writeln!(out, "{}", serde_json::to_string_pretty(facts).unwrap_or_default())
        }
        Reply::Value { value } => {
            out.write_all(&value.0)?;
            writeln!(out)
        }
        _ => Ok(()),
    }?;
    out.flush()
}

/// A path of a guest as it may be shown.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

fn show_json(request: &Request, last: &Reply, kept: Kept, out: &mut dyn Write) -> io::Result<()> {
    let mut object = match last {
        Reply::Error { kind, message } => {
            json!({"error": {"kind": kind.word(), "message": message}})
        }
        Reply::Facts { facts } => facts.clone(),
        last => {
            let mut object = serde_json::to_value(last)?;
            if let Some(fields) = object.as_object_mut() {
                fields.remove("reply");
            }
            object
        }
    };
    let has_output = matches!(request, Request::Exec(_))
        || matches!((request, last), (Request::Wait(_), Reply::Error { .. }));
    if has_output && object.is_object() {
        kept.into(&mut object);
    }
    writeln!(out, "{object}")?;
    out.flush()
}

fn value(data: &Data) -> Value {
    serde_json::to_value(data).unwrap_or_default()
}

#[cfg(test)]
mod tests;
