//! A tree as a tar archive or an initial RAM file system.

use super::tree::{Content, FileTree, Node, What};
use cpio::newc::{Builder, ModeFileType};
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

/// Writes all of a tree as a cpio archive (newc); the content of hard links comes with the last of their names.
///
/// # Errors
/// What reading contents and writing gives; a file of 4 GiB or more is one.
pub(super) fn cpio<W: Write>(tree: &FileTree, mut to: W) -> io::Result<W> {
    let mut names: HashMap<&Content, (u32, u32)> = HashMap::new();
    for ((_, node), number) in tree.iter().zip(1..) {
        if let What::File(content) = &node.what
            && content.len() > 0
        {
            names.entry(content).or_insert((number, 0)).1 += 1;
        }
    }
    let mut left: HashMap<&Content, u32> =
        names.iter().map(|(content, (_, count))| (*content, *count)).collect();
    for ((name, node), number) in tree.iter().zip(1..) {
        let name = std::str::from_utf8(name).map_err(io::Error::other)?;
        let mtime = u32::try_from(node.mtime).unwrap_or(u32::MAX);
        let (mut ino, mut links) = (number, if node.what == What::Folder { 2 } else { 1 });
        let mut is_last = true;
        if let What::File(content) = &node.what
            && let (Some(shared), Some(left)) = (names.get(content), left.get_mut(content))
        {
            (ino, links) = *shared;
            *left -= 1;
            is_last = *left == 0;
        }
        let builder = Builder::new(name).ino(ino).nlink(links);
        let builder = builder.uid(node.uid).gid(node.gid).mtime(mtime).mode(node.mode);
        let of_kind = |kind| builder.set_mode_file_type(kind);
        to = match &node.what {
            What::Folder => of_kind(ModeFileType::Directory).write(to, 0).finish()?,
            What::File(_) if !is_last => of_kind(ModeFileType::Regular).write(to, 0).finish()?,
            What::File(content) => {
                let len = u32::try_from(content.len()).map_err(io::Error::other)?;
                let mut writer = of_kind(ModeFileType::Regular).write(to, len);
                let mut exactly = Exactly { from: tree.open(content)?, left: content.len() };
                io::copy(&mut exactly, &mut writer)?;
                writer.finish()?
            }
            What::Link(target) => {
                let len = u32::try_from(target.len()).map_err(io::Error::other)?;
                let mut writer = of_kind(ModeFileType::Symlink).write(to, len);
                writer.write_all(target)?;
                writer.finish()?
            }
            What::Char { major, minor } => {
                let builder = of_kind(ModeFileType::Char).rdev_major(*major).rdev_minor(*minor);
                builder.write(to, 0).finish()?
            }
            What::Block { major, minor } => {
                let builder = of_kind(ModeFileType::Block).rdev_major(*major).rdev_minor(*minor);
                builder.write(to, 0).finish()?
            }
            What::Fifo => of_kind(ModeFileType::Fifo).write(to, 0).finish()?,
        };
    }
    cpio::newc::trailer(to)
}
