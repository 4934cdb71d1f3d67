//! `guestline exec`: a command in a named machine, with its input, output and exit status.
//!
//! ```text
//! stdin ── feed ──> process ── output task ──> stdout, stderr
//!                      ^── this task: signals, window size, time limit
//! ```

use crate::args::ExecArgs;
use crate::error::CommandError;
use crate::machines::{self, Attached, FAILED, Failure};
use crate::signals::Heeded;
use crate::terminal::{self, RawTerminal, Shown};
use guestline::guest::{ExecControl, ExecEvent, ExecHandle, ExecInput};
use guestline::link::LinkError;
use guestline::text;
use guestline_protocol::{
    ByteBuf, Command, EnvChange, ErrorKind, ExecRequest, ExitStatus, RemoteError, StdinSource,
    Stream,
};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::SignalKind;

/// One read of standard input.
const PIECE: usize = 64 * 1024;

/// How long the end of a command that is being killed is waited for.
const KILLED: Duration = Duration::from_secs(5);

/// As of a program that the lack of a reader killed.
const BROKEN_PIPE: u8 = 128 + 13;

/// How a command ended, as far as this program is concerned.
enum End {
    Exited(ExitStatus),
    Refused(RemoteError),
    Link(LinkError),
    /// Nobody reads its output.
    Unread,
    /// Output could not be written.
    Write(io::Error),
}

pub(crate) fn run(args: &ExecArgs) -> Result<u8, CommandError> {
    let request = request(args)?;
    machines::run(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        exec(args, request, attached).await
    })
}

fn bytes(text: &OsStr) -> ByteBuf {
    ByteBuf::from(text.as_bytes())
}

fn request(args: &ExecArgs) -> Result<ExecRequest, CommandError> {
    let command = match args.shell {
        true => {
            let words: Vec<&[u8]> = args.argv.iter().map(|word| word.as_bytes()).collect();
            Command::Shell(ByteBuf::from(words.join(&b' ')))
        }
        false => Command::Argv(args.argv.iter().map(|word| bytes(word)).collect()),
    };
    let env = args.env.iter().map(|change| {
        let change = change.as_bytes();
        let (name, value) = match change.iter().position(|&byte| byte == b'=') {
            Some(at) => (&change[..at], Some(ByteBuf::from(&change[at + 1..]))),
            None => (change, None),
        };
        match name.is_empty() {
            true => Err(CommandError::new("--env wants NAME=VALUE, or NAME to take it out")),
            false => Ok(EnvChange { name: ByteBuf::from(name), value }),
        }
    });
    let reads = !args.no_stdin && terminal::may_read();
    // First, so that --env has the last word.
    let term = std::env::var_os("TERM").filter(|_| args.tty);
    let term =
        term.map(|term| EnvChange { name: ByteBuf::from(b"TERM"), value: Some(bytes(&term)) });
    Ok(ExecRequest {
        env: term.into_iter().map(Ok).chain(env).collect::<Result<_, _>>()?,
        cwd: args.cwd.as_deref().map(bytes),
        user: args.user.clone(),
        group: args.group.clone(),
        stdin: if reads { StdinSource::Channel } else { StdinSource::Closed },
        terminal: args.tty.then(terminal::size),
        ..ExecRequest::new(command)
    })
}

async fn exec(args: &ExecArgs, request: ExecRequest, attached: Attached) -> Result<u8, Failure> {
    let (up, guest) = (&attached.up, &attached.guest);
    let reads = request.stdin == StdinSource::Channel;
    // Listened to from here on: what comes before the command runs is for it too.
    let mut signals = Signals::listen()?;
    let mut process = match guest.exec(request).await {
        Ok(process) => process,
        Err(error) => return Err(up.explain(error).await),
    };
    let Some(input) = process.take_input() else { return Err(Failure::new("no way in")) };
    let control = input.control();
    let raw = if args.tty { RawTerminal::enter()? } else { None };
    let feeding = reads.then(|| tokio::spawn(feed(input)));
    let mut output = tokio::spawn(pass(process, args.tty));
    let limit = args.timeout.unwrap_or(Duration::MAX);
    let watching = watch(&mut signals, &control, args.tty);
    let (end, timed_out) = {
        let mut watching = std::pin::pin!(watching);
        tokio::select! {
            end = &mut output => (end.unwrap_or_else(|error| End::Write(io::Error::other(error))), false),
            status = &mut watching => {
                // The third signal: nothing more is waited for. What runs ends with our session.
                drop(raw);
                terminal::restore();
                return Ok(status);
            }
            () = tokio::time::sleep(limit) => {
                control.cancel();
                let end = tokio::time::timeout(KILLED, output).await;
                (end.ok().and_then(Result::ok).unwrap_or(End::Unread), true)
            }
        }
    };
    drop(raw);
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    let name = &args.name;
    if timed_out && !matches!(end, End::Link(_)) {
        let limit = text::limit(limit);
        return Err(Failure::new(format!("{name}: timed out after {limit}, and was killed")));
    }
    match end {
        End::Exited(ExitStatus::Exited(status)) => Ok(status),
        End::Exited(ExitStatus::Signaled { signal, .. }) => Ok(128_u8.saturating_add(signal)),
        End::Refused(error) => {
            Failure::new(format!("{name}: {error}")).print();
            Ok(match error.kind {
                ErrorKind::NotFound => 127,
                ErrorKind::NotExecutable => 126,
                _ => FAILED,
            })
        }
        End::Link(error) => Err(up.explain(error).await),
        End::Unread => Ok(BROKEN_PIPE),
        End::Write(error) => Err(Failure::new(format!("cannot write the output: {error}"))),
    }
}

/// Passes standard input on until it ends.
async fn feed(mut input: ExecInput) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; PIECE];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(len) => {
                // That the link has ended is told by the output.
                if input.write(&buffer[..len]).await.is_err() {
                    return;
                }
            }
        }
    }
    input.end();
}

/// Passes the output on until the command has ended.
async fn pass(mut process: ExecHandle, tty: bool) -> End {
    // A terminal of its own drives ours; nothing else may.
    let mut shown = [io::stdout().is_terminal(), io::stderr().is_terminal()]
        .map(|is_terminal| Shown::new(is_terminal && !tty));
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let (stream, data, end) = match process.next().await {
            Ok(ExecEvent::Started { .. }) => continue,
            Ok(ExecEvent::Output { stream, data }) => (stream, data, None),
            Ok(ExecEvent::Exited(exited)) => {
                (Stream::Stdout, Vec::new(), Some(End::Exited(exited.status)))
            }
            Ok(ExecEvent::Refused(error)) => return End::Refused(error),
            Err(error) => return End::Link(error),
        };
        let [shown_out, shown_err] = &mut shown;
        let written = match (&end, stream) {
            (None, Stream::Stdout) => write(&mut out, &shown_out.take(data)).await,
            (None, Stream::Stderr) => write(&mut err, &shown_err.take(data)).await,
            (Some(_), _) => match write(&mut out, &shown_out.rest()).await {
                Ok(()) => write(&mut err, &shown_err.rest()).await,
                wrong => wrong,
            },
        };
        match (written, end) {
            (Err(error), _) if error.kind() == io::ErrorKind::BrokenPipe => return End::Unread,
            (Err(error), _) => return End::Write(error),
            (Ok(()), Some(end)) => return end,
            (Ok(()), None) => {}
        }
    }
}

async fn write(to: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    to.write_all(bytes).await?;
    to.flush().await
}

struct Signals {
    hangup: Heeded,
    interrupt: Heeded,
    quit: Heeded,
    terminate: Heeded,
    resized: Heeded,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: Heeded::listen(SignalKind::hangup())?,
            interrupt: Heeded::listen(SignalKind::interrupt())?,
            quit: Heeded::listen(SignalKind::quit())?,
            terminate: Heeded::listen(SignalKind::terminate())?,
            resized: Heeded::listen(SignalKind::window_change())?,
        })
    }
}

/// The first signal goes to the command, the second kills it; the third ends this, with the status for it.
async fn watch(signals: &mut Signals, control: &ExecControl, tty: bool) -> u8 {
    let mut heard = 0;
    loop {
        let number = tokio::select! {
            () = signals.hangup.recv() => Signal::SIGHUP,
            () = signals.interrupt.recv() => Signal::SIGINT,
            () = signals.quit.recv() => Signal::SIGQUIT,
            () = signals.terminate.recv() => Signal::SIGTERM,
            () = signals.resized.recv() => {
                if tty {
                    control.resize(terminal::size());
                }
                continue;
            }
        };
        heard += 1;
        let number = u8::try_from(number as i32).unwrap_or(15);
        match heard {
            1 => control.signal(number, true),
            2 => control.cancel(),
            _ => return 128 + number,
        }
    }
}
