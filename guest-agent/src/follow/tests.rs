use super::*;
use guestline_protocol::log::{LogParser, LogRecord};
use guestline_protocol::{ByteBuf, ErrorKind};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn request(path: &Path, from_start: bool, follow: bool) -> FollowRequest {
    let source = LogSource::File(ByteBuf::from(path.as_os_str().as_bytes()));
    FollowRequest { source, from_start, follow, credit: 0 }
}

/// A follower on a thread of its own, as in the agent.
struct Followed {
    stop: Option<UnixStream>,
    said: Receiver<Result<Vec<LogRecord>, RemoteError>>,
    thread: Option<JoinHandle<Result<Next, RemoteError>>>,
    text: String,
}

impl Followed {
    fn new(path: &Path, from_start: bool) -> Self {
        let mut follower = Follower::open(&request(path, from_start, true)).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (say, said) = mpsc::channel();
        let thread = thread::spawn(move || {
            loop {
                match follower.next(MIN_LIMIT, stopped.as_fd())? {
                    Next::Records(bytes) => {
                        assert!(!bytes.is_empty() && bytes.len() <= MIN_LIMIT);
                        let records = LogParser::default().push(&bytes).unwrap();
                        assert!(!records.is_empty());
                        say.send(Ok(records)).unwrap();
                    }
                    next => return Ok(next),
                }
            }
        });
        Self { stop: Some(stop), said, thread: Some(thread), text: String::new() }
    }

    /// Waits until that has come, and nothing else before.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        while self.text.len() < text.len() {
            match self.said.recv_timeout(PATIENCE) {
                Ok(records) => {
                    for record in records.unwrap() {
                        assert!(record.clock_us > 0);
                        self.text.push_str(std::str::from_utf8(&record.text).unwrap());
                    }
                }
                Err(error) => panic!("{error}; after {:?}, instead of {text:?}", self.text),
            }
        }
        assert_eq!(self.text, text);
        self.text.clear();
    }

    #[track_caller]
    fn expect_silence(&self) {
        let said = self.said.recv_timeout(Duration::from_millis(100));
        assert_eq!(said, Err(RecvTimeoutError::Timeout));
    }

    fn end(&mut self) -> Result<Next, RemoteError> {
        self.thread.take().unwrap().join().unwrap()
    }

    #[track_caller]
    fn stop(mut self) {
        self.stop = None;
        assert_eq!(self.end(), Ok(Next::Stopped));
        // Nothing was left behind.
        assert!(self.said.try_recv().is_err());
    }
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_file_is_followed_from_its_start_or_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    append(&path, "one\n");
    let (mut all, mut new) = (Followed::new(&path, true), Followed::new(&path, false));
    all.expect("one\n");
    append(&path, "two\n");
    append(&path, "unfin");
    all.expect("two\nunfin");
    new.expect("two\nunfin");
    append(&path, "ished\n");
    all.expect("ished\n");
    new.expect("ished\n");
    new.expect_silence();
    all.stop();
    new.stop();
}

#[test]
fn a_file_that_is_not_followed_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (_stop, stopped) = UnixStream::pair().unwrap();
    let error = Follower::open(&request(&path, true, false)).unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(2)));
    assert_eq!(error.message, format!("`{}`: No such file or directory", path.display()));
    append(&path, "one\n");
    let mut all = Follower::open(&request(&path, true, false)).unwrap();
    let Ok(Next::Records(bytes)) = all.next(0, stopped.as_fd()) else { panic!("no records") };
    let records = LogParser::default().push(&bytes).unwrap();
    assert_eq!(records.iter().map(|record| record.text.as_slice()).collect::<Vec<_>>(), [b"one\n"]);
    assert_eq!(all.next(0, stopped.as_fd()), Ok(Next::End));
    let mut rest = Follower::open(&request(&path, false, false)).unwrap();
    assert_eq!(rest.next(0, stopped.as_fd()), Ok(Next::End));
}

#[test]
fn only_regular_files_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [folder.path(), &fifo, Path::new("/dev/null"), Path::new("/")] {
        let error = Follower::open(&request(path, true, true)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.ends_with("is no regular file, and cannot be followed"), "{error}");
    }
    let path = folder.path().join("log");
    append(&path, "one\n");
    let mut followed = Followed::new(&path, true);
    followed.expect("one\n");
    fs::rename(&fifo, &path).unwrap();
    assert_eq!(followed.end().unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn a_file_may_come_later_and_so_may_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let deep = folder.path().join("sub/log");
    let (mut late, mut later) = (Followed::new(&path, false), Followed::new(&deep, false));
    late.expect_silence();
    append(&path, "late\n");
    late.expect("late\n");
    fs::create_dir(deep.parent().unwrap()).unwrap();
    append(&deep, "later\n");
    later.expect("later\n");
    append(&deep, "more\n");
    later.expect("more\n");
    late.stop();
    later.stop();
}

#[test]
fn a_rotated_file_is_read_to_its_end_then_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
    append(&path, "one\n");
    let mut followed = Followed::new(&path, true);
    followed.expect("one\n");
    for round in 0..20 {
        append(&path, "last\n");
        fs::rename(&path, &old).unwrap();
        // As logrotate does: the new file is there, empty, before the writer knows.
        File::create_new(&path).unwrap();
        append(&old, "after\n");
        if round % 2 == 0 {
            followed.expect("last\nafter\n");
            append(&old, "late\n");
            append(&path, "new\n");
            followed.expect("late\nnew\n");
        } else {
            append(&path, "new\n");
            followed.expect("last\nafter\nnew\n");
        }
    }
    // Renamed over, with its content.
    append(&folder.path().join("next"), "whole\n");
    fs::rename(folder.path().join("next"), &path).unwrap();
    followed.expect("whole\n");
    // Removed, and there again.
    fs::remove_file(&path).unwrap();
    followed.expect_silence();
    append(&path, "again\n");
    followed.expect("again\n");
    followed.stop();
}

#[test]
fn many_rotations_while_nobody_looks_lose_no_file_that_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    append(&path, "0\n");
    let mut followed = Followed::new(&path, true);
    followed.expect("0\n");
    // Empty files, one after the other.
    for count in 1..=10 {
        fs::rename(&path, folder.path().join(format!("log.{count}"))).unwrap();
        File::create_new(&path).unwrap();
    }
    append(&path, "end\n");
    followed.expect("end\n");
    followed.stop();
}

#[test]
fn a_truncated_file_is_read_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    append(&path, "a long line\n");
    let mut followed = Followed::new(&path, true);
    followed.expect("a long line\n");
    for _ in 0..10 {
        // As copytruncate does.
        fs::write(&path, "").unwrap();
        append(&path, "short\n");
        followed.expect("short\n");
        append(&path, "a longer one\n");
        followed.expect("a longer one\n");
    }
    followed.stop();
}

#[test]
fn a_link_is_followed_to_where_it_points() {
    let folder = tempfile::tempdir().unwrap();
    let [path, first, second] = ["log", "a/first", "b/second"].map(|name| folder.path().join(name));
    for file in [&first, &second] {
        fs::create_dir(file.parent().unwrap()).unwrap();
    }
    append(&first, "first\n");
    append(&second, "second\n");
    symlink(&first, &path).unwrap();
    let mut followed = Followed::new(&path, true);
    followed.expect("first\n");
    // Its target is rotated, in another folder.
    fs::rename(&first, folder.path().join("a/old")).unwrap();
    append(&first, "rotated\n");
    followed.expect("rotated\n");
    // It points elsewhere.
    let beside = folder.path().join("beside");
    symlink(&second, &beside).unwrap();
    fs::rename(&beside, &path).unwrap();
    followed.expect("second\n");
    followed.stop();
}

#[test]
fn long_files_come_in_pieces_of_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut content: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
    content.push_str(&"x".repeat(100_000));
    fs::write(&path, &content).unwrap();
    let (_stop, stopped) = UnixStream::pair().unwrap();
    for limit in [0, MIN_LIMIT, 40_000, 200_000] {
        let mut follower = Follower::open(&request(&path, true, false)).unwrap();
        let mut parser = LogParser::default();
        let mut text = Vec::new();
        while let Next::Records(bytes) = follower.next(limit, stopped.as_fd()).unwrap() {
            assert!(bytes.len() <= limit.max(MIN_LIMIT));
            for record in parser.push(&bytes).unwrap() {
                let is_whole = record.text.ends_with(b"\n");
                assert!(is_whole || record.text.ends_with(b"x"), "a line was cut");
                text.extend(record.text);
            }
        }
        assert!(text == content.as_bytes(), "limit {limit}");
    }
}

#[test]
fn the_stop_is_seen_while_waiting_and_while_there_is_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    // Waiting: for a file, and for more of it.
    let waiting = Followed::new(&path, true);
    waiting.expect_silence();
    waiting.stop();
    append(&path, "one\n");
    let mut waiting = Followed::new(&path, true);
    waiting.expect("one\n");
    waiting.stop();
    // There is more, and the stop is first.
    let mut follower = Follower::open(&request(&path, true, true)).unwrap();
    let (mut stop, stopped) = UnixStream::pair().unwrap();
    stop.write_all(b"x").unwrap();
    assert_eq!(follower.next(0, stopped.as_fd()), Ok(Next::Stopped));
}

#[test]
fn a_watched_file_needs_no_looking_and_a_foreign_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    append(&path, "one\n");
    let is_blind = |path: &Path| {
        let mut log = FileLog::open(path, true, true).unwrap();
        // The watches are set when there is nothing to read.
        loop {
            let mut records = Records::new(0);
            log.read(&mut records).unwrap();
            if records.bytes.is_empty() {
                return log.is_blind();
            }
        }
    };
    assert!(!is_blind(&path));
    assert!(!is_blind(&folder.path().join("not yet")));
    assert!(is_blind(&folder.path().join("no folder/not yet")));
    assert!(is_blind(Path::new("/proc/version")));
    symlink("no folder/target", folder.path().join("link")).unwrap();
    assert!(is_blind(&folder.path().join("link")));
}

#[test]
fn a_file_without_a_size_is_not_read_again_and_again() {
    let mut followed = Followed::new(Path::new("/proc/version"), true);
    let version = fs::read_to_string("/proc/version").unwrap();
    followed.expect(&version);
    followed.expect_silence();
    followed.stop();
}
