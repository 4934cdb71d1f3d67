//! Images: what a machine boots. Made on the host from packages, kept in the cache folder.
//!
//! ```text
//! catalogue (images/NAME/image.toml, the user's own) ─> recipe ─┐
//! packages (apt, or a mirror; a lock says which) ───────────────┼─> build ──> store: kernel, initrd, root, manifest
//! agent ────────────────────────────────────────────────────────┘                ├─> kernels: unpacked, for QEMU
//!                                                                                └─> share: to other hosts, and from them
//! ```
//! Everything here is synchronous: it reads, unpacks and writes files.

mod adopt;
mod agent;
mod apt;
mod build;
mod catalogue;
mod deb;
mod debian;
mod elf;
mod initramfs;
mod kernel;
mod kernels;
mod lock;
mod manifest;
mod mirror;
mod modules;
mod packages;
mod recipe;
pub mod sbom;
pub mod share;
mod shelf;
mod store;

pub(crate) use adopt::Adopted;
pub use agent::{Agent, AgentError};
pub use build::{BuildError, BuildNews, BuildTerms};
pub use catalogue::{Catalogue, MANIFEST_SCHEMA};
pub use kernel::{KernelError, MAX_KERNEL_LEN, inspect as inspect_kernel};
pub(crate) use kernels::{Bootable, Kernels, verify as verify_kernel};
pub use lock::{LockPolicy, Moved};
pub use manifest::{FileRecord, Manifest, PackageRecord};
pub use mirror::Mirror;
pub use packages::{PackageError, PackageSource};
pub use recipe::{Ready, Recipe, RecipeError};
pub(crate) use shelf::{Shelf, verify as verify_image};
pub use store::{Image, ImageCheck, ImageError, ImageStatus, Store};
