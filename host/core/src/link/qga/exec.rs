//! Processes by guest-exec: started with all their input, looked at until they have ended, their output given at
//! the end.

use super::super::LinkError;
use super::{QgaHandle, unsupported};
use guestline_protocol::{
    Command, ExecExitedEvent, ExecRequest, ExitStatus, RemoteError, ResourceUsage, StdinSource,
    Stream,
};
use qapi::qga::{GuestExecCaptureOutput, GuestExecStatus, guest_exec, guest_exec_status};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Between two looks at a process: at first, and at last.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(200);

/// The longest answer: the agent keeps at most 16 MiB of each output (QEMU `qga/commands.c`), in base64.
const MAX_ANSWER: usize = 48 * 1024 * 1024;

/// Input is one argument of one request.
const MAX_INPUT: usize = 8 * 1024 * 1024;

/// What a process has to say.
#[derive(Debug)]
pub(crate) enum QgaEvent {
    Started { pid: u32 },
    Output { stream: Stream, data: Vec<u8> },
    Exited(ExecExitedEvent),
    Refused(RemoteError),
}

/// A process. Dropping it leaves it running: nothing here can end it.
#[derive(Debug)]
pub(crate) struct QgaProcess {
    events: mpsc::UnboundedReceiver<Result<QgaEvent, LinkError>>,
    refuse: mpsc::UnboundedSender<Result<QgaEvent, LinkError>>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for QgaProcess {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

impl QgaProcess {
    /// The next event. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<QgaEvent, LinkError> {
        self.events.recv().await.unwrap_or(Err(LinkError::Closed))
    }

    /// Makes the next event the refusal of what was asked.
    pub(crate) fn refuse(&self, what: &'static str) {
        let _ = self.refuse.send(Err(unsupported(what)));
    }

    /// For whoever feeds it.
    pub(crate) fn refuser(&self) -> QgaRefuser {
        QgaRefuser(self.refuse.clone())
    }
}

/// The end of a process where things go in that cannot.
#[derive(Debug)]
pub(crate) struct QgaRefuser(mpsc::UnboundedSender<Result<QgaEvent, LinkError>>);

impl QgaRefuser {
    pub(crate) fn refuse(&self, what: &'static str) {
        let _ = self.0.send(Err(unsupported(what)));
    }
}

impl QgaHandle {
    /// Starts a process with all its input.
    pub(crate) async fn exec(
        &self,
        request: &ExecRequest,
        input: &[u8],
    ) -> Result<QgaProcess, LinkError> {
        let command = to_guest_exec(request, input)?;
        let (send, events) = mpsc::unbounded_channel();
        let refuse = send.clone();
        let began = Instant::now();
        let watching = match self.ask(&command).await {
            Ok(started) => {
                let shown = u32::try_from(started.pid).unwrap_or(0);
                let _ = send.send(Ok(QgaEvent::Started { pid: shown }));
                Some(tokio::spawn(watch(self.clone(), started.pid, began, send)))
            }
            Err(LinkError::Refused(error)) => {
                let _ = send.send(Ok(QgaEvent::Refused(error)));
                None
            }
            Err(error) => return Err(error),
        };
        Ok(QgaProcess { events, refuse, watching })
    }
}

/// Looks at a process until it has ended. On a task of its own: the agent tells an end only once.
async fn watch(
    handle: QgaHandle,
    pid: i64,
    began: Instant,
    events: mpsc::UnboundedSender<Result<QgaEvent, LinkError>>,
) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LAST_LOOK);
        match handle.ask_for(&guest_exec_status { pid }, MAX_ANSWER).await {
            Ok(status) if !status.exited => {}
            Ok(status) => {
                for event in ended(status, began.elapsed()) {
                    let _ = events.send(event);
                }
                return;
            }
            Err(error) => {
                let _ = events.send(Err(error));
                return;
            }
        }
    }
}

fn ended(status: GuestExecStatus, elapsed: Duration) -> Vec<Result<QgaEvent, LinkError>> {
    let mut events = Vec::new();
    let cut = status.out_truncated == Some(true) || status.err_truncated == Some(true);
    let mut total = 0;
    for (stream, data) in [(Stream::Stdout, status.out_data), (Stream::Stderr, status.err_data)] {
        let data = data.unwrap_or_default();
        total += data.len() as u64;
        if !data.is_empty() {
            events.push(Ok(QgaEvent::Output { stream, data }));
        }
    }
    if cut {
        events.push(Err(unsupported("carry more than 16 MiB of a process's output")));
        return events;
    }
    // Windows has longer ones: none of them may become a success, nor another's number.
    let byte = |number: i64| u8::try_from(number).unwrap_or(u8::MAX);
    let status = match (status.exitcode, status.signal) {
        (_, Some(signal)) => ExitStatus::Signaled { signal: byte(signal), core_dumped: false },
        (Some(code), None) => ExitStatus::Exited(byte(code)),
        (None, None) => {
            let what = "guest-exec-status: a process that ended in no way".to_owned();
            events.push(Err(LinkError::Broken { what }));
            return events;
        }
    };
    events.push(Ok(QgaEvent::Exited(ExecExitedEvent {
        status,
        output_held: false,
        cancelled: false,
        elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        usage: ResourceUsage::default(),
        total,
    })));
    events
}

fn to_guest_exec(request: &ExecRequest, input: &[u8]) -> Result<guest_exec, LinkError> {
    let refused = [
        (request.stdin == StdinSource::Channel && input.is_empty(), "stream standard input"),
        (input.len() > MAX_INPUT, "give a process more than 8 MiB of input"),
        (request.terminal.is_some(), "give a process a terminal"),
        (request.cwd.is_some(), "set a process's working folder"),
        (
            request.user.is_some() || request.group.is_some() || request.groups.is_some(),
            "run a process as another user",
        ),
        (request.umask.is_some(), "set a process's umask"),
        (!request.limits.is_empty(), "limit a process's resources"),
    ];
    if let Some((_, what)) = refused.into_iter().find(|(refused, _)| *refused) {
        return Err(unsupported(what));
    }
    let text = |bytes: &[u8]| {
        let what = "pass arguments or variables that are no UTF-8";
        String::from_utf8(bytes.to_vec()).map_err(|_| unsupported(what))
    };
    let mut words = match &request.command {
        Command::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text(line)?],
        Command::Argv(argv) => argv.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?,
    };
    let mut set = Vec::new();
    let mut unset = Vec::new();
    for change in &request.env {
        let name = text(&change.name)?;
        match &change.value {
            Some(value) => set.push(format!("{name}={}", text(value)?)),
            None => unset.extend(["-u".to_owned(), name]),
        }
    }
    // The agent takes a whole environment or none; changes to its own are made by env(1).
    let env = match request.clear_env {
        true => Some(set),
        false => {
            if !set.is_empty() || !unset.is_empty() {
                let mut changed = vec!["env".to_owned()];
                changed.extend(unset);
                changed.extend(set);
                changed.append(&mut words);
                words = changed;
            }
            None
        }
    };
    let mut words = words.into_iter();
    let path = words.next().unwrap_or_default();
    Ok(guest_exec {
        path,
        arg: Some(words.collect()),
        env,
        input_data: (!input.is_empty()).then(|| input.to_vec()),
        capture_output: Some(GuestExecCaptureOutput::flag(true)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{EnvChange, TerminalSize};

    fn request(words: &[&str]) -> ExecRequest {
        let words = words.iter().map(|word| word.as_bytes().to_vec().into());
        ExecRequest::new(Command::Argv(words.collect()))
    }

    fn variable(name: &str, value: Option<&str>) -> EnvChange {
        let bytes = |text: &str| text.as_bytes().to_vec().into();
        EnvChange { name: bytes(name), value: value.map(bytes) }
    }

    #[test]
    fn a_request_becomes_guest_exec() {
        let exec = to_guest_exec(&request(&["cmd.exe", "/c", "ver"]), b"in").unwrap();
        assert_eq!(
            (exec.path.as_str(), exec.arg),
            ("cmd.exe", Some(vec!["/c".into(), "ver".into()]))
        );
        assert_eq!((exec.env, exec.input_data), (None, Some(b"in".to_vec())));
        let shell = ExecRequest::new(Command::Shell(b"echo $HOME".to_vec().into()));
        assert_eq!(to_guest_exec(&shell, b"").unwrap().path, "/bin/sh");
    }

    #[test]
    fn the_environment_is_changed_or_replaced() {
        let mut wanted = request(&["prog", "x"]);
        wanted.env = vec![variable("A", Some("1")), variable("B", None)];
        let exec = to_guest_exec(&wanted, b"").unwrap();
        assert_eq!((exec.path.as_str(), exec.env), ("env", None));
        assert_eq!(exec.arg.unwrap(), ["-u", "B", "A=1", "prog", "x"]);
        wanted.clear_env = true;
        let exec = to_guest_exec(&wanted, b"").unwrap();
        assert_eq!((exec.path.as_str(), exec.env), ("prog", Some(vec!["A=1".to_owned()])));
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let why = |change: &dyn Fn(&mut ExecRequest)| {
            let mut wanted = request(&["true"]);
            change(&mut wanted);
            to_guest_exec(&wanted, b"").unwrap_err().to_string()
        };
        let cannot = |what: &str| format!("qemu-guest-agent cannot {what}");
        assert_eq!(why(&|r| r.stdin = StdinSource::Channel), cannot("stream standard input"));
        let size = TerminalSize { columns: 80, rows: 24 };
        assert_eq!(why(&|r| r.terminal = Some(size)), cannot("give a process a terminal"));
        assert_eq!(why(&|r| r.user = Some("x".into())), cannot("run a process as another user"));
        assert_eq!(why(&|r| r.umask = Some(0)), cannot("set a process's umask"));
        let folder = |r: &mut ExecRequest| r.cwd = Some(b"/".to_vec().into());
        assert_eq!(why(&folder), cannot("set a process's working folder"));
    }

    #[test]
    fn statuses_of_other_systems_are_no_success() {
        let status = |exitcode, signal| GuestExecStatus {
            exited: true,
            exitcode,
            signal,
            out_data: None,
            err_data: None,
            out_truncated: None,
            err_truncated: None,
        };
        let end = |status| match ended(status, Duration::ZERO).pop() {
            Some(Ok(QgaEvent::Exited(exited))) => exited.status,
            other => panic!("{other:?}"),
        };
        assert_eq!(end(status(Some(3), None)), ExitStatus::Exited(3));
        assert_eq!(end(status(Some(256), None)), ExitStatus::Exited(255));
        assert_eq!(end(status(Some(-1_073_741_819), None)), ExitStatus::Exited(255));
        let killed = ExitStatus::Signaled { signal: 9, core_dumped: false };
        assert_eq!(end(status(None, Some(9))), killed);
        assert!(matches!(
            ended(status(None, None), Duration::ZERO)[0],
            Err(LinkError::Broken { .. })
        ));
        let cut = GuestExecStatus { out_truncated: Some(true), ..status(Some(0), None) };
        assert!(matches!(ended(cut, Duration::ZERO)[0], Err(LinkError::Unsupported { .. })));
    }
}
