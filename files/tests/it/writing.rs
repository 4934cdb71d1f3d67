//! What the writer makes of honest streams, and of what is in the way.

use crate::support::{Stream, all, hash, mount_small, names, write};
use guestline_files::{Limit, Target, TreeReader, TreeWriter, WriteOptions};
use guestline_protocol::tree::TreeKind;
use guestline_protocol::{DeviceNumber, ErrorKind, FileKind, RemoteError};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn both_may_change_threads() {
    fn change_thread(_: impl Send) {}
    let folder = tempfile::tempdir().unwrap();
    change_thread(TreeReader::open(folder.path(), false));
    change_thread(TreeWriter::new(Target::Into(folder.path().to_owned()), all()));
}

#[test]
fn into_makes_the_folder_and_needs_the_one_above() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("new");
    let stream = Stream::default().file("a", b"1").folder("b").file("b/c", b"2").end();
    let writer = write(Target::Into(into.clone()), all(), &stream).unwrap();
    assert_eq!((writer.counts().items, writer.counts().bytes), (3, 2));
    assert_eq!(fs::read(into.join("b/c")).unwrap(), b"2");
    assert_eq!(fs::metadata(into.join("a")).unwrap().mtime_nsec(), 123_456_789);
    for target in [Target::Into(folder.path().join("x/y")), Target::At(folder.path().join("x/y"))] {
        let error = TreeWriter::new(target, all()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
    let error = TreeWriter::new(Target::Into(into.join("a")), all()).unwrap_err();
    assert_eq!(error.message, format!("`{}`: Not a directory", into.join("a").display()));
}

#[test]
fn a_root_folder_gives_its_mode_to_a_folder_that_is_made_for_it_and_to_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let stream = Stream::default().folder("").folder("sub").file("sub/a", b"1").end();
    let look = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.mode() & 0o7777, meta.mtime())
    };
    let made = folder.path().join("made");
    write(Target::Into(made.clone()), all(), &stream).unwrap();
    assert_eq!(look(&made), (0o644, 1_000_000_000));

    let there = folder.path().join("there");
    fs::create_dir(&there).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o751)).unwrap();
    write(Target::Into(there.clone()), all(), &stream).unwrap();
    let (mode, modified) = look(&there);
    assert_eq!(mode, 0o751);
    assert!(modified > 1_000_000_000);
    // What is in it is the stream's.
    assert_eq!(look(&there.join("sub")), (0o644, 1_000_000_000));
}

#[test]
fn a_root_file_is_for_at_only() {
    let folder = tempfile::tempdir().unwrap();
    let stream = Stream::default().file("", b"1").end();
    let into = folder.path().to_owned();
    for target in [Target::Into(into.clone()), Target::At(into.join(".."))] {
        let error = write(target, all(), &stream).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.ends_with("a file where a folder is wanted"), "{error}");
    }
    assert_eq!(names(&into), [""; 0]);
    write(Target::At(into.join("file")), all(), &stream).unwrap();
    assert_eq!(fs::read(into.join("file")).unwrap(), b"1");
}

#[test]
fn a_file_is_replaced_at_once_and_the_old_one_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"old").unwrap();
    let mut old = fs::File::open(&path).unwrap();
    let stream = Stream::default().file("", b"new").end();
    let mut writer = TreeWriter::new(Target::At(path.clone()), all()).unwrap();
    let (first, last) = stream.split_at(stream.len() - 9);
    writer.take(first).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    writer.take(last).unwrap();
    writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let mut content = Vec::new();
    old.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"old");
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn links_and_pipes_are_replaced_and_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::write(&outside, b"kept").unwrap();
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    symlink(&outside, into.join("a")).unwrap();
    symlink(&outside, into.join("b")).unwrap();
    nix::unistd::mkfifo(&into.join("c"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let stream = Stream::default().file("a", b"1").hard_link("b", "a").symlink("c", "a").end();
    assert_eq!(write(Target::Into(into.clone()), all(), &stream).unwrap().troubles(), []);
    assert_eq!(fs::read(&outside).unwrap(), b"kept");
    assert_eq!(fs::read(into.join("b")).unwrap(), b"1");
    assert_eq!(fs::read_link(into.join("c")).unwrap().to_str(), Some("a"));
    assert_eq!(names(&into), ["a", "b", "c"]);
}

#[test]
fn a_folder_in_the_way_of_a_file_and_the_other_way_round() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().to_owned();
    fs::create_dir(into.join("folder")).unwrap();
    fs::write(into.join("file"), b"kept").unwrap();
    let stream = Stream::default()
        .folder("file")
        .file("file/x", b"1")
        .file("folder", b"1")
        .symlink("folder", "x")
        .file("other", b"1");
    let writer = write(Target::Into(into.clone()), all(), &stream.end()).unwrap();
    let paths: Vec<&[u8]> = writer.troubles().iter().map(|trouble| &**trouble.path).collect();
    assert_eq!(paths, [&b"file"[..], b"file/x", b"folder", b"folder"]);
    assert_eq!((writer.counts().items, writer.counts().troubles), (1, 4));
    assert_eq!(fs::read(into.join("file")).unwrap(), b"kept");
    assert_eq!(names(&into), ["file", "folder", "other"]);
    let stream = Stream::default().file("", b"1").end();
    let writer = write(Target::At(into.join("folder")), all(), &stream).unwrap();
    assert_eq!(writer.troubles()[0].error.errno, Some(21));
}

#[test]
fn content_that_is_not_what_was_sent_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let sent = RemoteError {
        kind: ErrorKind::System,
        errno: Some(5),
        message: "`x`: Input/output error".into(),
    };
    let stream = Stream::default()
        .begin("wrong-hash")
        .content(b"abc")
        .content_end(3, hash(b"abd"), None)
        .begin("wrong-len")
        .content(b"abc")
        .content_end(4, hash(b"abc"), None)
        .begin("broken")
        .content(b"abc")
        .content_end(3, hash(b"abc"), Some(sent.clone()))
        .hard_link("link", "broken")
        .begin("good")
        .content(b"abc")
        .content_end(3, hash(b"abc"), None);
    fs::write(folder.path().join("broken"), b"old").unwrap();
    let writer = write(Target::Into(folder.path().to_owned()), all(), &stream.end()).unwrap();
    let errors: Vec<&RemoteError> =
        writer.troubles().iter().map(|trouble| &trouble.error).collect();
    assert_eq!(errors.len(), 4);
    assert_eq!((errors[0].kind, errors[1].kind), (ErrorKind::Integrity, ErrorKind::Integrity));
    assert_eq!(errors[2], &sent);
    assert_eq!(errors[3].kind, ErrorKind::NotFound);
    assert_eq!(names(folder.path()), ["broken", "good"]);
    assert_eq!(fs::read(folder.path().join("broken")).unwrap(), b"old");
}

#[test]
fn a_file_that_cannot_be_written_is_a_trouble_and_its_content_is_swallowed() {
    let folder = tempfile::tempdir().unwrap();
    let stream = Stream::default()
        .begin("too-long")
        .content(b"abc")
        .hole(u64::MAX / 2)
        .hole(u64::MAX / 2)
        .content(b"abc")
        .content_end(3, 0, None)
        .file(&"n".repeat(256), b"abc")
        .file("good", b"abc")
        .end();
    let writer = write(Target::Into(folder.path().to_owned()), all(), &stream).unwrap();
    let errnos: Vec<_> = writer.troubles().iter().map(|trouble| trouble.error.errno).collect();
    assert_eq!(errnos, [Some(27), Some(36)]);
    assert_eq!(names(folder.path()), ["good"]);
}

#[test]
fn a_full_disk_is_a_trouble_of_each_file_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    if !mount_small(folder.path(), "64k") {
        return;
    }
    let stream = Stream::default()
        .file("a", &[1; 10_000])
        .file("b", &[1; 500_000])
        .file("c", &[1; 10_000])
        .end();
    let written = write(Target::Into(folder.path().to_owned()), all(), &stream);
    let there = names(folder.path());
    nix::mount::umount(folder.path()).unwrap();
    let writer = written.unwrap();
    assert_eq!((writer.counts().items, writer.counts().bytes), (2, 20_000));
    assert_eq!(writer.troubles()[0].error.errno, Some(28));
    assert_eq!(there, ["a", "c"]);
}

#[test]
fn options_hold_back_what_has_powers() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::write(&source, b"x").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o7755);
    fs::set_permissions(&source, mode).unwrap();
    let to = folder.path().join("to");
    let stream = crate::support::stream_of(&source);
    write(Target::At(to.clone()), WriteOptions::default(), &stream).unwrap();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o1755);
    let device = DeviceNumber { major: 1, minor: 3 };
    let to = folder.path().join("node");
    for (kind, what) in [
        (FileKind::CharDevice, "device nodes"),
        (FileKind::BlockDevice, "device nodes"),
        (FileKind::Pipe, "pipes"),
        (FileKind::Socket, "sockets"),
    ] {
        let stream = Stream::default().item(b"", TreeKind::Node { kind, device }).end();
        let writer = write(Target::At(to.clone()), WriteOptions::default(), &stream).unwrap();
        let error = &writer.troubles()[0].error;
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.message, format!("`{}`: no {what} are made here", to.display()));
        assert!(!to.exists());
    }
}

#[test]
fn limits_end_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let few = WriteOptions { max_items: Some(2), max_bytes: Some(1000), ..all() };
    let three = Stream::default().file("a", b"1").file("b", b"1").file("c", b"1").end();
    let bytes = Stream::default().file("d", &[0; 1001]).end();
    for (stream, limit) in [(three, Limit::Items(2)), (bytes, Limit::Bytes(1000))] {
        let into = Target::Into(folder.path().to_owned());
        let mut writer = TreeWriter::new(into, few.clone()).unwrap();
        let error = writer.take(&stream).unwrap_err();
        assert_eq!((error.kind, writer.exceeded()), (ErrorKind::Busy, Some(limit)), "{error}");
    }
    assert_eq!(names(folder.path()), ["a", "b"]);
    // A hole takes no room.
    let mut hasher = guestline_files::Checksum::default();
    hasher.write(&(1_u64 << 40).to_le_bytes());
    let sparse = Stream::default().begin("e").hole(1 << 40);
    let sparse = sparse.content_end(1 << 40, hasher.finish(), None).end();
    let writer = write(Target::Into(folder.path().to_owned()), few, &sparse).unwrap();
    assert_eq!(writer.troubles(), []);
    assert_eq!(fs::metadata(folder.path().join("e")).unwrap().len(), 1 << 40);
}

#[test]
fn some_of_the_disk_stays_free() {
    let folder = tempfile::tempdir().unwrap();
    if !mount_small(folder.path(), "1m") {
        return;
    }
    let options = |keep| WriteOptions { keep_free: Some(keep), ..all() };
    let written = |keep, len: usize| {
        let stream = Stream::default().file("a", &vec![1; len]).end();
        let into = Target::Into(folder.path().to_owned());
        let mut writer = TreeWriter::new(into, options(keep)).unwrap();
        let _ = writer.take(&stream);
        writer.exceeded()
    };
    // Of a small file system a twentieth.
    let results = [written(1 << 30, 900_000), written(1 << 30, 1_020_000), written(0, 1_020_000)];
    nix::mount::umount(folder.path()).unwrap();
    assert_eq!(results, [None, Some(Limit::Free(52_428)), None]);
}
