//! An environment: all that tests may ask of a host, an image and what their admin declares, and the answers.
//!
//! ```text
//! a name is looked up on its side ──> without a side ──> among what is open ──> it is not there
//!                                                             │
//!                                 known when the guest runs <─┘
//! ```
//! A bare name speaks of the side that the test runs on. What is provided without a side (what an admin declares, facts of
//! the image) answers for both.

use super::capability::{Capability, Provided};
use super::device::Device;
use super::known::{self, NAMES, When};
use super::name::{CapabilityName, Side};
use super::requirement::{Condition, Requirement};
use crate::text::one_line;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What tests may ask for, and who says so.
#[derive(Debug, Clone)]
pub struct Environment {
    host: String,
    guest: String,
    provided: BTreeMap<CapabilityName, Capability>,
    /// Not known yet, with all below them.
    open: BTreeSet<CapabilityName>,
    docs: BTreeMap<CapabilityName, String>,
    /// What is asked when this one knows nothing of a name.
    beneath: Option<Arc<Environment>>,
}

/// Whether an environment has what a requirement asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has.
    Met,
    /// It has not.
    Unmet(Shortfall),
    /// It is known when the guest runs.
    Unknown,
}

/// A requirement that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Which.
    pub requirement: Requirement,
    /// What there is instead.
    pub shortfall: Shortfall,
}

/// What there is instead of what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortfall {
    /// Another value, or what must not be there.
    Has {
        /// Who: the image, or the host.
        who: String,
        /// What.
        value: String,
    },
    /// Something that does not compare with what is asked.
    NotComparable {
        /// Who.
        who: String,
        /// What; none where it has no value.
        value: Option<String>,
    },
    /// Nothing of the name.
    Nobody {
        /// What the name means, where that is documented.
        doc: Option<String>,
        /// What is there and has almost the name; with its side where that is another.
        nearest: Option<CapabilityName>,
    },
}

/// Devices that a test takes for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNeed<'a> {
    /// The name that they are provided under.
    pub name: &'a CapabilityName,
    /// How many it takes.
    pub count: usize,
    /// What it takes them of.
    pub devices: &'a [Device],
}

/// A name that a test needs and nobody documented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undocumented {
    /// As the test wrote it.
    pub name: CapabilityName,
    /// One that is documented and is spelt almost so.
    pub nearest: Option<CapabilityName>,
}

enum Found<'a> {
    There(&'a CapabilityName, &'a Capability),
    Open,
    Nowhere,
}

impl Environment {
    /// One that provides nothing yet. Host and guest are called so: "this host", "debian-12".
    pub fn new(host: impl Into<String>, guest: impl Into<String>) -> Self {
        let (provided, open, docs) = Default::default();
        Self { host: host.into(), guest: guest.into(), provided, open, docs, beneath: None }
    }

    /// One that has all that another has, but for what is provided, documented and left open here.
    pub fn over(beneath: Arc<Self>) -> Self {
        let (host, guest) = (beneath.host.clone(), beneath.guest.clone());
        Self { beneath: Some(beneath), ..Self::new(host, guest) }
    }

    /// Its guest is called so from now on.
    pub fn with_guest(self, guest: impl Into<String>) -> Self {
        Self { guest: guest.into(), ..self }
    }

    /// This one, and those beneath it.
    fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |layer| layer.beneath.as_deref())
    }

    /// Provides this under a name, in the place of what it had.
    pub fn provide(&mut self, name: CapabilityName, capability: Capability) {
        self.provided.insert(name, capability);
    }

    /// Provides this under a name that is one of Guestline's own.
    pub fn provide_named(&mut self, name: &str, capability: Capability) {
        // What cannot be named cannot be asked for.
        if let Ok(name) = name.parse() {
            self.provide(name, capability);
        }
    }

    /// Says what a name means, in the place of what was said before.
    pub fn document(&mut self, name: CapabilityName, doc: impl Into<String>) {
        self.docs.insert(name, doc.into());
    }

    /// Leaves this name and all below it open until it is found: `guest.tool`. What is provided is not open.
    pub fn leave_open(&mut self, name: CapabilityName) {
        self.open.insert(name);
    }

    /// Leaves open what only a running guest knows ([`When::Running`]).
    pub fn leave_guest_open(&mut self) {
        let running = NAMES.iter().filter(|known| known.when == When::Running);
        let names =
            running.map(|known| known.name.trim_end_matches(".*").parse::<CapabilityName>());
        self.open.extend(names.flatten().map(|name| name.on(Side::Guest)));
    }

    /// Says that all is known of this name and of all below it: what is not provided is not there.
    pub fn settle(&mut self, name: &CapabilityName) {
        self.open.retain(|open| !name.holds(open));
    }

    /// All that is provided, by name.
    pub fn capabilities(&self) -> impl Iterator<Item = (&CapabilityName, &Capability)> {
        let mut all = BTreeMap::new();
        for layer in self.layers() {
            for (name, capability) in &layer.provided {
                all.entry(name).or_insert(capability);
            }
        }
        all.into_iter()
    }

    /// What is open, with all below.
    pub fn open(&self) -> impl Iterator<Item = &CapabilityName> {
        self.layers().flat_map(|layer| &layer.open)
    }

    /// What is provided under a name to a test on this side.
    pub fn get(&self, name: &CapabilityName, side: Side) -> Option<&Capability> {
        match self.find(name, side) {
            Found::There(_, capability) => Some(capability),
            Found::Open | Found::Nowhere => None,
        }
    }

    /// What a name means: as whoever provides or documents it says, else as Guestline does.
    pub fn doc(&self, name: &CapabilityName, side: Side) -> Option<&str> {
        let provided = self.get(name, side).and_then(|capability| capability.doc.as_deref());
        let said = provided.or_else(|| self.said(name, side));
        said.or_else(|| known::known_of(name).map(|known| known.doc))
    }

    fn said(&self, name: &CapabilityName, side: Side) -> Option<&str> {
        let (on_side, bare) = sides(name, side);
        let said = self
            .layers()
            .find_map(|layer| layer.docs.get(&on_side).or_else(|| layer.docs.get(&bare)));
        said.map(String::as_str)
    }

    /// Whether it has what a test on this side asks. The nearest name is left out, since finding it takes a look at all.
    pub fn answer(&self, requirement: &Requirement, side: Side) -> Answer {
        match self.find(requirement.name(), side) {
            Found::There(name, capability) => self.compare(name, &capability.provided, requirement),
            Found::Open => Answer::Unknown,
            Found::Nowhere if *requirement.condition() == Condition::Absent => Answer::Met,
            Found::Nowhere => Answer::Unmet(Shortfall::Nobody { doc: None, nearest: None }),
        }
    }

    /// What a test on this side needs and it lacks, in the order of the requirements.
    pub fn missing(&self, requirements: &[Requirement], side: Side) -> Vec<Unmet> {
        let unmet = requirements.iter().filter_map(|requirement| {
            let shortfall = match self.answer(requirement, side) {
                Answer::Unmet(Shortfall::Nobody { .. }) => self.nobody(requirement.name(), side),
                Answer::Unmet(shortfall) => shortfall,
                Answer::Met | Answer::Unknown => return None,
            };
            Some(Unmet { requirement: requirement.clone(), shortfall })
        });
        unmet.collect()
    }

    /// What has to be asked again of the running guest.
    pub fn unknown<'a>(&self, requirements: &'a [Requirement], side: Side) -> Vec<&'a Requirement> {
        let is_open = |it: &&Requirement| self.answer(it, side) == Answer::Unknown;
        requirements.iter().filter(is_open).collect()
    }

    /// The devices that a test on this side takes for itself, by name; each name once.
    pub fn device_needs(&self, requirements: &[Requirement], side: Side) -> Vec<DeviceNeed<'_>> {
        let mut needs = BTreeMap::new();
        for requirement in requirements {
            let Found::There(name, capability) = self.find(requirement.name(), side) else {
                continue;
            };
            if let Some((count, devices)) = capability.provided.devices_for(requirement) {
                let need = needs.entry(name).or_insert(DeviceNeed { name, count, devices });
                need.count = need.count.max(count);
            }
        }
        needs.into_values().collect()
    }

    /// The names among these that nobody documented, each once and in their order; they deserve a warning.
    pub fn undocumented(&self, requirements: &[Requirement], side: Side) -> Vec<Undocumented> {
        let mut seen = BTreeSet::new();
        let names = requirements.iter().map(Requirement::name);
        let names = names.filter(|name| self.doc(name, side).is_none() && seen.insert(*name));
        let documented = || {
            self.layers().flat_map(|layer| {
                let provided =
                    layer.provided.iter().filter(|(_, capability)| capability.doc.is_some());
                layer.docs.keys().chain(provided.map(|(name, _)| name))
            })
        };
        let nearest = |name: &CapabilityName| name.nearest(documented());
        names
            .map(|name| Undocumented { name: name.clone(), nearest: nearest(name).cloned() })
            .collect()
    }

    fn find(&self, name: &CapabilityName, side: Side) -> Found<'_> {
        let (on_side, bare) = sides(name, side);
        for layer in self.layers() {
            let there = layer.provided.get_key_value(&on_side);
            if let Some((name, capability)) = there.or_else(|| layer.provided.get_key_value(&bare))
            {
                return Found::There(name, capability);
            }
            if layer.open.iter().any(|open| open.holds(&on_side) || open.holds(&bare)) {
                return Found::Open;
            }
        }
        Found::Nowhere
    }

    fn compare(&self, name: &CapabilityName, have: &Provided, want: &Requirement) -> Answer {
        // What an admin declares for both sides is the host's; what is known of an image is the image's.
        let is_guest = name.side() == Some(Side::Guest) || name.path().starts_with("image.");
        let who = if is_guest { self.guest.clone() } else { self.host.clone() };
        let value = one_line(&have.to_string(), 80);
        match have.meets(want.condition()) {
            Some(true) => Answer::Met,
            Some(false) => Answer::Unmet(Shortfall::Has { who, value }),
            None => {
                let value = (*have != Provided::Flag).then_some(value);
                Answer::Unmet(Shortfall::NotComparable { who, value })
            }
        }
    }

    fn nobody(&self, name: &CapabilityName, side: Side) -> Shortfall {
        let doc = self.said(name, side).map(str::to_owned);
        let (on_side, _) = sides(name, side);
        let provided = self.layers().flat_map(|layer| layer.provided.keys());
        let nearest = name.nearest(provided).map(|near| match near.side() {
            // As the test would write it.
            Some(_) if name.side().is_none() && near.side() == on_side.side() => near.bare(),
            _ => near.clone(),
        });
        Shortfall::Nobody { doc, nearest }
    }
}

/// A name on the side that it speaks of, and without one.
fn sides(name: &CapabilityName, side: Side) -> (CapabilityName, CapabilityName) {
    (name.on(name.side().unwrap_or(side)), name.bare())
}

impl fmt::Display for Shortfall {
    /// "debian-12 has 6.1.0-56".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Has { who, value } => write!(f, "{who} has {value}"),
            Self::NotComparable { who, value: Some(value) } => {
                write!(f, "{who} has {value}, which does not compare with it")
            }
            Self::NotComparable { who, value: None } => write!(f, "{who} has it, without a value"),
            Self::Nobody { doc, nearest } => {
                f.write_str("nobody provides it")?;
                if let Some(doc) = doc {
                    write!(f, " ({})", doc.trim_end_matches('.'))?;
                }
                match nearest {
                    Some(nearest) => write!(f, "; nearest: {nearest}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Unmet {
    /// "needs kernel >= 6.5: debian-12 has 6.1.0-56".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}: {}", self.requirement, self.shortfall)
    }
}

impl fmt::Display for Undocumented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.nearest {
            Some(nearest) => write!(f, "nobody says what `{name}` means; is `{nearest}` meant?"),
            None => write!(f, "nobody says what `{name}` means: document it below [tags]"),
        }
    }
}

#[cfg(test)]
mod tests;
