//! A disk image of somebody else, changed inside a machine of ours: neither root nor libguestfs is needed.
//!
//! ```text
//! file      the image, its copy                                (host)
//! volumes   partitions, LVM, what is in them                   (text of tools in the machine)
//! session   the one with the system, mounted as its fstab says (machine of the image `tools`)
//!   └ guest_root   that as a root: what `image::embed` and `image::lint` work on
//! ```
//! First all is mounted so that nothing is written, and it is found out what is to be done; only if there is anything it is
//! mounted to be written to. The copy gets its name when the machine has let go of everything and powered off well.

mod file;
mod guest_root;
mod session;
mod volumes;

pub use file::{DiskFault, DiskInput};

use super::{FailedLease, MachineRequest, Provisioner};
use crate::image::Image;
use crate::image::embed::{EmbedError, Output, Root};
use crate::link::LinkError;
use crate::machine::Ending;
use guestline_protocol::PowerAction;
use session::Session;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The end of a machine may take so long.
const POWER_OFF: Duration = Duration::from_secs(120);

/// A disk could not be worked on; there is no copy then, and the disk is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The machine.
    #[error("no machine to look into the disk with: {}", crate::text::chain(&.0.error))]
    Machine(Box<FailedLease>),
    /// The machine, later.
    #[error("the machine that has the disk is lost")]
    Lost(#[source] LinkError),
    /// A tool in it.
    #[error("cannot {what}: {said}")]
    Tool {
        /// As in "mount partition 2".
        what: String,
        /// What the tool says.
        said: String,
    },
    /// A tool in it took too long.
    #[error("cannot {what} within {}", crate::text::limit(*limit))]
    TimedOut {
        /// As in "mount partition 2".
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// Nothing is in it.
    #[error("the disk holds no Linux system; it has: {has}")]
    NoSystem {
        /// What it has.
        has: String,
    },
    /// More than one system is in it.
    #[error("the disk holds more than one system: {has}")]
    Several {
        /// Which.
        has: String,
    },
    /// What was named is not there.
    #[error("the disk has no `{name}` that can hold a system; it has: {has}")]
    NoSuchRoot {
        /// What was named.
        name: String,
        /// What it has.
        has: String,
    },
    /// Its system sleeps.
    #[error("the system on the disk is hibernated, and would not know of any change")]
    Hibernated,
    /// The work.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The machine's end.
    #[error("the machine that had the disk did not power off well")]
    BadEnd,
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl EditError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.hint(),
            Self::Embed(error) => error.hint().map(str::to_owned),
            Self::Several { .. } | Self::NoSuchRoot { .. } => {
                Some("--root NAME names the one that is meant".to_owned())
            }
            Self::NoSystem { .. } => Some(
                "`guestline image lint` tells what it has; is it the disk with the system?"
                    .to_owned(),
            ),
            Self::Hibernated => Some("boot it and shut it down first".to_owned()),
            _ => None,
        }
    }
}

/// What came of work on a disk.
#[derive(Debug)]
pub struct Edited<T> {
    /// What the work found.
    pub found: T,
    /// Where the system is, as in "partition 2 (ext4, 1.9 GiB)".
    pub place: String,
    /// What to know of the disk.
    pub notes: Vec<String>,
    /// Its file system was not unmounted cleanly.
    pub is_unclean: bool,
}

/// What works on a root: first it is told not to change anything, then perhaps once more; tells what it found, and whether
/// there is nothing left to do.
pub trait RootWork<T>:
    Fn(&mut dyn Root, bool) -> Result<(T, bool), EmbedError> + Send + Sync + 'static
{
}

impl<T, F: Fn(&mut dyn Root, bool) -> Result<(T, bool), EmbedError> + Send + Sync + 'static>
    RootWork<T> for F
{
}

/// Works on disks in machines.
#[derive(Debug)]
pub struct DiskEditor<'a> {
    /// What gives it machines.
    pub provisioner: &'a Provisioner,
    /// What they boot.
    pub tools: Image,
    /// How long that may take, and each thing that is done in one.
    pub boot: Duration,
}

impl DiskEditor<'_> {
    /// Works on the system of a disk: the only one, or the one that `root` names.
    ///
    /// # Errors
    /// [`EditError`].
    pub async fn work<T: Send + 'static>(
        &self,
        input: DiskInput,
        output: &Output,
        root: Option<&str>,
        cancel: &CancellationToken,
        work: impl RootWork<T>,
    ) -> Result<Edited<T>, EditError> {
        let input = Arc::new(input);
        let draft = match output {
            Output::Nowhere => None,
            output => {
                let (from, output, token) = (input.clone(), output.clone(), cancel.clone());
                let copying = tokio::task::spawn_blocking(move || from.draft(&output, &token));
                Some(copying.await.map_err(|_| EditError::Cancelled)??)
            }
        };
        let disk = match &draft {
            Some(draft) => draft.to_write()?,
            None => input.to_read()?,
        };
        let mut request = MachineRequest::new(self.tools.clone(), self.boot);
        request.given.push(disk);
        let lease = match self.provisioner.lease(&request, cancel).await {
            Ok(lease) => lease,
            Err(_) if cancel.is_cancelled() => return Err(EditError::Cancelled),
            Err(failed) => return Err(EditError::Machine(Box::new(failed))),
        };
        let session =
            Session { guest: lease.guest.clone(), limit: self.boot, writes: draft.is_some() };
        let worked = async {
            let worked = session.work(root, Arc::new(work)).await?;
            let ending = async {
                tokio::select! {
                    ending = lease.machine.ended() => ending,
                    // The answer may be lost with the machine.
                    _ = lease.guest.power(PowerAction::Off, false) => lease.machine.ended().await,
                }
            };
            match timeout(POWER_OFF, ending).await {
                Ok(Ending::PoweredOff) => Ok(worked),
                _ => Err(EditError::BadEnd),
            }
        };
        let worked = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(EditError::Cancelled),
            worked = worked => worked,
        };
        // QEMU has written all that it has when it is gone.
        lease.end().await;
        let (edited, is_done) = worked?;
        let keep = match output {
            Output::Nowhere => false,
            Output::InPlace => !is_done,
            Output::New(_) => true,
        };
        if let Some(draft) = draft.filter(|_| keep) {
            let publishing = tokio::task::spawn_blocking(move || draft.publish());
            publishing.await.map_err(|_| EditError::Cancelled)??;
        }
        Ok(edited)
    }
}
