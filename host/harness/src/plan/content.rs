//! The files that tests have with them, by what is in them.

use crate::job::{Content, ContentFile, LIBS, TestCommand};
use crate::suite::find;
use crate::suite::fixture::FixtureSettings;
use crate::suite::test::{Kind, Origin, Step, Suite, Test};
use guestline::digest::Digest;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The files of one test are not larger together, bytes.
const MAX_LEN: u64 = 4 << 30;

/// Nor more.
const MAX_FILES: usize = 100_000;

/// How far links may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// Anywhere: the files are the user's own.
    Host,
    /// Nowhere but within the suite, which is of others.
    Suite,
}

impl Bounds {
    fn of(origin: Option<&Origin>) -> Self {
        if origin.is_some() { Self::Suite } else { Self::Host }
    }
}

/// Files that were looked at, by path and by digest.
#[derive(Debug, Default)]
pub struct Files {
    by_path: HashMap<PathBuf, (Digest, bool, u64)>,
    by_digest: HashMap<Digest, PathBuf>,
}

impl Files {
    /// Where the content of each digest is.
    pub fn by_digest(&self) -> &HashMap<Digest, PathBuf> {
        &self.by_digest
    }

    /// What a test has with it.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn of(&mut self, test: &Test) -> Result<Content, String> {
        let mut paths = BTreeMap::new();
        let steps = [Some(&test.run), test.setup.as_ref(), test.teardown.as_ref()];
        for step in steps.into_iter().flatten() {
            if let Step::File { path, .. } = step {
                paths.insert(path.clone(), ());
            }
        }
        for path in find::carried(test) {
            paths.insert(path, ());
        }
        let suite = &test.suite;
        let mut files =
            self.below(&suite.root, paths.into_keys(), Bounds::of(suite.origin.as_ref()))?;
        // A line has no files of its own, and is not to wait for those of others.
        let is_file = matches!(test.run, Step::File { .. });
        let libs: Vec<_> = suite.libs.iter().filter(|_| is_file).collect();
        for (name, lib) in &libs {
            let bounds = Bounds::of(lib.origin.as_ref());
            let of_lib = self.below(&lib.root, visible(&lib.root), bounds);
            for file in of_lib.map_err(|why| format!("lib `{name}`: {why}"))? {
                files.push(ContentFile { path: format!("{LIBS}/{name}/{}", file.path), ..file });
            }
        }
        let libs = libs.into_iter().map(|(name, _)| name.clone()).collect();
        Ok(Content { files, folder: test.folder().to_owned(), libs })
    }

    /// What a fixture has with it: its inputs, and the file that its line begins with, if there is such a one.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn of_fixture(
        &mut self,
        suite: &Suite,
        fixture: &FixtureSettings,
    ) -> Result<Content, String> {
        let root = suite.root.as_path();
        let mut paths = BTreeMap::new();
        for line in std::iter::once(&fixture.run).chain(&fixture.teardown) {
            let word = line.as_str().split_whitespace().next().unwrap_or_default();
            let path = word.strip_prefix("./").and_then(|word| find::join("", word));
            if let Some(path) = path.filter(|path| root.join(path).is_file()) {
                paths.insert(path, ());
            }
        }
        for input in &fixture.inputs {
            match find::join("", input.as_str()) {
                Some(path) if root.join(&path).exists() => drop(paths.insert(path, ())),
                Some(path) => {
                    return Err(format!(
                        "`inputs` names `{input}`, and there is no `{path}` in the suite"
                    ));
                }
                None => {
                    return Err(format!(
                        "`inputs` names `{input}`, which is not in its suite's folder"
                    ));
                }
            }
        }
        let files = self.below(root, paths.into_keys(), Bounds::of(suite.origin.as_ref()))?;
        Ok(Content { files, ..Content::default() })
    }

    /// Files of a folder, and all that is in folders among them.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn below(
        &mut self,
        root: &Path,
        paths: impl Iterator<Item = String>,
        bounds: Bounds,
    ) -> Result<Vec<ContentFile>, String> {
        let mut files = BTreeMap::new();
        let mut open: Vec<String> = paths.collect();
        let mut len = 0;
        while let Some(path) = open.pop() {
            let whole = root.join(&path);
            let failed = |error: io::Error| format!("cannot read `{path}`: {error}");
            // A link to a folder may lead round in a circle; one that is named itself is meant.
            let is_link = whole.symlink_metadata().is_ok_and(|found| found.is_symlink());
            if is_link && whole.is_dir() && path.contains('/') {
                continue;
            }
            if whole.is_dir() {
                for entry in fs::read_dir(&whole).map_err(failed)? {
                    let name = entry.map_err(failed)?.file_name();
                    let name = name
                        .to_str()
                        .ok_or_else(|| format!("`{path}` has a file whose name is not UTF-8"))?;
                    open.push(if path.is_empty() {
                        name.to_owned()
                    } else {
                        format!("{path}/{name}")
                    });
                }
                continue;
            }
            // A repository of others must not bring what is the host's.
            let is_inside = whole.canonicalize().is_ok_and(|real| real.starts_with(root));
            if bounds == Bounds::Suite && !is_inside {
                return Err(format!("`{path}` leads out of its repository"));
            }
            let (digest, executable, size) = self.file(&whole).map_err(failed)?;
            len += size;
            files.insert(path.clone(), ContentFile { path, digest, executable });
            if len > MAX_LEN || files.len() + open.len() > MAX_FILES {
                return Err(format!(
                    "its files are more than {MAX_FILES}, or larger than {} GiB together",
                    MAX_LEN >> 30
                ));
            }
        }
        Ok(files.into_values().collect())
    }

    fn file(&mut self, path: &Path) -> io::Result<(Digest, bool, u64)> {
        if let Some(known) = self.by_path.get(path) {
            return Ok(known.clone());
        }
        let metadata = path.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let digest = Digest::of_file(path)?;
        let found = (digest.clone(), metadata.permissions().mode() & 0o111 != 0, metadata.len());
        self.by_digest.insert(digest, path.to_owned());
        self.by_path.insert(path.to_owned(), found.clone());
        Ok(found)
    }

    /// Has the content of this file for jobs that name its digest.
    pub fn add(&mut self, digest: Digest, path: PathBuf) {
        self.by_digest.insert(digest, path);
    }
}

/// What is in a folder, but for what is hidden.
fn visible(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.'))
}

/// A step as a job has it.
pub(super) fn command(step: &Step, kind: Kind, function: &str) -> TestCommand {
    match step {
        Step::Line(line) => TestCommand::Line(line.clone()),
        Step::File { path, .. } if kind == Kind::Python && path.ends_with(".py") => {
            TestCommand::Python { path: path.clone(), function: function.to_owned() }
        }
        Step::File { path, args } => TestCommand::File { path: path.clone(), args: args.clone() },
    }
}
