//! Images: what a machine boots. Made on the host from packages, kept in the cache folder.
//!
//! ```text
//! recipe (images/NAME/image.toml) ─┐
//! packages (apt, or a mirror) ─────┼─> build ──> store: kernel, initrd, manifest
//! agent ───────────────────────────┘
//! ```
//! Everything here is synchronous: it reads, unpacks and writes files.

mod adopt;
mod agent;
mod apt;
mod build;
mod deb;
mod elf;
mod initramfs;
mod kernel;
mod manifest;
mod mirror;
mod modules;
mod packages;
mod recipe;
mod shelf;
mod store;

pub(crate) use adopt::Adopted;
pub use agent::{Agent, AgentError};
pub use build::BuildError;
pub use kernel::{KernelError, MAX_KERNEL_LEN, inspect as inspect_kernel};
pub use manifest::{FileRecord, Manifest, PackageRecord};
pub use mirror::Mirror;
pub use packages::{PackageError, PackageSource};
pub use recipe::{Recipe, RecipeError};
pub(crate) use shelf::{Shelf, verify as verify_image};
pub use store::{Image, ImageError, ImageStatus, Store};
