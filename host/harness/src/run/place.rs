//! Where a step runs: a leased machine, or whatever an agent was started in.

use guestline::guest::Guest;
use guestline::machine::{CpuShare, Ending};
use guestline::provision::Lease;
use guestline::supervise::MachineName;

/// A place where steps run.
#[derive(Debug)]
pub(super) enum Place {
    /// A machine of ours.
    Machine(Box<Lease>),
    /// An agent that somebody else started, or that runs here as a process.
    Agent(Guest),
}

impl Place {
    pub(super) fn guest(&self) -> &Guest {
        match self {
            Self::Machine(lease) => &lease.guest,
            Self::Agent(guest) => guest,
        }
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Machine(lease) => Some(lease),
            Self::Agent(_) => None,
        }
    }

    /// Waits until the machine has ended; for ever where there is none of ours. Cancel safe.
    pub(super) async fn ended(&self) -> Ending {
        match self {
            Self::Machine(lease) => lease.machine.ended().await,
            Self::Agent(_) => std::future::pending().await,
        }
    }

    /// How the machine ended, if it does so within the time that its death takes to be seen.
    pub(super) async fn ended_soon(&self) -> Option<Ending> {
        match self {
            Self::Machine(lease) => lease.machine.ended_soon().await,
            Self::Agent(_) => None,
        }
    }

    /// What the host gives its QEMU.
    pub(super) fn cpu_share(&self) -> Option<CpuShare> {
        self.lease().map(|lease| lease.machine.cpu_share())
    }
}

/// The machines of an attempt: the one without a name, or several with names.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) machines: Vec<(Option<MachineName>, Place)>,
}

impl Places {
    /// The first machine, which is the only one of most tests.
    pub(super) fn first(&self) -> Option<&Place> {
        self.machines.first().map(|(_, place)| place)
    }
}

/// The first of these that is ready; of none, nothing ever. Cancel safe.
pub(super) async fn first_of<T>(mut waits: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> T {
    std::future::poll_fn(|context| {
        for wait in &mut waits {
            if let std::task::Poll::Ready(value) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready(value);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
