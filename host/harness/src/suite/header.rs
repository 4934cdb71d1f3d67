//! The header of a test: TOML in comments, before its first line of code.
//!
//! ```text
//! #!/bin/sh
//! #: requires = ["kernel >= 6.1"]
//! #: timeout = "90s"
//! ```
//! A line of it begins with `#:`, `//:`, `--:` or `;:`, whatever begins a comment in the language of the test.

use super::keys::{self, Places};
use super::settings::Settings;
use toml::Spanned;
use toml::de::{DeString, DeTable, Deserializer};

/// A header, with what stands before the code, is not longer, bytes.
const MAX_LEN: usize = 64 * 1024;

/// So many bytes tell a text from a program.
const LOOK: usize = 1024;

/// What begins a line of a header, and a comment.
const MARKS: [(&str, &str); 4] = [("#:", "#"), ("//:", "//"), ("--:", "--"), (";:", ";")];

/// A header that cannot be taken, with its line in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct HeaderError {
    /// From 1.
    pub line: usize,
    /// In words.
    pub why: String,
}

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

    /// A fault of this text, with its place in the file.
    fn error(&self, error: &toml::de::Error) -> HeaderError {
        let line = self.line_of(error.span().map_or(0, |span| span.start));
        HeaderError { line, why: error.message().trim().replace('\n', " ") }
    }

    /// The line in the file of a place in this text.
    fn line_of(&self, at: usize) -> usize {
        let before = self.toml.bytes().take(at);
        let index = before.filter(|&byte| byte == b'\n').count();
        self.lines.get(index).or(self.lines.last()).copied().unwrap_or(1)
    }

    /// What is said with them of this type.
    ///
    /// # Errors
    /// What is wrong with them, and where.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, HeaderError> {
        toml::from_str(&self.toml).map_err(|error| self.error(&error))
    }
}

impl HeaderLines {
    /// What is said of tests with them.
    ///
    /// # Errors
    /// What is wrong with them, and where.
    pub fn settings(&self) -> Result<Settings, HeaderError> {
        let fault = |(at, why): (usize, String)| HeaderError { line: self.line_of(at), why };
        let table =
            DeTable::parse(&self.toml).map_err(|error| fault(keys::no_toml(&self.toml, &error)))?;
        let unknown = |key: &Spanned<DeString<'_>>| {
            Some((key.span().start, Settings::unknown_key(key.get_ref())?))
        };
        if let Some((at, why)) = table.get_ref().keys().filter_map(unknown).min() {
            return Err(fault((at, why)));
        }
        let places = Places::of(table.get_ref());
        Settings::read(Deserializer::from(table)).map_err(|error| fault(places.fault(&error)))
    }
}

fn too_long(line: usize) -> HeaderError {
    let why =
        format!("the header, with what stands before it, is longer than {} KiB", MAX_LEN / 1024);
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
/// It is too long, no UTF-8, or stands behind code too, where nobody would heed it.
pub fn header(content: &[u8]) -> Result<HeaderLines, HeaderError> {
    let mut found = HeaderLines::default();
    // A program has none.
    if content[..content.len().min(LOOK)].contains(&0) {
        return Ok(found);
    }
    let (mut is_code, mut len, mut unread) = (false, 0, None);
    for (number, line) in (1..).zip(content.split(|&byte| byte == b'\n')) {
        len += line.len() + 1;
        // What is no text cannot be told from code, so a header behind it is none that is heeded either.
        let Ok(text) = str::from_utf8(line) else {
            unread = unread.or(Some(number));
            continue;
        };
        let said = said(text);
        if len > MAX_LEN && (is_code || unread.is_some()) {
            break;
        }
        if len > MAX_LEN && said.is_some() {
            return Err(too_long(number));
        }
        if let Some(said) = said {
            let why = match unread {
                Some(unread) => {
                    format!("line {unread}, which stands before this header, is not UTF-8")
                }
                None if is_code => "a header stands before the first line of code".to_owned(),
                None => {
                    found.push(number, said)?;
                    continue;
                }
            };
            return Err(HeaderError { line: number, why });
        }
        let text = text.trim();
        is_code |= !text.is_empty() && !MARKS.iter().any(|(_, begin)| text.starts_with(begin));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(found: &HeaderLines) -> Result<toml::Table, HeaderError> {
        found.read()
    }

    #[test]
    fn a_header_is_toml_in_comments() {
        let text = b"#!/bin/sh\n# about\n#: on = 'host'\n#: list = [\n#:   1, 2 ]\n\nset -e\n";
        let found = header(text).unwrap();
        assert_eq!(table(&found).unwrap()["list"].as_array().unwrap().len(), 2);
        for begin in ["//:", "--:", ";:"] {
            let text = format!("{begin} timeout = 5\n");
            assert_eq!(
                table(&header(text.as_bytes()).unwrap()).unwrap()["timeout"].as_integer(),
                Some(5)
            );
        }
        assert!(header(b"#!/bin/sh\ntrue\n").unwrap().is_empty());
    }

    #[test]
    fn a_fault_is_told_with_its_line() {
        let found = header(b"#!/bin/sh\n\n#: on = 'host'\n# between\n#: image = \n").unwrap();
        assert_eq!(table(&found).unwrap_err().line, 5);
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
        let far = format!("{}#: x = 1\n", "# about\n".repeat(10_000));
        assert!(header(far.as_bytes()).unwrap_err().why.contains("longer than 64 KiB"));
        let code = format!("true\n{}#: x = 1\n", "# about\n".repeat(10_000));
        assert!(header(code.as_bytes()).unwrap().is_empty());
        let latin = header(b"#!/bin/sh\n# caf\xe9\n#: on = 'host'\n").unwrap_err();
        assert_eq!((latin.line, latin.why.contains("line 2")), (3, true), "{latin}");
    }
}
