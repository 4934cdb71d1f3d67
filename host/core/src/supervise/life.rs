//! What becomes of a machine that is up: synchronous, without a clock or I/O; the owner feeds it and does what it answers.
//!
//! ```text
//!            rebooted, agent anew                 no answer in time, link gone
//! Ready ──────────────────────────> Rebooting ──────────────────────────────────> Lost
//!   │ ^──────── session opened ─────────┴─────────── session opened ──────────────┘ ^
//!   └──────────────────── agent silent, reads nothing ─────────────────────────────┘
//!   └── down ──> GoingDown ── powered off, or grace over ──> the end; so does every ending of the machine
//! ```

use super::control::{How, MachineState};
use crate::link::LinkError;
use crate::machine::Ending;

/// What happened.
#[derive(Debug)]
pub(super) enum LifeEvent {
    /// The guest boots again.
    Rebooted,
    /// Somebody met an agent that is lost to this session with it.
    SessionLost { epoch: u64, error: LinkError },
    /// The attempt to open a session has ended; true when the agent, and so perhaps the guest, began anew.
    Reopened(Result<bool, LinkError>),
    /// A guest that reboots has taken too long.
    Overdue,
    /// The link is gone for good.
    LinkEnded(LinkError),
    /// The machine has ended.
    Ended(Ending),
    /// It is to go down; `force` without asking the guest.
    Down { force: bool },
    /// The guest was asked to power off, and takes too long.
    GraceOver,
}

/// What the owner has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Open a new session, whatever was being opened; `again`: in the time that it had for that already.
    Reopen { again: bool },
    /// Tell the state.
    Publish,
    /// Ask the guest to power off.
    PowerOff,
    /// End what is left, for this reason.
    End(How),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Life {
    state: MachineState,
    going_down: bool,
    /// Counts the sessions with the agent, also those that could not be opened.
    epoch: u64,
    /// Counts the agents that answered: the guest's boots.
    boot: u64,
    /// Why the guest is lost.
    why: Option<String>,
    /// There is a machine, and not only a link.
    owns_machine: bool,
}

impl Life {
    /// Of a machine whose agent has answered.
    pub(super) fn new(owns_machine: bool) -> Self {
        Self {
            state: MachineState::Ready,
            going_down: false,
            epoch: 1,
            boot: 1,
            why: None,
            owns_machine,
        }
    }

    pub(super) fn state(&self) -> MachineState {
        self.state
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) fn why(&self) -> Option<String> {
        self.why.clone()
    }

    pub(super) fn on_event(&mut self, event: LifeEvent) -> Vec<Action> {
        match event {
            LifeEvent::Ended(Ending::PoweredOff) if self.going_down => vec![Action::End(How::Down)],
            LifeEvent::Ended(ending) => vec![Action::End(match ending {
                Ending::Panicked => How::Panicked,
                Ending::PoweredOff => How::PoweredOff,
                Ending::Reset => How::Reset,
                Ending::QemuDied { .. } => How::QemuDied,
            })],
            LifeEvent::Down { force: true } | LifeEvent::GraceOver => {
                vec![Action::End(if self.owns_machine { How::Killed } else { How::LetGo })]
            }
            LifeEvent::Down { force: false } if self.going_down => Vec::new(),
            // There is nobody to ask.
            LifeEvent::Down { .. } if !self.owns_machine => vec![Action::End(How::LetGo)],
            LifeEvent::Down { .. } if self.state != MachineState::Ready => {
                vec![Action::End(How::Killed)]
            }
            LifeEvent::Down { .. } => {
                self.going_down = true;
                vec![Action::PowerOff]
            }
            // A guest that was told to power off and reboots instead is down enough.
            LifeEvent::Rebooted if self.going_down => vec![Action::End(How::Killed)],
            LifeEvent::Rebooted => self.reopen(MachineState::Rebooting, None),
            LifeEvent::SessionLost { epoch, error }
                if epoch == self.epoch && self.state == MachineState::Ready && !self.going_down =>
            {
                match error {
                    LinkError::Restarted => self.reopen(MachineState::Rebooting, None),
                    error => self.reopen(MachineState::Lost, Some(error.to_string())),
                }
            }
            LifeEvent::SessionLost { .. } => Vec::new(),
            LifeEvent::Reopened(Ok(began_anew)) => {
                self.boot += u64::from(began_anew);
                self.become_(MachineState::Ready, None)
            }
            // Another agent took the place of the one that was greeted.
            LifeEvent::Reopened(Err(error)) if error.is_session_lost() => {
                vec![Action::Reopen { again: true }]
            }
            LifeEvent::Reopened(Err(error)) | LifeEvent::LinkEnded(error) => {
                match self.owns_machine {
                    true => self.become_(MachineState::Lost, Some(error.to_string())),
                    false => vec![Action::End(How::LinkEnded)],
                }
            }
            LifeEvent::Overdue if self.state == MachineState::Rebooting => {
                let why = "its agent has not answered since it rebooted";
                self.become_(MachineState::Lost, Some(why.to_owned()))
            }
            LifeEvent::Overdue => Vec::new(),
        }
    }

    fn reopen(&mut self, state: MachineState, why: Option<String>) -> Vec<Action> {
        self.epoch += 1;
        // One that resets again on its way has no more time.
        let again = self.state == MachineState::Rebooting;
        let mut actions = self.become_(state, why);
        actions.push(Action::Reopen { again });
        actions
    }

    fn become_(&mut self, state: MachineState, why: Option<String>) -> Vec<Action> {
        self.state = state;
        self.why = why;
        vec![Action::Publish]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse::Pulse;
    use std::time::Duration;

    fn lost(epoch: u64, error: LinkError) -> LifeEvent {
        LifeEvent::SessionLost { epoch, error }
    }

    #[test]
    fn a_reboot_is_told_opens_a_session_and_is_over() {
        let mut life = Life::new(true);
        assert_eq!(
            life.on_event(LifeEvent::Rebooted),
            [Action::Publish, Action::Reopen { again: false }]
        );
        assert_eq!((life.state(), life.epoch()), (MachineState::Rebooting, 2));
        // Late news of the session before.
        assert_eq!(life.on_event(lost(1, LinkError::Restarted)), []);
        assert_eq!(life.on_event(LifeEvent::Reopened(Ok(true))), [Action::Publish]);
        assert_eq!((life.state(), life.boot()), (MachineState::Ready, 2));
        assert_eq!(life.on_event(lost(1, LinkError::Restarted)), []);
        let anew = life.on_event(lost(2, LinkError::Restarted));
        assert_eq!(anew, [Action::Publish, Action::Reopen { again: false }]);
        let again = life.on_event(LifeEvent::Reopened(Err(LinkError::Restarted)));
        assert_eq!(again, [Action::Reopen { again: true }]);
    }

    #[test]
    fn boots_are_counted_by_the_agents_that_answer() {
        let mut life = Life::new(true);
        // Some machines reset twice on their way.
        for again in [false, true] {
            let actions = [Action::Publish, Action::Reopen { again }];
            assert_eq!(life.on_event(LifeEvent::Rebooted), actions);
            assert_eq!(life.boot(), 1);
        }
        life.on_event(LifeEvent::Reopened(Ok(true)));
        assert_eq!(life.boot(), 2);
        // A session that was lost by silence says nothing of a boot.
        let silent = LinkError::Silent { waited: Duration::from_secs(60), guest: Pulse::Idle };
        let actions = life.on_event(lost(life.epoch(), silent));
        assert_eq!(actions, [Action::Publish, Action::Reopen { again: false }]);
        assert_eq!(life.state(), MachineState::Lost);
        assert!(life.why().unwrap().contains("no sign of life"), "{:?}", life.why());
        // Should it reset now, it has all its time.
        let mut reset = Life { why: None, ..life };
        let actions = [Action::Publish, Action::Reopen { again: false }];
        assert_eq!(reset.on_event(LifeEvent::Rebooted), actions);
        let mut life = Life { state: MachineState::Lost, ..reset };
        life.on_event(LifeEvent::Reopened(Ok(false)));
        assert_eq!((life.state(), life.boot(), life.why()), (MachineState::Ready, 2, None));
    }

    #[test]
    fn a_guest_that_does_not_come_back_is_lost_until_it_does() {
        let mut life = Life::new(true);
        life.on_event(LifeEvent::Rebooted);
        life.on_event(LifeEvent::Overdue);
        assert_eq!(life.state(), MachineState::Lost);
        assert!(life.why().is_some());
        life.on_event(LifeEvent::Reopened(Ok(true)));
        assert_eq!((life.state(), life.why()), (MachineState::Ready, None));
        assert_eq!(life.on_event(LifeEvent::Overdue), []);
    }

    #[test]
    fn going_down_is_asked_first_and_forced_then() {
        let mut life = Life::new(true);
        assert_eq!(life.on_event(LifeEvent::Down { force: false }), [Action::PowerOff]);
        assert_eq!(life.on_event(LifeEvent::Down { force: false }), []);
        assert_eq!(life.on_event(lost(1, LinkError::Restarted)), []);
        let off = LifeEvent::Ended(Ending::PoweredOff);
        assert_eq!(life.on_event(off), [Action::End(How::Down)]);
        assert_eq!(life.on_event(LifeEvent::GraceOver), [Action::End(How::Killed)]);
        assert_eq!(life.on_event(LifeEvent::Down { force: true }), [Action::End(How::Killed)]);
    }

    #[test]
    fn what_was_not_asked_for_is_told_as_what_it_is() {
        let ends = |ending| Life::new(true).on_event(LifeEvent::Ended(ending));
        assert_eq!(ends(Ending::PoweredOff), [Action::End(How::PoweredOff)]);
        assert_eq!(ends(Ending::Panicked), [Action::End(How::Panicked)]);
        let mut life = Life::new(true);
        life.on_event(LifeEvent::LinkEnded(LinkError::Closed));
        assert_eq!(life.state(), MachineState::Lost);
        // Nobody is there to be asked.
        assert_eq!(life.on_event(LifeEvent::Down { force: false }), [Action::End(How::Killed)]);
    }

    #[test]
    fn a_machine_that_is_not_ours_is_left_alone() {
        let mut life = Life::new(false);
        assert_eq!(life.on_event(LifeEvent::Down { force: false }), [Action::End(How::LetGo)]);
        let ended = life.on_event(LifeEvent::LinkEnded(LinkError::Closed));
        assert_eq!(ended, [Action::End(How::LinkEnded)]);
    }
}
