//! What one file is.

use crate::suite::checks::{self, Check};
use crate::suite::header::{self, HeaderError};
use crate::suite::settings::Settings;
use crate::suite::test::Kind;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// More than a header can be long is not read of a file.
const HEAD_LEN: u64 = 80 * 1024;

/// What a file is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Class {
    /// Tests, one a line.
    Checks(Vec<Check>),
    /// A test; one in Python may bring its set-up and tear-down.
    Test { kind: Kind, settings: Box<Settings>, has_setup: bool, has_teardown: bool },
    /// None.
    None {
        /// Why.
        why: String,
        /// It looks as if it was meant to be one.
        is_meant: bool,
    },
}

/// A file that cannot be told.
#[derive(Debug)]
pub(super) enum ClassifyError {
    /// It cannot be read.
    Read(io::Error),
    /// What it says of itself is wrong.
    Header(HeaderError),
}

impl From<io::Error> for ClassifyError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<HeaderError> for ClassifyError {
    fn from(error: HeaderError) -> Self {
        Self::Header(error)
    }
}

/// Tells what a file is.
pub(super) fn classify(path: &Path) -> Result<Class, ClassifyError> {
    let none = |why: &str, is_meant| Ok(Class::None { why: why.to_owned(), is_meant });
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return none("it is no regular file", false);
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    if extension == Some("checks") {
        let content = read(path, checks::MAX_LEN as u64 + 1)?;
        return Ok(Class::Checks(checks::checks(&content)?));
    }
    if extension == Some("rhai") {
        return none("it is a Rhai scenario, and those are not supported yet", true);
    }
    let content = read(path, HEAD_LEN)?;
    let is_executable = metadata.permissions().mode() & 0o111 != 0;
    let has_run = extension == Some("py") && defines(&content, b"run");
    if !is_executable && !has_run {
        let has_header = header::header(&content).is_ok_and(|lines| !lines.is_empty());
        return match has_header || content.starts_with(b"#!") {
            true => none("it is not executable: chmod +x makes it a test", true),
            false if extension == Some("py") => {
                none("it has no function `run` and is not executable", false)
            }
            false => none("it is not executable", false),
        };
    }
    if metadata.len() == 0 {
        return none("it is empty", true);
    }
    let settings = Box::new(header::header(&content)?.settings()?);
    let kind = if has_run { Kind::Python } else { Kind::Script };
    let has = |function: &[u8]| has_run && defines(&content, function);
    let (has_setup, has_teardown) = (has(b"setup"), has(b"teardown"));
    Ok(Class::Test { kind, settings, has_setup, has_teardown })
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// `def NAME(` stands at the beginning of a line.
fn defines(content: &[u8], name: &[u8]) -> bool {
    content.split(|&byte| byte == b'\n').any(|line| {
        let defined = line.strip_prefix(b"def ").map(<[u8]>::trim_ascii_start);
        let behind = defined.and_then(|defined| defined.strip_prefix(name));
        behind.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"("))
    })
}
