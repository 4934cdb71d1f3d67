//! Files: what a guest has, and moving files and trees both ways.
//!
//! ```text
//! push   PushRequest ->   data (a tree stream), Cancel ->
//!                       <- PushStarted, Credit…, PushDone               or Error
//! pull   PullRequest ->   Credit…, Cancel ->
//!                       <- data (a tree stream), PullDone                or Error
//! ```
//! A tree stream ([`crate::tree`]) says of each item what it is, with its content. What goes wrong with one item is
//! told of that item, and the others go on.

use crate::RemoteError;
use crate::limits::at_most;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// At most so many items' troubles are told; all are counted.
pub const MAX_TROUBLES: usize = 64;

/// At most so many entries of a folder are in one piece.
pub const MAX_PIECE_ENTRIES: usize = 256;

/// Receives files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// Where to. With `into`, a folder, made when it is not there, that the stream's items come into; else the place of
    /// the stream's one item, whose own name does not matter then.
    pub path: ByteBuf,
    /// See `path`.
    pub into: bool,
    /// Give the items the owners that the stream names; else they belong to the agent's user.
    pub owners: bool,
}

/// The guest is ready for a tree stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushStartedEvent {
    /// Credit for it, bytes.
    pub credit: u32,
}

/// All that came is in its place, but for what is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushDoneResponse {
    /// What was made.
    pub counts: TreeCounts,
    /// What was not, and why; at most [`MAX_TROUBLES`].
    #[serde(deserialize_with = "at_most::<MAX_TROUBLES, _, _>")]
    pub troubles: Vec<ItemTrouble>,
}

/// Sends files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// A file, or a folder with all that is below it.
    pub path: ByteBuf,
    /// What a symbolic link at `path` points to is meant; below it links are sent as links.
    pub follow: bool,
    /// Credit for the stream, bytes.
    pub credit: u32,
}

/// The whole stream is sent, but for what is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullDoneResponse {
    /// What was sent.
    pub counts: TreeCounts,
    /// What was not, and why; at most [`MAX_TROUBLES`].
    #[serde(deserialize_with = "at_most::<MAX_TROUBLES, _, _>")]
    pub troubles: Vec<ItemTrouble>,
    /// Bytes of data sent.
    pub total: u64,
}

/// What a tree stream carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeCounts {
    /// Items of every kind.
    pub items: u64,
    /// Items that something went wrong with.
    pub troubles: u64,
    /// Bytes of content, without holes.
    pub bytes: u64,
}

/// What went wrong with one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemTrouble {
    /// Its path in the tree.
    pub path: ByteBuf,
    /// Why.
    pub error: RemoteError,
}

/// Asks what is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatRequest {
    /// Where.
    pub path: ByteBuf,
    /// What a symbolic link points to is meant.
    pub follow: bool,
}

/// What is there (stat(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky, octal 0 to 7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length, bytes.
    pub len: u64,
    /// Bytes that it takes on its file system.
    pub stored: u64,
    /// Hard links.
    pub links: u64,
    /// Time of the last change of the content.
    pub modified: FileTime,
    /// Device number of a device node (makedev(3)).
    pub device: Option<DeviceNumber>,
    /// What a symbolic link says.
    pub target: Option<ByteBuf>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

/// A time stamp of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileTime {
    /// Seconds since 1970, before it negative.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

/// Which device a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Lists a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRequest {
    /// The folder.
    pub path: ByteBuf,
}

/// Some entries of a folder, in no order; the last piece has `more` unset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResponse {
    /// Entries, without `.` and `..`; at most [`MAX_PIECE_ENTRIES`].
    #[serde(deserialize_with = "at_most::<MAX_PIECE_ENTRIES, _, _>")]
    pub entries: Vec<FolderEntry>,
    /// More of them come.
    pub more: bool,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderEntry {
    /// Its name.
    pub name: ByteBuf,
    /// What it is, where that can be told.
    pub info: Option<FileInfo>,
}

/// Makes a folder. That it is there already is no error with `parents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeFolderRequest {
    /// Where.
    pub path: ByteBuf,
    /// Permission bits (mkdir(2)).
    pub mode: u32,
    /// Make the folders above it too.
    pub parents: bool,
}

/// Removes a file or a folder. A symbolic link is removed, not what it points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// What.
    pub path: ByteBuf,
    /// A folder with all that is in it.
    pub recursive: bool,
    /// That it is not there is no error.
    pub missing_ok: bool,
}
