//! What an admin declares of an environment, and what names mean: TOML.
//!
//! ```toml
//! [provides]
//! lab-network = true
//! virtiowin = "2013-10-24"
//! "host.licences" = 5
//!
//! [provides.gpu0]
//! pci = "0000:01:00.0"
//! owner = "lab@example.org"
//! doc = "A card that nothing else uses."
//!
//! [tags]
//! destructive = "The test may leave the machine unusable."
//! ```
//! The tree of the file is walked by hand: every fault is told with its own line and the way out, which is what serde's
//! `deny_unknown_fields` cannot do below a map of values of several types.

use super::capability::{Capability, Provided};
use super::device::{Bus, Device};
use super::environment::Environment;
use super::keys;
use super::known::{Kind, known_of};
use super::name::{CapabilityName, CapabilityNameError};
use super::value::{self, Value};
use crate::text::one_line;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A file is not longer, bytes.
pub const MAX_LEN: usize = 1 << 20;

/// A sentence is not longer, bytes.
const MAX_SENTENCE_LEN: usize = 512;

/// There are not more devices of a name.
const MAX_DEVICES: usize = 256;

/// The keys of a table below `provides`.
const KEYS: [&str; 6] = [VALUE, "pci", "block", "serial", OWNER, DOC];
const VALUE: &str = "value";
const OWNER: &str = "owner";
const DOC: &str = "doc";

/// What a file declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// What is provided.
    pub provides: BTreeMap<CapabilityName, Capability>,
    /// What names mean.
    pub tags: Tags,
}

/// What names mean, a sentence each: the table `[tags]` of a declared file, and of a suite.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<CapabilityName, String>")]
pub struct Tags(BTreeMap<CapabilityName, String>);

/// A file that declares nothing that could be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}:{line}: {why}", .file.display())]
pub struct DeclaredError {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In words, with the way out.
    pub why: String,
}

/// A sentence that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}: want one line of text of 1 to {MAX_SENTENCE_LEN} bytes")]
pub struct SentenceError {
    /// What it is to be about.
    pub what: String,
}

impl Tags {
    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&CapabilityName, &str)> {
        self.0.iter().map(|(name, doc)| (name, doc.as_str()))
    }

    /// Says them to an environment.
    pub fn document(&self, environment: &mut Environment) {
        self.iter().for_each(|(name, doc)| environment.document(name.clone(), doc));
    }
}

impl TryFrom<BTreeMap<CapabilityName, String>> for Tags {
    type Error = SentenceError;

    fn try_from(tags: BTreeMap<CapabilityName, String>) -> Result<Self, SentenceError> {
        match tags.iter().find(|(_, doc)| !is_sentence(doc)) {
            Some((name, _)) => Err(SentenceError { what: name.to_string() }),
            None => Ok(Self(tags)),
        }
    }
}

fn is_sentence(text: &str) -> bool {
    let is_short = (1..=MAX_SENTENCE_LEN).contains(&text.len());
    is_short && !text.trim().is_empty() && !text.contains(char::is_control)
}

impl Declared {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(file: &Path, text: &str) -> Result<Self, DeclaredError> {
        read(text).map_err(|(at, why)| {
            let line = 1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count();
            DeclaredError { file: file.to_owned(), line, why }
        })
    }

    /// Provides it in an environment, in the place of what that has under the same names.
    pub fn provide(&self, environment: &mut Environment) {
        for (name, capability) in &self.provides {
            environment.provide(name.clone(), capability.clone());
        }
        self.tags.document(environment);
    }
}

/// Where a fault is, in bytes, and what it is.
type Fault = (usize, String);
type Key<'a> = Spanned<DeString<'a>>;
type Tree<'a> = Spanned<DeValue<'a>>;

fn read(text: &str) -> Result<Declared, Fault> {
    if text.len() > MAX_LEN {
        return Err((0, format!("the file is longer than {} KiB", MAX_LEN / 1024)));
    }
    let tree = DeTable::parse(text).map_err(|error| keys::no_toml(text, &error))?;
    let mut declared = Declared::default();
    for (key, value) in in_order(tree.get_ref()) {
        match key.get_ref().as_ref() {
            "provides" => declared.provides = provides(table(key, value)?)?,
            "tags" => declared.tags = tags(table(key, value)?)?,
            _ => return Err(unknown_key(key, &["provides", "tags"], "")),
        }
    }
    Ok(declared)
}

/// The entries of a table as they stand in the file, so that the first fault is told.
fn in_order<'t, 'a>(table: &'t DeTable<'a>) -> Vec<(&'t Key<'a>, &'t Tree<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn table<'t, 'a>(key: &Key<'_>, value: &'t Tree<'a>) -> Result<&'t DeTable<'a>, Fault> {
    let name = key.get_ref();
    let why = || format!("`{name}` is a table: write [{name}], and its entries below");
    value.get_ref().as_table().ok_or_else(|| (value.span().start, why()))
}

fn unknown_key(key: &Key<'_>, known: &[&str], hint: &str) -> Fault {
    (key.span().start, keys::unknown(key.get_ref(), known, hint))
}

/// The name that an entry has. Without quotes, one with dots would be tables within tables.
fn name(key: &Key<'_>, value: &Tree<'_>) -> Result<CapabilityName, Fault> {
    let fault = |why: String| (key.span().start, why);
    match (key.get_ref().parse(), value.get_ref().as_table().and_then(|table| table.iter().next()))
    {
        (Err(CapabilityNameError::SideAlone { name }), Some((inner, _))) => {
            Err(fault(wants_quotes(&name, inner)))
        }
        (name, _) => name.map_err(|why| fault(why.to_string())),
    }
}

fn wants_quotes(name: &str, inner: &Key<'_>) -> String {
    one_line(&format!("a name with dots stands in quotes: \"{name}.{}\"", inner.get_ref()), 200)
}

fn tags(table: &DeTable<'_>) -> Result<Tags, Fault> {
    let mut tags = BTreeMap::new();
    for (key, value) in in_order(table) {
        let name = name(key, value)?;
        if let Some((inner, _)) = value.get_ref().as_table().and_then(|table| table.iter().next()) {
            return Err((key.span().start, wants_quotes(&name.to_string(), inner)));
        }
        let doc = sentence(value, &name.to_string())?;
        tags.insert(name, doc);
    }
    Ok(Tags(tags))
}

fn sentence(value: &Tree<'_>, what: &str) -> Result<String, Fault> {
    let text = value.get_ref().as_str().filter(|text| is_sentence(text));
    let wrong = || SentenceError { what: what.to_owned() };
    text.map(str::to_owned).ok_or_else(|| (value.span().start, wrong().to_string()))
}

fn provides(table: &DeTable<'_>) -> Result<BTreeMap<CapabilityName, Capability>, Fault> {
    let mut provides = BTreeMap::new();
    let mut taken = BTreeMap::new();
    for (key, value) in in_order(table) {
        let name = name(key, value)?;
        let capability = match value.get_ref() {
            DeValue::Table(table) => described(key, &name, table)?,
            _ => Capability::of(plain(&name, value)?),
        };
        if let Provided::Devices(devices) = &capability.provided {
            for device in devices {
                if let Some(other) = taken.insert(device.clone(), name.clone()) {
                    let why =
                        format!("{device} stands below `{other}` already: one device, one name");
                    return Err((key.span().start, why));
                }
            }
        }
        provides.insert(name, capability);
    }
    Ok(provides)
}

/// `true`, a number or a text.
fn plain(name: &CapabilityName, value: &Tree<'_>) -> Result<Provided, Fault> {
    let fault = |why: String| (value.span().start, why);
    let known = known_of(name);
    let kind = known.map_or(Kind::Any, |known| known.kind);
    let text = match value.get_ref() {
        DeValue::Boolean(true) if matches!(kind, Kind::Flag | Kind::Any) => {
            return Ok(Provided::Flag);
        }
        DeValue::Boolean(true) => return Err(fault(format!("`{name}` has a value: write it"))),
        DeValue::Boolean(false) => {
            return Err(fault(format!("what is not there is left out: take `{name}` away")));
        }
        DeValue::Integer(number) => match number.as_str().parse::<u64>() {
            Ok(decimal) if number.radix() == 10 => decimal.to_string(),
            _ => return Err(fault(format!("`{name}` wants a whole number from 0, in decimal"))),
        },
        DeValue::String(text) if matches!(kind, Kind::Text | Kind::Any) => {
            return match text.len() <= value::MAX_LEN && is_sentence(text) {
                true => Ok(Provided::Value(Value::of(text))),
                false => Err(fault(format!(
                    "`{name}` wants one line of text of 1 to {} bytes",
                    value::MAX_LEN
                ))),
            };
        }
        DeValue::String(text) => text.to_string(),
        DeValue::Float(_) | DeValue::Datetime(_) => {
            return Err(fault(format!("a version stands in quotes: `{name} = \"…\"`")));
        }
        DeValue::Array(_) | DeValue::Table(_) => {
            let why =
                format!("`{name}` wants true, a whole number or a text; devices stand in a table");
            return Err(fault(why));
        }
    };
    match kind.value(&text) {
        Ok(value) => Ok(Provided::Value(value)),
        Err(_) if kind == Kind::Flag => {
            Err(fault(format!("`{name}` is there or not: write `{name} = true`")))
        }
        Err(why) => Err(fault(format!("{name}: {why}"))),
    }
}

/// A table: a value or devices, with owner and sentence.
fn described(
    key: &Key<'_>,
    name: &CapabilityName,
    table: &DeTable<'_>,
) -> Result<Capability, Fault> {
    let mut provided: Option<Provided> = None;
    let (mut owner, mut doc) = (None, None);
    for (inner, value) in in_order(table) {
        let word = inner.get_ref().as_ref();
        let bus = Bus::ALL.into_iter().find(|bus| bus.word() == word);
        let found = match word {
            OWNER => {
                owner = Some(sentence(value, OWNER)?);
                continue;
            }
            DOC => {
                doc = Some(sentence(value, DOC)?);
                continue;
            }
            VALUE => plain(name, value)?,
            _ => match bus {
                Some(bus) => Provided::Devices(devices(name, bus, value)?),
                None => {
                    let quotes = wants_quotes(&name.to_string(), inner);
                    return Err(unknown_key(inner, &KEYS, &format!("; {quotes}")));
                }
            },
        };
        if provided.replace(found).is_some() {
            let why = format!("`{name}` is one thing: one of value, pci, block and serial");
            return Err((inner.span().start, why));
        }
    }
    let why = || format!("`{name}` is nothing: write value, pci, block or serial below it");
    let provided = provided.ok_or_else(|| (key.span().start, why()))?;
    Ok(Capability { provided, owner, doc })
}

/// One address, or a list.
fn devices(name: &CapabilityName, bus: Bus, value: &Tree<'_>) -> Result<Vec<Device>, Fault> {
    let fault = |why: &str| (value.span().start, why.to_owned());
    if known_of(name).is_some() {
        return Err(fault(
            "Guestline finds what has this name by itself: give the device another one",
        ));
    }
    let addresses: Vec<&Tree<'_>> = match value.get_ref() {
        DeValue::Array(list) => list.iter().collect(),
        _ => vec![value],
    };
    if !(1..=MAX_DEVICES).contains(&addresses.len()) {
        return Err(fault(&format!("want 1 to {MAX_DEVICES} addresses")));
    }
    let device = |address: &Tree<'_>| {
        let at = address.span().start;
        let text = address.get_ref().as_str();
        let text = text.ok_or_else(|| (at, "an address stands in quotes".to_owned()))?;
        Device::new(bus, text).map_err(|why| (at, why.to_string()))
    };
    addresses.into_iter().map(device).collect()
}

#[cfg(test)]
mod tests;
