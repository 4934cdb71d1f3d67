//! What the reader makes of what is there.

use crate::support::{drain, records, stream_of};
use guestline_files::TreeReader;
use guestline_protocol::tree::MAX_DEPTH;
use guestline_protocol::{ErrorKind, file::MAX_TROUBLES};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn names_are_sorted_and_folders_come_first() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    for name in ["c", "b/z", "a", "b/y"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    assert_eq!(
        records(&stream_of(folder.path())),
        [
            "",
            "a",
            "+1",
            "=1",
            "b",
            "b/y",
            "+3",
            "=3",
            "b/z",
            "+3",
            "=3",
            "c",
            "+1",
            "=1",
            "6 items, 0 troubles"
        ]
    );
}

#[test]
fn a_path_that_is_not_there() {
    let error = TreeReader::open(Path::new("/nowhere/at all"), true).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(2)));
    assert_eq!(error.message, "`/nowhere/at all`: No such file or directory");
    let error = TreeReader::open(Path::new("a\0b"), true).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let error = TreeReader::open(Path::new("/dev/null/x"), true).unwrap_err();
    assert_eq!(error.kind, ErrorKind::System);
}

#[test]
fn only_the_link_that_was_asked_for_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink("/", real.join("inner")).unwrap();
    let link = folder.path().join("link");
    symlink("real", &link).unwrap();
    let mut reader = TreeReader::open(&link, true).unwrap();
    assert_eq!(records(&drain(&mut reader, 9999)), ["", "inner", "2 items, 0 troubles"]);
    let mut reader = TreeReader::open(&link, false).unwrap();
    assert_eq!(records(&drain(&mut reader, 9999)), ["", "1 items, 0 troubles"]);
}

#[test]
fn files_of_proc_and_sys_are_read_to_their_end() {
    for path in
        ["/proc/version", "/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"]
    {
        let Ok(content) = fs::read(path) else { continue };
        let end = format!("={}", content.len());
        assert!(records(&stream_of(Path::new(path))).contains(&end), "{path}");
    }
}

#[test]
fn nodes_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Opening the pipe to read would wait for a writer.
    assert_eq!(records(&stream_of(folder.path())), ["", "pipe", "2 items, 0 troubles"]);
    assert_eq!(records(&stream_of(Path::new("/dev/null"))), ["", "1 items, 0 troubles"]);
}

#[test]
fn a_buffer_is_filled_by_one_record_of_a_big_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let mut reader = TreeReader::open(&path, false).unwrap();
    let mut buffer = vec![9; 16];
    assert!(reader.fill(&mut buffer, 16, 100_000));
    for _ in 0..3 {
        assert!(reader.fill(&mut buffer, 16, 100_000));
        assert_eq!(buffer.len(), 100_000);
        assert_eq!(buffer[..16], [9; 16]);
        assert_eq!(buffer[16], 2);
        assert_eq!(buffer[17..21], (100_000_u32 - 21).to_le_bytes());
    }
}

#[test]
fn a_file_that_shrinks_ends_with_an_error_and_the_rest_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    fs::write(&path, vec![1; 100_000]).unwrap();
    fs::hard_link(&path, folder.path().join("b")).unwrap();
    let mut reader = TreeReader::open(folder.path(), false).unwrap();
    let mut buffer = Vec::new();
    assert!(reader.fill(&mut buffer, 0, 50_000));
    fs::File::options().write(true).open(&path).unwrap().set_len(60_000).unwrap();
    let at = buffer.len();
    assert!(!reader.fill(&mut buffer, at, 1 << 20));
    let records = records(&buffer);
    let full = path.to_str().unwrap();
    assert!(records.contains(&format!("!`{full}`: it shrank while it was read")), "{records:?}");
    // Its other name is no link to what the receiver has dropped.
    assert_eq!(records[records.len() - 4..], ["b", "+60000", "=60000", "3 items, 1 troubles"]);
    assert_eq!(reader.troubles()[0].path.as_slice(), b"a");
    assert_eq!(reader.troubles()[0].error.kind, ErrorKind::Integrity);
}

#[test]
fn what_vanishes_meanwhile_is_a_trouble_and_few_are_told() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..100 {
        fs::write(folder.path().join(format!("{n}")), b"").unwrap();
    }
    let mut reader = TreeReader::open(folder.path(), false).unwrap();
    for n in 0..100 {
        fs::remove_file(folder.path().join(format!("{n}"))).unwrap();
    }
    assert_eq!(records(&drain(&mut reader, 9999)), ["", "1 items, 100 troubles"]);
    assert_eq!(reader.troubles().len(), MAX_TROUBLES);
    assert_eq!(reader.troubles()[0].error.kind, ErrorKind::NotFound);
}

#[test]
fn a_link_planted_meanwhile_does_not_lead_out() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let mut reader = TreeReader::open(folder.path(), false).unwrap();
    fs::remove_dir(&inner).unwrap();
    symlink(outside.path(), &inner).unwrap();
    assert_eq!(records(&drain(&mut reader, 9999)), ["", "inner", "2 items, 0 troubles"]);
}

#[test]
fn what_is_too_deep_is_a_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let deep = (0..MAX_DEPTH + 5).fold(folder.path().to_owned(), |path, _| path.join("d"));
    fs::create_dir_all(&deep).unwrap();
    let mut reader = TreeReader::open(folder.path(), false).unwrap();
    let records = records(&drain(&mut reader, 9999));
    assert_eq!(records.last().unwrap(), &format!("{} items, 1 troubles", MAX_DEPTH + 1));
    assert_eq!(reader.troubles()[0].error.errno, Some(36));
}
