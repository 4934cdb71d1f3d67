//! Archives and folders into a tree.

use super::packing::{Packed, Packing};
use super::tree::{Content, FileTree, FileTreeError, Node, What};
use nix::sys::stat::{major, minor};
use nix::unistd::Uid;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// What stands before the names of extended attributes in a tar archive.
const XATTR: &str = "SCHILY.xattr.";

/// What stands before a name that a layer takes away, and for all that lies in its folder (OCI image-spec, `layer.md`).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Who has what a number too large belongs to (Linux `fs.overflowuid`).
const NOBODY: u32 = 65534;

/// Whether what a tar archive holds goes upon what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TarKind {
    Root,
    /// Names with a mark take others away.
    Layer,
}

fn go_on(cancel: &CancellationToken) -> Result<(), FileTreeError> {
    match cancel.is_cancelled() {
        true => Err(FileTreeError::Read(io::Error::new(io::ErrorKind::Interrupted, "interrupted"))),
        false => Ok(()),
    }
}

/// What a member may say of itself, in bytes: longer names and attributes are nobody's.
const MAX_HEADERS: u64 = 4 << 20;

/// What is read for as long as it is wanted, at most so much at a time, and at most so much in all.
struct Heeding<'a, R> {
    from: R,
    allowed: &'a Cell<u64>,
    left: &'a Cell<u64>,
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Heeding<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        let count = self.from.read(into)?;
        let spend = |of: &Cell<u64>, why| match of.get().checked_sub(count as u64) {
            Some(left) => {
                of.set(left);
                Ok(())
            }
            None => {
                of.set(0);
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        };
        spend(self.left, "it unpacks to far more than its members hold")?;
        spend(self.allowed, "a member says too much of itself")?;
        Ok(count)
    }
}

/// Adds what a tar archive holds.
pub(super) fn tar(
    from: impl Read,
    kind: TarKind,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<(), FileTreeError> {
    let (allowed, left) = (Cell::new(u64::MAX), Cell::new(tree.most_read()));
    let mut archive = tar::Archive::new(Heeding { from, allowed: &allowed, left: &left, cancel });
    // What a layer takes away is of those below it.
    let mut added = BTreeSet::new();
    let mut entries = archive.entries().map_err(FileTreeError::Read)?;
    let mut unread = 0;
    loop {
        allowed.set(MAX_HEADERS.saturating_add(unread));
        let Some(entry) = entries.next() else { break };
        allowed.set(u64::MAX);
        let mut entry = entry.map_err(FileTreeError::Read)?;
        let name = entry.path_bytes().into_owned();
        if kind == TarKind::Layer && take_away(&name, tree, &added)? {
            unread = entry.size();
            continue;
        }
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        let target = target.unwrap_or_default();
        let xattrs = xattrs(&mut entry).map_err(FileTreeError::Read)?;
        let header = entry.header().clone();
        let number = |number: io::Result<u64>| number.map_err(FileTreeError::Read);
        let id = |id: u64| u32::try_from(id).unwrap_or(NOBODY);
        let device = || -> Result<(u32, u32), FileTreeError> {
            let (major, minor) = (header.device_major(), header.device_minor());
            let (major, minor) =
                (major.map_err(FileTreeError::Read)?, minor.map_err(FileTreeError::Read)?);
            Ok((major.unwrap_or(0), minor.unwrap_or(0)))
        };
        let what = match header.entry_type() {
            tar::EntryType::Directory => What::Folder,
            tar::EntryType::Symlink => What::Link(target),
            tar::EntryType::Link => {
                tree.hard_link(&name, &target)?;
                unread = entry.size();
                if kind == TarKind::Layer {
                    added.extend(tree.place_of(&name)?);
                }
                continue;
            }
            tar::EntryType::Char => {
                let (major, minor) = device()?;
                What::Char { major, minor }
            }
            tar::EntryType::Block => {
                let (major, minor) = device()?;
                What::Block { major, minor }
            }
            tar::EntryType::Fifo => What::Fifo,
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                What::File(tree.keep(&mut entry)?)
            }
            tar::EntryType::XGlobalHeader => {
                unread = entry.size();
                continue;
            }
            _ => return Err(FileTreeError::name(&name, "is of no kind that a root has")),
        };
        let is_read = matches!(what, What::File(_));
        let node = Node {
            what,
            mode: header.mode().map_err(FileTreeError::Read)? & 0o7777,
            uid: id(number(header.uid())?),
            gid: id(number(header.gid())?),
            mtime: number(header.mtime())?,
            xattrs,
        };
        tree.add(&name, node)?;
        unread = if is_read { 0 } else { entry.size() };
        if kind == TarKind::Layer {
            added.extend(tree.place_of(&name)?);
        }
    }
    // What comes behind the end: a file that is cut there shows here.
    allowed.set(u64::MAX);
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(FileTreeError::Read)?;
    Ok(())
}

/// Tells the names of what a tar archive holds, until `each` breaks or `most` bytes are read: more is for whoever reads it to
/// refuse.
pub(super) fn names<B>(
    from: impl Read,
    most: u64,
    cancel: &CancellationToken,
    mut each: impl FnMut(&[u8]) -> ControlFlow<B>,
) -> io::Result<Option<B>> {
    let (allowed, left) = (Cell::new(u64::MAX), Cell::new(most));
    let mut archive = tar::Archive::new(Heeding { from, allowed: &allowed, left: &left, cancel });
    let mut entries = archive.entries()?;
    let mut unread = 0;
    loop {
        allowed.set(MAX_HEADERS.saturating_add(unread));
        let entry = match entries.next() {
            None => return Ok(None),
            Some(Ok(entry)) => entry,
            Some(Err(_)) if allowed.get() == 0 || left.get() == 0 => return Ok(None),
            Some(Err(error)) => return Err(error),
        };
        unread = entry.size();
        if let ControlFlow::Break(found) = each(&entry.path_bytes()) {
            return Ok(Some(found));
        }
    }
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        // One with a line's end in it (a capability may have one) is taken apart wrongly, and left out.
        let Ok(extension) = extension else { continue };
        let key = extension.key().unwrap_or_default();
        if let Some(name) = key.strip_prefix(XATTR) {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// Takes away what a layer's mark names; false when the name is no mark.
fn take_away(
    name: &[u8],
    tree: &mut FileTree,
    added: &BTreeSet<Vec<u8>>,
) -> Result<bool, FileTreeError> {
    let at = name.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    let (folder, last) = name.split_at(at);
    if last == OPAQUE {
        tree.empty_but(folder, added)?;
        return Ok(true);
    }
    let Some(gone) = last.strip_prefix(WHITEOUT) else { return Ok(false) };
    tree.remove_but(&[folder, gone].concat(), added)?;
    Ok(true)
}

/// Adds what an initial RAM file system holds: cpio archives, the last perhaps compressed (Linux
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
pub(super) fn initramfs(
    mut file: File,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<(), FileTreeError> {
    loop {
        let Some(at) = next_archive(&mut file).map_err(FileTreeError::Read)? else { return Ok(()) };
        file.seek(SeekFrom::Start(at)).map_err(FileTreeError::Read)?;
        let mut start = Vec::new();
        (&mut file).take(8).read_to_end(&mut start).map_err(FileTreeError::Read)?;
        file.seek(SeekFrom::Start(at)).map_err(FileTreeError::Read)?;
        if Packing::of(&start) != Packing::Plain {
            let (allowed, left) = (Cell::new(u64::MAX), Cell::new(tree.most_read()));
            let from = Packed::open(file).map_err(FileTreeError::Read)?;
            let heeding = Heeding { from, allowed: &allowed, left: &left, cancel };
            let mut packed = BufReader::new(heeding);
            cpio_archive(&mut packed, tree, cancel)?;
            // Zeros, or what shows that it is cut.
            io::copy(&mut packed, &mut io::sink()).map_err(FileTreeError::Read)?;
            return Ok(());
        }
        let again = file.try_clone().map_err(FileTreeError::Read)?;
        let mut counted = Counted { from: BufReader::new(again), count: at };
        cpio_archive(&mut counted, tree, cancel)?;
        let at = counted.count;
        file.seek(SeekFrom::Start(at)).map_err(FileTreeError::Read)?;
    }
}

/// Where the packed archive begins that is the last of an initial RAM file system; 0 where none is packed.
pub(super) fn packed_from(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    while let Some(at) = next_archive(&mut file)? {
        file.seek(SeekFrom::Start(at))?;
        let mut start = Vec::new();
        (&mut file).take(8).read_to_end(&mut start)?;
        if Packing::of(&start) != Packing::Plain {
            return Ok(at);
        }
        file.seek(SeekFrom::Start(at))?;
        let mut counted = Counted { from: BufReader::new(file.try_clone()?), count: at };
        loop {
            let reader = cpio::newc::Reader::new(&mut counted)?;
            let is_last = reader.entry().is_trailer();
            reader.finish()?;
            if is_last {
                break;
            }
        }
        let at = counted.count;
        file.seek(SeekFrom::Start(at))?;
    }
    Ok(0)
}

/// Where the next archive begins, behind zeros; none at the file's end.
fn next_archive(file: &mut File) -> io::Result<Option<u64>> {
    let mut at = file.stream_position()?;
    let mut piece = [0; 4096];
    loop {
        let count = file.read(&mut piece)?;
        let bytes = piece.get(..count).unwrap_or_default();
        match bytes.iter().position(|&byte| byte != 0) {
            Some(zeros) => return Ok(Some(at + zeros as u64)),
            None if count == 0 => return Ok(None),
            None => at += count as u64,
        }
    }
}

struct Counted<R> {
    from: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.count += count as u64;
        Ok(count)
    }
}

fn cpio_archive(
    from: &mut impl Read,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<(), FileTreeError> {
    /// File type bits of a mode (stat(2), `S_IFMT`).
    const TYPE: u32 = 0o170_000;
    // Names of one file; its content comes with the last of them.
    let mut linked: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    loop {
        go_on(cancel)?;
        let mut reader = cpio::newc::Reader::new(&mut *from).map_err(FileTreeError::Read)?;
        let entry = reader.entry();
        if entry.is_trailer() {
            reader.finish().map_err(FileTreeError::Read)?;
            return Ok(());
        }
        let name = entry.name().as_bytes().to_vec();
        // Some write names with the slash, and the kernel takes them so.
        let name = name.strip_prefix(b"/").map_or(name.clone(), <[u8]>::to_vec);
        let (mode, ino, nlink) = (entry.mode(), entry.ino(), entry.nlink());
        let (uid, gid, mtime) = (entry.uid(), entry.gid(), u64::from(entry.mtime()));
        let (major, minor) = (entry.rdev_major(), entry.rdev_minor());
        let len = entry.file_size();
        let what = match mode & TYPE {
            0o040_000 => What::Folder,
            0o100_000 if nlink > 1 && len == 0 => {
                linked.entry(ino).or_default().push(name.clone());
                What::File(tree.keep(&mut io::empty())?)
            }
            0o100_000 => What::File(tree.keep(&mut reader)?),
            0o120_000 => {
                let mut target = Vec::new();
                (&mut reader).take(4097).read_to_end(&mut target).map_err(FileTreeError::Read)?;
                while target.last() == Some(&0) {
                    target.pop();
                }
                What::Link(target)
            }
            0o020_000 => What::Char { major, minor },
            0o060_000 => What::Block { major, minor },
            0o010_000 => What::Fifo,
            // A socket is nobody's any more.
            0o140_000 => {
                reader.finish().map_err(FileTreeError::Read)?;
                continue;
            }
            _ => return Err(FileTreeError::name(&name, "is of no kind that a root has")),
        };
        reader.finish().map_err(FileTreeError::Read)?;
        let mode = mode & 0o7777;
        let node = Node { what, mode, uid, gid, mtime, xattrs: Vec::new() };
        if nlink > 1 && len > 0 {
            for other in linked.remove(&ino).unwrap_or_default() {
                tree.add(&other, node.clone())?;
            }
        }
        tree.add(&name, node)?;
    }
}

/// Adds what a folder of this host holds. What an ordinary user owns is root's: it was unpacked without root.
pub(super) fn folder(
    folder: &Path,
    tree: &mut FileTree,
    cancel: &CancellationToken,
) -> Result<(), FileTreeError> {
    let me = Some(Uid::effective()).filter(|me| !me.is_root()).map(Uid::as_raw);
    let mut walk = Walk { tree, cancel, me, linked: HashMap::new() };
    walk.below(folder, b"")
}

struct Walk<'a> {
    tree: &'a mut FileTree,
    cancel: &'a CancellationToken,
    /// Whose files are root's.
    me: Option<u32>,
    /// Contents of files with several names, by device and inode.
    linked: HashMap<(u64, u64), Content>,
}

impl Walk<'_> {
    fn below(&mut self, folder: &Path, place: &[u8]) -> Result<(), FileTreeError> {
        let wrong = |source| FileTreeError::HostFile { path: folder.to_owned(), source };
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut names: Vec<OsString> =
            entries.map_err(wrong)?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            go_on(self.cancel)?;
            let path = folder.join(&name);
            let wrong = |source| FileTreeError::HostFile { path: path.clone(), source };
            let place = match place.is_empty() {
                true => name.as_bytes().to_vec(),
                false => [place, b"/", name.as_bytes()].concat(),
            };
            let found = fs::symlink_metadata(&path).map_err(wrong)?;
            let Some(node) = self.node(&path, &found).map_err(wrong)? else { continue };
            self.tree.add(&place, node)?;
            if found.is_dir() {
                self.below(&path, &place)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, path: &Path, found: &Metadata) -> io::Result<Option<Node>> {
        let (kind, device) = (found.file_type(), found.rdev());
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let what = if kind.is_dir() {
            What::Folder
        } else if kind.is_file() {
            // Who may not read it is told now, with its name.
            File::open(path)?;
            let content = Content::OfHost { path: path.to_owned(), len: found.len() };
            let key = (found.dev(), found.ino());
            What::File(match found.nlink() {
                1 => content,
                _ => self.linked.entry(key).or_insert(content).clone(),
            })
        } else if kind.is_symlink() {
            What::Link(fs::read_link(path)?.as_os_str().as_bytes().to_vec())
        } else if kind.is_char_device() {
            What::Char { major: number(major(device)), minor: number(minor(device)) }
        } else if kind.is_block_device() {
            What::Block { major: number(major(device)), minor: number(minor(device)) }
        } else if kind.is_fifo() {
            What::Fifo
        } else {
            return Ok(None);
        };
        Ok(Some(Node {
            what,
            mode: found.mode() & 0o7777,
            uid: if self.me == Some(found.uid()) { 0 } else { found.uid() },
            gid: if self.me == Some(found.uid()) { 0 } else { found.gid() },
            mtime: u64::try_from(found.mtime()).unwrap_or(0),
            xattrs: Vec::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Bounds, Why};
    use super::*;
    use std::io::Write;

    const BOUNDS: Bounds = Bounds { bytes: 1 << 20, why: Why::Rule("by a test"), members: 100 };

    fn tree() -> FileTree {
        FileTree::new(&std::env::temp_dir(), BOUNDS).unwrap()
    }

    fn names(tree: &FileTree) -> String {
        let names = tree.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
        names.collect::<Vec<_>>().join(" ")
    }

    /// Headers as whoever means harm writes them: the tar crate's writer refuses such names.
    fn tar_of(members: &[(&str, u8, &str, &str)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, kind, target, content) in members {
            let mut header = tar::Header::new_gnu();
            let bytes = header.as_mut_bytes();
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            bytes[156] = *kind;
            bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header.set_mode(0o4755);
            header.set_uid(5);
            header.set_gid(6);
            header.set_mtime(7);
            header.set_size(content.len() as u64);
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            tar.extend(content.as_bytes());
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.extend([0; 1024]);
        tar
    }

    fn read_tar(bytes: &[u8], kind: TarKind, tree: &mut FileTree) -> Result<(), FileTreeError> {
        tar(bytes, kind, tree, &CancellationToken::new())
    }

    #[test]
    fn a_tar_has_owners_modes_times_and_all_kinds() {
        let mut tree = tree();
        let bytes = tar_of(&[
            ("./", b'5', "", ""),
            ("./bin/", b'5', "", ""),
            ("./bin/a", b'0', "", "content"),
            ("./bin/b", b'1', "bin/a", ""),
            ("./sh", b'2', "bin/a", ""),
            ("pipe", b'6', "", ""),
        ]);
        read_tar(&bytes, TarKind::Root, &mut tree).unwrap();
        assert_eq!(names(&tree), "bin bin/a bin/b pipe sh");
        let node = tree.look(b"bin/b").unwrap();
        assert_eq!(tree.look(b"bin/a"), Some(node));
        assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o4755, 5, 6, 7));
        assert_eq!(tree.read(b"sh", 100).unwrap(), b"content");
        // A cut one, and one whose member leads elsewhere.
        let cut = read_tar(&bytes[..1600], TarKind::Root, &mut tree);
        assert!(matches!(cut, Err(FileTreeError::Read(_))), "{cut:?}");
        for member in
            [("../x", b'0', ""), ("/x", b'0', ""), ("x", b'1', "/etc/shadow"), ("x", b'2', "../y")]
        {
            let (name, kind, target) = member;
            let bytes = tar_of(&[(name, kind, target, "")]);
            let refused = read_tar(&bytes, TarKind::Root, &mut tree);
            assert!(matches!(refused, Err(FileTreeError::Name { .. })), "{member:?}: {refused:?}");
        }
    }

    #[test]
    fn a_layer_takes_away_what_it_marks() {
        let mut tree = tree();
        let base = [("a/x", b'0', "", "1"), ("a/y", b'0', "", "1"), ("b/z", b'0', "", "1")];
        read_tar(&tar_of(&base), TarKind::Layer, &mut tree).unwrap();
        let upon =
            [("a/.wh.x", b'0', "", ""), ("b/.wh..wh..opq", b'0', "", ""), ("b/n", b'0', "", "2")];
        read_tar(&tar_of(&upon), TarKind::Layer, &mut tree).unwrap();
        assert_eq!(names(&tree), "a a/y b b/n");
    }

    fn cpio_of(members: &[(&str, u32, u32, u32, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, mode, ino, nlink, content) in members {
            let builder = cpio::newc::Builder::new(name).mode(*mode).ino(*ino).nlink(*nlink);
            let len = u32::try_from(content.len()).unwrap();
            let mut writer = builder.write(out, len);
            writer.write_all(content.as_bytes()).unwrap();
            out = writer.finish().unwrap();
        }
        cpio::newc::trailer(out).unwrap()
    }

    #[test]
    fn an_initramfs_is_archives_one_after_the_other() {
        let mut bytes = cpio_of(&[("kernel/ucode", 0o100_644, 1, 1, "code")]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let second = cpio_of(&[
            ("bin", 0o040_755, 1, 2, ""),
            ("bin/a", 0o100_755, 2, 2, ""),
            ("bin/b", 0o100_755, 2, 2, "both"),
            ("init", 0o120_777, 3, 1, "bin/a"),
        ]);
        let packed = std::process::Command::new("gzip")
            .arg("-c")
            .stdin({
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&second).unwrap();
                file.rewind().unwrap();
                file
            })
            .output()
            .unwrap();
        bytes.extend(packed.stdout);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let mut tree = tree();
        initramfs(file, &mut tree, &CancellationToken::new()).unwrap();
        assert_eq!(names(&tree), "bin bin/a bin/b init kernel kernel/ucode");
        assert_eq!(tree.read(b"init", 10).unwrap(), b"both");
        assert_eq!(tree.look(b"bin/a"), tree.look(b"bin/b"));
    }

    #[test]
    fn a_folder_is_read_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/a"), "content").unwrap();
        fs::hard_link(folder.path().join("bin/a"), folder.path().join("bin/b")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("bin/c")).unwrap();
        let mut tree = tree();
        super::folder(folder.path(), &mut tree, &CancellationToken::new()).unwrap();
        assert_eq!(names(&tree), "bin bin/a bin/b bin/c");
        assert_eq!(tree.read(b"bin/c", 10).unwrap(), b"content");
        assert_eq!(tree.look(b"bin/a"), tree.look(b"bin/b"));
        assert_eq!(tree.look(b"bin/a").unwrap().uid, 0);
    }
}
