//! Buses of disks, as QEMU's devices (QEMU `docs/system/device-emulation.rst`).
//!
//! ```text
//! virtio   virtio-blk-pci                    each disk a place on the PCI bus
//! scsi     virtio-scsi-pci ── scsi-hd        one controller, at the place of the first of its disks
//! sata     ich9-ahci ── ide-hd               six disks each
//! ide      the board's (pc), else as sata    four disks
//! nvme     nvme                              as virtio
//! usb      qemu-xhci ── usb-storage
//! ```

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a disk is connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// A virtio-blk device of its own.
    #[default]
    Virtio,
    /// A virtio-scsi controller.
    Scsi,
    /// The IDE controller of the board where it has one, else AHCI.
    Ide,
    /// An AHCI controller.
    Sata,
    /// An NVMe controller of its own.
    Nvme,
    /// A USB 3 controller.
    Usb,
}

/// No bus of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want one of virtio, scsi, ide, sata, nvme, usb")]
pub struct NotABus;

impl DiskBus {
    const ALL: [Self; 6] = [Self::Virtio, Self::Scsi, Self::Ide, Self::Sata, Self::Nvme, Self::Usb];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Ide => "ide",
            Self::Sata => "sata",
            Self::Nvme => "nvme",
            Self::Usb => "usb",
        }
    }

    /// Can QEMU save a machine with such a disk (`unmigratable`, QEMU `hw/nvme/ctrl.c`)?
    pub fn can_be_saved(self) -> bool {
        self != Self::Nvme
    }
}

impl fmt::Display for DiskBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DiskBus {
    type Err = NotABus;

    fn from_str(text: &str) -> Result<Self, NotABus> {
        Self::ALL.into_iter().find(|bus| bus.as_str() == text).ok_or(NotABus)
    }
}

/// A disk that is to be connected.
pub(super) struct Attached<'a> {
    pub(super) id: &'a str,
    pub(super) node: &'a str,
    /// The place on the PCI bus that is kept for it.
    pub(super) place: usize,
    pub(super) bus: DiskBus,
    /// So many disks are on this bus already.
    pub(super) before: usize,
}

/// A guest whose disk the host cannot keep is not told of an error: it stands, and we are.
const ON_ERROR: &str = "werror=stop,rerror=stop";

/// An AHCI controller has so many ports (QEMU `hw/ide/ich.c`), the board's IDE so many places.
const AHCI_PORTS: usize = 6;

/// Each on both of a controller's speeds.
const USB_PORTS: usize = 8;

impl Attached<'_> {
    /// The values of `-device` that connect it: a controller where a new one is needed, and the disk.
    pub(super) fn devices(&self, board_has_ide: bool) -> Vec<String> {
        let Self { id, node, place, before, .. } = self;
        let disk = format!("id={id},drive={node},serial={id}");
        let sata = || {
            let (controller, port) = (before / AHCI_PORTS, before % AHCI_PORTS);
            let first =
                (port == 0).then(|| format!("ich9-ahci,id=sata{controller},addr={place:#x}"));
            let bus = format!("bus=sata{controller}.{port}");
            first.into_iter().chain([format!("ide-hd,{disk},{bus},{ON_ERROR}")]).collect()
        };
        let below = |controller: String, device: String| {
            let first = (*before == 0).then_some(controller);
            first.into_iter().chain([device]).collect()
        };
        match self.bus {
            DiskBus::Virtio => {
                vec![format!("virtio-blk-pci,{disk},addr={place:#x},{ON_ERROR}")]
            }
            // It has no such policy: an error is told to the guest.
            DiskBus::Nvme => vec![format!("nvme,{disk},addr={place:#x}")],
            DiskBus::Scsi => below(
                format!("virtio-scsi-pci,id=scsi,addr={place:#x}"),
                format!("scsi-hd,{disk},bus=scsi.0,scsi-id={before},{ON_ERROR}"),
            ),
            DiskBus::Ide if board_has_ide => {
                let (bus, unit) = (before / 2, before % 2);
                vec![format!("ide-hd,{disk},bus=ide.{bus},unit={unit},{ON_ERROR}")]
            }
            DiskBus::Ide | DiskBus::Sata => sata(),
            DiskBus::Usb => below(
                format!("qemu-xhci,id=usb,p2={USB_PORTS},p3={USB_PORTS},addr={place:#x}"),
                format!("usb-storage,{disk},bus=usb.0,port={},{ON_ERROR}", before + 1),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for bus in DiskBus::ALL {
            assert_eq!(bus.to_string().parse(), Ok(bus));
            assert_eq!(serde_json::to_value(bus).unwrap(), bus.as_str());
        }
        assert_eq!("Virtio".parse::<DiskBus>(), Err(NotABus));
    }

    #[test]
    fn each_bus_has_its_controller_once() {
        let said = |bus, board_has_ide| {
            let devices = (0..8).flat_map(|before| {
                let (id, node) = (format!("disk{before}"), format!("disk{before}-node"));
                Attached { id: &id, node: &node, place: 0x10 + before, bus, before }
                    .devices(board_has_ide)
            });
            devices.collect::<Vec<_>>().join("\n")
        };
        let all = DiskBus::ALL.map(|bus| said(bus, false));
        insta::assert_snapshot!(format!("{}\n\n{}", all.join("\n\n"), said(DiskBus::Ide, true)));
    }
}
