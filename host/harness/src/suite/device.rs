//! Devices of the host that an admin gives to tests.

use crate::text::one_line;
use std::fmt;
use thiserror::Error;

/// A path is not longer, bytes.
const MAX_PATH_LEN: usize = 256;

/// How a device is connected to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bus {
    /// A function on the PCI bus.
    Pci,
    /// A disk, or a part of one.
    Block,
    /// A serial line.
    Serial,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    bus: Bus,
    address: Box<str>,
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// It is no address on the PCI bus.
    #[error(
        "`{text}` is no PCI address: write DOMAIN:BUS:DEVICE.FUNCTION, as 0000:01:00.0 (`lspci -D`)"
    )]
    Pci {
        /// It.
        text: String,
    },
    /// It is no device's file.
    #[error("`{text}` is no file of a device: write its path below /dev, as {example}")]
    Path {
        /// It.
        text: String,
        /// One that is.
        example: &'static str,
    },
}

impl Bus {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pci, Self::Block, Self::Serial];

    /// Its word, also the key in a declared file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Block => "block",
            Self::Serial => "serial",
        }
    }
}

impl Device {
    /// From its address on a bus, in the one spelling that the host has for it.
    ///
    /// # Errors
    /// There is no such address.
    pub fn new(bus: Bus, address: &str) -> Result<Self, DeviceError> {
        let text = || one_line(address, 80);
        let address = match bus {
            Bus::Pci => pci(address).ok_or_else(|| DeviceError::Pci { text: text() })?,
            Bus::Block | Bus::Serial => {
                let example = if bus == Bus::Block { "/dev/sdb" } else { "/dev/ttyUSB0" };
                let is_file = is_device_file(address);
                is_file
                    .then(|| address.into())
                    .ok_or(DeviceError::Path { text: text(), example })?
            }
        };
        Ok(Self { bus, address })
    }

    /// How it is connected.
    pub fn bus(&self) -> Bus {
        self.bus
    }

    /// The PCI address, or the path of its file.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bus.word(), self.address)
    }
}

/// An address with its domain, as sysfs spells it (Linux `Documentation/PCI/sysfs-pci.rst`).
fn pci(text: &str) -> Option<Box<str>> {
    let number = |text: &str, digits: usize, max: u32| {
        let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten().filter(|it| *it <= max)
    };
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let (domain, bus) = (number(domain, 4, 0xffff)?, number(bus, 2, 0xff)?);
    let (slot, function) = (number(slot, 2, 0x1f)?, number(function, 1, 7)?);
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}").into())
}

fn is_device_file(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    let below = path.strip_prefix("/dev/").filter(|_| path.len() <= MAX_PATH_LEN);
    below.is_some_and(|below| below.split('/').all(plain) && !below.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let pci = Device::new(Bus::Pci, "0000:0A:1F.7").unwrap();
        assert_eq!(pci.to_string(), "pci 0000:0a:1f.7");
        let disk = Device::new(Bus::Block, "/dev/disk/by-id/ata-X_1:2").unwrap();
        assert_eq!((disk.bus(), disk.address()), (Bus::Block, "/dev/disk/by-id/ata-X_1:2"));
    }

    #[test]
    fn what_names_no_device_is_told() {
        for wrong in [
            "",
            "01:00.0",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0000:01:00.0 ",
            "00g0:01:00.0",
            "+000:01:00.0",
            "0000:01:00.0,x",
        ] {
            let why = Device::new(Bus::Pci, wrong).unwrap_err().to_string();
            assert!(why.contains("as 0000:01:00.0 (`lspci -D`)"), "{wrong}");
        }
        let long = format!("/dev/{}", "x".repeat(300));
        for wrong in [
            "",
            "sdb",
            "/dev/",
            "/dev",
            "/etc/passwd",
            "/dev/../etc/passwd",
            "/dev//x",
            "/dev/a\nb",
            &long,
        ] {
            let why = Device::new(Bus::Block, wrong).unwrap_err().to_string();
            assert!(why.contains("below /dev, as /dev/sdb") && !why.contains('\n'), "{wrong}");
        }
        assert!(Device::new(Bus::Serial, "").unwrap_err().to_string().ends_with("/dev/ttyUSB0"));
    }
}
