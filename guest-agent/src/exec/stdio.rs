//! What a command has as descriptors 0, 1 and 2, and our ends of it.

use super::input::{Input, Sink};
use super::output::Output;
use super::terminal::terminal;
use super::{INPUT_WINDOW, errno, system};
use guestline_protocol::{ExecRequest, RemoteError, StdinSource, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Our ends.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) outputs: [Option<Output>; 2],
    pub(super) input: Input,
    pub(super) terminal: Option<Rc<OwnedFd>>,
    /// Credit for the input.
    pub(super) window: u32,
}

/// The command's ends; closed here once it runs.
#[derive(Debug)]
pub(super) enum Theirs {
    Terminal(OwnedFd),
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
}

impl Theirs {
    /// Descriptors 0, 1 and 2, with `null` for an input that is closed.
    pub(super) fn stdio<'a>(&'a self, null: BorrowedFd<'a>) -> [BorrowedFd<'a>; 3] {
        match self {
            Self::Terminal(slave) => [slave.as_fd(); 3],
            Self::Pipes { stdin, stdout, stderr } => {
                let stdin = stdin.as_ref().map_or(null, AsFd::as_fd);
                [stdin, stdout.as_fd(), stderr.as_fd()]
            }
        }
    }
}

/// Pipes for the outputs of the next command: ends to read from, and to write to.
#[derive(Debug)]
pub(super) struct Pipes {
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
}

impl Pipes {
    pub(super) fn open() -> nix::Result<Self> {
        let pipe = || {
            let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
            Ok::<_, nix::Error>((ours, above(theirs)?))
        };
        Ok(Self { stdout: pipe()?, stderr: pipe()? })
    }
}

/// Opens the descriptors of a command that runs as `uid`.
///
/// # Errors
/// `System` when there are no more descriptors, or no terminals.
pub(super) fn stdio(
    request: &ExecRequest,
    uid: Option<u32>,
    ready: &mut Option<Pipes>,
) -> Result<(Ours, Theirs), RemoteError> {
    let window = match request.stdin {
        StdinSource::Closed => 0,
        StdinSource::Channel => INPUT_WINDOW,
    };
    if let Some(size) = request.terminal {
        let opened = terminal(size, uid).and_then(|(ours, theirs)| Ok((ours, above(theirs)?)));
        let (ours, theirs) =
            opened.map_err(|errno| system(errno, "cannot open a pseudo-terminal"))?;
        let ours = Rc::new(ours);
        let mut input = Input::new(Sink::Terminal(ours.clone()), window);
        if window == 0 {
            // A terminal cannot be read to its end unless that is typed.
            input.end(0);
        }
        let output = Output::new(ours.clone(), Stream::Stdout, true);
        let outputs = [Some(output), None];
        return Ok((
            Ours { outputs, input, terminal: Some(ours), window },
            Theirs::Terminal(theirs),
        ));
    }
    pipes(window, ready).map_err(|errno| system(errno, "cannot open pipes"))
}

fn pipes(window: u32, ready: &mut Option<Pipes>) -> nix::Result<(Ours, Theirs)> {
    let (stdin, sink) = if window == 0 {
        (None, Sink::Gone)
    } else {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        // The other end must go on blocking.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        (Some(above(theirs)?), Sink::Pipe(ours))
    };
    let Pipes { stdout, stderr } = match ready.take() {
        Some(pipes) => pipes,
        None => Pipes::open()?,
    };
    let outputs = [
        Some(Output::new(Rc::new(stdout.0), Stream::Stdout, false)),
        Some(Output::new(Rc::new(stderr.0), Stream::Stderr, false)),
    ];
    let ours = Ours { outputs, input: Input::new(sink, window), terminal: None, window };
    Ok((ours, Theirs::Pipes { stdin, stdout: stdout.1, stderr: stderr.1 }))
}

/// The same descriptor with a number above 2, so that no other becomes it before its turn.
pub(super) fn above(fd: OwnedFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // The standard library duplicates to 3 and above.
    fd.try_clone().map_err(|error| errno(&error))
}
