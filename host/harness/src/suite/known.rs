//! The names that Guestline knows by itself.
//!
//! They need nobody to document them, and what they are compared with is checked where it is written. A name that ends in
//! `.*` stands for all below it. Any other name is a free tag.

use super::name::CapabilityName;
use super::value::{Value, ValueError};

/// What values a name has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None: it is there or not.
    Flag,
    /// Versions, or numbers.
    Version,
    /// Sizes.
    Size,
    /// Texts.
    Text,
    /// Any, or none.
    Any,
}

impl Kind {
    /// A value of this kind from its text.
    ///
    /// # Errors
    /// It is none, or the kind has none.
    pub fn value(self, text: &str) -> Result<Value, ValueError> {
        match self {
            Self::Flag => Err(ValueError::Flag),
            _ if text.is_empty() => Err(ValueError::Empty),
            Self::Version => Ok(Value::Version(text.parse()?)),
            Self::Size => Value::size(text),
            Self::Text | Self::Any => text.parse(),
        }
    }
}

/// When it is known what an environment has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before a machine runs.
    Planned,
    /// Of a guest only while it runs, unless the image's manifest says; of a host at once.
    Running,
}

/// A name that Guestline knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Without a side; with `.*` at the end for all below.
    pub name: &'static str,
    /// What values it has.
    pub kind: Kind,
    /// When it is known.
    pub when: When,
    /// What it means, in one sentence.
    pub doc: &'static str,
}

const fn known(name: &'static str, kind: Kind, when: When, doc: &'static str) -> Known {
    Known { name, kind, when, doc }
}

/// All of them, by name.
pub const NAMES: [Known; 21] = [
    known(
        "arch",
        Kind::Text,
        When::Planned,
        "The processor's architecture, as `uname -m` says it.",
    ),
    known(
        "cpu.*",
        Kind::Flag,
        When::Planned,
        "A flag of the processor, as `/proc/cpuinfo` spells it.",
    ),
    known("cpu.model", Kind::Text, When::Planned, "The model of the processor."),
    known("cpus", Kind::Version, When::Planned, "How many processors there are."),
    known(
        "dmi.*",
        Kind::Any,
        When::Planned,
        "What the firmware says of the hardware, as below `/sys/class/dmi/id`.",
    ),
    known(
        "fresh_reboot",
        Kind::Flag,
        When::Planned,
        "The machine was booted for this test, not restored.",
    ),
    known("image.name", Kind::Text, When::Planned, "The image that the machine boots."),
    known(
        "image.os",
        Kind::Text,
        When::Planned,
        "The system in the image, as the ID of os-release(5).",
    ),
    known(
        "image.version",
        Kind::Version,
        When::Planned,
        "The version of it, as the VERSION_ID of os-release(5).",
    ),
    known(
        "kconfig.*",
        Kind::Any,
        When::Planned,
        "An option of the kernel that is set, without CONFIG_.",
    ),
    known("kernel", Kind::Version, When::Planned, "The kernel's release, as `uname -r` says it."),
    known("kvm", Kind::Flag, When::Planned, "Guests run with KVM there."),
    known("memory", Kind::Size, When::Planned, "How much memory there is."),
    known(
        "module.*",
        Kind::Flag,
        When::Running,
        "A module of the kernel that can be loaded, or is built in.",
    ),
    known("pci.*", Kind::Any, When::Planned, "A PCI device is there, by its ids: `pci.8086-1533`."),
    known("pristine", Kind::Flag, When::Planned, "No test has run there before."),
    known("qemu", Kind::Version, When::Planned, "The version of QEMU."),
    known("root", Kind::Flag, When::Planned, "The test runs as root."),
    known("screen", Kind::Flag, When::Planned, "The machine has a screen."),
    known(
        "target",
        Kind::Text,
        When::Planned,
        "Where the test runs: machine, host, ssh or serial.",
    ),
    known("tool.*", Kind::Any, When::Running, "A program that is on the PATH."),
];

/// What is known of a name, whatever its side; what names it alone goes before what stands for many.
pub fn known_of(name: &CapabilityName) -> Option<&'static Known> {
    let path = name.path();
    let group = |known: &&Known| {
        let below = known.name.strip_suffix('*').and_then(|group| path.strip_prefix(group));
        below.is_some_and(|below| !below.is_empty())
    };
    NAMES.iter().find(|known| known.name == path).or_else(|| NAMES.iter().find(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../../docs/requirements.md");

    fn found(text: &str) -> Option<&'static str> {
        known_of(&text.parse().unwrap()).map(|known| known.name)
    }

    #[test]
    fn one_name_goes_before_many() {
        assert_eq!(found("cpu.avx2"), Some("cpu.*"));
        assert_eq!(found("host.cpu.model"), Some("cpu.model"));
        assert_eq!(found("guest.kernel"), Some("kernel"));
        assert_eq!(found("tool.a.b"), Some("tool.*"));
        for free in ["cpu", "kernel.x", "kernels", "toolx.y", "lab"] {
            assert_eq!(found(free), None, "{free}");
        }
    }

    #[test]
    fn all_are_in_order_and_in_the_reference() {
        assert!(NAMES.is_sorted_by_key(|known| known.name));
        for known in NAMES {
            let name = known.name.trim_end_matches(".*");
            assert!(name.parse::<CapabilityName>().is_ok(), "{name}");
            let row = format!("| `{}` |", known.name);
            let row = REFERENCE.lines().find(|line| line.starts_with(&row)).expect(known.name);
            assert!(row.ends_with(&format!("| {} |", known.doc)), "{row}");
            assert_eq!(row.contains("while the guest runs"), known.when == When::Running, "{row}");
        }
    }
}
