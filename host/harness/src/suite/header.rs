//! The header of a test: TOML in comments, before its first line of code.
//!
//! ```text
//! #!/bin/sh
//! #: requires = ["kernel >= 6.1"]
//! #: timeout = "90s"
//! ```
//! A line of it begins with `#:`, `//:`, `--:` or `;:`, whatever begins a comment in the language of the test.

use std::fmt;
use toml::Table;

/// A header is not longer, bytes; nor does what stands before the code take more.
const MAX_LEN: usize = 64 * 1024;

/// So many bytes tell a text from a program.
const LOOK: usize = 1024;

/// What begins a line of a header, and a comment.
const MARKS: [(&str, &str); 4] = [("#:", "#"), ("//:", "//"), ("--:", "--"), (";:", ";")];

/// A header that cannot be taken, with its line in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderError {
    /// From 1.
    pub line: usize,
    /// In words.
    pub why: String,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for HeaderError {}

/// Lines of TOML that stand in a file among others.
#[derive(Debug, Default)]
pub struct HeaderLines {
    toml: String,
    /// Where each of them stands, from 1.
    lines: Vec<usize>,
}

impl HeaderLines {
    /// One more.
    ///
    /// # Errors
    /// It is too long.
    pub fn push(&mut self, line: usize, text: &str) -> Result<(), HeaderError> {
        if self.toml.len() + text.len() >= MAX_LEN {
            return Err(too_long(line));
        }
        self.toml.push_str(text);
        self.toml.push('\n');
        self.lines.push(line);
        Ok(())
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What they say.
    ///
    /// # Errors
    /// What is wrong with them, and where.
    pub fn table(&self) -> Result<Table, HeaderError> {
        toml::from_str(&self.toml).map_err(|error| self.error(&error))
    }

    /// A fault of this text, with its place in the file.
    pub fn error(&self, error: &toml::de::Error) -> HeaderError {
        let at = error.span().map_or(0, |span| span.start).min(self.toml.len());
        let index = self.toml.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
        let line = self.lines.get(index).or(self.lines.last()).copied().unwrap_or(1);
        HeaderError { line, why: error.message().trim().replace('\n', " ") }
    }

    /// What is said with them of this type.
    ///
    /// # Errors
    /// What is wrong with them, and where.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, HeaderError> {
        toml::from_str(&self.toml).map_err(|error| self.error(&error))
    }
}

fn too_long(line: usize) -> HeaderError {
    let why = format!("the header is longer than {} KiB", MAX_LEN / 1024);
    HeaderError { line, why }
}

/// What a line of a header says.
pub(super) fn said(line: &str) -> Option<&str> {
    let line = line.trim_start();
    MARKS.iter().find_map(|(mark, _)| line.strip_prefix(mark))
}

/// Finds the header of a file: of its first lines that are blank or comments.
///
/// # Errors
/// It is too long, or stands behind code too, where nobody would heed it.
pub fn header(content: &[u8]) -> Result<HeaderLines, HeaderError> {
    let mut found = HeaderLines::default();
    // A program has none.
    if content[..content.len().min(LOOK)].contains(&0) {
        return Ok(found);
    }
    let (mut is_code, mut len) = (false, 0);
    for (number, line) in (1..).zip(content.split(|&byte| byte == b'\n')) {
        len += line.len() + 1;
        // What is no text has no header behind this, and is code.
        let Ok(text) = str::from_utf8(line) else {
            is_code = true;
            continue;
        };
        match said(text) {
            Some(_) if is_code && len > MAX_LEN => break,
            Some(_) if is_code => {
                let why = "a header stands before the first line of code".to_owned();
                return Err(HeaderError { line: number, why });
            }
            Some(said) => found.push(number, said)?,
            None => {}
        }
        let text = text.trim();
        is_code |= !text.is_empty() && !MARKS.iter().any(|(_, begin)| text.starts_with(begin));
        if is_code && len > MAX_LEN {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_toml_in_comments() {
        let text = b"#!/bin/sh\n# about\n#: on = 'host'\n#: list = [\n#:   1, 2 ]\n\nset -e\n";
        let found = header(text).unwrap();
        assert_eq!(found.table().unwrap()["list"].as_array().unwrap().len(), 2);
        for begin in ["//:", "--:", ";:"] {
            let text = format!("{begin} timeout = 5\n");
            assert_eq!(
                header(text.as_bytes()).unwrap().table().unwrap()["timeout"].as_integer(),
                Some(5)
            );
        }
        assert!(header(b"#!/bin/sh\ntrue\n").unwrap().is_empty());
    }

    #[test]
    fn a_fault_is_told_with_its_line() {
        let found = header(b"#!/bin/sh\n\n#: on = 'host'\n# between\n#: image = \n").unwrap();
        assert_eq!(found.table().unwrap_err().line, 5);
        let late = header(b"#!/bin/sh\nset -e\n#: on = 'host'\n").unwrap_err();
        assert_eq!((late.line, late.why.contains("before the first line of code")), (3, true));
    }

    #[test]
    fn what_is_endless_or_no_text_is_taken_calmly() {
        let long = "#: x = 1\n".repeat(20_000);
        assert!(header(long.as_bytes()).unwrap_err().why.contains("longer than 64 KiB"));
        let one = format!("#: x = '{}'\n", "y".repeat(10 << 20));
        assert!(header(one.as_bytes()).unwrap_err().why.contains("longer than 64 KiB"));
        assert!(header(b"\x7fELF\x02\0\xff\n#: x\n").unwrap().is_empty());
        let mut text = vec![0xff; 100_000];
        text.extend_from_slice(b"\n#: x\n");
        assert!(header(&text).unwrap().is_empty());
    }
}
