//! Guestline's core: machines, the link into them, images, leases. For Rust users too.
//!
//! ```text
//! provision ──> guest ──> link ──> guestline-protocol
//!     ├───────> capture
//!     ├───────> image
//!     └───────> machine        (knows nothing of agents but the names of their ports)
//! ```
//! Whoever needs a machine leases one from [`provision::Provisioner`]; what may be done to it is
//! on [`guest::Guest`]. The guest is not trusted: what it sends is bounded before it is stored
//! and checked before it is parsed.

pub mod capture;
pub mod clock;
pub mod digest;
pub mod dirs;
mod folder_lock;
pub mod guest;
pub mod host;
pub mod image;
mod json_line;
mod kept;
pub mod link;
mod local_socket;
pub mod machine;
pub mod provision;
pub mod pulse;
mod recall;
mod refusals;
mod seal;
mod sparse;
pub mod supervise;
mod sys;
pub mod text;
