//! Where published images are read from: a folder, or the web by curl(1).

use super::download::FetchError;
use crate::image::mirror::curl;
use crate::image::packages::read_all;
use crate::sys;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So much is read at a time.
const PIECE: usize = 256 * 1024;

/// Between two looks whether a transfer is to end.
const LOOK: Duration = Duration::from_millis(20);

/// A folder of published images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On this host.
    Folder(PathBuf),
    /// The address of one.
    Web(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Web(address) => f.write_str(address),
        }
    }
}

/// Takes a piece of what comes; an error ends it.
pub(super) type Take<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), FetchError>;

impl Source {
    /// From `https://…`, `http://…`, `file://…`, or a path.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Err("it is empty".to_owned()),
                path => std::path::absolute(path).map(Self::Folder).map_err(|e| e.to_string()),
            };
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("an address has no blanks".to_owned());
        }
        match scheme {
            "http" | "https" if !rest.is_empty() => {
                Ok(Self::Web(text.trim_end_matches('/').to_owned()))
            }
            "file" => {
                let path = rest.strip_prefix("localhost").unwrap_or(rest);
                match path.starts_with('/') {
                    true => Ok(Self::Folder(unescaped(path).into())),
                    false => Err("file:// is followed by an absolute path".to_owned()),
                }
            }
            _ => Err("it is a path, or begins with https://, http:// or file://".to_owned()),
        }
    }

    /// Reads a file of it from a place on.
    pub(super) fn read(
        &self,
        name: &str,
        from: u64,
        cancel: &CancellationToken,
        take: Take<'_>,
    ) -> Result<(), FetchError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let opened = File::open(&path).and_then(|mut file| {
                    file.seek(SeekFrom::Start(from))?;
                    Ok(file)
                });
                let place = path.display().to_string();
                let file = opened.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => FetchError::Missing { place: place.clone() },
                    _ => FetchError::Cut { place: place.clone(), why: error.to_string() },
                })?;
                pieces(file, &place, cancel, take)
            }
            Self::Web(address) => fetch(&format!("{address}/{name}"), from, cancel, take),
        }
    }
}

fn pieces(
    mut from: impl Read,
    place: &str,
    cancel: &CancellationToken,
    take: Take<'_>,
) -> Result<(), FetchError> {
    let mut buffer = vec![0; PIECE];
    loop {
        if cancel.is_cancelled() {
            return Err(FetchError::Cancelled);
        }
        let read = from.read(&mut buffer);
        let len = read
            .map_err(|error| FetchError::Cut { place: place.to_owned(), why: error.to_string() })?;
        match buffer.get(..len).unwrap_or_default() {
            [] => return Ok(()),
            piece => take(piece)?,
        }
    }
}

fn fetch(
    address: &str,
    from: u64,
    cancel: &CancellationToken,
    take: Take<'_>,
) -> Result<(), FetchError> {
    let mut command = curl();
    // What has come is not to be lost when it is ended.
    command.arg("--no-buffer");
    // It may be led elsewhere on the web, and not to the files of this host.
    command.args(["--proto", "=http,https", "--proto-redir", "=http,https"]);
    if from > 0 {
        command.args(["-C", &from.to_string()]);
    }
    command.arg("--").arg(address).stdin(Stdio::null());
    let place = || address.to_owned();
    let (code, said) = match streamed(command, address, cancel, take)? {
        (Some(0), _) => return Ok(()),
        ended => ended,
    };
    if cancel.is_cancelled() {
        return Err(FetchError::Cancelled);
    }
    let why = crate::text::printable(said.trim().trim_start_matches("curl: "));
    Err(match code {
        // curl(1), "EXIT CODES".
        Some(22) if why.contains(" 404") || why.contains(" 410") => {
            FetchError::Missing { place: place() }
        }
        Some(33 | 36) => FetchError::NoRange,
        Some(22) if why.contains(" 416") => FetchError::NoRange,
        _ => FetchError::Cut { place: place(), why },
    })
}

/// Runs a program and takes what it writes; tells its status and what it says.
fn streamed(
    mut command: Command,
    place: &str,
    cancel: &CancellationToken,
    take: Take<'_>,
) -> Result<(Option<i32>, String), FetchError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C.UTF-8");
    command.process_group(0);
    sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(FetchError::NoCurl)?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let done = AtomicBool::new(false);
    let (taken, said, status) = std::thread::scope(|scope| {
        let said = scope.spawn(|| read_all(stderr));
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if cancel.is_cancelled() {
                    let _ = killpg(group, Signal::SIGKILL);
                    return;
                }
                std::thread::sleep(LOOK);
            }
        });
        let taken = stdout.map_or(Ok(()), |stdout| pieces(stdout, place, cancel, take));
        done.store(true, Ordering::Release);
        if taken.is_err() {
            let _ = killpg(group, Signal::SIGKILL);
        }
        let status = child.wait();
        (taken, said.join().unwrap_or_default(), status)
    });
    taken?;
    let code = status.ok().and_then(|status| status.code());
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}

/// A path of an address, in which `%20` is a blank (RFC 3986, section 2.1).
fn unescaped(path: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_a_path() {
        let web = |text: &str| Ok(Source::Web(text.to_owned()));
        let folder = |text: &str| Ok(Source::Folder(PathBuf::from(text)));
        assert_eq!(Source::parse("https://example.org/images/"), web("https://example.org/images"));
        assert_eq!(Source::parse("http://localhost:80"), web("http://localhost:80"));
        assert_eq!(Source::parse("file:///a%20b/%zz"), folder("/a b/%zz"));
        assert_eq!(Source::parse("file://localhost/a"), folder("/a"));
        assert_eq!(Source::parse("/a/b"), folder("/a/b"));
        for wrong in ["", "ftp://x", "https://", "file://a", "https://a b", "-o://x"] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
    }
}
