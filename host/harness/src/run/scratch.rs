//! What a test of a suite finds where it runs: its folders, its files, its variables.
//!
//! ```text
//! /tmp/guestline-ID/  GUESTLINE_SCRATCH
//!     artifacts/      comes back: GUESTLINE_ARTIFACTS
//!     suite/          the files of the test, as they lie in its suite, if it has any; it runs in the folder of its own
//! ```
//! Names and meaning of the variables are a part of the test API (`docs/tests.md`).

use crate::job::{InSuite, LIBS, TestCommand};
use crate::suite::config::API;
use guestline::guest::{FilesError, Guest};
use guestline::supervise::MachineName;
use guestline_protocol::{ByteBuf, Command, EnvChange, ExecRequest};
use std::path::Path;
use ulid::Ulid;

/// Where the folders of tests are made.
const ABOVE: &str = "/tmp";

/// The name of the Python module in a test's files.
pub(super) const PYTHON_MODULE: &str = "guestline.py";

/// Where the files of a fixture of the guest lie.
pub(super) fn fixture_folder(name: &str) -> String {
    format!("{ABOVE}/guestline-fixtures/{name}")
}

/// The folders of a test on one side.
#[derive(Debug, Clone)]
pub(super) struct Scratch {
    root: String,
}

/// On which side, and in which machine of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    Host,
    Guest(Option<&'a MachineName>),
}

impl Scratch {
    /// In a guest, for an attempt.
    pub(super) fn in_guest(attempt: Ulid) -> Self {
        Self { root: format!("{ABOVE}/guestline-{attempt}") }
    }

    /// On the host, in a folder.
    pub(super) fn on_host(folder: &Path) -> Self {
        Self { root: folder.to_string_lossy().into_owned() }
    }

    /// What every process of the test has in its environment, unless it takes it out, and no other.
    pub(super) fn mark(&self) -> Vec<u8> {
        format!("GUESTLINE_SCRATCH={}", self.root).into_bytes()
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn artifacts(&self) -> String {
        format!("{}/artifacts", self.root)
    }

    /// Where the folder of a fixture of the host is, in a guest.
    pub(super) fn fixture(&self, name: &str) -> String {
        format!("{}/fixtures/{name}", self.root)
    }

    fn suite(&self) -> String {
        format!("{}/suite", self.root)
    }

    fn cwd(&self, of: &InSuite) -> String {
        match of.content.folder.as_str() {
            _ if of.content.files.is_empty() => self.root.clone(),
            "" => self.suite(),
            folder => format!("{}/{folder}", self.suite()),
        }
    }

    /// Makes the folders, and puts the files of a folder of the host there.
    pub(super) async fn make(
        &self,
        guest: &Guest,
        content: Option<&Path>,
    ) -> Result<(), FilesError> {
        // One request: it makes the folders above, too.
        guest
            .make_folder(self.artifacts().as_bytes(), 0o777, true)
            .await
            .map_err(FilesError::from)?;
        match content {
            Some(content) => guest.bring(content, &self.suite()).await,
            None => Ok(()),
        }
    }

    /// A command of the test, as it runs here.
    pub(super) fn request(
        &self,
        command: &TestCommand,
        of: &InSuite,
        at: At<'_>,
        attempt: u32,
        more: &[(String, String)],
    ) -> ExecRequest {
        let bytes = |text: &str| ByteBuf::from(text.as_bytes().to_vec());
        let file = |path: &str| format!("{}/{path}", self.suite());
        let command = match command {
            TestCommand::Line(line) => Command::Shell(bytes(line)),
            TestCommand::Argv(words) => {
                Command::Argv(words.iter().map(|word| bytes(word)).collect())
            }
            TestCommand::File { path, args } => {
                let words = std::iter::once(file(path)).chain(args.iter().cloned());
                Command::Argv(words.map(|word| bytes(&word)).collect())
            }
            TestCommand::Python { path, function } => {
                let module = format!("{}/{PYTHON_MODULE}", self.root);
                let words = ["python3".to_owned(), module, file(path), function.clone()];
                Command::Argv(words.iter().map(|word| bytes(word)).collect())
            }
        };
        let mut variables = vec![
            ("GUESTLINE_API".to_owned(), API.to_string()),
            ("GUESTLINE_SUITE".to_owned(), of.suite.clone()),
            ("GUESTLINE_TEST".to_owned(), of.name.clone()),
            ("GUESTLINE_VARIANT".to_owned(), of.variant.clone()),
            ("GUESTLINE_ATTEMPT".to_owned(), attempt.to_string()),
            (
                "GUESTLINE_SIDE".to_owned(),
                match at {
                    At::Host => "host".to_owned(),
                    At::Guest(_) => "guest".to_owned(),
                },
            ),
            ("GUESTLINE_SCRATCH".to_owned(), self.root.clone()),
            ("GUESTLINE_ARTIFACTS".to_owned(), self.artifacts()),
        ];
        if let At::Guest(Some(machine)) = at {
            variables.push(("GUESTLINE_MACHINE".to_owned(), machine.as_str().to_owned()));
        }
        let lib =
            |name: &String| (variable("LIB", name), format!("{}/{LIBS}/{name}", self.suite()));
        variables.extend(of.content.libs.iter().map(lib));
        variables.extend(of.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.extend(more.iter().cloned());
        let change = |(name, value): (String, String)| EnvChange {
            name: bytes(&name),
            value: Some(bytes(&value)),
        };
        ExecRequest {
            env: variables.into_iter().map(change).collect(),
            cwd: Some(bytes(&self.cwd(of))),
            ..ExecRequest::new(command)
        }
    }
}

/// The variable that says where something of this name is: `GUESTLINE_FIXTURE_SITE`.
pub(super) fn variable(group: &str, name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("GUESTLINE_{group}_{}", name.chars().map(upper).collect::<String>())
}

/// A command of no suite: with nothing but what the agent gives it.
pub(super) fn bare(command: &TestCommand) -> ExecRequest {
    let bytes = |text: &String| ByteBuf::from(text.as_bytes().to_vec());
    ExecRequest::new(match command {
        TestCommand::Line(line) => Command::Shell(bytes(line)),
        TestCommand::Argv(words) => Command::Argv(words.iter().map(bytes).collect()),
        TestCommand::File { path, .. } | TestCommand::Python { path, .. } => {
            Command::Argv(vec![bytes(path)])
        }
    })
}
