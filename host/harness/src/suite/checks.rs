//! Files of checks: one test a line.
//!
//! ```text
//! # a comment
//! #: requires = ["cpu.sse2"]            for what follows
//! sse2: grep -q sse2 /proc/cpuinfo
//! loop: test -e /dev/loop-control
//! ```
//! A name has `[a-z0-9][a-z0-9._-]*` and at most 64 bytes; what stands behind the colon is the line for the guest's shell.
//! A block of `#:` lines is TOML, with the keys of a header; it holds for the tests below it, until a later block says
//! something else of the same key.

use super::header::{HeaderError, HeaderLines, said};
use super::settings::Settings;
use crate::text::{is_plain_name, one_line};
use std::collections::BTreeMap;

/// A file is not longer, bytes.
pub const MAX_LEN: usize = 16 << 20;

/// Nor is the line of a test: what a shell takes as one word (`MAX_ARG_STRLEN`, execve(2)).
const MAX_LINE_LEN: usize = 128 * 1024 - 1;

/// One test of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What the shell is given.
    pub line: String,
    /// Where it stands, from 1.
    pub number: usize,
    /// What is said of it.
    pub settings: Settings,
}

/// Reads a file.
///
/// # Errors
/// What is wrong with it, and where.
pub fn checks(content: &[u8]) -> Result<Vec<Check>, HeaderError> {
    let fault = |line: usize, why: String| Err(HeaderError { line, why });
    if content.len() > MAX_LEN {
        return fault(1, format!("the file is longer than {} MiB", MAX_LEN >> 20));
    }
    let mut found: Vec<Check> = Vec::new();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut settings = Settings::default();
    let mut block = HeaderLines::default();
    for (number, line) in (1..).zip(content.split(|&byte| byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Ok(line) = str::from_utf8(line) else {
            return fault(
                number,
                "it is not UTF-8: a program that writes other bytes is a file of its own"
                    .to_owned(),
            );
        };
        let line = line.trim();
        if let Some(said) = said(line).filter(|_| line.starts_with("#:")) {
            block.push(number, said)?;
            continue;
        }
        if !block.is_empty() {
            settings = std::mem::take(&mut block).settings()?.after(&settings);
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.contains('\0') {
            return fault(number, "it has a zero byte, and no command line can".to_owned());
        }
        let (name, test) = match line.split_once(':') {
            Some((name, test)) if is_plain_name(name.trim()) => (name.trim(), test.trim()),
            Some((name, _)) if !name.contains(char::is_whitespace) => {
                let name = one_line(name, 40);
                return fault(
                    number,
                    format!(
                        "`{name}` is no name: one has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit"
                    ),
                );
            }
            _ => {
                let line = one_line(line, 40);
                return fault(number, format!("`{line}` has no name: write `NAME: {line}`"));
            }
        };
        if test.is_empty() {
            return fault(number, format!("`{name}` has no line: write `{name}: COMMAND`"));
        }
        if test.len() > MAX_LINE_LEN {
            return fault(
                number,
                format!(
                    "`{name}` has more than {MAX_LINE_LEN} bytes, which Linux does not take: put it into a file"
                ),
            );
        }
        if let Some(first) = names.insert(name.to_owned(), number) {
            return fault(
                number,
                format!("`{name}` is the name of line {first} already: take another one"),
            );
        }
        let (name, line) = (name.to_owned(), test.to_owned());
        found.push(Check { name, line, number, settings: settings.clone() });
    }
    if !block.is_empty() {
        block.settings()?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_test() {
        let text = b"# about\n\na: true\n#: requires = ['root']\n#: image = 'debian-12'\nb.2: echo a: b # c\r\n#: requires = ['kvm']\nc:false";
        let found = checks(text).unwrap();
        let of = |it: &Check| (it.name.clone(), it.line.clone(), it.number);
        assert_eq!(of(&found[0]), ("a".into(), "true".into(), 3));
        assert_eq!(of(&found[1]), ("b.2".into(), "echo a: b # c".into(), 6));
        assert_eq!(found[0].settings, Settings::default());
        let requires = |it: &Check| it.settings.requires.as_ref().unwrap()[0].to_string();
        assert_eq!((requires(&found[1]), requires(&found[2])), ("root".into(), "kvm".into()));
        assert_eq!(found[2].settings.image, found[1].settings.image);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let all: [&[u8]; 10] = [
            b"a: true\nls -l",
            b"Upper: true",
            b"a:",
            b"a: true\nb: true\na: false",
            b"#: image = 3\na: true",
            b"a: true\n\n#: imgae = 'x'",
            b"a: \xff",
            b"a: x\0y",
            b"#: requires = [\n# c\na: true",
            b"-x: true",
        ];
        let told: Vec<_> = all.iter().map(|text| checks(text).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(told.join("\n"));
        let long = format!("a: {}", "x".repeat(MAX_LINE_LEN + 1));
        assert!(checks(long.as_bytes()).unwrap_err().why.contains("put it into a file"));
        assert!(checks(&vec![b'#'; MAX_LEN + 1]).unwrap_err().why.contains("longer than 16 MiB"));
    }
}
