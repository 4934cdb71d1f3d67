//! The serial console: each line with the host's clock, on disk with bounds, the last ones in memory.
//!
//! What a guest prints is data: lines are cut at [`MAX_LINE_LEN`], control characters escaped, and
//! the file ends growing at [`MAX_FILE_LEN`] (the last lines are still added at the end).

use crate::text::escape;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// How the kernel begins its last message (Linux `kernel/panic.c`).
pub const PANIC_MARK: &str = "Kernel panic - not syncing";

/// A line is cut after so many bytes.
const MAX_LINE_LEN: usize = 4096;

/// The file grows to so many bytes.
const MAX_FILE_LEN: usize = 4 * 1024 * 1024;

/// So many last lines are kept in memory.
const KEPT_LINES: usize = 200;

/// A line of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleLine {
    /// When its end arrived.
    pub at: Instant,
    /// Its text, control characters escaped.
    pub text: String,
}

/// A console that is being captured.
#[derive(Debug)]
pub struct Console {
    stream: Arc<UnixStream>,
    kept: Arc<Mutex<VecDeque<ConsoleLine>>>,
    reader: JoinHandle<io::Result<()>>,
}

impl Console {
    /// Captures until the stream ends, with times since `start`.
    ///
    /// # Errors
    /// What creating the file gives.
    pub fn capture(stream: UnixStream, file: &Path, start: Instant) -> io::Result<Self> {
        let file = BufWriter::new(File::create(file)?);
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let log =
            ConsoleLog { start, file, len: 0, cut: false, line: Vec::new(), kept: kept.clone() };
        let stream = Arc::new(stream);
        let reader = tokio::spawn(read(stream.clone(), log));
        Ok(Self { stream, kept, reader })
    }

    /// Stops to capture, and gives the stream to who goes on with it.
    ///
    /// # Errors
    /// What duplicating a descriptor gives.
    pub(crate) async fn give_away(self) -> io::Result<OwnedFd> {
        self.reader.abort();
        let _ = self.reader.await;
        self.stream.as_fd().try_clone_to_owned()
    }

    /// The last lines, oldest first.
    pub fn last_lines(&self) -> Vec<ConsoleLine> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits until the stream has ended and the file is whole. To be called when the machine is gone.
    ///
    /// # Errors
    /// What writing the file gave.
    pub async fn finish(&mut self) -> io::Result<()> {
        (&mut self.reader).await.map_err(io::Error::other)?
    }
}

async fn read(stream: Arc<UnixStream>, mut log: ConsoleLog) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    // The guest is kept waiting for nothing: it is read also when the file cannot be written.
    let mut result = Ok(());
    while stream.readable().await.is_ok() {
        let len = match stream.try_read(&mut buffer) {
            Ok(len @ 1..) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Ok(0) | Err(_) => break,
        };
        let taken = log.take(&buffer[..len], Instant::now());
        // Whoever follows the file sees what is there.
        result = result.and(taken).and(log.file.flush());
    }
    result.and(log.finish())
}

struct ConsoleLog {
    start: Instant,
    file: BufWriter<File>,
    len: usize,
    cut: bool,
    line: Vec<u8>,
    kept: Arc<Mutex<VecDeque<ConsoleLine>>>,
}

impl ConsoleLog {
    fn take(&mut self, bytes: &[u8], at: Instant) -> io::Result<()> {
        let mut result = Ok(());
        for &byte in bytes {
            match byte {
                b'\n' => result = result.and(self.end_line(at)),
                _ if self.line.len() < MAX_LINE_LEN => self.line.push(byte),
                _ => {}
            }
        }
        result
    }

    fn end_line(&mut self, at: Instant) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        let line = ConsoleLine { at, text: escape(line) };
        let written = match self.len < MAX_FILE_LEN {
            true => self.write(&line),
            false => {
                self.cut = true;
                Ok(())
            }
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
        written
    }

    fn write(&mut self, line: &ConsoleLine) -> io::Result<()> {
        let seconds = line.at.saturating_duration_since(self.start).as_secs_f64();
        let text = format!("[{seconds:11.6}] {}\n", line.text);
        self.len += text.len();
        self.file.write_all(text.as_bytes())
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.end_line(Instant::now())?;
        }
        if self.cut {
            writeln!(self.file, "[ cut here; the last {KEPT_LINES} lines follow ]")?;
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for line in &kept {
                self.write(line)?;
            }
        }
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn captured(bytes: &[u8]) -> (String, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut console = Console::capture(ours, &path, Instant::now()).unwrap();
        guest.write_all(bytes).await.unwrap();
        drop(guest);
        console.finish().await.unwrap();
        let lines = console.last_lines().into_iter().map(|line| line.text).collect();
        (std::fs::read_to_string(path).unwrap(), lines)
    }

    #[tokio::test]
    async fn lines_are_escaped_and_kept() {
        let (_, lines) = captured(b"one\r\n\x1b[2Jtwo\xff\nrest").await;
        assert_eq!(lines, ["one", "\\u{1b}[2Jtwo\\xff", "rest"]);
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_its_end_kept() {
        let mut flood = Vec::new();
        for number in 0..200_000 {
            flood.extend(format!("line {number} {}\n", "x".repeat(30)).into_bytes());
        }
        let (file, lines) = captured(&flood).await;
        assert!(file.len() < MAX_FILE_LEN + 100_000, "{} bytes", file.len());
        assert!(file.contains("cut here"));
        assert!(file.trim_end().lines().last().is_some_and(|line| line.contains("line 199999")));
        assert_eq!(lines.len(), KEPT_LINES);
    }

    #[tokio::test]
    async fn a_line_without_end_takes_no_memory() {
        let (file, lines) = captured(&vec![b'x'; 1 << 20]).await;
        assert_eq!(lines, ["x".repeat(MAX_LINE_LEN)]);
        assert!(file.len() < 2 * MAX_LINE_LEN);
    }
}
