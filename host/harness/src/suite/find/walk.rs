//! From a path to suites and their tests.

use super::FindError;
use super::classify::{Class, ClassifyError, classify};
use crate::suite::checks::Check;
use crate::suite::config::{self, Config};
use crate::suite::filter::Pattern;
use crate::suite::generate::{self, Generated, Generator};
use crate::suite::git::{Checkout, checkout};
use crate::suite::reference::{Reference, Source};
use crate::suite::settings::Settings;
use crate::suite::test::{Kind, Lib, Origin, Step, Suite, Test};
use crate::text::{self, one_line};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use strsim::osa_distance as distance;
use tokio_util::sync::CancellationToken;

/// A program makes its tests sooner, if its suite says nothing else.
const GENERATE: Duration = Duration::from_secs(60);

/// Folders are not followed deeper.
const MAX_DEPTH: usize = 64;

/// A suite has not more files.
const MAX_FILES: usize = 200_000;

/// What is in a folder.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Its suites, in order.
    pub suites: Vec<Arc<Suite>>,
    /// The tests, by suite and name.
    pub tests: Vec<Test>,
    /// The files that are none.
    pub none: Vec<NoTest>,
}

/// A file that is no test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoTest {
    /// The file.
    pub file: PathBuf,
    /// Why.
    pub why: String,
    /// It looks as if it was meant to be one.
    pub is_meant: bool,
}

/// Finds the tests that a path means: a folder, a file, or the name of a test or of a group of them below a suite's folder.
///
/// # Errors
/// What is wrong, of all that was looked at.
pub fn find(
    path: &Path,
    origin: Option<&Origin>,
    means: Means<'_>,
) -> Result<Found, Vec<FindError>> {
    let error =
        |file: &Path, why: String| vec![FindError { file: file.to_owned(), line: None, why }];
    let path = std::path::absolute(path).map_err(|why| error(path, why.to_string()))?;
    let path = tidy(&path);
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    if !rest.as_os_str().is_empty() && !there.is_dir() {
        return Err(error(&path, format!("`{}` is a file", there.display())));
    }
    let root = root_of(there);
    let mut search =
        Search { found: Found::default(), errors: Vec::new(), files: 0, origin, means };
    if rest.as_os_str().is_empty() {
        search.suite(&root, there);
        let found = search.end()?;
        // What is named itself has to be one.
        if let Some(none) = found.none.iter().find(|none| none.file == there) {
            return Err(error(there, format!("this is no test: {}", none.why)));
        }
        return Ok(found);
    }
    // Perhaps the name of a test. Without a suite around it, it can only be one of a file of checks: all else is looked at
    // in vain, and may be much.
    let group = rest
        .components()
        .next()
        .map(|first| there.join(format!("{}.checks", first.as_os_str().to_string_lossy())));
    match group.filter(|_| !root.join(config::FILE).is_file()) {
        None => search.suite(&root, &root),
        Some(group) if group.is_file() => search.suite(&root, &group),
        Some(_) => {
            return Err(error(&path, "there is no such file or folder".to_owned()));
        }
    }
    let mut found = search.end()?;
    let name = path.strip_prefix(&root).unwrap_or(rest).to_string_lossy().into_owned();
    let is_meant = |test: &Test| {
        let below = test
            .name
            .strip_prefix(&name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below && test.suite.root == root
    };
    let nearest = found.tests.iter().map(|test| test.name.as_str());
    let nearest = nearest.min_by_key(|other| distance(other, &name)).map(str::to_owned);
    found.tests.retain(is_meant);
    found.none.clear();
    if found.tests.is_empty() {
        let near = nearest.filter(|near| distance(near, &name) <= (name.len() / 3).max(1));
        let hint = near.map(|near| format!("; is `{near}` meant?")).unwrap_or_default();
        return Err(error(&path, format!("there is no such file, and no test of this name{hint}")));
    }
    Ok(found)
}

/// Without `.` and `..`, as far as names alone can say.
fn tidy(path: &Path) -> PathBuf {
    if path.exists() {
        // Where links lead is asked of the folder alone: a test keeps its own name.
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name())
            && let Ok(folder) = folder.canonicalize()
        {
            return folder.join(name);
        }
        return path.canonicalize().unwrap_or_else(|_| path.to_owned());
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => tidy(folder).join(name),
        _ => path.to_owned(),
    }
}

/// The suite's folder of a path: the nearest with a `guestline.toml`, else the folder itself.
fn root_of(path: &Path) -> PathBuf {
    let own = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let suite = own.ancestors().find(|above| above.join(config::FILE).is_file());
    suite.unwrap_or(own).to_owned()
}

/// What finding tests may take.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// Where repositories are kept that suites take files of.
    pub cache: &'a Path,
    /// Programs that make tests, and git, are not waited for any more.
    pub cancel: &'a CancellationToken,
}

struct Search<'a> {
    found: Found,
    errors: Vec<FindError>,
    files: usize,
    origin: Option<&'a Origin>,
    means: Means<'a>,
}

impl Search<'_> {
    fn end(self) -> Result<Found, Vec<FindError>> {
        if self.errors.is_empty() { Ok(self.found) } else { Err(self.errors) }
    }

    fn fault(&mut self, file: &Path, line: Option<usize>, why: String) {
        self.errors.push(FindError { file: file.to_owned(), line, why });
    }

    /// The tests of a suite in a folder, or a file, of it.
    fn suite(&mut self, root: &Path, within: &Path) {
        let file = root.join(config::FILE);
        let config = match fs::read(&file) {
            Ok(text) => Config::parse(&file, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(error) => return self.fault(&file, None, format!("cannot read it: {error}")),
        };
        let config = match config {
            Ok(config) => config,
            Err(error) => return self.fault(&error.file, Some(error.line), error.why),
        };
        let named = || root.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = config.name.clone().or_else(named).unwrap_or_else(|| "suite".to_owned());
        let origin = self.origin.cloned();
        let libs = self.libs(root, &config);
        let suite = Arc::new(Suite { root: root.to_owned(), name, config, origin, libs });
        let mut files = Vec::new();
        let mut nested = Vec::new();
        let within = if within == file { root } else { within };
        match within.is_dir() {
            true => self.list(within, root, 0, &mut files, &mut nested),
            false => files.push(within.to_owned()),
        }
        self.tests(&suite, &files);
        if within == root {
            self.generated(&suite);
        }
        self.found.suites.push(suite);
        for folder in nested {
            self.suite(&folder, &folder);
        }
    }

    /// All files of a folder, by name; folders that are suites of their own apart.
    fn list(
        &mut self,
        folder: &Path,
        root: &Path,
        depth: usize,
        files: &mut Vec<PathBuf>,
        nested: &mut Vec<PathBuf>,
    ) {
        if folder != root && folder.join(config::FILE).is_file() {
            return nested.push(folder.to_owned());
        }
        if depth > MAX_DEPTH {
            return self.fault(folder, None, format!("folders go deeper than {MAX_DEPTH}"));
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.fault(folder, None, format!("cannot read it: {error}")),
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let is_cache = entry.file_name() == "__pycache__";
            if is_hidden || is_cache {
                continue;
            }
            // A link to a folder is not followed: it may lead round in a circle.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    self.list(&entry.path(), root, depth + 1, files, nested)
                }
                _ if entry.path().is_dir() => {}
                _ if self.files == MAX_FILES => {
                    let why = format!(
                        "there are more than {MAX_FILES} files: name a folder that has only tests"
                    );
                    return self.fault(folder, None, why);
                }
                _ => {
                    self.files += 1;
                    files.push(entry.path());
                }
            }
        }
    }

    fn tests(&mut self, suite: &Arc<Suite>, files: &[PathBuf]) {
        let taken = named_otherwise(&suite.config);
        let excluded: Vec<_> =
            suite.config.exclude.iter().map(|word| Pattern::of(word.as_str(), false)).collect();
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        let mut tests = Vec::new();
        for file in files {
            let Some(path) = relative(&suite.root, file) else {
                self.none(file, "its name is not UTF-8", true);
                continue;
            };
            if path == config::FILE {
                continue;
            }
            if let Some(why) = taken.get(&path) {
                self.none(file, why, false);
                continue;
            }
            if excluded.iter().any(|pattern| pattern.matches(&path)) {
                self.none(file, "`exclude` of its suite names it", false);
                continue;
            }
            if let Some(of) = companion_of(file) {
                match of.is_file() {
                    true => self.none(file, "it belongs to the test beside it", false),
                    false => self.none(file, "there is no test of this name beside it", true),
                }
                continue;
            }
            match classify(file) {
                Ok(Class::None { why, is_meant }) => self.none(file, &why, is_meant),
                Ok(Class::Checks(checks)) => {
                    tests.extend(checks.into_iter().map(|check| of_check(suite, &path, check)));
                }
                Ok(Class::Test { kind, settings, has_setup, has_teardown }) => {
                    let own =
                        [has_setup, has_teardown].map(|has| has.then(|| Step::file(path.clone())));
                    tests.push(of_file(suite, &path, kind, *settings, own));
                }
                Err(ClassifyError::Header(error)) => self.fault(file, Some(error.line), error.why),
                Err(ClassifyError::Read(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.none(file, "it is a link that leads nowhere", true);
                }
                Err(ClassifyError::Read(error)) => {
                    self.fault(file, None, format!("cannot read it: {error}"))
                }
            }
        }
        // A file that a test takes with it is no test.
        let carried: BTreeSet<String> = tests.iter().flat_map(carried).collect();
        for test in tests {
            let file = suite.root.join(&test.file);
            if test.line.is_none() && carried.contains(&test.file) {
                self.none(&file, "another test has it among its `files`", false);
                continue;
            }
            if let Some(other) = places.insert(test.name.clone(), test.place()) {
                let why =
                    format!("`{}` is the name of {other} already: rename one of them", test.name);
                self.fault(&file, test.line, why);
                continue;
            }
            if let Err(why) = checked(&test) {
                self.fault(&file, test.line, why);
            }
            self.found.tests.push(test);
        }
    }

    /// The suites that this one takes files of.
    fn libs(&mut self, root: &Path, config: &Config) -> BTreeMap<String, Lib> {
        let mut libs = BTreeMap::new();
        let file = root.join(config::FILE);
        for (name, place) in &config.libs {
            let found = match place.as_str().parse::<Reference>() {
                Ok(Reference { source: Source::Path(path), selector: None }) => {
                    let lib = root.join(path);
                    // Of a repository only what is in it can be meant.
                    let bounds = self.origin.map(|origin| origin.root.clone());
                    match lib.canonicalize() {
                        Ok(real)
                            if bounds.as_ref().is_some_and(|bounds| !real.starts_with(bounds)) =>
                        {
                            Err("it leads out of the repository".to_owned())
                        }
                        Ok(root) if root.is_dir() => Ok(Lib { root, origin: self.origin.cloned() }),
                        Ok(_) => Err("it is no folder".to_owned()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Ok(Reference { source: Source::Git(source), selector: None }) => {
                    match checkout(&source, self.means.cache, self.means.cancel) {
                        Ok(Checkout { folder, root, commit, url }) => {
                            Ok(Lib { root: folder, origin: Some(Origin { url, commit, root }) })
                        }
                        Err(error) => Err(text::chain(&error)),
                    }
                }
                Ok(_) => Err("a suite is named here, not variants of tests".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match found {
                Ok(lib) => drop(libs.insert(name.clone(), lib)),
                Err(why) => {
                    let place = one_line(place.as_str(), 80);
                    self.fault(&file, None, format!("lib `{name}`, `{place}`: {why}"));
                }
            }
        }
        libs
    }

    /// Tests that a suite makes by a program of its own.
    fn generated(&mut self, suite: &Arc<Suite>) {
        let Some(program) = &suite.config.generate else { return };
        let file = suite.root.join(config::FILE);
        let limit = suite.config.generate_timeout.map_or(GENERATE, |time| time.0);
        let generator = Generator { program: program.as_str(), folder: &suite.root, limit };
        let made = match generator.run(self.means.cancel) {
            Ok(made) => made,
            Err(error) => return self.fault(&file, None, text::chain(&error)),
        };
        let there = self.found.tests.iter().filter(|test| Arc::ptr_eq(&test.suite, suite));
        // The program itself gives no name twice.
        let names: BTreeSet<String> = there.map(|test| test.name.clone()).collect();
        for Generated { name, run, settings } in made {
            let step = match run {
                generate::Run::Line(line) => (Kind::Check, Step::Line(line)),
                generate::Run::File { path, args } => {
                    (Kind::Script, Step::File { path: path.to_string_lossy().into_owned(), args })
                }
            };
            let read = match settings.keys().find_map(|key| Settings::unknown_key(key)) {
                Some(why) => Err(why),
                None => Settings::read(serde_json::Value::Object(settings))
                    .map_err(|error| error.to_string()),
            };
            let test = match read {
                Ok(settings) => test(suite, name, step.0, step.1, settings, config::FILE, None),
                Err(why) => {
                    self.fault(&file, None, format!("`{program}` made test `{name}`: {why}"));
                    continue;
                }
            };
            let wrong = match (&test.run, names.contains(&test.name)) {
                (_, true) => Some("there is a test of this name already".to_owned()),
                (Step::File { path, .. }, _) if !suite.root.join(path).is_file() => {
                    Some(format!("there is no `{path}` in the suite"))
                }
                _ => checked(&test).err(),
            };
            match wrong {
                Some(why) => {
                    self.fault(&file, None, format!("`{program}` made test `{}`: {why}", test.name))
                }
                None => self.found.tests.push(test),
            }
        }
    }

    fn none(&mut self, file: &Path, why: &str, is_meant: bool) {
        self.found.none.push(NoTest { file: file.to_owned(), why: why.to_owned(), is_meant });
    }
}

/// Files that a suite names for another purpose than being tests, and for which.
fn named_otherwise(config: &Config) -> BTreeMap<String, &'static str> {
    let mut named = BTreeMap::new();
    let mut add = |text: &str, why| {
        let word = text.split_whitespace().next().unwrap_or_default();
        named.insert(word.trim_start_matches("./").to_owned(), why);
    };
    if let Some(program) = &config.generate {
        add(program.as_str(), "it makes the tests of its suite");
    }
    for fixture in config.fixtures.values() {
        add(fixture.run.as_str(), "it is a fixture of its suite");
        fixture.teardown.iter().for_each(|line| add(line.as_str(), "it is a fixture of its suite"));
        fixture.inputs.iter().for_each(|input| add(input.as_str(), "it is an input of a fixture"));
    }
    named
}

fn relative(root: &Path, file: &Path) -> Option<String> {
    file.strip_prefix(root).ok()?.to_str().map(str::to_owned)
}

/// Of `NAME.setup` or `NAME.teardown`: NAME.
fn companion_of(file: &Path) -> Option<PathBuf> {
    let text = file.to_str()?;
    let of = text.strip_suffix(".setup").or_else(|| text.strip_suffix(".teardown"))?;
    Some(PathBuf::from(of))
}

fn of_check(suite: &Arc<Suite>, path: &str, check: Check) -> Test {
    let Check { name, line, number, settings } = check;
    let group = path.strip_suffix(".checks").unwrap_or(path);
    test(
        suite,
        format!("{group}/{name}"),
        Kind::Check,
        Step::Line(line),
        settings,
        path,
        Some(number),
    )
}

/// `own` is the set-up and the tear-down that are in the file itself.
fn of_file(
    suite: &Arc<Suite>,
    path: &str,
    kind: Kind,
    settings: Settings,
    own: [Option<Step>; 2],
) -> Test {
    let mut test = test(suite, path.to_owned(), kind, Step::file(path), settings, path, None);
    let beside = |what: &str| {
        let path = format!("{path}.{what}");
        suite.root.join(&path).is_file().then(|| Step::file(path))
    };
    let [setup, teardown] = own;
    test.setup = beside("setup").or(setup).or(test.setup);
    test.teardown = beside("teardown").or(teardown).or(test.teardown);
    test
}

pub(crate) fn test(
    suite: &Arc<Suite>,
    name: String,
    kind: Kind,
    run: Step,
    settings: Settings,
    file: &str,
    line: Option<usize>,
) -> Test {
    let settings = settings.below(&suite.config.settings);
    let step = |line: &Option<super::super::settings::Word>| {
        line.as_ref().map(|line| Step::Line(line.to_string()))
    };
    Test {
        suite: suite.clone(),
        name,
        kind,
        run,
        setup: step(&settings.setup),
        teardown: step(&settings.teardown),
        settings,
        file: file.to_owned(),
        line,
    }
}

/// The files that a test has with it, from the suite's folder on.
pub(crate) fn carried(test: &Test) -> Vec<String> {
    let own = test.suite.config.settings.files.iter().flatten();
    let files = test.settings.files.iter().flatten();
    let of_suite: Vec<_> = own.map(|word| word.as_str()).collect();
    files
        .filter_map(|word| match of_suite.contains(&word.as_str()) {
            true => join("", word.as_str()),
            false => join(test.folder(), word.as_str()),
        })
        .collect()
}

/// A path below the suite's folder; none where it leads out.
pub(crate) fn join(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// What only shows with all that is said.
fn checked(test: &Test) -> Result<(), String> {
    let config = &test.suite.config;
    for name in test.settings.fixtures.iter().flatten() {
        if !config.fixtures.contains_key(name.as_str()) {
            let known: Vec<&str> = config.fixtures.keys().map(String::as_str).collect();
            let what = super::super::fixture::missing(name.as_str(), &known);
            return Err(format!("it needs fixture {what}"));
        }
    }
    let own = config.settings.files.iter().flatten().collect::<Vec<_>>();
    for word in test.settings.files.iter().flatten() {
        let folder = if own.contains(&word) { "" } else { test.folder() };
        let shown = one_line(word.as_str(), 80);
        match join(folder, word.as_str()) {
            None => {
                return Err(format!("`files` names `{shown}`, which is not in its suite's folder"));
            }
            Some(path) if !test.suite.root.join(&path).exists() => {
                return Err(format!(
                    "`files` names `{shown}`, and there is no `{path}` in the suite"
                ));
            }
            Some(_) => {}
        }
    }
    if let Some(matrix) = &test.settings.matrix {
        matrix.variants().map(drop).map_err(|error| error.to_string())?;
    }
    Ok(())
}
