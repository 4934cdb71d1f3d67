//! Templates: saved machines, each restored many times.
//!
//! ```text
//! key (what it depends on) ─> store (found and checked, or made and published) ─> Template
//! draft (a saved machine in the host's memory) ─┘
//! quiet (when a machine may be saved)     ram (its memory as a stream, and the digest)
//! sealed (is it what was made?)           inventory (all that is there, for the cache)
//! ```

mod draft;
mod inventory;
mod key;
mod quiet;
mod ram;
mod sealed;
mod store;

pub(super) use draft::Draft;
pub(super) use key::host_cpu;
pub use key::{TemplateId, TemplateKey};
pub(super) use quiet::{PATIENCE, Quiet, SAMPLE};
pub(super) use ram::{BadStream, stream_ram, survey_ram, write_ram};
pub(super) use sealed::PageDigests;
pub(super) use store::{Found, Making};
pub use store::{Template, TemplateRecord, TemplateStore};

use std::time::Duration;

/// The format of the folder.
pub(super) const FORMAT: u32 = key::FORMAT;

/// What became of a template while a machine was leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It was made, and published.
    Made {
        /// Which.
        id: TemplateId,
        /// How long that took, from the start of QEMU.
        elapsed: Duration,
        /// From when the machine was quiet until the template was there.
        saved_in: Duration,
    },
    /// It could not be used, and is gone.
    Dropped {
        /// Which.
        id: TemplateId,
        /// What was wrong with it.
        why: String,
    },
    /// There is none, so the machine boots.
    Without {
        /// Why not.
        why: String,
    },
}
