//! A test as it stands in its suite, before it is expanded into variants.

use super::config::Config;
use super::settings::{On, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// The folder, absolute.
    pub root: PathBuf,
    /// Its name: what `guestline.toml` says, else the folder's.
    pub name: String,
    /// What `guestline.toml` says; the default where there is none.
    pub config: Config,
    /// Where it was fetched from.
    pub origin: Option<Origin>,
    /// Other suites whose files its tests have with them, by name.
    pub libs: BTreeMap<String, Lib>,
}

/// A suite that others take files of.
#[derive(Debug, Clone, PartialEq)]
pub struct Lib {
    /// Its folder.
    pub root: PathBuf,
    /// Where it was fetched from.
    pub origin: Option<Origin>,
}

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The repository.
    pub url: String,
    /// The commit's id.
    pub commit: String,
    /// Where its files are on this host.
    #[serde(skip)]
    pub root: PathBuf,
}

/// What kind of thing a test is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A command line.
    Check,
    /// A program in any language.
    Script,
    /// A Python file with a function `run`.
    Python,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Check, Self::Script, Self::Python];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Script => "script",
            Self::Python => "python",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What is run. Files are named from the suite's folder on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A line for the shell.
    Line(String),
    /// A file, with arguments.
    File {
        /// Which.
        path: String,
        /// What it is given.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
    },
}

impl Step {
    /// A file without arguments.
    pub fn file(path: impl Into<String>) -> Self {
        Self::File { path: path.into(), args: Vec::new() }
    }
}

/// A test.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// The suite that it is one of.
    pub suite: Arc<Suite>,
    /// Its name in the suite: the path of its file, or that without `.checks` and the name in it.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// What is run.
    pub run: Step,
    /// What is run before.
    pub setup: Option<Step>,
    /// What is run after it.
    pub teardown: Option<Step>,
    /// All that is said of it.
    pub settings: Settings,
    /// The file that it stands in, from the suite's folder on.
    pub file: String,
    /// The line of that file, where it has many tests.
    pub line: Option<usize>,
}

impl Test {
    /// Where it runs.
    pub fn on(&self) -> On {
        match self.kind {
            Kind::Python => On::Host,
            _ => self.settings.on.unwrap_or_default(),
        }
    }

    /// The folder of its file, from the suite's folder on; empty for that itself.
    pub fn folder(&self) -> &str {
        self.file.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Where it stands, as an error names it.
    pub fn place(&self) -> String {
        let file = self.suite.root.join(&self.file);
        match self.line {
            Some(line) => format!("{}:{line}", shown(&file)),
            None => shown(&file),
        }
    }
}

/// A path as short as it can be said here.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
        Ok(below) => below.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}
