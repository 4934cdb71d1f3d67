//! Files by their digests out of a source: bounded by what they are to be, checked, and continued where an earlier try ended.
//!
//! What has come of a file lies in `CACHE/downloads/SHA256.part` until it is whole.

use super::FILES;
use super::source::Source;
use crate::digest::Digest;
use crate::folder_lock::try_lock;
use crate::image::manifest::FileRecord;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So often in a row a transfer may end early without having brought anything, and so often in all may it be begun anew where
/// the server does not continue it.
const TRIES: u32 = 3;

/// Between a transfer that ended early and the next.
const PAUSE: Duration = Duration::from_millis(500);

/// A file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is not there.
    #[error("there is no `{place}`")]
    Missing {
        /// Its address.
        place: String,
    },
    /// It ended early.
    #[error("`{place}` cannot be read to its end: {why}")]
    Cut {
        /// Its address.
        place: String,
        /// Why.
        why: String,
    },
    /// There is more than there should be.
    #[error("`{place}` is longer than {wanted} bytes")]
    TooLong {
        /// Its address.
        place: String,
        /// What it should be at most.
        wanted: u64,
    },
    /// It is another.
    #[error("`{place}` has another content: its SHA-256 is {found}, not {wanted}")]
    Digest {
        /// Its address.
        place: String,
        /// What came.
        found: Digest,
        /// What should.
        wanted: Digest,
    },
    /// It cannot be continued, only begun anew.
    #[error("the server does not continue a file")]
    NoRange,
    /// There is no program to fetch with.
    #[error("cannot run `curl`")]
    NoCurl(#[source] io::Error),
    /// What comes cannot be kept.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

/// A small file of a source, into memory.
pub(super) fn read_small(
    source: &Source,
    name: &str,
    most: u64,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let too_long = || FetchError::TooLong { place: format!("{source}/{name}"), wanted: most };
    source.read(name, 0, cancel, &mut |piece| match (bytes.len() + piece.len()) as u64 > most {
        true => Err(too_long()),
        false => {
            bytes.extend_from_slice(piece);
            Ok(())
        }
    })?;
    Ok(bytes)
}

/// A small file of a source that is named by its digest, into memory.
pub(super) fn read_named(
    source: &Source,
    digest: &Digest,
    most: u64,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, FetchError> {
    let name = format!("{FILES}/{digest}");
    let bytes = read_small(source, &name, most, cancel)?;
    match Digest::of(&bytes) {
        found if found == *digest => Ok(bytes),
        found => {
            let (place, wanted) = (format!("{source}/{name}"), digest.clone());
            Err(FetchError::Digest { place, found, wanted })
        }
    }
}

/// A file on its way; nobody else works on it.
pub(super) struct Download {
    path: PathBuf,
    file: Flock<File>,
}

impl Download {
    /// Waits for who fetches the same.
    pub(super) fn begin(
        folder: &Path,
        digest: &Digest,
        cancel: &CancellationToken,
    ) -> Result<Self, FetchError> {
        let path = folder.join(format!("{digest}.part"));
        let wrong = |source| FetchError::Write { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(wrong)?;
        loop {
            let file = File::options().create(true).append(true).read(true).open(&path);
            let locked = try_lock(file.map_err(wrong)?, FlockArg::LockExclusiveNonblock, 1);
            match locked.map_err(wrong)? {
                // Whoever had it may have taken it away.
                Some(file) if is_at(&file, &path) => return Ok(Self { path, file }),
                _ if cancel.is_cancelled() => return Err(FetchError::Cancelled),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Brings all of it, from where it ended before. What has come stays for the next time, unless it is wrong or the disk
    /// is full. `tell` is told how much there is; how much came is returned.
    pub(super) fn run(
        &mut self,
        source: &Source,
        record: &FileRecord,
        cancel: &CancellationToken,
        tell: &dyn Fn(u64),
    ) -> Result<u64, FetchError> {
        let (mut idle, mut restarts, mut from_nothing, mut came) = (0, 0, false, 0);
        loop {
            let mut have = self.len()?;
            if have > record.size {
                self.empty()?;
                have = 0;
            }
            from_nothing |= have == 0;
            if have == record.size {
                match self.check(source, record) {
                    Ok(()) => return Ok(came),
                    // What an earlier try left may be what is wrong.
                    Err(_) if !from_nothing => self.empty()?,
                    Err(error) => {
                        self.remove();
                        return Err(error);
                    }
                }
                (have, from_nothing) = (0, true);
            }
            let ended = self.go_on(source, record, have, cancel, tell);
            let now = self.len()?;
            came += now.saturating_sub(have);
            match ended {
                Ok(()) if now >= record.size => {}
                Err(FetchError::NoRange) if have > 0 => {
                    restarts += 1;
                    if restarts == TRIES {
                        let why =
                            "it ends early each time, and the server does not continue a file";
                        let (place, why) = (place(source, record), why.to_owned());
                        return Err(FetchError::Cut { place, why });
                    }
                    self.empty()?;
                }
                Err(FetchError::TooLong { .. }) if !from_nothing => self.empty()?,
                Err(error @ FetchError::TooLong { .. }) => {
                    self.remove();
                    return Err(error);
                }
                Err(error @ FetchError::Write { .. }) => {
                    self.remove();
                    return Err(error);
                }
                Ok(()) | Err(FetchError::Cut { .. }) => {
                    idle = if now > have { 0 } else { idle + 1 };
                    if idle == TRIES {
                        let why = format!("{now} of {} bytes came", record.size);
                        let cut = FetchError::Cut { place: place(source, record), why };
                        return Err(ended.err().unwrap_or(cut));
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts what is whole to its place.
    pub(super) fn put(self, to: &Path) -> Result<(), FetchError> {
        let moved = fs::rename(&self.path, to);
        moved.map_err(|source| FetchError::Write { path: to.to_owned(), source })
    }

    fn go_on(
        &self,
        source: &Source,
        record: &FileRecord,
        from: u64,
        cancel: &CancellationToken,
        tell: &dyn Fn(u64),
    ) -> Result<(), FetchError> {
        let (mut have, mut file) = (from, &*self.file);
        source.read(&name(record), from, cancel, &mut |piece| {
            have += piece.len() as u64;
            if have > record.size {
                let (place, wanted) = (place(source, record), record.size);
                return Err(FetchError::TooLong { place, wanted });
            }
            file.write_all(piece).map_err(|source| self.wrong(source))?;
            tell(have);
            Ok(())
        })
    }

    /// Is it what it should be?
    fn check(&self, source: &Source, record: &FileRecord) -> Result<(), FetchError> {
        let found = Digest::of_file(&self.path).map_err(|source| self.wrong(source))?;
        if found == record.sha256 {
            return Ok(());
        }
        let (place, wanted) = (place(source, record), record.sha256.clone());
        Err(FetchError::Digest { place, found, wanted })
    }

    fn len(&self) -> Result<u64, FetchError> {
        self.file.metadata().map(|found| found.len()).map_err(|source| self.wrong(source))
    }

    fn empty(&self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(|source| self.wrong(source))
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn wrong(&self, source: io::Error) -> FetchError {
        FetchError::Write { path: self.path.clone(), source }
    }
}

fn name(record: &FileRecord) -> String {
    format!("{FILES}/{}", record.sha256)
}

fn place(source: &Source, record: &FileRecord) -> String {
    format!("{source}/{} ({})", name(record), record.name)
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    let (ours, theirs) = (file.metadata().map(id), fs::metadata(path).map(id));
    ours.ok().is_some_and(|ours| theirs.ok() == Some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::net::TcpListener;

    /// Serves what is always the same, whatever is asked for; tells its address.
    fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = io::BufReader::new(&stream).lines();
                let _ = asked.map_while(Result::ok).find(String::is_empty);
                let _ = (&stream).write_all(answer.as_bytes());
            }
        });
        format!("http://{address}")
    }

    #[test]
    fn a_server_that_always_cuts_and_continues_nothing_is_given_up() {
        let source = Source::Web(server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"));
        let sha256 = Digest::of(b"half done");
        let record = FileRecord { name: "kernel".to_owned(), size: 9, sha256 };
        let (folder, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut download = Download::begin(folder.path(), &record.sha256, &cancel).unwrap();
        let error = download.run(&source, &record, &cancel, &|_| ()).unwrap_err();
        assert!(matches!(error, FetchError::Cut { .. }), "{error}");
        assert!(error.to_string().ends_with("the server does not continue a file"), "{error}");
    }
}
