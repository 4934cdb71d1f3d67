//! Images from one host to another: a folder that any web server can hold, signed; what comes out of it, or out of an
//! archive, is checked and made fit for this host.
//!
//! ```text
//! store ─> publish ─> DIR/index.json, DIR/index.json.minisig, DIR/files/SHA256
//!                         └─> source (a folder, or the web) ─> pull ─> download ─┐
//! archive (provision/cache) ────────────────────────────────────────────────────┴─> receive ─> store
//! ```
//! The signature is what a reader begins with: it names the index by its digest, and the index names all else so. Nothing
//! of the folder is believed before that, a key that lies in it least of all.

mod download;
mod index;
mod keys;
mod publish;
mod pull;
mod receive;
mod source;

pub use download::FetchError;
pub use index::{IndexError, Offer};
pub use keys::{KeyError, PublicKey, SigningKey};
pub use publish::{PublishError, Published, Shared, publish};
pub(crate) use pull::DOWNLOADS;
pub use pull::{Offers, PullError, PullTerms, Pulled};
pub(crate) use receive::Expected;
pub use receive::{Placing, ReceiveError, Received};
pub use source::Source;

/// The signed list of what a folder has, for people and for minisign(1).
const INDEX: &str = "index.json";

/// Its signature.
const SIGNATURE: &str = "index.json.minisig";

/// The publisher's key: for people to copy, never believed.
const PUBLIC_KEY: &str = "minisign.pub";

/// Holds files by the digest of their content.
const FILES: &str = "files";

/// A longer index is none.
const MAX_INDEX: u64 = 16 << 20;

/// An image's file is no longer.
pub(crate) const MAX_FILE: u64 = 4 << 30;
