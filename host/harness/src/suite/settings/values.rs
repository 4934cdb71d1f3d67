//! Values of settings.

use crate::outcome::Outcome;
use crate::units;
use guestline::provision::{DiskWanted, NicWanted};
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A text is not longer, bytes.
const MAX_WORD_LEN: usize = 64 * 1024;

/// A tag is not longer, bytes.
const MAX_TAG_LEN: usize = 64;

/// A flaky test is not run more often.
const MAX_RUNS: u32 = 1000;

/// A text or a number, as text.
struct AsText(&'static str);

impl Visitor<'_> for AsText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

/// A text that is not empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

impl Word {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Word {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text {
            text if text.trim().is_empty() => Err("want a text that is not empty".to_owned()),
            text if text.len() > MAX_WORD_LEN => {
                Err(format!("want at most {} KiB", MAX_WORD_LEN / 1024))
            }
            text if text.contains('\0') => Err("want a text without a zero byte".to_owned()),
            text => Ok(Self(text)),
        }
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A word that tells kinds of tests apart: `[a-z0-9][a-z0-9._-]*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Tag {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match crate::text::is_plain_name(&text) && text.len() <= MAX_TAG_LEN {
            true => Ok(Self(text)),
            false => Err("a tag has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit".to_owned()),
        }
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

/// A time: `"90s"`, or a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(AsText("a time, as \"90s\" or 90"))?;
        units::time(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A size of memory: `"512M"`, or a number of MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In MiB.
    pub mib: u64,
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(AsText("a size of memory, as \"512M\""))?;
        units::memory(&text).map(|mib| Self { mib }).map_err(D::Error::custom)
    }
}

/// The size of an empty disk: `"1G"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(pub DiskWanted);

impl<'de> Deserialize<'de> for DiskSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(AsText("the size of a disk, as \"1G\""))?;
        let mib = units::mib(&text).map_err(D::Error::custom)?;
        DiskWanted::new(mib).map(Self).map_err(D::Error::custom)
    }
}

/// A number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub u32);

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let cpus = u32::deserialize(from)?;
        match cpus {
            1..=255 => Ok(Self(cpus)),
            _ => Err(D::Error::custom("want a number from 1 to 255")),
        }
    }
}

/// Where a test runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// In its machine; in each of them, if it has several.
    #[default]
    Guest,
    /// On the host.
    Host,
    /// On the host and in its machines at the same time.
    Both,
}

/// A machine with a name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSettings {
    /// What it boots.
    pub image: Option<Word>,
    /// What the image has beside what is in it.
    pub packages: Option<Vec<Word>>,
    /// CPUs.
    pub cpus: Option<Cpus>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Disks.
    pub disks: Option<Vec<DiskSize>>,
    /// Network cards.
    pub nics: Option<Vec<NicWanted>>,
}

/// What the output of a test says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Nothing: the exit status says all.
    #[default]
    Plain,
    /// Results, as TAP or KTAP.
    Tap,
}

/// What exit statuses mean; any other is a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statuses {
    /// It passed.
    #[serde(default = "Statuses::passes")]
    pub pass: Vec<u8>,
    /// It does not apply.
    #[serde(default = "Statuses::skips")]
    pub skip: Vec<u8>,
}

impl Statuses {
    fn passes() -> Vec<u8> {
        vec![0]
    }

    fn skips() -> Vec<u8> {
        vec![77]
    }

    /// What a status means; the reason of a skip is given.
    pub fn outcome(&self, status: u8, reason: &str) -> Outcome {
        match status {
            status if self.pass.contains(&status) => Outcome::Passed,
            status if self.skip.contains(&status) => Outcome::Skipped { reason: reason.to_owned() },
            status => Outcome::Failed { reason: format!("status {status}"), stage: None },
        }
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self { pass: Self::passes(), skip: Self::skips() }
    }
}

/// What a machine may do of itself; that of it which comes ends the test, and it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// Its kernel panics.
    Panic,
    /// It reboots.
    Reboot,
    /// It powers off.
    Poweroff,
}

/// What a kernel must not do.
pub use crate::job::FailOn as FailWhen;

/// With whom a test shares its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// With nobody: each attempt has a pristine one.
    #[default]
    Machine,
    /// With other tests of its suite that want the same machine.
    Suite,
}

/// A test that is known to fail now and then: it is run so often, and has failed when it failed more often than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FlakyTable", into = "FlakyTable")]
pub struct Flaky {
    /// How often it is run.
    pub runs: u32,
    /// It has failed when more of them did.
    pub fail_above: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlakyTable {
    runs: u32,
    fail_above: u32,
}

impl TryFrom<FlakyTable> for Flaky {
    type Error = String;

    fn try_from(FlakyTable { runs, fail_above }: FlakyTable) -> Result<Self, String> {
        if !(2..=MAX_RUNS).contains(&runs) {
            return Err(format!("`runs` is a number from 2 to {MAX_RUNS}"));
        }
        if fail_above >= runs {
            return Err(format!(
                "of {runs} runs no more than {fail_above} can fail: `fail_above` is less than `runs`"
            ));
        }
        Ok(Self { runs, fail_above })
    }
}

impl From<Flaky> for FlakyTable {
    fn from(Flaky { runs, fail_above }: Flaky) -> Self {
        Self { runs, fail_above }
    }
}

/// The address of what is known about a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Issue(String);

impl Issue {
    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Issue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_address = text.starts_with("http://") || text.starts_with("https://");
        match is_address
            && text.len() > 8
            && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            true => Ok(Self(text)),
            false => Err("want the address of an issue, as \"https://…\"".to_owned()),
        }
    }
}

impl From<Issue> for String {
    fn from(issue: Issue) -> Self {
        issue.0
    }
}
