//! Names of what tests need and environments provide, and the side that they speak of.

use crate::text::one_line;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use strsim::osa_distance as distance;
use thiserror::Error;

/// A name is not longer, bytes.
pub const MAX_LEN: usize = 128;

/// So many letters of it may be mistyped.
const MAX_DISTANCE: usize = 3;

/// Where a test runs, and whom a name speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where Guestline runs.
    Host,
    /// In a machine.
    Guest,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

/// A name: `cpu.avx2`, or with its side `host.qemu`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CapabilityName {
    side: Option<Side>,
    /// Without the side.
    path: Box<str>,
}

/// A text that is no such name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CapabilityNameError {
    /// There is none.
    #[error("there is no name: write one, as `kernel`")]
    Empty,
    /// It is too long.
    #[error("the name `{begin}` is longer than {MAX_LEN} bytes")]
    TooLong {
        /// Its beginning.
        begin: String,
    },
    /// It is not spelt like one.
    #[error("`{name}` is no name: one has a-z, A-Z, 0-9, _ and -, in parts with dots between them")]
    Spelling {
        /// It.
        name: String,
    },
    /// There is a side, and nothing that it has.
    #[error("`{name}` says the side alone: write what is on it, as `{name}.kernel`")]
    SideAlone {
        /// It.
        name: String,
    },
    /// There are two sides.
    #[error("`{name}` speaks of both sides: write `host.` or `guest.`, once")]
    BothSides {
        /// It.
        name: String,
    },
    /// An option of the kernel in its long spelling.
    #[error("an option of the kernel stands without CONFIG_: write `{meant}`")]
    Config {
        /// What is meant.
        meant: String,
    },
}

impl CapabilityName {
    /// The side that it says; none of a bare one.
    pub fn side(&self) -> Option<Side> {
        self.side
    }

    /// The name without the side.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// It with this side.
    pub fn on(&self, side: Side) -> Self {
        Self { side: Some(side), path: self.path.clone() }
    }

    /// It without a side.
    pub fn bare(&self) -> Self {
        Self { side: None, path: self.path.clone() }
    }

    /// `tool` holds `tool` and `tool.iperf3`, with their side.
    pub fn holds(&self, other: &Self) -> bool {
        let rest = other.path.strip_prefix(&*self.path);
        self.side == other.side && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Of these, the one that is spelt most like it: few letters differ, or one is the beginning of the other. The side does
    /// not count. Of those alike the first by name.
    pub fn nearest<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Option<&'a Self> {
        let (group, wanted) = self.group();
        let limit = (self.path.len() / 3).clamp(1, MAX_DISTANCE);
        let near = others.into_iter().filter_map(|other| {
            let (its_group, its) = other.group();
            // Those of one group are many (options of a kernel), and those of others are something else.
            if !group.is_empty() && !its_group.is_empty() && group != its_group {
                return None;
            }
            let (a, b) = match group == its_group {
                true => (wanted, its),
                false => (self.path(), other.path()),
            };
            let is_begin = a.len().min(b.len()) > 1 && (a.starts_with(b) || b.starts_with(a));
            let far = match is_begin {
                true => 1,
                false if a.len().abs_diff(b.len()) > limit => return None,
                false => distance(a, b),
            };
            (far <= limit && far < a.len()).then_some((far, other))
        });
        near.min().map(|(_, other)| other)
    }

    /// What stands before its first dot, and the rest.
    fn group(&self) -> (&str, &str) {
        self.path.split_once('.').unwrap_or(("", &self.path))
    }
}

impl FromStr for CapabilityName {
    type Err = CapabilityNameError;

    fn from_str(text: &str) -> Result<Self, CapabilityNameError> {
        if text.is_empty() {
            return Err(CapabilityNameError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(CapabilityNameError::TooLong { begin: one_line(text, 40) });
        }
        let name = || one_line(text, MAX_LEN);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !text.split('.').all(|part| !part.is_empty() && part.bytes().all(is_plain)) {
            return Err(CapabilityNameError::Spelling { name: name() });
        }
        let (side, path) = match text.split_once('.') {
            Some(("host", path)) => (Some(Side::Host), path),
            Some(("guest", path)) => (Some(Side::Guest), path),
            _ => (None, text),
        };
        match path.split('.').next() {
            Some("host" | "guest") if side.is_some() => {
                return Err(CapabilityNameError::BothSides { name: name() });
            }
            Some("host" | "guest") => return Err(CapabilityNameError::SideAlone { name: name() }),
            _ => {}
        }
        if let Some(option) = path.strip_prefix("kconfig.CONFIG_").filter(|it| !it.is_empty()) {
            let said = text.strip_suffix(path).unwrap_or_default();
            let meant = format!("{said}kconfig.{option}");
            return Err(CapabilityNameError::Config { meant });
        }
        Ok(Self { side, path: path.into() })
    }
}

impl TryFrom<String> for CapabilityName {
    type Error = CapabilityNameError;

    fn try_from(text: String) -> Result<Self, CapabilityNameError> {
        text.parse()
    }
}

impl From<CapabilityName> for String {
    fn from(name: CapabilityName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(side) => write!(f, "{side}.{}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CapabilityName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_says_its_side_or_none() {
        let host = name("host.cpu.avx2");
        assert_eq!((host.side(), host.path()), (Some(Side::Host), "cpu.avx2"));
        assert_eq!(name("guest.root").to_string(), "guest.root");
        assert_eq!(name("hosts.x").side(), None);
        assert_eq!(name("cpu.avx2").on(Side::Host), host);
        assert_eq!(host.bare(), name("cpu.avx2"));
        assert!(
            name("a").path().len() == 1 && "x".repeat(MAX_LEN).parse::<CapabilityName>().is_ok()
        );
    }

    #[test]
    fn what_is_no_name_is_told() {
        let why = |text: &str| text.parse::<CapabilityName>().unwrap_err().to_string();
        assert!(why("").contains("there is no name"));
        for wrong in [".", "a.", ".a", "a..b", "a b", "é", "a/b", "c++", "a\u{202e}b"] {
            assert!(why(wrong).contains("is no name: one has a-z"), "{wrong}");
        }
        assert_eq!(
            why("host"),
            "`host` says the side alone: write what is on it, as `host.kernel`"
        );
        assert!(why("host.guest.x").contains("both sides") && why("guest.guest").contains("both"));
        assert!(why("kconfig.CONFIG_KASAN").ends_with("write `kconfig.KASAN`"));
        assert!(why("guest.kconfig.CONFIG_KASAN").ends_with("write `guest.kconfig.KASAN`"));
        assert!(why(&"x".repeat(MAX_LEN + 1)).contains("longer than 128 bytes"));
        assert!(!why("a\u{202e}b").contains('\u{202e}'));
    }

    #[test]
    fn a_name_holds_what_is_below_it() {
        assert!(name("tool").holds(&name("tool.iperf3")) && name("tool").holds(&name("tool")));
        assert!(!name("tool").holds(&name("tools")) && !name("tool.x").holds(&name("tool")));
        assert!(!name("guest.tool").holds(&name("host.tool.x")));
    }

    #[test]
    fn finds_what_was_meant() {
        let all = [
            "guest.cpu.avx2",
            "guest.cpu.sse2",
            "guest.kernel",
            "kvm",
            "lab-network",
            "guest.tool.ip",
        ]
        .map(name);
        let nearest = |text: &str| name(text).nearest(&all).map(ToString::to_string);
        assert_eq!(nearest("cpu.avx512").as_deref(), Some("guest.cpu.avx2"));
        assert_eq!(nearest("host.kernal").as_deref(), Some("guest.kernel"));
        assert_eq!(nearest("lab-netwrok").as_deref(), Some("lab-network"));
        assert_eq!(nearest("lab").as_deref(), Some("lab-network"));
        assert_eq!(nearest("tool.ipset").as_deref(), Some("guest.tool.ip"));
        assert_eq!(nearest("disk.avx2"), None);
        assert_eq!(nearest("xyz"), None);
        assert_eq!(nearest("k"), None);
    }
}
