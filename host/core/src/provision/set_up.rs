//! The lines of a layer: what makes a machine more than booted.

use super::layer::{Layer, LayerFiles};
use super::lease::{LeaseError, SetUpFailure, SetUpStep};
use super::making::Plan;
use super::start::{NotStarted, Running};
use crate::capture::PANIC_MARK;
use crate::guest::{FilesError, Guest};
use crate::link::LinkError;
use crate::machine::{Ending, Machine};
use crate::text;
use guestline_protocol::{
    ByteBuf, Command, EnvChange, ErrorKind, ExecRequest, ExitStatus, RemoteError,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So much of a line's output is read, and so much of its end is shown.
const OUTPUT: usize = 1024 * 1024;
const OUTPUT_SHOWN: usize = 4096;

/// How long a line may take, and whether it is wanted still.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetUpTerms<'a> {
    pub(super) limit: Duration,
    pub(super) cancel: &'a CancellationToken,
}

impl<'a> SetUpTerms<'a> {
    /// Of a layer's lines.
    pub(super) fn of(plan: Plan<'a>) -> Self {
        Self { limit: plan.request.set_up_timeout, cancel: plan.cancel }
    }
}

/// Puts the files of a layer into a machine and runs its lines, one after the other; the first that does not end with
/// status 0 is the last.
pub(super) async fn set_up(
    terms: SetUpTerms<'_>,
    machine: &Machine,
    guest: &Guest,
    layer: &Layer,
) -> Result<(), LeaseError> {
    let SetUpTerms { limit, cancel } = terms;
    let limit = layer.timeout.unwrap_or(limit);
    let failed_at = |line: &str, failure| {
        let step = SetUpStep { line: line.to_owned(), name: layer.name.clone() };
        LeaseError::SetUp { step: Box::new(step), failure }
    };
    for LayerFiles { from, to, .. } in &layer.files {
        let brought = tokio::select! {
            biased;
            brought = guest.bring(from, to) => brought,
            ending = machine.ended() => {
                return Err(ended_in_set_up(ending, |failure| failed_at(to, failure)));
            }
            () = cancel.cancelled() => return Err(LeaseError::Cancelled),
        };
        match brought {
            Ok(()) => {}
            Err(FilesError::Link(error)) => return Err(LeaseError::Link(error)),
            Err(error) => {
                let message = text::chain(&error);
                let error = RemoteError { kind: ErrorKind::System, errno: None, message };
                return Err(failed_at(to, SetUpFailure::Refused { error }));
            }
        }
    }
    for line in &layer.lines {
        let failed = |failure| failed_at(line, failure);
        let bytes = |text: &str| ByteBuf::from(text.as_bytes().to_vec());
        let change = |(name, value): &(String, String)| EnvChange {
            name: bytes(name),
            value: Some(bytes(value)),
        };
        let request = ExecRequest {
            env: layer.env.iter().map(change).collect(),
            cwd: layer.cwd.as_deref().map(bytes),
            ..ExecRequest::new(Command::Shell(bytes(line)))
        };
        let before = machine.cpu_share();
        let ran = tokio::select! {
            biased;
            ran = guest.run(request, &[], OUTPUT) => ran,
            ending = machine.ended() => return Err(ended_in_set_up(ending, failed)),
            () = cancel.cancelled() => return Err(LeaseError::Cancelled),
            () = tokio::time::sleep(limit) => {
                let starved = machine.cpu_share().waited_since(&before);
                return Err(failed(SetUpFailure::TimedOut { limit, starved }));
            }
        };
        match ran {
            Ok(output) if output.exited.status == ExitStatus::Exited(0) => {}
            Ok(output) => {
                let (status, mut said) = (output.exited.status, output.stdout);
                said.extend(output.stderr);
                let from = said.len().saturating_sub(OUTPUT_SHOWN);
                let output = String::from_utf8_lossy(said.get(from..).unwrap_or_default());
                let output = output.trim_end().to_owned();
                return Err(failed(SetUpFailure::Ended { status, output }));
            }
            Err(LinkError::Refused(error)) => {
                return Err(failed(SetUpFailure::Refused { error }));
            }
            // A guest that goes down takes the link with it first.
            Err(error) => {
                return Err(match machine.ended_soon().await {
                    Some(ending) => ended_in_set_up(ending, failed),
                    None => LeaseError::Link(error),
                });
            }
        }
    }
    Ok(())
}

/// Ends a machine whose set-up did not do. A kernel without pvpanic panics into a reset (`panic=-1`): its console tells.
pub(super) async fn not_set_up(mut running: Running, mut error: LeaseError) -> NotStarted {
    running.machine.kill().await;
    let _ = running.console.finish().await;
    let console = running.console.last_lines();
    if let LeaseError::SetUp { failure: SetUpFailure::GuestEnded(ending), .. } = &mut error
        && *ending == Ending::Reset
        && console.iter().any(|line| line.text.contains(PANIC_MARK))
    {
        *ending = Ending::Panicked;
    }
    NotStarted { error, console }
}

fn ended_in_set_up(ending: Ending, failed: impl Fn(SetUpFailure) -> LeaseError) -> LeaseError {
    match ending {
        Ending::QemuDied { .. } => LeaseError::ended(ending),
        ending => failed(SetUpFailure::GuestEnded(ending)),
    }
}
