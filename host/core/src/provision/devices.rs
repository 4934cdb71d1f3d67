//! What a machine may have beside what every machine has, as it is asked for: disks, network cards.

use super::identity::draw;
use crate::machine::{Disk, MachineSpec, Nic};
use guestline_protocol::NicIdentity;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The least and the greatest size of a disk, MiB.
const DISK_MIB: std::ops::RangeInclusive<u64> = 1..=16 * 1024 * 1024;

/// An empty disk that only this machine writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskWanted {
    size_mib: u64,
}

/// No size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a disk has 1 MiB to 16 TiB")]
pub struct NotADisk;

impl DiskWanted {
    /// Of so many MiB.
    ///
    /// # Errors
    /// [`NotADisk`].
    pub fn new(size_mib: u64) -> Result<Self, NotADisk> {
        DISK_MIB.contains(&size_mib).then_some(Self { size_mib }).ok_or(NotADisk)
    }

    /// In MiB.
    pub fn size_mib(self) -> u64 {
        self.size_mib
    }

    pub(super) fn disk(self) -> Disk {
        Disk::empty(self.size_mib << 20)
    }
}

impl TryFrom<u64> for DiskWanted {
    type Error = NotADisk;

    fn try_from(size_mib: u64) -> Result<Self, NotADisk> {
        Self::new(size_mib)
    }
}

impl From<DiskWanted> for u64 {
    fn from(disk: DiskWanted) -> Self {
        disk.size_mib
    }
}

/// A network card and what its interface is to have. As text: these, with commas between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NicWanted {
    /// Its MAC address; one that no other machine has when none is given.
    pub mac: Option<[u8; 6]>,
    /// An IPv4 address and the length of its prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// An IPv6 address and the length of its prefix.
    pub ipv6: Option<(Ipv6Addr, u8)>,
}

/// A text that says nothing a network card can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotANic {
    /// No address.
    #[error(
        "`{}` is no ADDRESS/LENGTH, such as 10.1.0.5/24 or fd00::5/64, and no MAC address",
        crate::text::one_line(word, 60)
    )]
    Strange {
        /// What was to be one.
        word: String,
    },
    /// No interface can have it.
    #[error("no interface can have `{}`", crate::text::one_line(word, 60))]
    Impossible {
        /// The address.
        word: String,
    },
    /// Twice the same kind.
    #[error(
        "`{}` is one address too many: a card has one of each kind",
        crate::text::one_line(word, 60)
    )]
    Twice {
        /// The second one.
        word: String,
    },
}

impl FromStr for NicWanted {
    type Err = NotANic;

    fn from_str(text: &str) -> Result<Self, NotANic> {
        let mut nic = Self::default();
        for word in text.split(',').filter(|_| !text.is_empty()) {
            let twice = || NotANic::Twice { word: word.to_owned() };
            match parse(word)? {
                Address::Mac(mac) if nic.mac.replace(mac).is_some() => return Err(twice()),
                Address::V4(ip, len) if nic.ipv4.replace((ip, len)).is_some() => {
                    return Err(twice());
                }
                Address::V6(ip, len) if nic.ipv6.replace((ip, len)).is_some() => {
                    return Err(twice());
                }
                _ => {}
            }
        }
        Ok(nic)
    }
}

enum Address {
    Mac([u8; 6]),
    V4(Ipv4Addr, u8),
    V6(Ipv6Addr, u8),
}

fn parse(word: &str) -> Result<Address, NotANic> {
    let strange = || NotANic::Strange { word: word.to_owned() };
    let (address, possible) = match word.split_once('/') {
        None => {
            let mac = mac(word).ok_or_else(strange)?;
            (Address::Mac(mac), mac != [0; 6] && mac[0] & 1 == 0)
        }
        Some((ip, len)) => {
            let len: u8 = len.parse().map_err(|_| strange())?;
            if let Ok(ip) = ip.parse::<Ipv4Addr>() {
                (Address::V4(ip, len), len <= 32 && !ip.is_unspecified() && !ip.is_multicast())
            } else {
                let ip: Ipv6Addr = ip.parse().map_err(|_| strange())?;
                (Address::V6(ip, len), len <= 128 && !ip.is_unspecified() && !ip.is_multicast())
            }
        }
    };
    possible.then_some(address).ok_or_else(|| NotANic::Impossible { word: word.to_owned() })
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = text.split(':').map(|byte| match byte.len() {
        2 => u8::from_str_radix(byte, 16).ok(),
        _ => None,
    });
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next()??;
    }
    bytes.next().is_none().then_some(mac)
}

impl fmt::Display for NicWanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac.map(|mac| Nic { mac }.to_string());
        let ipv4 = self.ipv4.map(|(ip, len)| format!("{ip}/{len}"));
        let ipv6 = self.ipv6.map(|(ip, len)| format!("{ip}/{len}"));
        let words: Vec<String> = [mac, ipv4, ipv6].into_iter().flatten().collect();
        f.write_str(&words.join(","))
    }
}

impl TryFrom<String> for NicWanted {
    type Error = NotANic;

    fn try_from(text: String) -> Result<Self, NotANic> {
        text.parse()
    }
}

impl From<NicWanted> for String {
    fn from(nic: NicWanted) -> Self {
        nic.to_string()
    }
}

impl NicWanted {
    /// The card of one machine, which has its MAC address now.
    pub(super) fn nic(&self) -> Nic {
        // Locally administered (IEEE 802), as QEMU's own; the rest is drawn.
        let [a, b, c, d, ..] = draw().to_le_bytes();
        Nic { mac: self.mac.unwrap_or([0x52, 0x54, a, b, c, d]) }
    }
}

/// What the guest's interfaces are to have.
pub(super) fn identities(spec: &MachineSpec, wanted: &[NicWanted]) -> Vec<NicIdentity> {
    // Linux numbers them by their places on the bus, and the one for SSH comes first.
    let first = usize::from(spec.ssh_port.is_some());
    let nics = spec.nics.iter().zip(wanted).enumerate();
    let identity = |(number, (nic, wanted)): (usize, (&Nic, &NicWanted))| NicIdentity {
        name: format!("eth{}", first + number),
        mac: Some(nic.mac),
        ipv4: wanted.ipv4.map(|(ip, len)| (ip.octets(), len)),
        ipv6: wanted.ipv6.map(|(ip, len)| (ip.octets(), len)),
        router: None,
        // One without an address is left as it is.
        up: wanted.ipv4.is_some() || wanted.ipv6.is_some(),
    };
    nics.map(identity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_said_in_a_word() {
        for text in ["", "10.1.0.5/24", "fd00::5/64", "52:54:00:0a:bc:01,10.1.0.5/8,fd00::1/128"] {
            let nic: NicWanted = text.parse().unwrap();
            assert_eq!(nic.to_string(), text);
        }
        let wrong = |text: &str| text.parse::<NicWanted>().unwrap_err().to_string();
        let errors = [
            "10.1.0.5",
            "10.1.0.5/x",
            "eth0",
            "52:54:00:0a:bc",
            "52:54:0:0a:bc:01",
            "52:54:00:0a:bc:01:02",
            ",",
            "10.1.0.5/33",
            "0.0.0.0/0",
            "224.0.0.1/4",
            "::/0",
            "ff02::1/64",
            "fd00::1/129",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "10.1.0.5/24,10.1.0.6/24",
        ];
        insta::assert_snapshot!(errors.map(wrong).join("\n"));
    }

    #[test]
    fn cards_have_addresses_of_their_own() {
        let (a, b) = (NicWanted::default().nic(), NicWanted::default().nic());
        assert_ne!(a.mac, b.mac);
        assert_eq!(a.mac[..2], [0x52, 0x54]);
        let mac = [2, 0, 0, 0, 0, 1];
        assert_eq!(NicWanted { mac: Some(mac), ..NicWanted::default() }.nic().mac, mac);
    }

    #[test]
    fn sizes_of_disks() {
        assert_eq!(DiskWanted::new(64).unwrap().disk().size, 64 << 20);
        assert_eq!(DiskWanted::new(0), Err(NotADisk));
        assert_eq!(DiskWanted::new(u64::MAX), Err(NotADisk));
        assert_eq!(serde_json::from_str::<DiskWanted>("64").unwrap().size_mib(), 64);
        assert!(serde_json::from_str::<DiskWanted>("0").is_err());
    }
}
