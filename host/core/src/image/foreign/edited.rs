//! A tree as embedding looks at it and changes it, and what it has changed.

use super::tree::{FileTree, FileTreeError, Node, What};
use crate::image::embed::{Node as Found, Root};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A tree that is worked on.
#[derive(Debug)]
pub(super) struct Edited {
    pub(super) tree: FileTree,
    /// Names that came, changed or went.
    pub(super) touched: BTreeSet<Vec<u8>>,
}

impl Edited {
    pub(super) fn new(tree: FileTree) -> Self {
        Self { tree, touched: BTreeSet::new() }
    }

    fn put(&mut self, path: &Path, node: Node) -> io::Result<()> {
        let name = name(path);
        self.tree.add(name, node).map_err(failed)?;
        self.touched.insert(name.to_vec());
        Ok(())
    }
}

fn name(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn failed(error: FileTreeError) -> io::Error {
    io::Error::other(error)
}

impl Root for Edited {
    fn look(&mut self, path: &Path) -> io::Result<Option<Found>> {
        if path.as_os_str().is_empty() {
            return Ok(Some(Found::Folder));
        }
        Ok(self.tree.node(name(path)).map(|node| match &node.what {
            What::Folder => Found::Folder,
            What::File(content) => Found::File { mode: node.mode, len: content.len() },
            What::Link(target) => Found::Link { target: PathBuf::from(OsStr::from_bytes(target)) },
            What::Char { .. } | What::Block { .. } | What::Fifo => Found::Other,
        }))
    }

    fn read(&mut self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        self.tree.read(name(path), most).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<OsString>> {
        let names = self.tree.names_in(name(path));
        Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        self.put(path, Node::folder())
    }

    fn write(&mut self, path: &Path, mode: u32, mut content: &[u8]) -> io::Result<()> {
        let content = self.tree.keep(&mut content).map_err(failed)?;
        let mut node = Node::of(What::File(content), mode);
        if let Some(before) = self.tree.node(name(path)) {
            // A file of others that gets a line more stays theirs.
            (node.uid, node.gid) = (before.uid, before.gid);
        }
        self.put(path, node)
    }

    fn make_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.put(path, Node::of(What::Link(name(target).to_vec()), 0o777))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.tree.remove(name(path)).map_err(failed)?;
        self.touched.insert(name(path).to_vec());
        Ok(())
    }
}
