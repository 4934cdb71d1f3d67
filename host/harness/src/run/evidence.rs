//! What is kept of a run: `STATE/runs/RUN/NUMBER/`, with `STATE/runs/latest` pointing at the last run.

use guestline_protocol::Stream;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use ulid::Ulid;

/// So many runs are kept; the oldest ones go.
const KEPT_RUNS: usize = 100;

/// So many bytes of a stream are kept: a guest must not fill the host's disk.
const MAX_STREAM_LEN: u64 = 256 * 1024 * 1024;

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Names the folder of this run below the state folder; it is made with its first attempt.
    pub fn new(state: &Path, run: Ulid) -> Self {
        Self { path: state.join("runs").join(run.to_string()) }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder of an attempt at a test, `NUMBER` or, when it is not the first one, `NUMBER.ATTEMPT`.
    ///
    /// # Errors
    /// What making it gives.
    pub fn attempt(&self, number: u32, attempt: u32) -> io::Result<AttemptFolder> {
        if !self.path.exists() {
            fs::create_dir_all(&self.path)?;
            self.point_latest_here();
            self.prune();
        }
        let path = self.path.join(match attempt {
            1 => number.to_string(),
            again => format!("{number}.{again}"),
        });
        fs::create_dir_all(&path)?;
        let streams = [Kept::create(&path.join("stdout"))?, Kept::create(&path.join("stderr"))?];
        Ok(AttemptFolder { path, streams, steps: Vec::new() })
    }

    /// A link that cannot be moved only costs convenience.
    fn point_latest_here(&self) {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let fresh = parent.join(format!(".latest-{}", name.display()));
        if std::os::unix::fs::symlink(name, &fresh).is_ok() {
            let _ = fs::rename(&fresh, parent.join("latest"));
        }
    }

    /// Names are ULIDs, so their order is that of time.
    fn prune(&self) {
        let Some(parent) = self.path.parent() else {
            return;
        };
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let named =
            entries.filter(|entry| Ulid::from_string(&entry.file_name().to_string_lossy()).is_ok());
        let mut runs: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
        runs.sort();
        for old in &runs[..runs.len().saturating_sub(KEPT_RUNS)] {
            let _ = fs::remove_dir_all(old);
        }
    }
}

/// The folder of an attempt, with its output streams open.
#[derive(Debug)]
pub struct AttemptFolder {
    path: PathBuf,
    streams: [Kept; 2],
    /// The output of parts that are no test, by their names.
    steps: Vec<(&'static str, Kept)>,
}

impl AttemptFolder {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps output. What is over the limit is dropped, which [`AttemptFolder::dropped`] tells.
    ///
    /// # Errors
    /// What writing gives.
    pub fn keep(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        let [stdout, stderr] = &mut self.streams;
        match stream {
            Stream::Stdout => stdout.write(data),
            Stream::Stderr => stderr.write(data),
        }
    }

    /// Keeps output of a part that is no test, both streams as they came.
    ///
    /// # Errors
    /// What writing gives.
    pub fn keep_of(&mut self, part: &'static str, data: &[u8]) -> io::Result<()> {
        let known = self.steps.iter().position(|(name, _)| *name == part);
        let index = match known {
            Some(index) => index,
            None => {
                self.steps.push((part, Kept::create(&self.path.join(part))?));
                self.steps.len() - 1
            }
        };
        self.steps[index].1.write(data)
    }

    /// Bytes of output that were not kept.
    pub fn dropped(&self) -> u64 {
        self.streams.iter().map(|stream| stream.dropped).sum()
    }

    /// Takes over a file of a work folder, which may be on another file system; of a machine with a name, with that.
    ///
    /// # Errors
    /// What copying gives.
    pub fn adopt(&self, file: &Path, machine: Option<&str>) -> io::Result<()> {
        let Some(name) = file.file_name().filter(|_| file.exists()) else { return Ok(()) };
        let to = match machine {
            Some(machine) => format!("{machine}.{}", name.to_string_lossy()),
            None => name.to_string_lossy().into_owned(),
        };
        fs::copy(file, self.path.join(to)).map(drop)
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// What writing gives.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        fs::write(self.path.join(name), content)
    }
}

#[derive(Debug)]
struct Kept {
    file: File,
    len: u64,
    dropped: u64,
}

impl Kept {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, len: 0, dropped: 0 })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let room = usize::try_from(MAX_STREAM_LEN - self.len).unwrap_or(usize::MAX);
        let (kept, dropped) = data.split_at(data.len().min(room));
        self.len += kept.len() as u64;
        self.dropped += dropped.len() as u64;
        self.file.write_all(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_run_is_pointed_at_and_old_runs_go() {
        let state = tempfile::tempdir().unwrap();
        let mut last = None;
        for _ in 0..KEPT_RUNS + 5 {
            let run = RunFolder::new(state.path(), Ulid::generate());
            run.attempt(1, 1).unwrap();
            last = Some(run);
        }
        let latest = fs::canonicalize(state.path().join("runs/latest")).unwrap();
        assert_eq!(latest, fs::canonicalize(last.unwrap().path()).unwrap());
        let entries = fs::read_dir(state.path().join("runs")).unwrap().count();
        assert_eq!(entries, KEPT_RUNS + 1);
    }

    #[test]
    fn a_stream_is_kept_up_to_its_limit() {
        let state = tempfile::tempdir().unwrap();
        let mut attempt = RunFolder::new(state.path(), Ulid::generate()).attempt(1, 1).unwrap();
        attempt.keep(Stream::Stdout, b"kept").unwrap();
        attempt.streams[0].len = MAX_STREAM_LEN - 1;
        attempt.keep(Stream::Stdout, b"!dropped").unwrap();
        attempt.keep(Stream::Stdout, b"x").unwrap();
        assert_eq!(attempt.dropped(), 8);
        assert_eq!(fs::read(attempt.path().join("stdout")).unwrap(), b"kept!");
    }
}
