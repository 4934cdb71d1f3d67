//! What holds a root file system.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Permission bits with set-user-ID, set-group-ID and sticky.
        mode: u32,
        /// Bytes.
        len: u64,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: PathBuf,
    },
    /// A device node, a pipe, a socket.
    Other,
}

/// A root file system, looked at and changed in place.
///
/// Paths are relative to the root, have neither `.` nor `..`, and no link among their folders: who calls has resolved
/// them. The empty path is the root itself.
pub trait Root {
    /// What is at a path; a link is not followed.
    ///
    /// # Errors
    /// Anything but that nothing is there.
    fn look(&mut self, path: &Path) -> io::Result<Option<Node>>;

    /// The first bytes of a file, at most so many.
    ///
    /// # Errors
    /// What reading gives.
    fn read(&mut self, path: &Path, most: u64) -> io::Result<Vec<u8>>;

    /// The names in a folder, in any order.
    ///
    /// # Errors
    /// What reading gives.
    fn list(&mut self, path: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a folder of mode 0755 in one that is there.
    ///
    /// # Errors
    /// What making gives.
    fn make_folder(&mut self, path: &Path) -> io::Result<()>;

    /// Writes a file in a folder that is there, in the place of a file that may be there: whole or not at all. Its owner
    /// is root where that can be.
    ///
    /// # Errors
    /// What writing gives.
    fn write(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()>;

    /// Makes a symbolic link where nothing is.
    ///
    /// # Errors
    /// What making gives.
    fn make_link(&mut self, path: &Path, target: &Path) -> io::Result<()>;

    /// Removes a file, a link, or a folder that is empty.
    ///
    /// # Errors
    /// What removing gives.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}
