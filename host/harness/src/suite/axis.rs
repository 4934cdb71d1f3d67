//! Axes: what may differ from one variant of a test to the next.
//!
//! | axis | its values |
//! |---|---|
//! | `image` | what the machine boots: a name of the catalogue or a file |
//! | `kernel` | a kernel, as a file |
//! | `qemu` | a QEMU binary, by name or as a file |
//! | `machine` | a machine type of QEMU |
//! | `cpu` | a CPU model of QEMU, with its flags |
//! | `cpus` | how many CPUs, 1 to 255 |
//! | `memory` | how much memory: 512, 512M, 2G |
//! | `disk_bus` | what disks are connected to |
//! | `nic` | a model of network card |
//! | `firmware` | what the machine starts with, by name or as a file |
//! | `cmdline` | what is added to the kernel's command line, perhaps nothing |
//! | any other name | free: passed to the test |
//!
//! A value is a text in one spelling, so that `512`, `"512M"` and `"512MiB"` of memory are the same one.

use crate::units;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use strsim::damerau_levenshtein as distance;
use thiserror::Error;

/// The least and the most CPUs of a machine.
const CPUS: RangeInclusive<u32> = 1..=255;

/// A name of a free axis is not longer, bytes.
const MAX_NAME_LEN: usize = 64;

/// Nor is a value: as long as a path may be.
const MAX_VALUE_LEN: usize = 4096;

/// A name this long is mistyped rather than another one when a letter differs.
const LONG: usize = 5;

/// The keys of a matrix that are no axes.
pub(super) const FIXED: [&str; 4] = ["strategy", "include", "exclude", "requires"];

/// What may differ between variants. The order is that of a variant's id: the known ones as in the table, then the free
/// ones by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the table in the head of the module")]
pub enum Axis {
    Image,
    Kernel,
    Qemu,
    Machine,
    Cpu,
    Cpus,
    Memory,
    DiskBus,
    Nic,
    Firmware,
    Cmdline,
    /// Means something to the test alone.
    Free(Arc<str>),
}

/// A name that is no axis.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AxisError {
    /// It is not spelt like one.
    #[error(
        "`{name}` is no axis: a name has a-z, 0-9 and _, begins with a letter and is not longer \
         than {MAX_NAME_LEN} bytes"
    )]
    Name {
        /// Its beginning.
        name: String,
    },
    /// It has a meaning of its own.
    #[error("`{name}` is no axis: in a matrix it has another meaning; take another name")]
    Fixed {
        /// It.
        name: String,
    },
    /// It is almost one of the known words, and would be taken for a free axis.
    #[error("unknown axis `{name}`: write `{like}`, or give a free axis a name less like it")]
    Mistyped {
        /// It.
        name: String,
        /// What is meant.
        like: &'static str,
    },
}

impl Axis {
    /// Those that Guestline knows, in the order of the table.
    pub const KNOWN: [Self; 11] = [
        Self::Image,
        Self::Kernel,
        Self::Qemu,
        Self::Machine,
        Self::Cpu,
        Self::Cpus,
        Self::Memory,
        Self::DiskBus,
        Self::Nic,
        Self::Firmware,
        Self::Cmdline,
    ];

    /// The axis of this name.
    ///
    /// # Errors
    /// No axis can have it.
    pub fn parse(name: &str) -> Result<Self, AxisError> {
        let is_small = |byte: u8| byte.is_ascii_lowercase();
        let is_name = name.len() <= MAX_NAME_LEN
            && name.bytes().next().is_some_and(is_small)
            && name.bytes().all(|byte| is_small(byte) || byte.is_ascii_digit() || byte == b'_');
        match Self::KNOWN.into_iter().find(|known| known.name() == name) {
            Some(known) => Ok(known),
            None if !is_name => Err(AxisError::Name { name: beginning(name) }),
            None if FIXED.contains(&name) => Err(AxisError::Fixed { name: name.to_owned() }),
            None => Ok(Self::Free(name.into())),
        }
    }

    /// The axis of this name where a matrix introduces it: a known word that was mistyped makes no free axis.
    ///
    /// # Errors
    /// No axis can have it, or it is meant to be another.
    pub(super) fn introduced(name: &str) -> Result<Self, AxisError> {
        let is_like = |word: &&str| {
            word.len() >= LONG && distance(word, name) == 1 || name.strip_suffix('s') == Some(*word)
        };
        let mut words = FIXED.into_iter().chain(Self::KNOWN.iter().filter_map(Self::known_name));
        match Self::parse(name) {
            Ok(Self::Free(_)) | Err(AxisError::Name { .. }) if name.len() <= MAX_NAME_LEN => {
                match words.find(is_like) {
                    Some(like) => Err(AxisError::Mistyped { name: name.to_owned(), like }),
                    None => Self::parse(name),
                }
            }
            other => other,
        }
    }

    fn known_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Image => "image",
            Self::Kernel => "kernel",
            Self::Qemu => "qemu",
            Self::Machine => "machine",
            Self::Cpu => "cpu",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::DiskBus => "disk_bus",
            Self::Nic => "nic",
            Self::Firmware => "firmware",
            Self::Cmdline => "cmdline",
            Self::Free(_) => return None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Free(name) => name,
            known => known.known_name().unwrap_or_default(),
        }
    }

    /// The environment variable that tells a test its value: `GUESTLINE_VARIANT_DISK_BUS`.
    pub fn variable(&self) -> String {
        format!("GUESTLINE_VARIANT_{}", self.name().to_ascii_uppercase())
    }

    /// Its values may be files, which are known by their names in an id.
    pub(super) fn takes_files(&self) -> bool {
        matches!(self, Self::Image | Self::Kernel | Self::Qemu | Self::Firmware)
    }

    /// A value in its one spelling.
    ///
    /// # Errors
    /// What is wanted, in words.
    pub fn value(&self, text: &str) -> Result<String, String> {
        if text.len() > MAX_VALUE_LEN {
            return Err(format!("want at most {MAX_VALUE_LEN} bytes"));
        }
        match self {
            Self::Cpus => match text.parse() {
                Ok(cpus) if CPUS.contains(&cpus) => Ok(cpus.to_string()),
                _ => Err(format!("want a number from {} to {}", CPUS.start(), CPUS.end())),
            },
            Self::Memory => match units::memory(text)? {
                mib if mib % 1024 == 0 => Ok(format!("{}G", mib / 1024)),
                mib => Ok(format!("{mib}M")),
            },
            // Neither an argument nor an environment variable can have one.
            _ if text.contains('\0') => Err("want a text without a zero byte".to_owned()),
            Self::Cmdline | Self::Free(_) => Ok(text.to_owned()),
            _ if text.is_empty() => Err("want a text that is not empty".to_owned()),
            _ => Ok(text.to_owned()),
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// As much of a text as an error shows.
pub(super) fn beginning(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for known in Axis::KNOWN {
            assert_eq!(Axis::introduced(known.name()), Ok(known));
        }
        assert_eq!(Axis::introduced("mode_2"), Ok(Axis::Free("mode_2".into())));
        assert_eq!(Axis::introduced("mode").unwrap().variable(), "GUESTLINE_VARIANT_MODE");
        assert_eq!(Axis::DiskBus.variable(), "GUESTLINE_VARIANT_DISK_BUS");
        for wrong in ["", "2x", "_x", "Mode", "a-b", "a b", "é", &"x".repeat(65)] {
            assert!(matches!(Axis::introduced(wrong), Err(AxisError::Name { .. })), "{wrong}");
        }
        for fixed in FIXED {
            assert!(matches!(Axis::introduced(fixed), Err(AxisError::Fixed { .. })), "{fixed}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_table() {
        let mut axes = Axis::KNOWN.to_vec();
        axes.extend(["a", "b"].map(|name| Axis::parse(name).unwrap()));
        assert!(axes.is_sorted());
    }

    #[test]
    fn a_mistyped_name_is_no_free_axis() {
        for (wrong, meant) in [
            ("images", "image"),
            ("iamge", "image"),
            ("kernal", "kernel"),
            ("memroy", "memory"),
            ("nics", "nic"),
            ("disk-bus", "disk_bus"),
            ("diskbus", "disk_bus"),
            ("Image", "image"),
            ("includes", "include"),
            ("require", "requires"),
        ] {
            let error = Axis::introduced(wrong).unwrap_err();
            assert_eq!(error, AxisError::Mistyped { name: wrong.to_owned(), like: meant });
        }
        for free in ["mode", "mic", "cp", "pu", "mtu", "disk", "size"] {
            assert_eq!(Axis::introduced(free), Ok(Axis::Free(free.into())), "{free}");
        }
    }

    #[test]
    fn values_have_one_spelling() {
        for same in ["512", "512M", "512MiB"] {
            assert_eq!(Axis::Memory.value(same).unwrap(), "512M");
        }
        assert_eq!(Axis::Memory.value("2048").unwrap(), "2G");
        assert_eq!(Axis::Cpus.value("04").unwrap(), "4");
        assert_eq!(Axis::Cmdline.value("").unwrap(), "");
        for wrong in ["", "0", "256", "-1", "1.5", "two", "99999999999999999999"] {
            assert!(Axis::Cpus.value(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "1", "5x", "true"] {
            assert!(Axis::Memory.value(wrong).is_err(), "{wrong}");
        }
        assert!(Axis::Cpu.value("").is_err());
        assert!(Axis::Free("mode".into()).value("a\0b").is_err());
        assert!(Axis::Cpu.value(&"x".repeat(MAX_VALUE_LEN)).is_ok());
        assert!(Axis::Cpu.value(&"x".repeat(MAX_VALUE_LEN + 1)).is_err());
    }

    #[test]
    fn the_documentation_names_each() {
        let documented = include_str!("../../../../docs/variants.md");
        let rows =
            documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let known: Vec<_> = Axis::KNOWN.iter().filter_map(Axis::known_name).collect();
        let rows: Vec<_> = rows.filter(|name| known.contains(name)).collect();
        // Further tables say more of some of them.
        assert_eq!(rows[..known.len()], known);
    }
}
