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
mod drawer;
mod elf;
pub mod embed;
mod folder_digest;
mod foreign;
mod given;
mod import;
mod import_disk;
mod initramfs;
mod kconfig;
mod kernel;
mod kernels;
pub mod lint;
mod lock;
mod lz4;
mod manifest;
mod mirror;
mod module_disk;
mod module_index;
mod module_tree;
mod modules;
mod own_kernel;
mod own_modules;
mod packages;
mod put_file;
mod recipe;
pub mod sbom;
mod seed;
pub mod share;
mod shelf;
mod squashfs;
mod store;
mod virt_builder;

pub(crate) use adopt::Adopted;
pub use agent::{Agent, AgentError};
pub use build::{BuildError, BuildNews, BuildTerms};
pub use catalogue::{Catalogue, DEFAULT_KERNEL, MANIFEST_SCHEMA};
pub(crate) use drawer::{Drawer, verify as verify_drawn};
pub use folder_digest::of_content as folder_digest;
pub(crate) use foreign::GUESTLINE as GUESTLINE_INDEX;
pub use foreign::{
    ArchiveEditError, ArchiveInput, FileTreeError, Kind, KindError, NoKind, OciError, RootfsError,
    edit_archive, look_into_archive,
};
pub use import::{ImportError, ImportSpec};
pub use kconfig::{Kconfig, Lack};
pub use kernel::{
    KernelError, MAX_KERNEL_LEN, inspect as inspect_kernel, release as release_of_kernel,
};
pub(crate) use kernels::{Bootable, Kernels};
pub use lock::{LockPolicy, Moved};
pub use manifest::{DiskRecord, FileRecord, Manifest, PackageRecord};
pub use mirror::Mirror;
pub use module_disk::ModuleDisk;
pub use module_tree::{ModuleTree, TreeError};
pub use own_kernel::OwnKernel;
pub use own_modules::{ModulesAbout, OwnModules, PackError};
pub use packages::{PackageError, PackageSource};
pub use put_file::PutFile;
pub use recipe::{Ready, Recipe, RecipeError};
pub use seed::nocloud_seed;
pub(crate) use shelf::{Shelf, verify as verify_image};
pub use store::{Image, ImageCheck, ImageDisk, ImageError, ImageStatus, Store};
pub use virt_builder::{VirtBuilderError, check_virt_builder, virt_builder};
