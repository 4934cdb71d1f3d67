//! Signals that interrupt a run: the first stops it gracefully, the second at once.

use guestline_harness::outcome::{Interrupt, RunEnd};
use std::sync::{Arc, OnceLock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Remembers the first signal.
#[derive(Clone, Default)]
pub(crate) struct Interrupted(Arc<OnceLock<Interrupt>>);

impl Interrupted {
    pub(crate) fn get(&self) -> Option<Interrupt> {
        self.0.get().copied()
    }

    /// The exit status of who was interrupted.
    pub(crate) fn status(&self) -> u8 {
        RunEnd { interrupt: self.get(), ..RunEnd::default() }.status()
    }
}

/// Whoever started us wants this signal to pass us by, as nohup(1) does with SIGHUP, and a shell with the SIGINT of what it
/// starts in the background (proc_pid_status(5), `SigIgn`).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// A signal that is listened to, unless it was ignored when we began: then it stays ignored, and never comes.
pub(crate) struct Heeded(Option<Signal>);

impl Heeded {
    /// Listens from now on, in the runtime that calls.
    pub(crate) fn listen(kind: SignalKind) -> std::io::Result<Self> {
        (!is_ignored(kind)).then(|| signal(kind)).transpose().map(Self)
    }

    /// Waits for the next one. Cancel safe.
    pub(crate) async fn recv(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Listens from now on, in the runtime that calls; to a SIGINT that was ignored, too.
pub(crate) fn listen(cancel: CancellationToken, bisect: bool) -> std::io::Result<Interrupted> {
    listen_to(cancel, bisect, |kind| kind == SignalKind::hangup() && is_ignored(kind))
}

/// Listens from now on to what was not ignored.
pub(crate) fn listen_as_told(cancel: CancellationToken) -> std::io::Result<Interrupted> {
    listen_to(cancel, false, is_ignored)
}

fn listen_to(
    cancel: CancellationToken,
    bisect: bool,
    passes_by: impl Fn(SignalKind) -> bool,
) -> std::io::Result<Interrupted> {
    let interrupted = Interrupted::default();
    for (kind, interrupt) in [
        (SignalKind::hangup(), Interrupt::Hangup),
        (SignalKind::interrupt(), Interrupt::Interrupt),
        (SignalKind::terminate(), Interrupt::Terminate),
    ] {
        if passes_by(kind) {
            continue;
        }
        let mut signals = signal(kind)?;
        let (cancel, interrupted) = (cancel.clone(), interrupted.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if interrupted.0.set(interrupt).is_ok() {
                    cancel.cancel();
                    continue;
                }
                // QEMU dies with us, and the guard removes what we cannot.
                let end = RunEnd { interrupt: Some(interrupt), bisect, ..RunEnd::default() };
                std::process::exit(end.status().into());
            }
        });
    }
    Ok(interrupted)
}
