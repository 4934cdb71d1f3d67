//! Layers: what is done in a machine after its boot, before it is saved, each upon the one below.

use crate::digest::Digest;
use std::path::PathBuf;
use std::time::Duration;

/// A layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer {
    /// Lines for the guest's shell, one after the other.
    pub lines: Vec<String>,
    /// What is set up by it, for errors.
    pub name: Option<String>,
    /// Files that are put there first.
    pub files: Vec<LayerFiles>,
    /// Variables that the lines have.
    pub env: Vec<(String, String)>,
    /// The folder that they run in.
    pub cwd: Option<String>,
    /// How long each of them may take, where it is another time than others have.
    pub timeout: Option<Duration>,
}

/// Files of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFiles {
    /// Of what is in them.
    pub digest: Digest,
    /// On this host.
    pub from: PathBuf,
    /// In the guest.
    pub to: String,
}

impl From<Vec<String>> for Layer {
    fn from(lines: Vec<String>) -> Self {
        Self { lines, ..Self::default() }
    }
}

impl Layer {
    /// What a template depends on: the lines, then all else that tells. No line has a zero byte.
    pub(super) fn key(&self) -> Vec<String> {
        let files = self.files.iter().map(|files| format!("\0files {} {}", files.digest, files.to));
        let env = self.env.iter().map(|(name, value)| format!("\0env {name}={value}"));
        let cwd = self.cwd.iter().map(|cwd| format!("\0cwd {cwd}"));
        self.lines.iter().cloned().chain(files).chain(env).chain(cwd).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_tells_is_in_the_key() {
        let plain = Layer::from(vec!["true".to_owned()]);
        assert_eq!(plain.key(), ["true"]);
        let files = |content: &[u8]| LayerFiles {
            digest: Digest::of(content),
            from: "/x".into(),
            to: "/y".into(),
        };
        let with = Layer {
            name: Some("site".into()),
            files: vec![files(b"a")],
            env: vec![("A".into(), "b".into())],
            cwd: Some("/y".into()),
            timeout: Some(Duration::from_secs(1)),
            ..plain.clone()
        };
        let other = Layer { files: vec![files(b"b")], ..with.clone() };
        assert_ne!(with.key(), other.key());
        assert_eq!(with.key().len(), 4);
        let elsewhere = Layer { name: None, timeout: None, ..with.clone() };
        assert_eq!(with.key(), elsewhere.key());
    }
}
