//! A root file system that is read, changed and written without being unpacked anywhere: names in memory, contents in a file
//! that has no name, or where they are on this host.
//!
//! Names come from whoever made the archive. They are bytes, relative and without `..`; a member below a link goes where the
//! link leads within the tree, and one that would leave it is refused.

use crate::host::{DAMAGED, MAKE_ROOM, hint_of_io};
use crate::image::shelf::MAKING;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// So many links may lead from one to the next (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// No file system of ours takes longer names (limits.h, `PATH_MAX`).
const MAX_NAME_LEN: usize = 4096;

/// The longest name in a folder (limits.h, `NAME_MAX`).
const MAX_PART_LEN: usize = 255;

/// Names, targets and attributes of a root are far less.
const MAX_IN_MEMORY: u64 = 1 << 30;

/// Contents are copied in pieces of this.
const PIECE: usize = 256 * 1024;

/// A root file system.
#[derive(Debug)]
pub(crate) struct FileTree {
    nodes: BTreeMap<Vec<u8>, Node>,
    spool: File,
    folder: PathBuf,
    spooled: u64,
    /// Bytes of names, targets and attributes.
    in_memory: u64,
    bounds: Bounds,
}

/// So much is read of an archive for each of its members, beside contents: header, padding, a long name.
const BESIDE_CONTENT: u64 = 4096;

/// What a tree may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of all contents.
    pub(crate) bytes: u64,
    /// Why it is so many.
    pub(crate) why: Why,
    /// Names.
    pub(crate) members: usize,
}

/// Why a tree may take no more.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Why {
    /// A rule, in words behind "more than … bytes, ".
    Rule(&'static str),
    /// The disk has no room for more.
    Room {
        /// What is free on it, MiB.
        free_mib: u64,
        /// What stays free, MiB.
        keep_mib: u64,
    },
}

/// What has a name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) what: What,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: u64,
    /// Extended attributes.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// What kind of node it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Folder,
    File(Content),
    /// A symbolic link and where it leads.
    Link(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Bytes of a file; names with the same content that is not empty are hard links.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    Spooled { at: u64, len: u64 },
    OfHost { path: PathBuf, len: u64 },
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Spooled { len, .. } | Self::OfHost { len, .. } => *len,
        }
    }
}

/// What cannot be in a tree.
#[derive(Debug, thiserror::Error)]
pub enum FileTreeError {
    /// A name that is none within a tree.
    #[error("its member `{name}` {why}")]
    Name {
        /// The member, as it may be shown.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than it may be.
    #[error("it unpacks to more than {bytes} bytes, {why}")]
    TooLarge {
        /// Bytes.
        bytes: u64,
        /// Why not more.
        why: &'static str,
    },
    /// The disk has no room for its contents.
    #[error(
        "the disk of `{path}` has no room for it: {free_mib} MiB are free, and {keep_mib} MiB stay free",
        path = path.display()
    )]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// What was free before, MiB.
        free_mib: u64,
        /// What is not taken, MiB.
        keep_mib: u64,
    },
    /// More names than it may have.
    #[error("it has more than {members} members")]
    TooMany {
        /// Names.
        members: usize,
    },
    /// Reading it, or writing what is read.
    #[error("it cannot be read to its end")]
    Read(#[source] io::Error),
    /// A file of this host in it.
    #[error("cannot read `{path}`", path = path.display())]
    HostFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no room for its contents.
    #[error("its contents cannot be kept in `{path}`", path = path.display())]
    Spool {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileTreeError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Name { .. } => "make it anew without that member, with names below its root",
            Self::TooLarge { .. } => {
                "where it is right to be so large, unpack it (`tar -xf`) and import the folder"
            }
            Self::TooMany { .. } => "make it anew without what the tests do not need",
            Self::NoRoom { .. } => MAKE_ROOM,
            Self::Read(error) => return hint_of_io(error).or(Some(DAMAGED)),
            Self::HostFile { source, .. } | Self::Spool { source, .. } => {
                return hint_of_io(source);
            }
        })
    }

    pub(super) fn name(name: &[u8], why: &'static str) -> Self {
        let shown = crate::text::one_line(&String::from_utf8_lossy(name), 200);
        Self::Name { name: shown, why }
    }
}

impl Node {
    pub(crate) fn folder() -> Self {
        Self::of(What::Folder, 0o755)
    }

    /// Root's, of no time.
    pub(crate) fn of(what: What, mode: u32) -> Self {
        Self { what, mode, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }
}

/// Whether what a name's last part names is followed, should it be a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Itself,
    Followed,
}

/// Where a name leads.
#[derive(Debug, PartialEq, Eq)]
enum Walked {
    /// To this place; with [`Last::Itself`] perhaps nothing is there.
    At(Vec<u8>),
    /// Below this one, which is not there.
    Lacks(Vec<u8>),
}

/// What becomes of folders that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Folders that are not there are made.
    Make,
    /// It leads nowhere then.
    No,
}

impl FileTree {
    /// An empty tree, whose contents go to a file without a name in `folder`.
    ///
    /// # Errors
    /// What making that file gives.
    pub(crate) fn new(folder: &Path, bounds: Bounds) -> Result<Self, FileTreeError> {
        let spool = tempfile::tempfile_in(folder)
            .map_err(|source| FileTreeError::Spool { path: folder.to_owned(), source })?;
        Ok(Self {
            nodes: BTreeMap::new(),
            spool,
            folder: folder.to_owned(),
            spooled: 0,
            in_memory: 0,
            bounds,
        })
    }

    /// The longest archive that could be read into it, in bytes.
    pub(super) fn most_read(&self) -> u64 {
        let beside = (self.bounds.members as u64).saturating_mul(BESIDE_CONTENT);
        self.bounds.bytes.saturating_add(beside)
    }

    /// All nodes, folders before what is in them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_slice(), node))
    }

    /// Adds a node; what had its name goes, but a folder stays with what is in it when a folder comes.
    ///
    /// # Errors
    /// [`FileTreeError::Name`], [`FileTreeError::TooMany`].
    pub(crate) fn add(&mut self, name: &[u8], node: Node) -> Result<(), FileTreeError> {
        let place = self.place(name, Missing::Make)?.unwrap_or_default();
        if place.is_empty() {
            return match node.what {
                // The root itself.
                What::Folder => Ok(()),
                _ => Err(FileTreeError::name(name, "has the root's place and is no folder")),
            };
        }
        if let What::Link(target) = &node.what {
            let wrong = |why| FileTreeError::name(name, why);
            if target.len() > MAX_NAME_LEN {
                return Err(wrong("is a link that is too long"));
            }
            within(&place, target).ok_or_else(|| wrong("is a link that leads out of it"))?;
        }
        let is_folder = |node: &Node| node.what == What::Folder;
        if self.nodes.get(&place).is_some_and(is_folder) && !is_folder(&node) {
            self.remove_below(&place, &BTreeSet::new());
        }
        self.insert(place, node)
    }

    fn insert(&mut self, place: Vec<u8>, node: Node) -> Result<(), FileTreeError> {
        if self.nodes.len() >= self.bounds.members {
            return Err(FileTreeError::TooMany { members: self.bounds.members });
        }
        let target = if let What::Link(target) = &node.what { target.len() } else { 0 };
        let attributes: usize =
            node.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.in_memory += (place.len() + target + attributes) as u64;
        if self.in_memory > MAX_IN_MEMORY {
            return Err(FileTreeError::TooLarge { bytes: MAX_IN_MEMORY, why: "of names alone" });
        }
        self.nodes.insert(place, node);
        Ok(())
    }

    /// Adds a name for a file that is there already.
    ///
    /// # Errors
    /// [`FileTreeError::Name`] when there is no such file in the tree.
    pub(crate) fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), FileTreeError> {
        let place = self.place(target, Missing::No)?;
        let node = place.and_then(|place| self.nodes.get(&place)).cloned();
        match node {
            Some(node) if node.what != What::Folder => self.add(name, node),
            _ => Err(FileTreeError::name(name, "is a hard link to what is not in it")),
        }
    }

    /// Removes a name and what is below it.
    ///
    /// # Errors
    /// [`FileTreeError::Name`].
    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<(), FileTreeError> {
        self.remove_but(name, &BTreeSet::new()).map(drop)
    }

    /// Removes a name and what is below it, but for these and the folders that they are in.
    ///
    /// # Errors
    /// [`FileTreeError::Name`].
    pub(crate) fn remove_but(
        &mut self,
        name: &[u8],
        kept: &BTreeSet<Vec<u8>>,
    ) -> Result<(), FileTreeError> {
        if let Some(place) = self.place(name, Missing::No)? {
            self.remove_below(&place, kept);
            if !is_kept(&place, kept) {
                self.nodes.remove(&place);
            }
        }
        Ok(())
    }

    /// Removes what is in a folder, but for these and the folders that they are in.
    ///
    /// # Errors
    /// [`FileTreeError::Name`].
    pub(crate) fn empty_but(
        &mut self,
        name: &[u8],
        kept: &BTreeSet<Vec<u8>>,
    ) -> Result<(), FileTreeError> {
        if let Some(place) = self.place(name, Missing::No)? {
            self.remove_below(&place, kept);
        }
        Ok(())
    }

    fn remove_below(&mut self, place: &[u8], kept: &BTreeSet<Vec<u8>>) {
        let prefix = if place.is_empty() { Vec::new() } else { [place, b"/"].concat() };
        let below = self.nodes.range(prefix.clone()..);
        let below: Vec<Vec<u8>> = below
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&prefix))
            .filter(|name| !is_kept(name, kept))
            .collect();
        for name in below {
            self.nodes.remove(&name);
        }
    }

    /// Where a name is that was added just now.
    pub(crate) fn place_of(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, FileTreeError> {
        self.place(name, Missing::No)
    }

    /// The node of a clean name, none of whose folders is a link.
    pub(crate) fn node(&self, name: &[u8]) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The names in a folder, whose own name is clean.
    pub(crate) fn names_in<'a>(&'a self, folder: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        let prefix = match folder.is_empty() {
            true => Vec::new(),
            false => [folder, b"/"].concat(),
        };
        let below = self.nodes.range(prefix.clone()..).map(|(name, _)| name.as_slice());
        below
            .map_while(move |name| name.strip_prefix(prefix.as_slice()))
            .filter(|name| !name.is_empty() && !name.contains(&b'/'))
    }

    /// The node of a name itself, which may be a link; folders on the way may be links.
    #[cfg(test)]
    pub(crate) fn look(&self, name: &[u8]) -> Option<&Node> {
        match self.walk(&clean(name).ok()?, Last::Itself).ok()? {
            Walked::At(place) => self.nodes.get(&place),
            Walked::Lacks(_) => None,
        }
    }

    /// The node that a name leads to, and where that is.
    pub(crate) fn find(&self, name: &[u8]) -> Option<(Vec<u8>, &Node)> {
        match self.walk(&clean(name).ok()?, Last::Followed).ok()? {
            Walked::At(place) => self.nodes.get(&place).map(|node| (place.clone(), node)),
            Walked::Lacks(_) => None,
        }
    }

    /// Where a name is, through links of its folders; these are made, or it is nowhere.
    fn place(&mut self, name: &[u8], missing: Missing) -> Result<Option<Vec<u8>>, FileTreeError> {
        let wrong = |why| FileTreeError::name(name, why);
        let clean = clean(name).map_err(wrong)?;
        loop {
            match self.walk(&clean, Last::Itself).map_err(wrong)? {
                Walked::At(place) => return Ok(Some(place)),
                Walked::Lacks(folder) if missing == Missing::Make => {
                    self.insert(folder, Node::folder())?;
                }
                Walked::Lacks(_) => return Ok(None),
            }
        }
    }

    /// Goes where a clean name leads.
    fn walk(&self, name: &[u8], last: Last) -> Result<Walked, &'static str> {
        let parts = |name: &[u8]| {
            let parts = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
            parts.map(<[u8]>::to_vec).collect::<VecDeque<_>>()
        };
        let (mut open, mut place, mut links) = (parts(name), Vec::new(), 0);
        while let Some(part) = open.pop_front() {
            let next = join(&place, &part);
            match self.nodes.get(&next).map(|node| &node.what) {
                Some(What::Link(target)) if !open.is_empty() || last == Last::Followed => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err("lies below links that lead in a circle");
                    }
                    let target = within(&next, target).ok_or("lies below a link out of it")?;
                    for part in parts(&target).into_iter().rev() {
                        open.push_front(part);
                    }
                    place.clear();
                }
                Some(What::Folder) => place = next,
                Some(_) if !open.is_empty() => return Err("lies below what is no folder"),
                None if !open.is_empty() || last == Last::Followed => {
                    return Ok(Walked::Lacks(next));
                }
                Some(_) | None => place = next,
            }
        }
        Ok(Walked::At(place))
    }

    /// Keeps a content.
    ///
    /// # Errors
    /// [`FileTreeError::TooLarge`], [`FileTreeError::Read`], [`FileTreeError::Spool`].
    pub(crate) fn keep(&mut self, from: &mut impl Read) -> Result<Content, FileTreeError> {
        let at = self.spooled;
        let mut piece = vec![0; PIECE];
        loop {
            let count = match from.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FileTreeError::Read(error)),
            };
            if self.spooled + count as u64 > self.bounds.bytes {
                return Err(self.full());
            }
            let bytes = piece.get(..count).unwrap_or_default();
            let written = self.spool.write_all_at(bytes, self.spooled);
            written.map_err(|source| FileTreeError::Spool { path: self.folder.clone(), source })?;
            self.spooled += count as u64;
        }
        Ok(Content::Spooled { at, len: self.spooled - at })
    }

    fn full(&self) -> FileTreeError {
        match self.bounds.why {
            Why::Rule(why) => FileTreeError::TooLarge { bytes: self.bounds.bytes, why },
            Why::Room { free_mib, keep_mib } => {
                // The folder itself may be one that is gone when this is read.
                let is_lasting = |path: &&Path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    !name.starts_with(MAKING)
                };
                let path = self.folder.ancestors().find(is_lasting).unwrap_or(&self.folder);
                FileTreeError::NoRoom { path: path.to_owned(), free_mib, keep_mib }
            }
        }
    }

    /// What a content holds.
    ///
    /// # Errors
    /// What opening a file of this host gives.
    pub(crate) fn open(&self, content: &Content) -> io::Result<ContentReader<'_>> {
        Ok(match content {
            Content::Spooled { at, len } => {
                ContentReader::Spooled { spool: &self.spool, at: *at, end: at + len }
            }
            Content::OfHost { path, len } => {
                let follow_nothing = nix::libc::O_NOFOLLOW;
                let file = File::options().read(true).custom_flags(follow_nothing).open(path)?;
                ContentReader::OfHost(file.take(*len))
            }
        })
    }

    /// A content as a file of its own, which another program can read.
    ///
    /// # Errors
    /// What opening or copying it gives.
    pub(crate) fn file(&self, content: &Content) -> io::Result<File> {
        let mut reader = self.open(content)?;
        if let ContentReader::OfHost(file) = reader {
            return Ok(file.into_inner());
        }
        let mut file = tempfile::tempfile_in(&self.folder)?;
        io::copy(&mut reader, &mut file)?;
        file.rewind()?;
        Ok(file)
    }

    /// The first bytes of the file that a name leads to, at most `most`.
    pub(crate) fn read(&self, name: &[u8], most: u64) -> Option<Vec<u8>> {
        let (_, node) = self.find(name)?;
        let What::File(content) = &node.what else { return None };
        let mut bytes = Vec::new();
        self.open(content).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Reads one content.
#[derive(Debug)]
pub(crate) enum ContentReader<'a> {
    Spooled { spool: &'a File, at: u64, end: u64 },
    OfHost(io::Take<File>),
}

impl Read for ContentReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Spooled { spool, at, end } => {
                let left = usize::try_from(*end - *at).unwrap_or(usize::MAX).min(into.len());
                let into = into.get_mut(..left).unwrap_or_default();
                let count = spool.read_at(into, *at)?;
                *at += count as u64;
                Ok(count)
            }
            Self::OfHost(file) => file.read(into),
        }
    }
}

/// A name as it is in a tree: relative, without `.`, ended by no slash; the root has none.
fn clean(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.starts_with(b"/") {
        return Err("has an absolute name");
    }
    if name.len() > MAX_NAME_LEN {
        return Err("has a name that is too long");
    }
    if name.contains(&0) {
        return Err("has a zero byte in its name");
    }
    let mut clean = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("has `..` in its name"),
            part if part.len() > MAX_PART_LEN => return Err("has a name that is too long"),
            part => clean = join(&clean, part),
        }
    }
    Ok(clean)
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match (folder.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => folder.to_vec(),
        _ => [folder, b"/", name].concat(),
    }
}

/// Is a name one of these, or a folder that one of them is in?
fn is_kept(name: &[u8], kept: &BTreeSet<Vec<u8>>) -> bool {
    let below = [name, b"/"].concat();
    kept.contains(name)
        || kept.range(below.clone()..).next().is_some_and(|it| it.starts_with(&below))
}

/// Where a link leads, as a clean name; none when that is out of the tree.
fn within(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = match target.starts_with(b"/") {
        true => Vec::new(),
        false => {
            let at = link.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            link.get(..at)?.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect()
        }
    };
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if target.starts_with(b"/") => drop(parts.pop()),
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1000, why: Why::Rule("by a test"), members: 20 };

    fn tree() -> FileTree {
        FileTree::new(&std::env::temp_dir(), BOUNDS).unwrap()
    }

    fn file(tree: &mut FileTree, name: &str, text: &str) -> Result<(), FileTreeError> {
        let content = tree.keep(&mut text.as_bytes())?;
        tree.add(name.as_bytes(), Node::of(What::File(content), 0o644))
    }

    fn link(tree: &mut FileTree, name: &str, target: &str) -> Result<(), FileTreeError> {
        tree.add(name.as_bytes(), Node::of(What::Link(target.into()), 0o777))
    }

    fn names(tree: &FileTree) -> String {
        let names = tree.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn folders_are_there_and_the_last_of_a_name_wins() {
        let mut tree = tree();
        file(&mut tree, "./etc/a", "old").unwrap();
        file(&mut tree, "etc//a", "new").unwrap();
        assert_eq!(names(&tree), "etc etc/a");
        assert_eq!(tree.read(b"etc/a", 10).unwrap(), b"new");
        tree.add(b"./", Node::folder()).unwrap();
        tree.add(b"etc", Node::folder()).unwrap();
        assert_eq!(names(&tree), "etc etc/a");
        file(&mut tree, "etc", "a file now").unwrap();
        assert_eq!(names(&tree), "etc");
    }

    #[test]
    fn what_lies_below_a_link_goes_where_that_leads() {
        let mut tree = tree();
        link(&mut tree, "lib", "usr/lib").unwrap();
        file(&mut tree, "lib/a", "a").unwrap();
        link(&mut tree, "bin", "/usr/./bin").unwrap();
        file(&mut tree, "bin/sh", "sh").unwrap();
        assert_eq!(names(&tree), "bin lib usr usr/bin usr/bin/sh usr/lib usr/lib/a");
        assert_eq!(tree.find(b"lib/a").unwrap().0, b"usr/lib/a");
        assert_eq!(tree.look(b"lib").unwrap().what, What::Link(b"usr/lib".to_vec()));
        tree.remove(b"lib/a").unwrap();
        tree.empty_but(b"usr/bin", &BTreeSet::new()).unwrap();
        assert_eq!(names(&tree), "bin lib usr usr/bin usr/lib");
    }

    #[test]
    fn nothing_leaves_the_tree() {
        let mut tree = tree();
        file(&mut tree, "file", "x").unwrap();
        link(&mut tree, "round", "round").unwrap();
        let wrong = [
            file(&mut tree, "../x", "x"),
            file(&mut tree, "/etc/x", "x"),
            file(&mut tree, "a/../../x", "x"),
            file(&mut tree, "file/x", "x"),
            file(&mut tree, "round/x", "x"),
            file(&mut tree, "a\0b", "x"),
            link(&mut tree, "up", "../etc/passwd"),
            link(&mut tree, "a/b", "../../etc"),
            tree.hard_link(b"hard", b"../etc/passwd"),
            tree.hard_link(b"hard", b"etc/passwd"),
            tree.add(b".", Node::of(What::Fifo, 0o644)),
        ];
        let said = wrong.map(|wrong| wrong.unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"));
        assert_eq!(names(&tree), "a file round");
        // An absolute link stays within the root that it is in.
        link(&mut tree, "ok", "/../etc").unwrap();
        link(&mut tree, "a/ok", "../etc").unwrap();
    }

    #[test]
    fn hard_links_share_a_content_and_bounds_hold() {
        let mut tree = tree();
        file(&mut tree, "a", "same").unwrap();
        tree.hard_link(b"b", b"./a").unwrap();
        assert_eq!(tree.look(b"a"), tree.look(b"b"));
        let error = file(&mut tree, "large", &"x".repeat(1000)).unwrap_err();
        assert_eq!(error.to_string(), "it unpacks to more than 1000 bytes, by a test");
        for number in 0..18 {
            file(&mut tree, &format!("f{number}"), "").unwrap();
        }
        let error = file(&mut tree, "more", "").unwrap_err();
        assert_eq!(error.to_string(), "it has more than 20 members");
    }

    #[test]
    fn a_disk_without_room_is_named_by_what_lasts_of_its_folder() {
        let cache = tempfile::tempdir().unwrap();
        let making = cache.path().join(".making-x");
        std::fs::create_dir(&making).unwrap();
        let why = Why::Room { free_mib: 300, keep_mib: 512 };
        let mut tree = FileTree::new(&making, Bounds { bytes: 0, why, members: 20 }).unwrap();
        file(&mut tree, "empty", "").unwrap();
        let said = file(&mut tree, "a", "a").unwrap_err().to_string();
        let said = said.replace(&cache.path().display().to_string(), "CACHE");
        insta::assert_snapshot!(
            said,
            @"the disk of `CACHE` has no room for it: 300 MiB are free, and 512 MiB stay free"
        );
    }
}
