//! What goes wrong: as data, and counted.

use guestline_protocol::file::MAX_TROUBLES;
use guestline_protocol::tree::MAX_PATH_LEN;
use guestline_protocol::{ByteBuf, ErrorKind, ItemTrouble, RemoteError, TreeCounts};
use nix::errno::Errno;

/// The kernel refused something about a path.
pub(crate) fn refused(path: &[u8], errno: Errno) -> RemoteError {
    let kind = match errno {
        Errno::ENOENT => ErrorKind::NotFound,
        Errno::EINVAL if path.contains(&0) => ErrorKind::Invalid,
        _ => ErrorKind::System,
    };
    RemoteError { errno: Some(errno as i32), ..error(kind, path, &describe(errno)) }
}

/// The error number behind an error of the standard library.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

/// Something else is wrong about a path.
pub(crate) fn error(kind: ErrorKind, path: &[u8], text: &str) -> RemoteError {
    // Bounded, so that it fits into a record with what replaces bytes that are no text.
    let path = String::from_utf8_lossy(path.get(..MAX_PATH_LEN).unwrap_or(path));
    RemoteError { kind, errno: None, message: ["`", &path, "`: ", text].concat() }
}

/// A path in a tree, seen from outside of it.
pub(crate) fn join(root: &[u8], path: &[u8]) -> Vec<u8> {
    match (root, path) {
        ([], path) => path.to_vec(),
        (root, []) => root.to_vec(),
        ([.., b'/'], path) => [root, path].concat(),
        (root, path) => [root, b"/", path].concat(),
    }
}

/// Counts items, and remembers the first troubles.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The path that was asked for, to name things.
    root: Vec<u8>,
    pub(crate) counts: TreeCounts,
    /// At most [`MAX_TROUBLES`], and at most [`MAX_TOLD`] bytes of them.
    pub(crate) troubles: Vec<ItemTrouble>,
    told: usize,
}

/// Troubles are told in one message, which has an end.
const MAX_TOLD: usize = 64 * 1024;

impl Tally {
    pub(crate) fn new(root: &[u8]) -> Self {
        let (counts, troubles) = (TreeCounts::default(), Vec::new());
        Self { root: root.to_vec(), counts, troubles, told: 0 }
    }

    /// One more item went well.
    pub(crate) fn item(&mut self) {
        self.counts.items = self.counts.items.saturating_add(1);
    }

    /// So much content more.
    pub(crate) fn bytes(&mut self, len: u64) {
        self.counts.bytes = self.counts.bytes.saturating_add(len);
    }

    /// Something went wrong with the item at this path in the tree.
    pub(crate) fn trouble(&mut self, path: &[u8], error: RemoteError) {
        self.counts.troubles = self.counts.troubles.saturating_add(1);
        let len = path.len().saturating_add(error.message.len());
        let told = self.told.saturating_add(len);
        if self.troubles.len() < MAX_TROUBLES && told <= MAX_TOLD {
            self.told = told;
            self.troubles.push(ItemTrouble { path: ByteBuf::from(path.to_vec()), error });
        }
    }

    /// The kernel refused something about it.
    pub(crate) fn refused(&mut self, path: &[u8], errno: Errno) {
        self.trouble(path, refused(&self.full(path), errno));
    }

    /// Something else is wrong about it.
    pub(crate) fn wrong(&mut self, path: &[u8], kind: ErrorKind, text: &str) {
        self.trouble(path, error(kind, &self.full(path), text));
    }

    /// A path in the tree, seen from outside of it.
    pub(crate) fn full(&self, path: &[u8]) -> Vec<u8> {
        join(&self.root, path)
    }
}

/// An error number in words (strerror(3)).
pub fn describe(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    // The number is told apart.
    text.rsplit_once('(').map_or(&*text, |(words, _)| words.trim_end()).to_owned()
}
