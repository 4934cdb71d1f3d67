//! How a machine ended: synchronous, fed with QMP events and the process's exit.

use super::process::Exit;
use super::qmp::QmpEvent;

/// How a machine ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest's kernel panicked (pvpanic, QMP `GUEST_PANICKED`).
    Panicked,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset: a reboot, or a triple fault.
    Reset,
    /// QEMU is gone, or cannot go on.
    QemuDied {
        /// How its process ended, or why it stopped the guest, in words.
        how: String,
        /// The signal that killed it, when we did not send it.
        signal: Option<i32>,
        /// The last lines of its standard error.
        stderr: String,
    },
}

impl Ending {
    pub(super) fn unknown() -> Self {
        Self::QemuDied { how: "is gone".to_owned(), signal: None, stderr: String::new() }
    }
}

pub(super) enum LifeEvent {
    Qmp(QmpEvent),
    Exited(Exit),
}

/// Knows whether the machine has ended: the first ending counts.
#[derive(Default)]
pub(super) struct LifeState {
    ended: bool,
}

impl LifeState {
    /// The ending, when this event is it.
    pub(super) fn on_event(&mut self, event: LifeEvent) -> Option<Ending> {
        let ending = match event {
            LifeEvent::Qmp(QmpEvent::GuestPanicked) => Ending::Panicked,
            LifeEvent::Qmp(QmpEvent::GuestShutdown) => Ending::PoweredOff,
            LifeEvent::Qmp(QmpEvent::GuestReset) => Ending::Reset,
            LifeEvent::Qmp(QmpEvent::GuestReboots | QmpEvent::Other) => return None,
            LifeEvent::Qmp(QmpEvent::DiskFailed(why)) => Ending::QemuDied {
                how: format!("stopped the guest: {why}"),
                signal: None,
                stderr: String::new(),
            },
            LifeEvent::Exited(Exit { how, signal, stderr }) => {
                Ending::QemuDied { how, signal, stderr }
            }
        };
        let first = !std::mem::replace(&mut self.ended, true);
        first.then_some(ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_is_the_end() {
        let failed = LifeEvent::Qmp(QmpEvent::DiskFailed("a disk is full".to_owned()));
        let ended = LifeState::default().on_event(failed);
        let Some(Ending::QemuDied { how, signal: None, .. }) = ended else { panic!("{ended:?}") };
        assert_eq!(how, "stopped the guest: a disk is full");
    }

    #[test]
    fn the_first_ending_counts() {
        let mut life = LifeState::default();
        assert_eq!(life.on_event(LifeEvent::Qmp(QmpEvent::Other)), None);
        assert_eq!(life.on_event(LifeEvent::Qmp(QmpEvent::GuestReboots)), None);
        let panicked = life.on_event(LifeEvent::Qmp(QmpEvent::GuestPanicked));
        assert_eq!(panicked, Some(Ending::Panicked));
        assert_eq!(life.on_event(LifeEvent::Qmp(QmpEvent::GuestReset)), None);
        let exit = Exit { how: "exited".into(), signal: None, stderr: String::new() };
        assert_eq!(life.on_event(LifeEvent::Exited(exit)), None);
    }
}
