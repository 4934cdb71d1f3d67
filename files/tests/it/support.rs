//! Streams by hand, and folders as values.

use guestline_files::{Target, TreeReader, TreeWriter, WriteOptions};
use guestline_protocol::tree::{
    Record, RecordTag, TreeContentEnd, TreeItem, TreeKind, TreeParser, record, record_head,
};
use guestline_protocol::{ByteBuf, FileTime, RemoteError, TreeCounts};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a test of the writer allows by default: all.
pub(crate) fn all() -> WriteOptions {
    WriteOptions { owners: true, nodes: true, special_bits: true, ..WriteOptions::default() }
}

/// The whole stream of a reader, by buffers of at most `limit` bytes.
pub(crate) fn drain(reader: &mut TreeReader, limit: usize) -> Vec<u8> {
    let (mut stream, mut buffer) = (Vec::new(), b"head".to_vec());
    loop {
        let more = reader.fill(&mut buffer, 4, limit + 4);
        assert!(buffer.len() <= limit + 4 && buffer.starts_with(b"head"));
        assert!(!more || buffer.len() > 4, "no progress");
        stream.extend_from_slice(&buffer[4..]);
        if !more {
            return stream;
        }
    }
}

/// The whole stream of what is at a path, none of which may make trouble.
pub(crate) fn stream_of(path: &Path) -> Vec<u8> {
    let mut reader = TreeReader::open(path, false).unwrap();
    let stream = drain(&mut reader, 256 * 1024);
    assert_eq!(reader.troubles(), []);
    stream
}

/// Writes a whole stream; gives back the writer, which may tell of troubles.
pub(crate) fn write(
    target: Target,
    options: WriteOptions,
    stream: &[u8],
) -> Result<TreeWriter, RemoteError> {
    let mut writer = TreeWriter::new(target, options)?;
    writer.take(stream)?;
    writer.finish()?;
    Ok(writer)
}

/// All records of a stream, content as lengths.
pub(crate) fn records(mut stream: &[u8]) -> Vec<String> {
    let (mut parser, mut records) = (TreeParser::default(), Vec::new());
    while let Some(record) = parser.next(&mut stream).unwrap() {
        records.push(match record {
            Record::Item(item) => format!("{}", String::from_utf8_lossy(&item.path)),
            Record::Content(bytes) => format!("+{}", bytes.len()),
            Record::Hole(len) => format!("-{len}"),
            Record::ContentEnd(end) => match end.error {
                None => format!("={}", end.len),
                Some(error) => format!("!{error}"),
            },
            Record::End(counts) => format!("{} items, {} troubles", counts.items, counts.troubles),
        });
    }
    assert!(parser.is_between());
    records
}

/// A stream by hand.
#[derive(Default)]
pub(crate) struct Stream(pub(crate) Vec<u8>);

impl Stream {
    pub(crate) fn item(mut self, path: &[u8], kind: TreeKind) -> Self {
        let modified = FileTime { seconds: 1_000_000_000, nanos: 123_456_789 };
        let path = ByteBuf::from(path.to_vec());
        let item = TreeItem { path, kind, mode: 0o644, uid: 0, gid: 0, modified };
        self.0.extend(record(RecordTag::Item, &item));
        self
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        self.item(path.as_bytes(), TreeKind::Folder)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        let target = ByteBuf::from(target.as_bytes().to_vec());
        self.item(path.as_bytes(), TreeKind::Symlink { target })
    }

    pub(crate) fn hard_link(self, path: &str, to: &str) -> Self {
        let to = ByteBuf::from(to.as_bytes().to_vec());
        self.item(path.as_bytes(), TreeKind::HardLink { to })
    }

    pub(crate) fn begin(self, path: &str) -> Self {
        self.item(path.as_bytes(), TreeKind::File { len: 0 })
    }

    pub(crate) fn content(mut self, content: &[u8]) -> Self {
        self.0.extend(record_head(RecordTag::Content, u32::try_from(content.len()).unwrap()));
        self.0.extend(content);
        self
    }

    pub(crate) fn hole(mut self, len: u64) -> Self {
        self.0.extend(guestline_protocol::tree::hole(len));
        self
    }

    pub(crate) fn content_end(mut self, len: u64, hash: u64, error: Option<RemoteError>) -> Self {
        self.0.extend(record(RecordTag::ContentEnd, &TreeContentEnd { len, hash, error }));
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.begin(path).content(content).content_end(content.len() as u64, hash(content), None)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend(record(RecordTag::End, &TreeCounts::default()));
        self.0
    }
}

/// As the protocol has it.
pub(crate) fn hash(content: &[u8]) -> u64 {
    let mut hash = guestline_files::Checksum::default();
    hash.write(content);
    hash.finish()
}

/// All that is to be kept of one thing in a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Thing {
    what: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    content: Vec<u8>,
}

/// A folder as a value.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, Thing> {
    let mut things = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let (what, content) = match () {
            () if kind.is_file() => ("file", fs::read(&path).unwrap()),
            () if kind.is_symlink() => {
                let target = fs::read_link(&path).unwrap();
                ("link", target.into_os_string().into_encoded_bytes())
            }
            () if kind.is_fifo() => ("pipe", Vec::new()),
            () if kind.is_socket() => ("socket", Vec::new()),
            () if kind.is_char_device() => ("device", meta.rdev().to_le_bytes().to_vec()),
            () => {
                rest.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                ("folder", Vec::new())
            }
        };
        let thing = Thing {
            what,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            links: if kind.is_file() { meta.nlink() } else { 0 },
            content,
        };
        things.insert(path.strip_prefix(root).unwrap().to_owned(), thing);
    }
    things
}

/// Names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Mounts a file system of this size (tmpfs(5)) over a folder; false where that is not allowed.
pub(crate) fn mount_small(folder: &Path, size: &str) -> bool {
    let (none, flags) = (Some("none"), nix::mount::MsFlags::empty());
    let size = format!("size={size}");
    nix::mount::mount(none, folder, Some("tmpfs"), flags, Some(size.as_str())).is_ok()
}
