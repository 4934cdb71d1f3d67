//! What others made: root folders, archives, container images, disks.
//!
//! ```text
//! a file or folder ─> kind ─┬─> folder, tar, cpio, OCI, docker archive ─> tree: names in memory, contents in a spool file
//!                           └─> disks, by their own bytes
//! ```
//! Nothing of it is trusted: a tree is read into memory and never onto this host's file system.

mod edit;
mod edited;
mod kind;
mod layer;
mod oci;
mod pack;
mod packing;
mod read;
mod rootfs;
mod tree;
mod write;

pub use edit::{ArchiveEditError, ArchiveInput, edit_archive, look_into_archive};
pub(crate) use kind::GUESTLINE;
pub use kind::{Kind, KindError, NoKind};
pub use oci::OciError;
pub(crate) use rootfs::Rootfs;
pub use rootfs::RootfsError;
pub use tree::FileTreeError;
pub(crate) use tree::What;
