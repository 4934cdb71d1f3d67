//! Single questions and deeds.

use guestline_files::ops::{list, make_folder, remove, stat};
use guestline_protocol::{DeviceNumber, ErrorKind, FileKind};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

#[test]
fn stat_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"hello").unwrap();
    let link = folder.path().join("link");
    symlink("file", &link).unwrap();
    let file = stat(&link, true).unwrap();
    assert_eq!((file.kind, file.len, file.links, file.target), (FileKind::File, 5, 1, None));
    assert_eq!(file.modified.seconds, fs::metadata(&path).unwrap().mtime());
    let info = stat(&link, false).unwrap();
    assert_eq!(info.kind, FileKind::Symlink);
    assert_eq!(info.target.unwrap().as_slice(), b"file");
    let null = stat(Path::new("/dev/null"), false).unwrap();
    assert_eq!(null.kind, FileKind::CharDevice);
    assert_eq!(null.device, Some(DeviceNumber { major: 1, minor: 3 }));
    let error = stat(&folder.path().join("none"), true).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(2)));
    assert_eq!(stat(Path::new("a\0b"), true).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn list_says_what_is_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    symlink("/nowhere", folder.path().join("link")).unwrap();
    let mut entries = list(folder.path()).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(entries.len(), 2);
    let link = entries[0].info.clone().unwrap();
    assert_eq!((entries[0].name.as_slice(), link.kind), (&b"link"[..], FileKind::Symlink));
    assert_eq!(link.target.unwrap().as_slice(), b"/nowhere");
    assert_eq!(entries[1].info.clone().unwrap().kind, FileKind::Folder);
    assert_eq!(list(Path::new("/dev/null")).unwrap_err().errno, Some(20));
}

#[test]
fn make_folder_gives_the_very_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/c");
    assert_eq!(make_folder(&path, 0o755, false).unwrap_err().kind, ErrorKind::NotFound);
    make_folder(&path, 0o2777, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o2777);
    make_folder(&path, 0o700, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o2777);
    assert_eq!(make_folder(&path, 0o700, false).unwrap_err().errno, Some(17));
    fs::write(path.join("file"), b"").unwrap();
    assert_eq!(make_folder(&path.join("file"), 0o700, true).unwrap_err().errno, Some(17));
    make_folder(Path::new("/"), 0o755, true).unwrap();
}

#[test]
fn remove_follows_no_link() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), b"").unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    symlink(&outside, tree.join("sub/link")).unwrap();
    assert_eq!(remove(&tree, false, false).unwrap_err().errno, Some(39));
    remove(&tree, true, false).unwrap();
    let link = folder.path().join("link");
    symlink(&outside, &link).unwrap();
    remove(&link, true, false).unwrap();
    assert!(!link.exists() && !tree.exists() && outside.join("kept").exists());
}

#[test]
fn remove_of_what_is_not_there() {
    let none = Path::new("/nowhere/at/all");
    assert_eq!(remove(none, true, false).unwrap_err().kind, ErrorKind::NotFound);
    remove(none, false, true).unwrap();
}

#[test]
fn the_root_folder_stays() {
    for root in ["/", "//", "/.", "/..", "/usr/.."] {
        let error = remove(Path::new(root), false, true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{root}");
    }
}
