//! Capabilities: what an environment provides under a name.

use super::device::Device;
use super::requirement::{Condition, Requirement};
use super::value::Value;
use std::fmt;

/// What stands behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provided {
    /// It is there.
    Flag,
    /// It is there and has a value.
    Value(Value),
    /// So many devices, of which a test gets its own.
    Devices(Vec<Device>),
}

/// What an environment provides under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub provided: Provided,
    /// Who answers for it.
    pub owner: Option<String>,
    /// What it means, in one sentence.
    pub doc: Option<String>,
}

impl Provided {
    /// Whether it is what is asked of it; none where the two cannot be compared.
    pub(super) fn meets(&self, condition: &Condition) -> Option<bool> {
        match (self, condition) {
            (_, Condition::Present) => Some(true),
            (_, Condition::Absent) => Some(false),
            (Self::Flag, Condition::Compare { .. }) => None,
            (Self::Value(value), condition) => condition.holds(value),
            (Self::Devices(devices), condition) => Some(taken(devices.len(), condition).is_some()),
        }
    }

    /// How many of its devices go to a test that asks this of them: the fewest that are what is asked.
    pub(super) fn devices_for(&self, requirement: &Requirement) -> Option<(usize, &[Device])> {
        match self {
            Self::Devices(devices) => {
                Some((taken(devices.len(), requirement.condition())?, devices))
            }
            Self::Flag | Self::Value(_) => None,
        }
    }
}

fn taken(there: usize, condition: &Condition) -> Option<usize> {
    (1..=there).find(|count| condition.holds(&Value::of(&count.to_string())) == Some(true))
}

impl Capability {
    /// It is there.
    pub fn flag() -> Self {
        Self::of(Provided::Flag)
    }

    /// It has a value; a fact as whoever found it wrote it.
    pub fn fact(text: &str) -> Self {
        Self::of(Provided::Value(Value::of(text)))
    }

    /// It is this.
    pub fn of(provided: Provided) -> Self {
        Self { provided, owner: None, doc: None }
    }

    /// With a sentence about it.
    pub fn with_doc(self, doc: impl Into<String>) -> Self {
        Self { doc: Some(doc.into()), ..self }
    }

    /// With somebody who answers for it.
    pub fn with_owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }
}

impl fmt::Display for Provided {
    /// The value, or of devices how many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("it"),
            Self::Value(value) => value.fmt(f),
            Self::Devices(devices) => devices.len().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::device::Bus;

    fn devices(count: usize) -> Provided {
        let device = |index| Device::new(Bus::Block, &format!("/dev/sd{index}")).unwrap();
        Provided::Devices((0..count).map(device).collect())
    }

    fn for_test(count: usize, requirement: &str) -> Option<usize> {
        let provided = devices(count);
        let requirement = requirement.parse().unwrap();
        let got = provided.devices_for(&requirement).map(|(count, _)| count);
        assert_eq!(provided.meets(requirement.condition()), Some(got.is_some()), "{requirement}");
        got
    }

    #[test]
    fn a_test_gets_the_fewest_devices_that_do() {
        assert_eq!(for_test(3, "disk"), Some(1));
        assert_eq!(for_test(3, "disk = 2"), Some(2));
        assert_eq!(for_test(3, "disk >= 2"), Some(2));
        assert_eq!(for_test(3, "disk > 2"), Some(3));
        assert_eq!(for_test(3, "disk < 3"), Some(1));
        assert_eq!(for_test(3, "disk != 1"), Some(2));
        assert_eq!(for_test(3, "disk > 3"), None);
        assert_eq!(for_test(3, "disk = some"), None);
        assert_eq!(for_test(1, "!disk"), None);
        assert_eq!(Provided::Flag.devices_for(&"disk".parse().unwrap()), None);
    }
}
