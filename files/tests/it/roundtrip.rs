//! What is read is written the same.

use crate::support::{all, drain, snapshot, stream_of, write};
use guestline_files::{Target, TreeReader, TreeWriter};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = TimeSpec::new(seconds, nanos);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// One of everything.
fn rich(root: &Path) {
    let root_or = nix::unistd::geteuid().is_root();
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::create_dir(root.join("read-only")).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("text"), b"hello").unwrap();
    let big: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    fs::write(root.join("sub/big"), big).unwrap();
    fs::write(root.join("read-only/secret"), b"x").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe text\n")), b"odd name").unwrap();
    fs::hard_link(root.join("text"), root.join("sub/same")).unwrap();
    fs::hard_link(root.join("text"), root.join("zzz")).unwrap();
    symlink("/nowhere/at/all", root.join("absolute")).unwrap();
    symlink("../dangling", root.join("sub/dangling")).unwrap();
    symlink("sub", root.join("to-folder")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRUSR).unwrap();
    mknod(&root.join("socket"), SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    if root_or {
        mknod(&root.join("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
        std::os::unix::fs::chown(root.join("empty"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::lchown(root.join("absolute"), Some(12), Some(34)).unwrap();
    }
    set_mode(&root.join("empty"), 0o4751);
    set_mode(&root.join("sub/big"), 0o000);
    set_mode(&root.join("sub/empty"), 0o1777);
    set_mode(&root.join("read-only"), 0o555);
    set_time(&root.join("text"), 1_234_567_890, 987_654_321);
    set_time(&root.join("absolute"), 1, 2);
    set_time(&root.join("sub/empty"), -86_400, 999_999_999);
    set_time(&root.join("sub"), 5_000_000_000, 1);
    set_time(&root.join("read-only"), 3, 4);
    set_time(root, 7, 8);
}

#[test]
fn a_rich_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    rich(&from);
    let stream = stream_of(&from);
    let writer = write(Target::At(to.clone()), all(), &stream).unwrap();
    assert_eq!(writer.troubles(), []);
    assert_eq!(snapshot(&from), snapshot(&to));
    assert_eq!(
        fs::metadata(to.join("text")).unwrap().ino(),
        fs::metadata(to.join("sub/same")).unwrap().ino()
    );
    let mut reader = TreeReader::open(&from, false).unwrap();
    drain(&mut reader, 1 << 20);
    assert_eq!(reader.counts(), writer.counts());
    // Once more over it, and into a folder that is made for it.
    for to in [to, folder.path().join("made")] {
        let target = match to.exists() {
            true => Target::At(to.clone()),
            false => Target::Into(to.clone()),
        };
        assert_eq!(write(target, all(), &stream).unwrap().troubles(), []);
        assert_eq!(snapshot(&from), snapshot(&to));
    }
}

#[test]
fn buffers_of_any_size_make_the_same_tree() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/some"), vec![7; 5000]).unwrap();
    fs::write(from.join("text"), b"hello").unwrap();
    symlink("x".repeat(3000), from.join("link")).unwrap();
    for limit in [1, 2, 5, 6, 7, 64, 511, 512, 513, 4096, 65_537] {
        let to = folder.path().join(limit.to_string());
        let stream = drain(&mut TreeReader::open(&from, false).unwrap(), limit);
        assert_eq!(write(Target::At(to.clone()), all(), &stream).unwrap().troubles(), []);
        assert_eq!(snapshot(&from), snapshot(&to), "{limit}");
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let mut file = fs::File::create(&from).unwrap();
    file.seek(SeekFrom::Start(10 << 20)).unwrap();
    file.write_all(b"in the middle").unwrap();
    file.set_len(1 << 30).unwrap();
    let stream = stream_of(&from);
    assert!(stream.len() < 1 << 20, "{}", stream.len());
    assert_eq!(write(Target::At(to.clone()), all(), &stream).unwrap().troubles(), []);
    let written = fs::metadata(&to).unwrap();
    assert_eq!(written.len(), 1 << 30);
    assert!(written.blocks() * 512 < 1 << 20, "{}", written.blocks());
    let mut file = fs::File::open(&to).unwrap();
    file.seek(SeekFrom::Start(10 << 20)).unwrap();
    let mut some = [0; 13];
    std::io::Read::read_exact(&mut file, &mut some).unwrap();
    assert_eq!(&some, b"in the middle");
}

#[test]
fn a_file_that_is_all_hole() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::File::create(&from).unwrap().set_len(123_456_789).unwrap();
    let writer = write(Target::At(to.clone()), all(), &stream_of(&from)).unwrap();
    assert_eq!((writer.counts().items, writer.counts().bytes), (1, 0));
    assert_eq!(fs::metadata(&to).unwrap().len(), 123_456_789);
    assert_eq!(fs::metadata(&to).unwrap().blocks(), 0);
}

#[test]
fn a_deep_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let deep = (0..300).fold(from.clone(), |path, n| path.join(format!("{n}")));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"x").unwrap();
    // Behind each folder, something that is read and written on the way back.
    for above in deep.ancestors().take_while(|above| above.starts_with(&from)) {
        fs::write(above.join("zz"), b"y").unwrap();
    }
    assert_eq!(write(Target::At(to.clone()), all(), &stream_of(&from)).unwrap().troubles(), []);
    assert_eq!(snapshot(&from), snapshot(&to));
}

#[derive(Debug, Clone)]
enum Node {
    File { content: Vec<u8>, hole: u64, mode: u32, seconds: i64 },
    Link(Vec<u8>),
    Folder { mode: u32, seconds: i64, nodes: Vec<(Vec<u8>, Node)> },
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop::collection::vec(any::<u8>(), 0..2000);
    let hole = prop_oneof![Just(0_u64), 1..100_000_u64];
    let file = (content, hole, 0..0o10000_u32, -1_000_000..2_000_000_000_i64)
        .prop_map(|(content, hole, mode, seconds)| Node::File { content, hole, mode, seconds });
    let link = prop::collection::vec(1..=255_u8, 1..40).prop_map(Node::Link);
    prop_oneof![3 => file, 1 => link].prop_recursive(4, 24, 6, |inner| {
        let name = prop::collection::vec(any::<u8>(), 1..12).prop_map(|name| {
            name.iter().map(|&b| if b"\0/.".contains(&b) { b'_' } else { b }).collect()
        });
        let nodes = prop::collection::btree_map(name, inner, 0..6);
        (nodes, 0..0o10000_u32, 0..2_000_000_000_i64).prop_map(|(nodes, mode, seconds)| {
            Node::Folder { mode, seconds, nodes: nodes.into_iter().collect() }
        })
    })
}

fn make(path: &Path, node: &Node) {
    match node {
        Node::File { content, hole, mode, seconds } => {
            let mut file = fs::File::create(path).unwrap();
            file.seek(SeekFrom::Start(*hole)).unwrap();
            file.write_all(content).unwrap();
            file.set_len(hole * 2 + content.len() as u64).unwrap();
            set_mode(path, *mode);
            set_time(path, *seconds, 5);
        }
        Node::Link(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        Node::Folder { mode, seconds, nodes } => {
            fs::create_dir(path).unwrap();
            for (name, node) in nodes {
                make(&path.join(OsStr::from_bytes(name)), node);
            }
            set_mode(path, *mode);
            set_time(path, *seconds, 999);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_split_anywhere(
        node in node(),
        limit in 1_usize..3000,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        make(&from, &node);
        let stream = drain(&mut TreeReader::open(&from, false).unwrap(), limit);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let mut writer = TreeWriter::new(Target::At(to.clone()), all()).unwrap();
        for pair in cuts.windows(2) {
            prop_assert!(!writer.is_done());
            writer.take(&stream[pair[0]..pair[1]]).unwrap();
        }
        prop_assert!(writer.is_done() && writer.finish().is_ok());
        prop_assert_eq!(writer.troubles(), &[]);
        prop_assert_eq!(snapshot(&from), snapshot(&to));
    }
}
