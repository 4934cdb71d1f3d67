//! Tests that a suite makes at plan time: its program runs on the host, in its folder, and prints them as JSON
//! (`docs/tests.schema.json`).
//!
//! ```text
//! {"api": 1, "tests": [
//!   {"name": "mtu-1500", "line": "./mtu 1500", "timeout": "5s"},
//!   {"name": "mtu-9000", "file": "mtu.sh", "args": ["9000"], "requires": ["kernel >= 6.1"]}]}
//! ```
//! What is neither name, line, file nor args is a key of a test's header, in JSON, and is read where headers are.

use super::child::{self, ChildError, Limits};
use crate::text;
use crate::text::one_line;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// What the program is told, and has to say.
pub const API: u64 = 1;
const API_VARIABLE: &str = "GUESTLINE_API";

/// It does not print more, bytes.
pub const MAX_OUTPUT: usize = 16 * 1024 * 1024;

/// It does not make more tests.
pub const MAX_TESTS: usize = 100_000;

/// A name is not longer, bytes.
const MAX_NAME_LEN: usize = 200;

/// A test that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Its name below the suite: parts with slashes between them.
    pub name: String,
    /// What it runs.
    pub run: Run,
    /// The other keys: those of a header.
    pub settings: Map<String, Value>,
}

/// What a test runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A line for the shell of the machine.
    Line(String),
    /// A file of the suite.
    File {
        /// From the suite's folder.
        path: PathBuf,
        /// Behind its name.
        args: Vec<String>,
    },
}

/// What makes the tests of a suite.
#[derive(Debug, Clone)]
pub struct Generator<'a> {
    /// As `guestline.toml` says it: `./program`, from the suite's folder, or a program on the PATH.
    pub program: &'a str,
    /// The suite's folder.
    pub folder: &'a Path,
    /// It is not waited for longer.
    pub limit: Duration,
}

/// A program that made no tests.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// It leads out of the suite.
    #[error(
        "`generate = \"{program}\"` leads out of the suite: write a path in it, or the name of a program"
    )]
    Program {
        /// It.
        program: String,
    },
    /// It could not be started.
    #[error("cannot start `{program}`, which makes the tests of {}", folder.display())]
    Start {
        /// It.
        program: String,
        /// The suite.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("`{program}` made no tests: {how}{said}")]
    Failed {
        /// It.
        program: String,
        /// Its status, in words.
        how: String,
        /// Its last lines, if there are any, with a colon before them.
        said: String,
    },
    /// Its time was over.
    #[error("`{program}` made no tests within {}{said}", text::limit(*limit))]
    TimedOut {
        /// It.
        program: String,
        /// How long it had.
        limit: Duration,
        /// Its last lines, if there are any, with a colon before them.
        said: String,
    },
    /// It printed too much.
    #[error("`{program}` printed more than {}", text::size(MAX_OUTPUT as u64))]
    TooMuch {
        /// It.
        program: String,
    },
    /// What it printed are no tests.
    #[error("what `{program}` printed are no tests")]
    Tests {
        /// It.
        program: String,
        /// What is wrong.
        #[source]
        why: TestsError,
    },
    /// Interrupted.
    #[error("interrupted")]
    Cancelled,
}

/// A text that is no list of tests.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TestsError {
    /// It is no JSON, or not of this form.
    #[error("line {line}, column {column}: {why}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// In words.
        why: String,
    },
    /// It is of another version.
    #[error("they are of api {api}, and known here is api {API}")]
    Api {
        /// Which.
        api: String,
    },
    /// Nothing says the version.
    #[error("`api` is missing: write {{\"api\": {API}, \"tests\": […]}}")]
    NoApi,
    /// There are too many.
    #[error("there are more than {MAX_TESTS} tests")]
    TooMany,
    /// One of them is none.
    #[error("test {number}{}: {why}", called(name))]
    Test {
        /// From 1.
        number: usize,
        /// What it is called; perhaps nothing.
        name: String,
        /// In words.
        why: String,
    },
}

fn called(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" (`{name}`)") }
}

impl Generator<'_> {
    /// Runs it, and gives the tests in its order. Blocks until it has ended, and kills what it leaves behind.
    ///
    /// # Errors
    /// It fails, takes too long, or prints no tests.
    pub fn run(&self, cancel: &CancellationToken) -> Result<Vec<Generated>, GenerateError> {
        let program = one_line(self.program, 200);
        let mut command = Command::new(self.path()?);
        command.current_dir(self.folder).env(API_VARIABLE, API.to_string());
        let limits = Limits { time: self.limit, stdout: MAX_OUTPUT };
        match child::run(&mut command, limits, cancel) {
            Ok(ended) if ended.status.success() => {
                parse(&ended.stdout).map_err(|why| GenerateError::Tests { program, why })
            }
            Ok(ended) => {
                let (how, said) = (how(ended.status), said(&ended.stderr));
                Err(GenerateError::Failed { program, how, said })
            }
            Err(ChildError::Start(source)) => {
                Err(GenerateError::Start { program, folder: self.folder.to_owned(), source })
            }
            Err(ChildError::TimedOut { stderr }) => {
                Err(GenerateError::TimedOut { program, limit: self.limit, said: said(&stderr) })
            }
            Err(ChildError::TooMuch) => Err(GenerateError::TooMuch { program }),
            Err(ChildError::Cancelled) => Err(GenerateError::Cancelled),
            Err(error @ ChildError::Wait(_)) => {
                let (how, said) = (text::chain(&error), String::new());
                Err(GenerateError::Failed { program, how, said })
            }
        }
    }

    /// With a slash in it, from the suite's folder and whatever folder we are in.
    fn path(&self) -> Result<OsString, GenerateError> {
        if !self.program.contains('/') {
            return Ok(self.program.into());
        }
        if !is_inner(Path::new(self.program)) {
            return Err(GenerateError::Program { program: one_line(self.program, 200) });
        }
        let path = std::path::absolute(self.folder.join(self.program));
        path.map(PathBuf::into_os_string).map_err(|source| GenerateError::Start {
            program: one_line(self.program, 200),
            folder: self.folder.to_owned(),
            source,
        })
    }
}

fn said(stderr: &[u8]) -> String {
    let said = child::last_lines(stderr);
    if said.is_empty() { said } else { format!(": {said}") }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it did not end".to_owned(),
    }
}

fn is_inner(path: &Path) -> bool {
    let is_part = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    path.components().all(is_part) && path.components().any(|it| matches!(it, Component::Normal(_)))
}

/// Reads what such a program prints.
///
/// # Errors
/// It is no list of tests; which of them is wrong, and where.
pub fn parse(text: &[u8]) -> Result<Vec<Generated>, TestsError> {
    let mut found = Found::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = found.deserialize(&mut reader).and_then(|()| reader.end());
    // What was refused goes before how JSON tells of it.
    if let Some(refused) = found.refused {
        return Err(refused);
    }
    read.map_err(|error| {
        let why = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let why = one_line(why.strip_suffix(&place).unwrap_or(&why), 200);
        TestsError::Json { line: error.line().max(1), column: error.column().max(1), why }
    })?;
    if !found.has_api {
        return Err(TestsError::NoApi);
    }
    Ok(found.tests)
}

/// What has been read so far. Read one by one, so that neither another version nor too many are kept first.
#[derive(Debug, Default)]
struct Found {
    has_api: bool,
    has_tests: bool,
    names: BTreeSet<String>,
    tests: Vec<Generated>,
    refused: Option<TestsError>,
}

impl Found {
    fn refuse<E: de::Error>(&mut self, why: TestsError) -> E {
        let error = E::custom(&why);
        self.refused = Some(why);
        error
    }

    fn add<E: de::Error>(&mut self, entry: Map<String, Value>) -> Result<(), E> {
        if self.tests.len() >= MAX_TESTS {
            return Err(self.refuse(TestsError::TooMany));
        }
        let name = entry.get("name").and_then(Value::as_str).map(|name| one_line(name, 80));
        let added = test(entry).and_then(|test| match self.names.insert(test.name.clone()) {
            true => Ok(test),
            false => Err("this name stands twice".to_owned()),
        });
        match added {
            Ok(test) => self.tests.push(test),
            Err(why) => {
                let (number, name) = (self.tests.len() + 1, name.unwrap_or_default());
                return Err(self.refuse(TestsError::Test { number, name, why }));
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Found {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `api` and `tests`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "api" => {
                    let api: Value = map.next_value()?;
                    if api.as_u64() != Some(API) {
                        let api = one_line(&api.to_string(), 40);
                        return Err(self.refuse(TestsError::Api { api }));
                    }
                    self.has_api = true;
                }
                "tests" if self.has_tests => {
                    return Err(de::Error::custom("`tests` stands twice"));
                }
                "tests" => {
                    self.has_tests = true;
                    map.next_value_seed(Tests(self))?;
                }
                other => {
                    let other = one_line(other, 40);
                    let why = format!("unknown key `{other}`: here are `api` and `tests`");
                    return Err(de::Error::custom(why));
                }
            }
        }
        match self.has_tests {
            true => Ok(()),
            false if !self.has_api => Err(self.refuse(TestsError::NoApi)),
            false => Err(de::Error::custom("`tests` is missing")),
        }
    }
}

/// The list of them.
struct Tests<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for Tests<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Tests<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tests")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(Entry(entry)) = list.next_element()? {
            self.0.add(entry)?;
        }
        Ok(())
    }
}

/// An object, in which no key stands twice.
struct Entry(Map<String, Value>);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: de::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a test: an object with `name`, and `line` or `file`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let mut entry = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entry.contains_key(&key) {
                        let key = one_line(&key, 40);
                        return Err(de::Error::custom(format!("`{key}` stands twice")));
                    }
                    entry.insert(key, map.next_value()?);
                }
                Ok(Entry(entry))
            }
        }
        reader.deserialize_map(Keys)
    }
}

/// A test of its entry; what is wrong with it, in words.
fn test(mut entry: Map<String, Value>) -> Result<Generated, String> {
    let mut text = |key: &str| match entry.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.contains('\0') => {
            Err(format!("`{key}` has a zero byte in it"))
        }
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("`{key}` is empty")),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}` is a text")),
    };
    let name = text("name")?.ok_or("`name` is missing")?;
    if !is_name(&name) {
        return Err(format!(
            "a name has a-z, 0-9, `.`, `_` and `-`, in parts with `/` between them that begin with a \
             letter or digit, and not more than {MAX_NAME_LEN} bytes"
        ));
    }
    let (line, file) = (text("line")?, text("file")?);
    let args = args(entry.remove("args"))?;
    let run = match (line, file) {
        (Some(_), Some(_)) => return Err("it has `line` and `file`: leave one out".to_owned()),
        (None, None) => return Err("it runs nothing: write `line` or `file`".to_owned()),
        (Some(_), None) if args.is_some() => {
            return Err("`args` belongs to `file`; a line has them in it".to_owned());
        }
        (Some(line), None) => Run::Line(line),
        (None, Some(file)) if !is_inner(Path::new(&file)) => {
            let file = one_line(&file, 80);
            return Err(format!(
                "`{file}` leads out of the suite: a file is named from its folder"
            ));
        }
        (None, Some(file)) => Run::File { path: file.into(), args: args.unwrap_or_default() },
    };
    Ok(Generated { name, run, settings: entry })
}

fn args(value: Option<Value>) -> Result<Option<Vec<String>>, String> {
    let Some(value) = value else { return Ok(None) };
    let texts = match value {
        Value::Array(texts) => texts.into_iter(),
        _ => return Err("`args` is a list of texts".to_owned()),
    };
    let text = |value| match value {
        Value::String(text) if !text.contains('\0') => Ok(text),
        _ => Err("`args` is a list of texts, without a zero byte".to_owned()),
    };
    texts.map(text).collect::<Result<_, _>>().map(Some)
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &str| {
        part.bytes().next().is_some_and(is_plain)
            && part.bytes().all(|byte| is_plain(byte) || b"._-".contains(&byte))
    };
    name.len() <= MAX_NAME_LEN && name.split('/').all(is_part)
}

#[cfg(test)]
mod tests;
