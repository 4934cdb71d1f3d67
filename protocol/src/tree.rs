//! The tree stream: files and folders as one stream of bytes, in the data frames of a push or a pull.
//!
//! All numbers are little-endian. A stream is records, split over frames anywhere:
//! ```text
//! offset  bytes
//!      0      1  tag
//!      1      4  length of the payload
//!      5    len  payload
//!
//! tag  payload                                       at most
//!   1  item: a postcard TreeItem                     MAX_ITEM_LEN
//!   2  content of the item before, as it is          4 GiB
//!   3  a hole in it: its length, 8 bytes             8 bytes
//!   4  end of its content: a postcard TreeContentEnd MAX_ITEM_LEN
//!   5  end of the stream: a postcard TreeCounts      MAX_ITEM_LEN
//! ```
//! Content, holes and an end follow an item of kind [`TreeKind::File`] only, and always. A folder comes before what is
//! in it, a file before the hard links to it. Paths are relative, with `/` between their parts, no empty part, no `.`
//! and no `..`; the empty path is the one thing that was asked for itself. A receiver refuses any other, whatever it is
//! asked to trust.

use crate::{DeviceNumber, FileKind, FileTime, RemoteError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;

/// Length of a record's head, in bytes.
pub const RECORD_HEAD_LEN: usize = 5;

/// The longest payload that is no content, in bytes.
pub const MAX_ITEM_LEN: usize = 16 * 1024;

/// The longest path, in bytes (`PATH_MAX`).
pub const MAX_PATH_LEN: usize = 4096;

/// The deepest path, in parts.
pub const MAX_DEPTH: usize = 512;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordTag {
    /// An item begins.
    Item,
    /// Content of it.
    Content,
    /// A hole in it.
    Hole,
    /// Its content is whole.
    ContentEnd,
    /// The stream is whole.
    End,
}

impl RecordTag {
    /// As it is on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Item => 1,
            Self::Content => 2,
            Self::Hole => 3,
            Self::ContentEnd => 4,
            Self::End => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Item, Self::Content, Self::Hole, Self::ContentEnd, Self::End]
            .into_iter()
            .find(|tag| tag.to_byte() == byte)
    }
}

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeItem {
    /// Its path in the tree.
    pub path: ByteBuf,
    /// What it is.
    pub kind: TreeKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky, octal 0 to 7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub modified: FileTime,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeKind {
    /// A regular file; its content follows.
    File {
        /// Its length when it was opened; what follows is what counts.
        len: u64,
    },
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink {
        /// What it says: any bytes but zero.
        target: ByteBuf,
    },
    /// Another name of a file that came before.
    HardLink {
        /// That file's path in the tree.
        to: ByteBuf,
    },
    /// A device node, a pipe or a socket.
    Node {
        /// Which of them.
        kind: FileKind,
        /// Of a device.
        device: DeviceNumber,
    },
}

/// A file's content is whole, or has gone wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeContentEnd {
    /// Its length, holes included.
    pub len: u64,
    /// XXH64 with seed 0 over the content's bytes; each hole counts as the 8 bytes of its length.
    pub hash: u64,
    /// Reading it went wrong: what came is not to be kept.
    pub error: Option<RemoteError>,
}

/// The stream is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotATree {
    /// What is wrong with it.
    pub what: &'static str,
}

impl core::fmt::Display for NotATree {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a tree stream with {}", self.what)
    }
}

impl core::error::Error for NotATree {}

/// The head of a record.
pub fn record_head(tag: RecordTag, len: u32) -> [u8; RECORD_HEAD_LEN] {
    let [a, b, c, d] = len.to_le_bytes();
    [tag.to_byte(), a, b, c, d]
}

/// A record that is no content, whole.
pub fn record<T: Serialize>(tag: RecordTag, payload: &T) -> Vec<u8> {
    let payload = postcard::to_allocvec(payload).unwrap_or_default();
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut record = record_head(tag, len).to_vec();
    record.extend_from_slice(&payload);
    record
}

/// A hole.
pub fn hole(len: u64) -> Vec<u8> {
    let mut record = record_head(RecordTag::Hole, 8).to_vec();
    record.extend_from_slice(&len.to_le_bytes());
    record
}

/// What a parser found.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// An item begins.
    Item(TreeItem),
    /// Some content of it.
    Content(&'a [u8]),
    /// A hole of so many bytes.
    Hole(u64),
    /// Its content is whole.
    ContentEnd(TreeContentEnd),
    /// The stream is whole.
    End(crate::TreeCounts),
}

/// Cuts a tree stream into records; content is handed out as it comes, without being copied.
#[derive(Debug, Default)]
pub struct TreeParser {
    /// Of a record that is not whole.
    partial: Vec<u8>,
    /// Bytes of content still to come.
    content: u64,
}

impl TreeParser {
    /// Takes the next record out of the front of `bytes`, or swallows them all when there is none yet.
    ///
    /// # Errors
    /// [`NotATree`]; the stream is of no use then.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Record<'a>>, NotATree> {
        if self.content > 0 {
            if bytes.is_empty() {
                return Ok(None);
            }
            let len = usize::try_from(self.content).unwrap_or(usize::MAX).min(bytes.len());
            let (content, rest) = bytes.split_at(len);
            *bytes = rest;
            self.content = self.content.saturating_sub(len as u64);
            return Ok(Some(Record::Content(content)));
        }
        if !self.fill(bytes, RECORD_HEAD_LEN) {
            return Ok(None);
        }
        let tag = self.partial.first().copied().and_then(RecordTag::from_byte);
        let tag = tag.ok_or(NotATree { what: "an unknown record" })?;
        let len = self.partial.get(1..RECORD_HEAD_LEN).and_then(|len| len.try_into().ok());
        let len = u32::from_le_bytes(len.unwrap_or_default());
        if tag == RecordTag::Content {
            self.partial.clear();
            self.content = len.into();
            return match len {
                0 => Err(NotATree { what: "an empty record" }),
                _ => self.next(bytes),
            };
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_ITEM_LEN || (tag == RecordTag::Hole && len != 8) {
            return Err(NotATree { what: "a record of a wrong length" });
        }
        if !self.fill(bytes, RECORD_HEAD_LEN.saturating_add(len)) {
            return Ok(None);
        }
        let whole = core::mem::take(&mut self.partial);
        let payload = whole.get(RECORD_HEAD_LEN..).unwrap_or_default();
        Ok(Some(match tag {
            RecordTag::Item => Record::Item(parse(payload)?),
            RecordTag::ContentEnd => Record::ContentEnd(parse(payload)?),
            RecordTag::End => Record::End(parse(payload)?),
            RecordTag::Hole | RecordTag::Content => {
                Record::Hole(u64::from_le_bytes(payload.try_into().unwrap_or_default()))
            }
        }))
    }

    /// Is the stream between two records?
    pub fn is_between(&self) -> bool {
        self.content == 0 && self.partial.is_empty()
    }

    /// Gathers bytes until there are `len`.
    fn fill(&mut self, bytes: &mut &[u8], len: usize) -> bool {
        let missing = len.saturating_sub(self.partial.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(taken);
        *bytes = rest;
        self.partial.len() >= len
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, NotATree> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        _ => Err(NotATree { what: "a record that cannot be read" }),
    }
}

/// A path of an item, as its parts.
///
/// # Errors
/// [`NotATree`] for a path that could lead out of the tree, or is no path.
pub fn parts(path: &[u8]) -> Result<Vec<&[u8]>, NotATree> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    if path.len() > MAX_PATH_LEN || path.contains(&0) {
        return Err(NotATree { what: "a path that is none" });
    }
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    if parts.len() > MAX_DEPTH {
        return Err(NotATree { what: "a path that is too deep" });
    }
    match parts.iter().any(|part| matches!(part, [] | [b'.'] | [b'.', b'.'])) {
        true => Err(NotATree { what: "a path that leads elsewhere" }),
        false => Ok(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TreeCounts;
    use proptest::prelude::*;

    fn item(path: &str) -> TreeItem {
        TreeItem {
            path: ByteBuf::from(path.as_bytes().to_vec()),
            kind: TreeKind::File { len: 3 },
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: FileTime::default(),
        }
    }

    fn stream() -> Vec<u8> {
        let mut bytes = record(RecordTag::Item, &item("a"));
        bytes.extend(record_head(RecordTag::Content, 3));
        bytes.extend(b"abc");
        bytes.extend(hole(1 << 40));
        bytes.extend(record(
            RecordTag::ContentEnd,
            &TreeContentEnd { len: 3, hash: 9, error: None },
        ));
        bytes.extend(record(RecordTag::End, &TreeCounts::default()));
        bytes
    }

    fn read(pieces: &[&[u8]]) -> Result<(Vec<String>, Vec<u8>), NotATree> {
        let mut parser = TreeParser::default();
        let (mut seen, mut content) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while let Some(record) = parser.next(&mut rest)? {
                match record {
                    Record::Content(bytes) => content.extend_from_slice(bytes),
                    other => seen.push(format!("{other:?}")),
                }
            }
            assert!(rest.is_empty());
        }
        assert!(parser.is_between());
        Ok((seen, content))
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for wrong in ["/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "\0"] {
            assert!(parts(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert_eq!(parts(b"a/..b/c"), Ok(vec![&b"a"[..], b"..b", b"c"]));
        assert!(parts(&[b'a'; MAX_PATH_LEN + 1]).is_err());
        assert!(parts("a/".repeat(MAX_DEPTH + 1).trim_end_matches('/').as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert!(read(&[&[9, 0, 0, 0, 0]]).is_err());
        assert!(read(&[&record_head(RecordTag::Content, 0)]).is_err());
        assert!(read(&[&record_head(RecordTag::Hole, 9)]).is_err());
        assert!(read(&[&record_head(RecordTag::Item, 1 << 20)]).is_err());
        assert!(read(&[&[1, 1, 0, 0, 0, 0xff]]).is_err());
    }

    proptest! {
        #[test]
        fn a_stream_split_anywhere_reads_the_same(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let whole = stream();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[&whole]));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut parser = TreeParser::default();
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = parser.next(&mut rest) {}
        }
    }
}
