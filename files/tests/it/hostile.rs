//! Streams that want to get out, or to confuse.

use crate::support::{Stream, all, names, write};
use guestline_files::{Target, TreeWriter};
use guestline_protocol::tree::{TreeKind, record_head};
use guestline_protocol::{ByteBuf, DeviceNumber, ErrorKind, FileKind};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn is_refused(stream: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("into");
    let error = write(Target::Into(into.clone()), all(), stream).unwrap_err();
    assert_eq!(names(folder.path()), ["into"]);
    assert!(names(&into).iter().all(|name| !name.starts_with(".guestline")));
    error.kind == ErrorKind::Protocol
}

#[test]
fn paths_that_lead_elsewhere_end_the_stream() {
    for path in ["..", "../x", "/x", "a/../../x", ".", "a//b", "a/", "a\0b"] {
        assert!(is_refused(&Stream::default().file(path, b"x").end()), "{path:?}");
        assert!(is_refused(&Stream::default().folder(path).end()), "{path:?}");
        let link = Stream::default().file("a", b"x").hard_link("b", path);
        assert!(is_refused(&link.end()), "{path:?}");
    }
}

#[test]
fn records_out_of_turn_end_the_stream() {
    let new = Stream::default;
    let wrong = [
        new().content(b"x").end(),
        new().hole(1).end(),
        new().content_end(0, 0, None).end(),
        new().folder("a").content(b"x").end(),
        new().symlink("a", "b").content_end(0, 0, None).end(),
        new().begin("a").folder("b").end(),
        new().begin("a").content(b"x").end(),
        new().file("a", b"x").content(b"x").end(),
        [new().end(), new().end()].concat(),
        [new().file("a", b"x").end(), vec![1]].concat(),
        new().begin("a").0,
        new().file("a", b"x").0,
        record_head(guestline_protocol::tree::RecordTag::Item, 1 << 20).to_vec(),
        Vec::new(),
    ];
    for (n, stream) in wrong.iter().enumerate() {
        assert!(is_refused(stream), "{n}");
    }
    let device = DeviceNumber { major: 0, minor: 0 };
    let node = TreeKind::Node { kind: FileKind::Folder, device };
    assert!(is_refused(&new().item(b"a", node).end()));
}

#[test]
fn a_stream_that_broke_stays_broken() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = TreeWriter::new(Target::Into(folder.path().to_owned()), all()).unwrap();
    assert!(writer.take(&Stream::default().content(b"x").0).is_err());
    assert!(writer.take(&Stream::default().file("a", b"x").end()).is_err());
    assert!(writer.finish().is_err() && !writer.is_done());
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn nothing_is_written_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), b"kept").unwrap();
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    symlink(&outside, into.join("on-disk")).unwrap();
    let stream = Stream::default()
        .symlink("planted", outside.to_str().unwrap())
        .file("planted/a", b"x")
        .file("on-disk/a", b"x")
        .file("on-disk/secret", b"x")
        .symlink("on-disk/b", "x")
        .folder("on-disk/c")
        .folder("on-disk")
        .folder("planted")
        .hard_link("stolen", "on-disk/secret")
        .hard_link("linked", "planted")
        .folder("real")
        .symlink("real", outside.to_str().unwrap())
        .file("real/a", b"x")
        .end();
    let writer = write(Target::Into(into.clone()), all(), &stream).unwrap();
    assert_eq!(writer.counts().troubles, 10, "{:#?}", writer.troubles());
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"kept");
    assert_eq!(names(&into), ["on-disk", "planted", "real"]);
    assert_eq!(names(&into.join("real")), ["a"]);
}

#[test]
fn a_link_planted_while_the_stream_comes_does_not_lead_out() {
    let folder = tempfile::tempdir().unwrap();
    let (outside, into) = (folder.path().join("outside"), folder.path().join("into"));
    fs::create_dir(&outside).unwrap();
    let mut writer = TreeWriter::new(Target::Into(into.clone()), all()).unwrap();
    writer.take(&Stream::default().folder("a").begin("a/b").0).unwrap();
    fs::rename(into.join("a"), into.join("moved")).unwrap();
    symlink(&outside, into.join("a")).unwrap();
    let rest = Stream::default().content_end(0, crate::support::hash(b""), None);
    writer.take(&rest.file("a/c", b"x").file("z", b"x").file("a/d", b"x").end()).unwrap();
    assert_eq!(names(&outside), [""; 0]);
    assert_eq!(names(&into.join("moved")), ["b", "c"]);
    assert_eq!(writer.counts().troubles, 1);
}

#[test]
fn a_tree_below_what_is_no_folder_is_all_troubles() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("at");
    let stream =
        Stream::default().file("", b"x").file("a", b"x").folder("b").hard_link("c", "a").end();
    let writer = write(Target::At(at.clone()), all(), &stream).unwrap();
    assert_eq!((writer.counts().items, writer.counts().troubles), (1, 3));
    assert_eq!(names(folder.path()), ["at"]);
}

#[test]
fn an_existing_link_at_the_target_is_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("at");
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", &at).unwrap();
    let stream = Stream::default().folder("").file("a", b"x").end();
    let writer = write(Target::At(at), all(), &stream).unwrap();
    assert_eq!(writer.counts().troubles, 2);
    assert_eq!(names(&folder.path().join("real")), [""; 0]);
}

#[test]
fn a_file_in_the_making_goes_when_the_writer_does() {
    let folder = tempfile::tempdir().unwrap();
    let into = || Target::Into(folder.path().to_owned());
    let stream = Stream::default().begin("a").content(b"half").0;
    let mut dropped = TreeWriter::new(into(), all()).unwrap();
    dropped.take(&stream).unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    drop(dropped);
    assert_eq!(names(folder.path()), [""; 0]);
    let mut broken = TreeWriter::new(into(), all()).unwrap();
    broken.take(&stream).unwrap();
    assert!(broken.take(&[77; 5]).is_err());
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn what_the_kernel_cannot_have_is_a_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let symlink = |target: &[u8]| TreeKind::Symlink { target: ByteBuf::from(target.to_vec()) };
    let stream = Stream::default()
        .item(b"a", symlink(b""))
        .item(b"b", symlink(b"x\0y"))
        .item(b"c", symlink(&[b'x'; 5000]))
        .hard_link("d", "")
        .hard_link("e", "e")
        .folder(&["f"; 400].join("/"))
        .end();
    let writer = write(Target::Into(folder.path().to_owned()), all(), &stream).unwrap();
    assert_eq!((writer.counts().items, writer.counts().troubles), (0, 6));
    assert_eq!(names(folder.path()), [""; 0]);
}

fn everything(root: &Path) -> usize {
    crate::support::snapshot(root).len()
}

proptest! {
    #[test]
    fn no_stream_panics_or_leaves_its_folder(
        pieces in prop::collection::vec(
            prop_oneof![
                "[ab./]{0,5}".prop_map(|path| Stream::default().file(&path, b"xyz").0),
                "[ab/]{0,5}".prop_map(|path| Stream::default().folder(&path).0),
                ("[ab/]{1,3}", "[ab./]{0,8}")
                    .prop_map(|(path, target)| Stream::default().symlink(&path, &target).0),
                ("[ab/]{1,3}", "[ab./]{0,5}")
                    .prop_map(|(path, to)| Stream::default().hard_link(&path, &to).0),
                prop::collection::vec(any::<u8>(), 0..20),
            ],
            0..12,
        )
    ) {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("into/into");
        fs::create_dir_all(&into).unwrap();
        let mut writer = TreeWriter::new(Target::Into(into.clone()), all()).unwrap();
        for piece in pieces {
            let _ = writer.take(&piece);
        }
        drop(writer);
        prop_assert_eq!(everything(folder.path()), everything(&into) + 2);
        for path in crate::support::snapshot(&into).keys() {
            prop_assert!(!path.to_string_lossy().contains(".guestline"));
        }
    }
}
