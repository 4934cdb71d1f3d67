//! Reboots and power-offs that a test asks for: announced, so that they are not held against it.

use super::session::limit;
use super::{Expected, Lab, LabError};
use guestline::guest::Guest;
use guestline::link::LinkError;
use guestline_guest::protocol::Reply;
use std::time::Duration;
use tokio::time::timeout;

/// A boot may take so long when nobody says otherwise.
const BOOT_MS: u64 = 120_000;

/// How long the end of a guest that powers off is waited for.
const OFF: Duration = Duration::from_secs(30);

/// How often one that is going down is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn reboot(
    lab: &Lab,
    machine: Option<&str>,
    timeout_ms: Option<u64>,
) -> Result<Reply, LabError> {
    let (name, guest) = lab.machine(machine)?;
    let limit = limit(timeout_ms.or(Some(BOOT_MS)));
    lab.announce.announce(name, Expected::Reboot);
    let rebooting = async {
        guest.reboot().await?;
        gone(guest).await;
        back(guest).await
    };
    match timeout(limit, rebooting).await {
        Ok(Ok(())) => {
            lab.announce.announce(name, Expected::Back);
            Ok(Reply::Done {})
        }
        Ok(Err(error)) => Err(LabError::link(name)(error)),
        Err(_) => Err(LabError::NotBack { machine: name.to_owned(), limit }),
    }
}

pub(super) async fn power_off(lab: &Lab, machine: Option<&str>) -> Result<Reply, LabError> {
    let (name, guest) = lab.machine(machine)?;
    lab.announce.announce(name, Expected::PowerOff);
    // That it is off is told by its machine ([`Lab::machine_ended`]), which may be quicker than the guest's answer.
    let going = async {
        match guest.power_off().await {
            Err(error) if !error.is_session_lost() => Err(error),
            _ => {
                gone(guest).await;
                Ok(())
            }
        }
    };
    match timeout(OFF, going).await {
        Ok(Err(error)) => Err(LabError::link(name)(error)),
        _ => Ok(Reply::Done {}),
    }
}

/// Waits until the session with an agent that is to go is over.
async fn gone(guest: &Guest) {
    while guest.ping().await.is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for another boot: an agent that answers may still be the one that is about to go.
async fn back(guest: &Guest) -> Result<(), LinkError> {
    loop {
        match guest.reconnect().await {
            Ok(true) => return Ok(()),
            Ok(false) => tokio::time::sleep(LOOK).await,
            Err(error) if error.is_session_lost() => {}
            Err(error) => return Err(error),
        }
    }
}
