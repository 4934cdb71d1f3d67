//! SHA-256 of files and bytes, written as 64 lower-case hexadecimal digits.

use crate::text::one_line;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{}` is no SHA-256: 64 hexadecimal digits", one_line(&text, 80));
        Self::parse(&text).ok_or_else(wrong)
    }
}

impl Digest {
    /// Of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// Of a file's content.
    ///
    /// # Errors
    /// What opening or reading it gives.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_reader(&mut File::open(path)?)
    }

    /// Of all that is read.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn of_reader(from: &mut impl Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(Self::finish(hasher)),
                len => hasher.update(&buffer[..len]),
            }
        }
    }

    fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Takes 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, enough to tell digests apart in a folder or a line.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// Takes what has a digest piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::finish(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_a_digest_or_an_error() {
        let text = format!("\"{}\"", Digest::of(b"x").as_str());
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), Digest::of(b"x"));
        let error = serde_json::from_str::<Digest>("\"abc\"").unwrap_err();
        assert!(error.to_string().contains("`abc` is no SHA-256"), "{error}");
    }
}
