//! The agent put into somebody else's root file system, and taken out again.
//!
//! ```text
//! root      what holds the file system: a folder of this host, a disk in a machine, an archive
//!   └ tree      paths below its root, with the links in them: nothing leads out
//!       ├ survey    what is there: name, init, kernels' modules
//!       ├ plan      what embedding changes, with what it left before (record) ──> done, or only shown
//!       ├ undo      what was added, taken away
//!       └ work      one of the two; `edit` does it to a folder, `provision` to a disk in a machine
//! ```
//! What was added is recorded in the root itself ([`RECORD`]): embedding twice changes nothing, a newer agent takes an
//! older one's place, and what somebody else put there or changed since is left alone.

mod beside;
mod copy;
mod edit;
mod folder;
mod inittab;
mod plan;
mod record;
mod root;
pub(super) mod survey;
mod tree;
mod undo;
mod units;
mod work;

pub(crate) use beside::Beside;
pub use copy::{CopyError, copy_folder};
pub use edit::{FolderError, Output, edit_folder};
pub use folder::FolderRoot;
pub use inittab::Dialect;
pub use plan::{Change, Plan, Verb};
pub use record::RECORD;
pub use root::{Node, Root};
pub use survey::{Boots, InitSystem, System};
pub use tree::EmbedError;
pub(crate) use tree::Tree;
pub use units::{AGENT_PATH, ServiceManager};
pub use work::{Work, Worked};
