//! `guestline.toml`: what makes a folder a suite.
//!
//! ```toml
//! api = 1
//! name = "net"                      # the folder's, if none is given
//! guestline = ">= 0.2"
//! exclude = ["lib/*"]               # these are no tests
//! generate = "./make-tests"
//! image = "debian-12"               # every key of a header: it holds for all tests of the suite
//!
//! [tags]
//! lab-network = "The lab's network can be reached."
//!
//! [fixtures.site]
//! run = "./deploy.sh"
//! owner = "web-team@example.org"
//!
//! [libs]
//! common = "../common"
//! ```

use super::declared::Tags;
use super::fixture::FixtureSettings;
use super::keys::{self, Places};
use super::settings::{self, Settings, Time, Word};
use super::version::Version;
use crate::text::is_plain_name;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeString, DeTable, Deserializer};

/// The name of the file.
pub const FILE: &str = "guestline.toml";

/// The test API that this version knows.
pub const API: u32 = 1;

/// A file is not longer, bytes.
const MAX_LEN: usize = 1 << 20;

/// The keys that a header has not.
const KEYS: [&str; 9] = [
    "api",
    "name",
    "guestline",
    "exclude",
    "generate",
    "generate_timeout",
    "tags",
    "fixtures",
    "libs",
];

/// What a suite says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Its name, if it has one of its own.
    pub name: Option<String>,
    /// Files that are no tests, as patterns.
    pub exclude: Vec<Word>,
    /// A program that prints tests.
    pub generate: Option<Word>,
    /// How long that may take.
    pub generate_timeout: Option<Time>,
    /// What names mean.
    pub tags: Tags,
    /// Steps that its tests depend on.
    pub fixtures: BTreeMap<String, FixtureSettings>,
    /// Other suites whose files its tests take.
    pub libs: BTreeMap<String, Word>,
    /// What holds for all of its tests.
    pub settings: Settings,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Own {
    api: Option<Spanned<i64>>,
    name: Option<Spanned<String>>,
    guestline: Option<Spanned<String>>,
    exclude: Vec<Word>,
    generate: Option<Word>,
    generate_timeout: Option<Time>,
    tags: Tags,
    fixtures: BTreeMap<Spanned<String>, FixtureSettings>,
    libs: BTreeMap<Spanned<String>, Word>,
}

/// A file that makes no suite.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}:{line}: {why}", .file.display())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In words, with the way out.
    pub why: String,
}

/// Where a fault is, in bytes, and what it is.
type Fault = (usize, String);

impl Config {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self, ConfigError> {
        let read = match str::from_utf8(text) {
            _ if text.len() > MAX_LEN => {
                Err((0, format!("the file is longer than {} MiB", MAX_LEN >> 20)))
            }
            Ok(text) => read(text),
            Err(error) => Err((error.valid_up_to(), "it is not UTF-8".to_owned())),
        };
        read.map_err(|(at, why)| {
            let line = 1 + text.iter().take(at).filter(|&&byte| byte == b'\n').count();
            ConfigError { file: file.to_owned(), line, why }
        })
    }
}

fn read(text: &str) -> Result<Config, Fault> {
    let table = DeTable::parse(text).map_err(|error| keys::no_toml(text, &error))?;
    let (span, places) = (table.span(), Places::of(table.get_ref()));
    let known: Vec<&str> = KEYS
        .into_iter()
        .chain(settings::KEYS.iter().copied().filter(|key| *key != "tags"))
        .collect();
    let (mut own, mut rest) = (DeTable::new(), DeTable::new());
    let unknown = |key: &Spanned<DeString<'_>>| {
        let name: &str = key.get_ref();
        (!known.contains(&name)).then(|| (key.span().start, keys::unknown(name, &known, "")))
    };
    if let Some(fault) = table.get_ref().keys().filter_map(unknown).min() {
        return Err(fault);
    }
    for (key, value) in table.into_inner() {
        let is_own = KEYS.contains(&&**key.get_ref());
        let _ = if is_own { own.insert(key, value) } else { rest.insert(key, value) };
    }
    let own = Deserializer::from(Spanned::new(span.clone(), own));
    let own = Own::deserialize(own).map_err(|error| places.fault(&error))?;
    check(&own)?;
    let rest = Deserializer::from(Spanned::new(span, rest));
    let settings = Settings::read(rest).map_err(|error| places.fault(&error))?;
    let plain = |names: BTreeMap<Spanned<String>, Word>| -> BTreeMap<String, Word> {
        names.into_iter().map(|(name, value)| (name.into_inner(), value)).collect()
    };
    let config = Config {
        name: own.name.map(Spanned::into_inner),
        exclude: own.exclude,
        generate: own.generate,
        generate_timeout: own.generate_timeout,
        tags: own.tags,
        fixtures: own.fixtures.into_iter().map(|(name, it)| (name.into_inner(), it)).collect(),
        libs: plain(own.libs),
        settings,
    };
    super::fixture::check(&config.fixtures).map_err(|(name, why)| {
        let at = text.find(&format!("fixtures.{name}")).unwrap_or(0);
        (at, why)
    })?;
    Ok(config)
}

fn check(own: &Own) -> Result<(), Fault> {
    match &own.api {
        None => {
            return Err((
                0,
                format!(
                    "`api` is missing: write api = {API}, the test API that the suite is made for"
                ),
            ));
        }
        Some(api) if *api.get_ref() != i64::from(API) => {
            let why = format!("test API {} is not known: this version knows {API}", api.get_ref());
            return Err((api.span().start, why));
        }
        Some(_) => {}
    }
    if let Some(wanted) = &own.guestline {
        let at = wanted.span().start;
        version(wanted.get_ref()).map_err(|why| (at, why))?;
    }
    let names = own.name.iter().chain(own.fixtures.keys()).chain(own.libs.keys());
    match names.into_iter().find(|name| !is_plain_name(name.get_ref())) {
        Some(name) => {
            let why = "a name has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit";
            Err((
                name.span().start,
                format!("`{}` is no name: {why}", crate::text::one_line(name.get_ref(), 60)),
            ))
        }
        None => Ok(()),
    }
}

/// This version is one that a suite wants, as `>= 0.2`.
fn version(wanted: &str) -> Result<(), String> {
    let own = env!("CARGO_PKG_VERSION");
    let wrong = || {
        format!(
            "`{}` is no version that is wanted: write \">= 0.2\"",
            crate::text::one_line(wanted, 60)
        )
    };
    let least = wanted.trim().strip_prefix(">=").ok_or_else(wrong)?;
    let least: Version = least.trim().parse().map_err(|_| wrong())?;
    match own.parse::<Version>() {
        Ok(own) if own >= least => Ok(()),
        _ => Err(format!("the suite wants Guestline {wanted}, and this is {own}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("s/guestline.toml"), text.as_bytes())
    }

    #[test]
    fn a_suite_says_what_holds_for_its_tests() {
        let config = parse(
            "api = 1\nname = 'net'\nguestline = '>= 0.1'\ngenerate = './make'\nimage = 'debian-12'\n\
             matrix.nic = ['e1000', 'virtio']\n[tags]\nlab = 'The lab.'\n[libs]\ncommon = '../common'\n\
             [fixtures.site]\nrun = './deploy.sh'\nowner = 'web@example.org'\nneeds = ['base']\n[fixtures.base]\nrun = 'true'\n",
        )
        .unwrap();
        assert_eq!(config.name.as_deref(), Some("net"));
        assert_eq!(config.settings.image.as_ref().map(Word::as_str), Some("debian-12"));
        assert_eq!(config.fixtures.len(), 2);
        assert_eq!(config.libs["common"].as_str(), "../common");
        assert_eq!(config.tags.iter().count(), 1);
    }

    #[test]
    fn what_is_wrong_is_told_with_file_and_line() {
        let all = [
            "image = 'tiny'",
            "api = 2",
            "api = 'x'",
            "api = 1\nname = 'Has Space'",
            "api = 1\nguestline = '>= 99'",
            "api = 1\nguestline = '~ 1'",
            "api = 1\nimgae = 'x'",
            "api = 1\n\ntimeout = 'soon'",
            "api = 1\napi = 1",
            "api = 1\n[fixtures.a]\nrun = 'true'\nneeds = ['b']\n[fixtures.b]\nrun = 'true'\nneeds = ['a']",
            "api = 1\n[fixtures.a]\nrun = 'true'\nneeds = ['a']",
            "api = 1\n[fixtures.a]\nrun = 'true'\nneeds = ['nope']",
            "api = 1\n[fixtures.a]\nneeds = []",
            "api = 1\n[fixtures.a]\nrun = 'true'\nonn = 'host'",
            "api = 1\n[fixtures.'A b']\nrun = 'true'",
            "api = 1\n[tags]\nx = ''",
        ];
        let told: Vec<_> = all.iter().map(|text| parse(text).unwrap_err().to_string()).collect();
        insta::assert_snapshot!(told.join("\n"));
        let binary = Config::parse(Path::new("x"), b"api = 1\n\xff").unwrap_err();
        assert_eq!((binary.line, binary.why.as_str()), (2, "it is not UTF-8"));
        let long = Config::parse(Path::new("x"), &vec![b'#'; MAX_LEN + 1]).unwrap_err();
        assert!(long.why.contains("longer than 1 MiB"));
    }
}
