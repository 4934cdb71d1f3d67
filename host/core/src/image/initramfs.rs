//! A cpio archive (newc) for the kernel, byte for byte the same from the same entries: sorted, times 0, all
//! owned by root (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::BTreeMap;
use std::io;

/// What an archive holds, by path without a leading slash.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder,
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
    CharDevice { major: u32, minor: u32 },
}

impl Tree {
    pub(super) fn folder(&mut self, path: &str) {
        self.add(path, Entry::Folder);
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { mode, content: content.into() });
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link { target: target.to_owned() });
    }

    pub(super) fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, Entry::CharDevice { major, minor });
    }

    /// Leaves a folder out that is there without it.
    pub(super) fn without_folder(&mut self, path: &str) {
        self.entries.remove(path);
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// What an archive of [`Self::to_cpio`] holds; one that is otherwise is refused.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from_cpio(archive: &[u8]) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let (mut tree, mut rest) = (Self::default(), archive);
        loop {
            let mut reader = cpio::newc::Reader::new(rest)?;
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let (path, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content)?;
            let entry = match mode & 0o170_000 {
                0o040_000 => Entry::Folder,
                0o100_000 => Entry::File { mode: mode & 0o7777, content },
                0o120_000 => {
                    Entry::Link { target: String::from_utf8(content).map_err(io::Error::other)? }
                }
                0o020_000 => Entry::CharDevice { major: device.0, minor: device.1 },
                _ => return Err(wrong("it has what no initramfs of ours has")),
            };
            tree.entries.insert(path, entry);
            rest = reader.finish()?;
        }
        match tree.to_cpio()? == archive {
            true => Ok(tree),
            false => Err(wrong("it was not written by Guestline")),
        }
    }

    /// A file's content.
    pub(super) fn content(&self, path: &str) -> Option<&[u8]> {
        match self.entries.get(path)? {
            Entry::File { content, .. } => Some(content),
            _ => None,
        }
    }

    /// The archive.
    pub(super) fn to_cpio(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let links = if matches!(entry, Entry::Folder) { 2 } else { 1 };
            let builder = Builder::new(path).ino(number).nlink(links).uid(0).gid(0).mtime(0);
            match entry {
                Entry::Folder => {
                    let mode = if path == "root" { 0o700 } else { 0o755 };
                    let builder = builder.mode(mode).set_mode_file_type(ModeFileType::Directory);
                    out = builder.write(out, 0).finish()?;
                }
                Entry::File { mode, content } => {
                    let builder = builder.mode(*mode).set_mode_file_type(ModeFileType::Regular);
                    let len = u32::try_from(content.len()).map_err(io::Error::other)?;
                    let mut writer = builder.write(out, len);
                    io::Write::write_all(&mut writer, content)?;
                    out = writer.finish()?;
                }
                Entry::Link { target } => {
                    let builder = builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink);
                    let len = u32::try_from(target.len()).map_err(io::Error::other)?;
                    let mut writer = builder.write(out, len);
                    io::Write::write_all(&mut writer, target.as_bytes())?;
                    out = writer.finish()?;
                }
                Entry::CharDevice { major, minor } => {
                    let builder = builder.mode(0o600).set_mode_file_type(ModeFileType::Char);
                    out = builder.rdev_major(*major).rdev_minor(*minor).write(out, 0).finish()?;
                }
            }
        }
        trailer(out)
    }
}

/// An archive with one file of another, and a console.
pub(super) fn only(archive: &[u8], path: &str) -> io::Result<Vec<u8>> {
    let mut rest = archive;
    loop {
        let mut reader = cpio::newc::Reader::new(rest)?;
        if reader.entry().is_trailer() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no `{path}` in the archive"),
            ));
        }
        if reader.entry().name() == path {
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content)?;
            let mut tree = Tree::default();
            tree.char_device("dev/console", 5, 1);
            tree.file(path, 0o755, content);
            return tree.to_cpio();
        }
        rest = reader.finish()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(order: &[&str]) -> Tree {
        let mut tree = Tree::default();
        for path in order {
            tree.file(path, 0o755, path.as_bytes());
        }
        tree.link("bin/sh", "busybox");
        tree.char_device("dev/console", 5, 1);
        tree
    }

    #[test]
    fn the_order_of_making_does_not_matter_and_folders_come_before_what_is_in_them() {
        let bytes = tree(&["init", "a/b/c"]).to_cpio().unwrap();
        assert_eq!(bytes, tree(&["a/b/c", "init"]).to_cpio().unwrap());
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            assert_eq!(reader.entry().mtime(), 0);
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        let again = Tree::from_cpio(&bytes).unwrap();
        assert_eq!(again.to_cpio().unwrap(), bytes);
        assert_eq!((again.content("init"), again.content("bin/sh")), (Some(&b"init"[..]), None));
        assert!(Tree::from_cpio(&[&bytes[..], &bytes[..]].concat()).is_err());
        assert!(Tree::from_cpio(&bytes[..bytes.len() / 2]).is_err());
        assert_eq!(names, ["a", "a/b", "a/b/c", "bin", "bin/sh", "dev", "dev/console", "init"]);
    }
}
