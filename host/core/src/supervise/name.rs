//! Names of machines.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes.
const MAX_LEN: usize = 32;

/// The name of a machine: `[a-z0-9][a-z0-9-]*`, at most 32 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct MachineName(String);

/// A text that names no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine's name has 1 to 32 of a-z, 0-9 and -, and does not begin with -")]
pub struct NotAName;

impl MachineName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of these, the one that was perhaps meant: at most two typing errors away, or with this as its beginning.
    pub fn nearest<'a>(&self, others: &'a [Self]) -> Option<&'a Self> {
        let near = others.iter().map(|other| {
            let distance = match other.0.starts_with(&self.0) {
                true => 1,
                false => distance(self.0.as_bytes(), other.0.as_bytes()),
            };
            (distance, other)
        });
        let limit = 2.min(self.0.len() / 2);
        near.filter(|(distance, _)| *distance <= limit.max(1)).min().map(|(_, other)| other)
    }
}

/// How many letters have to be changed, added or left out (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl FromStr for MachineName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=MAX_LEN).contains(&text.len());
        match fits && !text.starts_with('-') && text.bytes().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(NotAName),
        }
    }
}

impl TryFrom<String> for MachineName {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        let longest = "x".repeat(32);
        for name in ["web", "0", "a-b", "x-", &longest] {
            assert_eq!(name.parse::<MachineName>().map(|name| name.0), Ok(name.to_owned()));
        }
        let too_long = "x".repeat(33);
        for wrong in ["", "-x", "Web", "a b", "a/b", "..", "é", "a_b", &too_long] {
            assert_eq!(wrong.parse::<MachineName>(), Err(NotAName), "{wrong}");
        }
        assert!(serde_json::from_str::<MachineName>("\"../x\"").is_err());
    }

    #[test]
    fn finds_what_was_meant() {
        let all: Vec<MachineName> =
            ["web", "router", "db1"].map(|name| name.parse().unwrap()).into();
        let nearest = |name: &str| {
            let name: MachineName = name.parse().unwrap();
            name.nearest(&all).map(|name| name.as_str().to_owned())
        };
        assert_eq!(nearest("wbe"), None);
        assert_eq!(nearest("wb").as_deref(), Some("web"));
        assert_eq!(nearest("ruoter").as_deref(), Some("router"));
        assert_eq!(nearest("rout").as_deref(), Some("router"));
        assert_eq!(nearest("db2").as_deref(), Some("db1"));
        assert_eq!(nearest("mail"), None);
    }
}
