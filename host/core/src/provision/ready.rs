//! When a machine that has booted is ready: as its image says.

use super::lease::LeaseError;
use crate::guest::Guest;
use crate::image::Ready;
use crate::machine::{DiskBus, MachineSpec};
use crate::text;
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::time::{Duration, Instant};

/// More is not read of what a question prints.
const OUTPUT: usize = 4096;

/// Disks that Linux looks for beside all else it does are there sooner; one without a driver never comes.
const DISKS: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Waits until the disks are there that no virtio device is: Linux looks for them after their driver is loaded.
///
/// # Errors
/// [`LeaseError::NotReady`] when they do not come; [`LeaseError::Link`].
pub(super) async fn disks(guest: &Guest, spec: &MachineSpec) -> Result<(), LeaseError> {
    let wanted = spec.disks.iter().filter(|disk| disk.bus != DiskBus::Virtio).count();
    let began = Instant::now();
    if wanted == 0 {
        return Ok(());
    }
    loop {
        let all = guest.list(b"/sys/block").await.map_err(LeaseError::Link)?;
        let is_disk = |name: &[u8]| name.starts_with(b"sd") || name.starts_with(b"nvme");
        let there = all.iter().filter(|entry| is_disk(&entry.name)).count();
        if there >= wanted {
            return Ok(());
        }
        if began.elapsed() > DISKS {
            let what = "its disks".to_owned();
            let why = format!("{there} of {wanted} are there; its kernel has perhaps no driver");
            return Err(LeaseError::NotReady { what, why });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the guest's system has come up as far as is wanted.
///
/// # Errors
/// [`LeaseError::NotReady`] when it will not; [`LeaseError::Link`].
pub(super) async fn wait(guest: &Guest, ready: &Ready) -> Result<(), LeaseError> {
    // The init has just been started: its socket is waited for, then it tells by itself.
    let line = match ready {
        Ready::Agent => return Ok(()),
        Ready::Running => "systemctl is-system-running --wait".to_owned(),
        Ready::Unit(unit) => format!(
            "until systemctl is-active --quiet '{unit}'; do \
             if systemctl is-failed --quiet '{unit}'; then echo failed; exit 1; fi; sleep 0.2; done"
        ),
    };
    let line = format!("until [ -S /run/systemd/private ]; do sleep 0.1; done; {line}");
    // Ours, and not for whatever shell the image has for its tests.
    let words = ["/bin/sh", "-c", &line].map(|word| word.as_bytes().to_vec().into());
    let request = ExecRequest::new(Command::Argv(words.into()));
    let output = guest.run(request, &[], OUTPUT).await.map_err(LeaseError::Link)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let is_up = output.exited.status == ExitStatus::Exited(0) || said == "degraded";
    let why = match said.is_empty() {
        true => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        false => said,
    };
    match is_up {
        true => Ok(()),
        false => {
            Err(LeaseError::NotReady { what: ready.to_string(), why: text::one_line(&why, 200) })
        }
    }
}
