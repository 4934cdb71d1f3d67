//! A tree as a tar archive.

use super::tree::{Content, FileTree, Node, What};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tar::{EntryType, Header};

/// What stands before the names of extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// Writes all of a tree as a tar archive; the same tree gives the same bytes.
///
/// # Errors
/// What reading contents and writing gives.
pub(super) fn tar(tree: &FileTree, to: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    let mut linked: HashMap<Content, &[u8]> = HashMap::new();
    for (name, node) in tree.iter() {
        let path = Path::new(OsStr::from_bytes(name));
        let mut header = header(node);
        if !node.xattrs.is_empty() {
            let keys: Vec<String> =
                node.xattrs.iter().map(|(key, _)| format!("{XATTR}{key}")).collect();
            let values = node.xattrs.iter().map(|(_, value)| value.as_slice());
            tar.append_pax_extensions(keys.iter().map(String::as_str).zip(values))?;
        }
        match &node.what {
            What::File(content) => {
                if content.len() > 0
                    && let Some(first) = linked.insert(content.clone(), name)
                {
                    linked.insert(content.clone(), first);
                    header.set_entry_type(EntryType::Link);
                    header.set_size(0);
                    tar.append_link(&mut header, path, OsStr::from_bytes(first))?;
                    continue;
                }
                header.set_size(content.len());
                let mut exactly = Exactly { from: tree.open(content)?, left: content.len() };
                tar.append_data(&mut header, path, &mut exactly)?;
            }
            What::Link(target) => tar.append_link(&mut header, path, OsStr::from_bytes(target))?,
            What::Char { major, minor } | What::Block { major, minor } => {
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                tar.append_data(&mut header, path, io::empty())?;
            }
            What::Folder | What::Fifo => tar.append_data(&mut header, path, io::empty())?,
        }
    }
    tar.into_inner()?.flush()
}

fn header(node: &Node) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(match node.what {
        What::Folder => EntryType::Directory,
        What::File(_) => EntryType::Regular,
        What::Link(_) => EntryType::Symlink,
        What::Char { .. } => EntryType::Char,
        What::Block { .. } => EntryType::Block,
        What::Fifo => EntryType::Fifo,
    });
    header.set_size(0);
    header.set_mode(node.mode);
    header.set_uid(node.uid.into());
    header.set_gid(node.gid.into());
    header.set_mtime(node.mtime);
    header
}

/// A file of this host that shrinks meanwhile is an error, and not a damaged archive.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: io::Read> io::Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let count = self.from.read(into.get_mut(..most).unwrap_or_default())?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file became shorter while it was read",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
