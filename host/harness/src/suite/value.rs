//! Values that names can have, and how they compare.
//!
//! | written | is |
//! |---|---|
//! | `512M`, `2G`, `2GiB` | a size |
//! | `6.1`, `64`, `2013-10-24` | a version; a number is one |
//! | `debian`, `"Dell Inc."` | a text |
//!
//! A version and a size compare when the version is a plain number, of MiB. Otherwise only values of a kind have an order,
//! and texts have none: they are the same or not.

use super::version::{Version, VersionError};
use crate::text::one_line;
use crate::units;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A value is not longer, bytes.
pub const MAX_LEN: usize = 256;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A version, or a number.
    Version(Version),
    /// A size, MiB.
    SizeMib(u64),
    /// Any text.
    Text(Box<str>),
}

/// A text that is no value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueError {
    /// There is none.
    #[error("the value is empty: write one, or none and no operator")]
    Empty,
    /// The name has none.
    #[error("it is there or not, and has no value")]
    Flag,
    /// It is too long.
    #[error("the value `{begin}` is longer than {MAX_LEN} bytes")]
    TooLong {
        /// Its beginning.
        begin: String,
    },
    /// It is none without quotes.
    #[error(
        "the value `{value}` has `{wrong}` in it: put it between double quotes if that is meant"
    )]
    Bare {
        /// It.
        value: String,
        /// What is wrong.
        wrong: String,
    },
    /// It is none with quotes either.
    #[error(
        "the value `{value}` has control characters or double quotes within it, or lacks one at its end"
    )]
    Quoted {
        /// It.
        value: String,
    },
    /// It is to be a size.
    #[error("`{value}` is no size: {why}, as 512M or 2G")]
    Size {
        /// It.
        value: String,
        /// What is wanted.
        why: String,
    },
    /// It is to be a version.
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl Value {
    /// A size from its text.
    ///
    /// # Errors
    /// It is none.
    pub fn size(text: &str) -> Result<Self, ValueError> {
        // What `units` takes for a number may have a sign.
        let is_plain = text.starts_with(|c: char| c.is_ascii_digit());
        let mib = match is_plain {
            true => units::mib(text),
            false => Err("want a number, perhaps with M or G".to_owned()),
        };
        let value = || one_line(text, 80);
        mib.map(Self::SizeMib).map_err(|why| ValueError::Size { value: value(), why })
    }

    /// The value of a fact, as somebody else wrote it: what is neither size nor version is a text, of
    /// which [`MAX_LEN`] bytes are kept.
    pub fn of(fact: &str) -> Self {
        let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= MAX_LEN;
        let short = || fact.char_indices().take_while(fits).map(|(_, c)| c).collect::<String>();
        fact.parse().unwrap_or_else(|_| Self::Text(short().into()))
    }

    /// How it stands to another; none where they have no order.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Version(a), Self::Version(b)) => Some(a.cmp(b)),
            (Self::Text(_), _) | (_, Self::Text(_)) => None,
            (a, b) => Some(a.mib()?.cmp(&b.mib()?)),
        }
    }

    /// It is the same, in whatever spelling.
    pub fn is_same(&self, other: &Self) -> bool {
        match self.compare(other) {
            Some(order) => order.is_eq(),
            None => self.to_string() == other.to_string(),
        }
    }

    fn mib(&self) -> Option<u64> {
        match self {
            Self::SizeMib(mib) => Some(*mib),
            Self::Version(number) => number.as_str().parse().ok(),
            Self::Text(_) => None,
        }
    }

    /// It as a requirement writes it: [`FromStr`] makes the same of it again. No text with double quotes within comes from there.
    pub fn quoted(&self) -> String {
        let text = self.to_string();
        match self {
            Self::Text(_) if !matches!(text.parse(), Ok(Self::Text(_))) => format!("\"{text}\""),
            _ => text,
        }
    }
}

impl FromStr for Value {
    type Err = ValueError;

    /// Reads a value: a size, a version or a text, or a text in quotes.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Err(ValueError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(ValueError::TooLong { begin: one_line(text, 40) });
        }
        if let Some(quoted) = text.strip_prefix('"') {
            let is_wrong = |inner: &&str| inner.contains(|c: char| c == '"' || c.is_control());
            return match quoted.strip_suffix('"').filter(|inner| !is_wrong(inner)) {
                Some("") => Err(ValueError::Empty),
                Some(inner) => Ok(Self::Text(inner.into())),
                None => Err(ValueError::Quoted { value: one_line(text, 80) }),
            };
        }
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        if ["M", "MiB", "G", "GiB"].contains(&&text[digits.len()..])
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.is_empty()
        {
            return Self::size(text);
        }
        if let Ok(version) = text.parse() {
            return Ok(Self::Version(version));
        }
        let is_wrong = |c: &char| !(c.is_alphanumeric() || "._+~:/@%-".contains(*c));
        match text.chars().find(is_wrong) {
            Some(wrong) => {
                let wrong = one_line(&wrong.to_string(), 10);
                Err(ValueError::Bare { value: one_line(text, 80), wrong })
            }
            None => Ok(Self::Text(text.into())),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => version.fmt(f),
            Self::SizeMib(mib) if *mib > 0 && mib % 1024 == 0 => write!(f, "{}G", mib / 1024),
            Self::SizeMib(mib) => write!(f, "{mib}M"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        text.parse().unwrap()
    }

    #[test]
    fn kinds_by_their_look() {
        assert_eq!(value("2GiB"), Value::SizeMib(2048));
        assert_eq!(value("512M").to_string(), "512M");
        assert_eq!(value("1024M").to_string(), "1G");
        assert!(
            matches!(value("512"), Value::Version(_)) && matches!(value("2T"), Value::Version(_))
        );
        assert_eq!(value("debian"), Value::Text("debian".into()));
        assert_eq!(value("\"Dell Inc.\""), Value::Text("Dell Inc.".into()));
        assert_eq!(value("\"12\""), Value::Text("12".into()));
        assert_eq!(Value::of("Dell Inc. <x>"), Value::Text("Dell Inc. <x>".into()));
        assert_eq!(Value::of("\"-me\""), Value::Text("-me".into()));
        assert_eq!(Value::of(&"é".repeat(MAX_LEN)), Value::Text("é".repeat(MAX_LEN / 2).into()));
        assert_eq!(Value::size("512"), Ok(Value::SizeMib(512)));
    }

    #[test]
    fn what_is_no_value_is_told() {
        let why = |text: &str| text.parse::<Value>().unwrap_err().to_string();
        assert!(why("").contains("empty") && why("\"\"").contains("empty"));
        assert!(why("a b").contains("has ` ` in it: put it between double quotes"));
        for wrong in ["a,b", "a>b", "6.1,", "é,", "=5", "!x", "a\"b", "a\tb"] {
            assert!(why(wrong).contains(" in it: "), "{wrong}");
        }
        for wrong in ["\"", "\"a", "\"a\"b\"", "\"a\u{1b}\""] {
            assert!(why(wrong).contains("control characters or double quotes"), "{wrong}");
        }
        assert!(why(&"x".repeat(1 << 20)).contains("longer than 256 bytes"));
        assert!(
            why("99999999999999999999G").starts_with("`99999999999999999999G` is no size: want")
        );
        for wrong in ["", "x", "-5", "+5", "6.1", "5T"] {
            assert!(Value::size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_of_a_kind_has_an_order() {
        let compare = |a: &str, b: &str| value(a).compare(&value(b));
        assert_eq!(compare("512M", "1G"), Some(Ordering::Less));
        assert_eq!(compare("2048", "2G"), Some(Ordering::Equal));
        assert_eq!(compare("9", "10"), Some(Ordering::Less));
        assert_eq!(compare("6.1", "1G"), None);
        assert_eq!(compare("a", "b"), None);
        assert!(value("a").is_same(&value("a")) && !value("a").is_same(&value("A")));
        assert!(value("6.1").is_same(&value("6.1.0")) && value("1G").is_same(&value("1024")));
        assert!(value("\"12\"").is_same(&value("12")));
    }
}
