//! What is said of tests: by the header of one, by the `#:` lines of a `.checks` file, by a suite for all of its own.
//!
//! A key is the same wherever it stands. [`Settings::below`] is how a test has what its suite says: `requires`, `tags`,
//! `fixtures` and `files` add up, a matrix takes over axes, and any other key goes in the place of the suite's.

mod values;

pub use values::{
    Cpus, DiskSize, Expected, FailWhen, Flaky, Format, Isolation, Issue, MachineSettings, Memory,
    On, Statuses, Tag, Time, Word,
};

use super::keys;
use super::matrix::Matrix;
use super::requirement::Requirement;
use guestline::provision::NicWanted;
use guestline::supervise::MachineName;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use std::collections::BTreeMap;

/// All keys, in the order of the reference (`docs/tests.md`).
pub const KEYS: [&str; 28] = [
    "about",
    "owner",
    "tags",
    "requires",
    "image",
    "packages",
    "cpus",
    "memory",
    "disks",
    "nics",
    "cmdline",
    "matrix",
    "on",
    "machines",
    "networks",
    "files",
    "fixtures",
    "setup",
    "teardown",
    "timeout",
    "format",
    "statuses",
    "expect",
    "fail_on",
    "isolation",
    "retries",
    "flaky",
    "known_issue",
];

/// What is said; what is not is none.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// One sentence about it.
    pub about: Option<String>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Words that tell kinds of tests apart, for `--filter`.
    pub tags: Option<Vec<Tag>>,
    /// What it needs.
    pub requires: Option<Vec<Requirement>>,
    /// What its machine boots.
    pub image: Option<Word>,
    /// What the image has beside what is in it.
    pub packages: Option<Vec<Word>>,
    /// CPUs of its machine.
    pub cpus: Option<Cpus>,
    /// Memory of its machine.
    pub memory: Option<Memory>,
    /// Disks of its machine.
    pub disks: Option<Vec<DiskSize>>,
    /// Network cards of its machine.
    pub nics: Option<Vec<NicWanted>>,
    /// What comes at the end of the kernel's command line.
    pub cmdline: Option<String>,
    /// With what it is run.
    pub matrix: Option<Matrix>,
    /// Where it runs.
    pub on: Option<On>,
    /// Machines by their names, where it is not the one without.
    pub machines: Option<BTreeMap<MachineName, MachineSettings>>,
    /// Not there yet.
    #[serde(deserialize_with = "no_networks")]
    pub networks: Option<()>,
    /// Files that it has with it, beside its own.
    pub files: Option<Vec<Word>>,
    /// What has to be set up before, by name.
    pub fixtures: Option<Vec<Word>>,
    /// A line that is run before it, where it runs.
    pub setup: Option<Word>,
    /// A line that is run after it, whatever became of it.
    pub teardown: Option<Word>,
    /// How long it may take.
    pub timeout: Option<Time>,
    /// What its output says.
    pub format: Option<Format>,
    /// What its exit status says.
    pub statuses: Option<Statuses>,
    /// What its machine may do without having failed it.
    pub expect: Option<Vec<Expected>>,
    /// What its kernel must not do.
    pub fail_on: Option<Vec<FailWhen>>,
    /// With whom it shares a machine.
    pub isolation: Option<Isolation>,
    /// How many more attempts it has, when it fails.
    pub retries: Option<u32>,
    /// It is known to fail now and then.
    pub flaky: Option<Flaky>,
    /// It is known to fail.
    pub known_issue: Option<Issue>,
}

fn no_networks<'de, D: Deserializer<'de>>(_: D) -> Result<Option<()>, D::Error> {
    Err(D::Error::custom(
        "machines cannot be connected yet: leave it out (each has no network, or what `nics` gives it)",
    ))
}

impl Settings {
    /// Of a table whose keys are known.
    ///
    /// # Errors
    /// What is wrong with it, as serde says it.
    pub fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let settings = Self::deserialize(from)?;
        settings.check().map(|()| settings).map_err(D::Error::custom)
    }

    /// Why a key is none of them.
    pub fn unknown_key(key: &str) -> Option<String> {
        (!KEYS.contains(&key)).then(|| keys::unknown(key, &KEYS, ""))
    }

    /// What cannot be together.
    fn check(&self) -> Result<(), String> {
        let has_machines = self.machines.as_ref().is_some_and(|machines| !machines.is_empty());
        let own = [
            ("image", self.image.is_some()),
            ("packages", self.packages.is_some()),
            ("cpus", self.cpus.is_some()),
            ("memory", self.memory.is_some()),
            ("disks", self.disks.is_some()),
            ("nics", self.nics.is_some()),
        ];
        if let Some((key, _)) = own.iter().find(|(_, is_said)| has_machines && *is_said) {
            return Err(format!(
                "`{key}` speaks of the one machine without a name, and `machines` names others: \
                 write it below a machine"
            ));
        }
        if self.flaky.is_some() && (self.retries.is_some() || self.known_issue.is_some()) {
            return Err("`flaky` says how often it is run: leave out `retries` and `known_issue`"
                .to_owned());
        }
        Ok(())
    }

    /// This, said after what was said before: each of its keys goes in the place of the other's.
    pub fn after(self, before: &Self) -> Self {
        let more = Self {
            requires: None,
            tags: None,
            fixtures: None,
            files: None,
            matrix: None,
            ..self.clone()
        };
        let below = more.below(before);
        Self {
            requires: self.requires.or_else(|| before.requires.clone()),
            tags: self.tags.or_else(|| before.tags.clone()),
            fixtures: self.fixtures.or_else(|| before.fixtures.clone()),
            files: self.files.or_else(|| before.files.clone()),
            matrix: self.matrix.or_else(|| before.matrix.clone()),
            ..below
        }
    }

    /// This as it is below what holds for all, a suite.
    pub fn below(self, above: &Self) -> Self {
        let has_machines = self.machines.is_some();
        let own = |is_said: bool| !has_machines || is_said;
        Self {
            about: self.about,
            owner: self.owner.or_else(|| above.owner.clone()),
            tags: joined(&above.tags, self.tags),
            requires: joined(&above.requires, self.requires),
            image: self.image.or_else(|| above.image.clone().filter(|_| own(false))),
            packages: self.packages.or_else(|| above.packages.clone().filter(|_| own(false))),
            cpus: self.cpus.or_else(|| above.cpus.filter(|_| own(false))),
            memory: self.memory.or_else(|| above.memory.filter(|_| own(false))),
            disks: self.disks.or_else(|| above.disks.clone().filter(|_| own(false))),
            nics: self.nics.or_else(|| above.nics.clone().filter(|_| own(false))),
            cmdline: self.cmdline.or_else(|| above.cmdline.clone()),
            matrix: match (self.matrix, &above.matrix) {
                (Some(own), Some(above)) => Some(above.clone().taken_over_by(own)),
                (own, above) => own.or_else(|| above.clone()),
            },
            on: self.on.or(above.on),
            machines: self.machines.or_else(|| above.machines.clone()),
            networks: None,
            files: joined(&above.files, self.files),
            fixtures: joined(&above.fixtures, self.fixtures),
            setup: self.setup.or_else(|| above.setup.clone()),
            teardown: self.teardown.or_else(|| above.teardown.clone()),
            timeout: self.timeout.or(above.timeout),
            format: self.format.or(above.format),
            statuses: self.statuses.or_else(|| above.statuses.clone()),
            expect: self.expect.or_else(|| above.expect.clone()),
            fail_on: self.fail_on.or_else(|| above.fail_on.clone()),
            isolation: self.isolation.or(above.isolation),
            retries: self.retries.or(above.retries.filter(|_| self.flaky.is_none())),
            known_issue: self.known_issue.or_else(|| above.known_issue.clone()),
            flaky: self.flaky.or(above.flaky),
        }
    }
}

/// What is said above, then what is said below and not above.
fn joined<T: Clone + PartialEq>(above: &Option<Vec<T>>, below: Option<Vec<T>>) -> Option<Vec<T>> {
    let Some(above) = above else { return below };
    let mut joined = above.clone();
    for more in below.into_iter().flatten() {
        if !joined.contains(&more) {
            joined.push(more);
        }
    }
    Some(joined)
}

#[cfg(test)]
mod tests;
