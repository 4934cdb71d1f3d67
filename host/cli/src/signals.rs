//! Signals that interrupt a run: the first stops it gracefully, the second at once.

use guestline_harness::outcome::{Interrupt, RunEnd};
use std::sync::{Arc, OnceLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Remembers the first signal.
#[derive(Clone, Default)]
pub(crate) struct Interrupted(Arc<OnceLock<Interrupt>>);

impl Interrupted {
    pub(crate) fn get(&self) -> Option<Interrupt> {
        self.0.get().copied()
    }
}

/// Whoever started us wants us to outlive the terminal, as nohup(1) does (proc_pid_status(5), `SigIgn`).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// Listens from now on, in the runtime that calls.
pub(crate) fn listen(cancel: CancellationToken, bisect: bool) -> std::io::Result<Interrupted> {
    let interrupted = Interrupted::default();
    for (kind, interrupt) in [
        (SignalKind::hangup(), Interrupt::Hangup),
        (SignalKind::interrupt(), Interrupt::Interrupt),
        (SignalKind::terminate(), Interrupt::Terminate),
    ] {
        if interrupt == Interrupt::Hangup && hangup_is_ignored() {
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
