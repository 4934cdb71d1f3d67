//! Saving a machine and going on from what was saved (QEMU `docs/devel/migration`): devices go into a state file, the
//! guest's memory stays in the file that it lies in all the time (`x-ignore-shared`).
//!
//! ```text
//! BootSavable ── save ──> state file + memory file ──> Restore (private memory), any number
//!                                   └─ a copy ───────> RestoreSavable ── save ──> …
//! ```
//! QEMU checks little of what it is given; whoever keeps the files knows what they belong to.

use super::Machine;
use super::args::READS_ONLY;
use super::qmp::QmpError;
use qapi::qmp::{
    MigrationCapability, MigrationCapabilityStatus, cont, getfd, migrate, migrate_incoming,
    migrate_set_capabilities, query_migrate, stop,
};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a machine begins with, and where its memory is.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// It boots; its memory is QEMU's own.
    Boot,
    /// It boots; its memory is in this file, so that it can be saved.
    BootSavable {
        /// Of the size of its memory.
        ram: &'a Path,
    },
    /// It goes on from a saved state. It sees this file as its memory, and writes to pages of its own.
    Restore {
        /// As it was when the state was saved.
        ram: &'a Path,
    },
    /// It goes on from a saved state, with this file as its memory, so that it can be saved again.
    RestoreSavable {
        /// A copy of what was there when the state was saved.
        ram: &'a Path,
    },
    /// It stands until a snapshot is loaded, in place of a machine that booted or was restored.
    Again {
        /// As that one's, if it was restored.
        ram: Option<&'a Path>,
    },
}

impl Origin<'_> {
    pub(super) fn is_restored(&self) -> bool {
        matches!(self, Self::Restore { .. } | Self::RestoreSavable { .. })
    }
}

/// A machine could not be saved, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state file.
    #[error("cannot open the state file `{path}`", path = path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU began, and did not complete it.
    #[error("QEMU did not complete it: {reason}")]
    Failed {
        /// As QEMU says.
        reason: String,
    },
}

/// The name of a descriptor that QEMU is given.
const FD: &str = "state";

impl Machine {
    /// Stops the guest and saves all but its memory in a file, over what it holds. It does not run on: the memory file is
    /// part of what was saved.
    ///
    /// # Errors
    /// [`StateError`]; the guest is stopped all the same.
    pub async fn save(&self, state: &Path) -> Result<(), StateError> {
        let watch = self.qmp.watch_migration();
        let uri = self
            .uri(state, OpenOptions::new().write(true).create(true).truncate(true).mode(0o600))
            .await?;
        let migrate = migrate { uri: Some(uri), channels: None, detach: None, resume: None };
        // One after the other, without waiting for each answer.
        let (stop, capabilities) = (stop {}, capabilities());
        tokio::try_join!(
            self.qmp.execute(&stop),
            self.qmp.execute(&capabilities),
            self.qmp.execute(&migrate),
        )?;
        match watch.ended().await? {
            true => Ok(()),
            false => {
                let told = self.qmp.execute(&query_migrate {}).await;
                let reason = told.ok().and_then(|told| told.error_desc);
                let reason = reason.unwrap_or_else(|| "it does not say why".to_owned());
                Err(StateError::Failed { reason: crate::text::printable(&reason) })
            }
        }
    }

    /// Loads a saved state and lets the guest go on; once, on a machine that was started to be restored.
    ///
    /// # Errors
    /// [`StateError`]. A QEMU that does not like the state ends: [`Machine::ended`] tells what it said.
    pub async fn restore(&self, state: &Path) -> Result<(), StateError> {
        let watch = self.qmp.watch_migration();
        let uri = self.uri(state, OpenOptions::new().read(true)).await?;
        let incoming = migrate_incoming { uri: Some(uri), channels: None, exit_on_error: None };
        let capabilities = capabilities();
        tokio::try_join!(self.qmp.execute(&capabilities), self.qmp.execute(&incoming))?;
        if !watch.ended().await? {
            let reason = "it cannot load the state".to_owned();
            return Err(StateError::Failed { reason });
        }
        self.qmp.execute(&cont {}).await?;
        Ok(())
    }

    /// The state file as QEMU takes it: by its path, or opened as `options` say and given to QEMU.
    async fn uri(&self, state: &Path, options: &OpenOptions) -> Result<String, StateError> {
        if self.version >= READS_ONLY {
            return Ok(format!("file:{}", state.display()));
        }
        let file = options
            .open(state)
            .map_err(|source| StateError::File { path: state.to_owned(), source })?;
        self.qmp.execute_with(&getfd { fdname: FD.to_owned() }, file.as_fd()).await?;
        Ok(format!("fd:{FD}"))
    }
}

/// Memory in shared files is left where it is; migrations are told as events.
fn capabilities() -> migrate_set_capabilities {
    let on = |capability| MigrationCapabilityStatus { capability, state: true };
    let capabilities =
        vec![on(MigrationCapability::x_ignore_shared), on(MigrationCapability::events)];
    migrate_set_capabilities { capabilities }
}
