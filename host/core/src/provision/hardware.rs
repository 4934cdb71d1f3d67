//! The hardware of a machine where another than the usual one is wanted: machine type, CPU, bus of disks, model of network
//! cards; and the drivers that a guest needs for it.

use super::{LeaseError, MachineRequest};
use crate::image::{Image, Kconfig};
use crate::machine::DiskBus;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is wanted; none is as ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hardware {
    /// QEMU's machine type: `pc`, `q35`, `pc-q35-7.2`.
    #[serde(rename = "machine_type", default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// QEMU's CPU model, perhaps with flags: `max,-avx2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// What the disks that were asked for are connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bus: Option<DiskBus>,
    /// QEMU's model of the network cards: `e1000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_model: Option<String>,
}

/// The option of a kernel, and its module.
type Driver = (&'static str, &'static str);

const SD: Driver = ("BLK_DEV_SD", "sd_mod");
const VIRTIO_BLK: [Driver; 1] = [("VIRTIO_BLK", "virtio_blk")];
const AHCI: [Driver; 2] = [("SATA_AHCI", "ahci"), SD];
const VIRTIO_NET: &str = "virtio";

impl Hardware {
    /// The model of network cards as QEMU calls it; none for virtio's.
    pub fn nic_device(&self) -> Option<&str> {
        let is_usual = |model: &&str| *model != VIRTIO_NET && *model != "virtio-net-pci";
        self.nic_model.as_deref().filter(is_usual)
    }

    fn disk_drivers(&self) -> &'static [Driver] {
        match self.disk_bus.unwrap_or_default() {
            DiskBus::Virtio => &VIRTIO_BLK,
            DiskBus::Scsi => &[("SCSI_VIRTIO", "virtio_scsi"), SD],
            DiskBus::Ide if self.has_board_ide() => &[("ATA_PIIX", "ata_piix"), SD],
            DiskBus::Ide | DiskBus::Sata => &AHCI,
            DiskBus::Nvme => &[("BLK_DEV_NVME", "nvme")],
            DiskBus::Usb => &[("USB_XHCI_HCD", "xhci_pci"), ("USB_STORAGE", "usb_storage"), SD],
        }
    }

    fn has_board_ide(&self) -> bool {
        let machine = self.machine.as_deref().unwrap_or_default();
        machine == "pc" || machine.starts_with("pc-i440fx-")
    }

    /// Of the cards that many have; of another one nothing is known.
    fn nic_drivers(&self) -> &'static [Driver] {
        match self.nic_device() {
            None => &[("VIRTIO_NET", "virtio_net")],
            Some(
                "virtio-net" | "virtio-net-pci-transitional" | "virtio-net-pci-non-transitional",
            ) => &[("VIRTIO_NET", "virtio_net")],
            Some("e1000" | "e1000-82540em" | "e1000-82544gc" | "e1000-82545em") => {
                &[("E1000", "e1000")]
            }
            Some("e1000e") => &[("E1000E", "e1000e")],
            Some("igb") => &[("IGB", "igb")],
            Some("rtl8139") => &[("8139CP", "8139cp")],
            Some("vmxnet3") => &[("VMXNET3", "vmxnet3")],
            Some("pcnet") => &[("PCNET32", "pcnet32")],
            Some("tulip") => &[("TULIP", "tulip")],
            Some("ne2k_pci") => &[("NE2K_PCI", "ne2k_pci")],
            Some(i825) if i825.starts_with("i825") || i825 == "i82801" => &[("E100", "e100")],
            Some(_) => &[],
        }
    }

    /// What keeps it from being in any machine of ours, in words.
    pub fn fault(&self) -> Option<String> {
        let machine = self.machine.as_deref().unwrap_or_default();
        if matches!(machine, "microvm" | "isapc" | "none") {
            return Some(format!(
                "machine type `{machine}` has no PCI bus, which every machine needs"
            ));
        }
        let words = [&self.machine, &self.cpu, &self.nic_model];
        // They stand among other words in QEMU's options.
        let is_odd = |word: &&String| {
            word.is_empty()
                || word.starts_with('-')
                || word.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if let Some(word) = words.into_iter().flatten().find(is_odd) {
            return Some(format!("`{}` is no name of QEMU's", crate::text::one_line(word, 60)));
        }
        let has_more = |word: &&String| word.contains(',');
        let word = [&self.machine, &self.nic_model].into_iter().flatten().find(has_more)?;
        Some(format!("`{}` has more than a name", crate::text::one_line(word, 60)))
    }
}

/// The modules that the agent is to load for what a machine has, beside the image's own.
///
/// # Errors
/// [`LeaseError::NoDriver`] where the kernel is known to have none.
pub(super) fn drivers(request: &MachineRequest) -> Result<Vec<&'static str>, LeaseError> {
    let Hardware { disk_bus, nic_model, .. } = &request.hardware;
    let mut wanted = Vec::new();
    if !request.nics.is_empty() {
        let of = nic_model.as_ref().map(|model| format!("nic = {model}"));
        wanted.push((of, request.hardware.nic_drivers()));
    }
    if !request.given.is_empty() {
        wanted.push((None, &VIRTIO_BLK[..]));
    }
    if !request.disks.is_empty() {
        let of = disk_bus.map(|bus| format!("disk_bus = {bus}"));
        wanted.push((of, request.hardware.disk_drivers()));
    }
    let config = match &request.kernel {
        None => request.image.kconfig(),
        Some(_) => request.kconfig.as_ref().and_then(|(path, _)| Kconfig::read(path)),
    };
    let mut names = Vec::new();
    for (of, drivers) in wanted {
        for &(option, module) in drivers {
            // What every machine may have is looked for in the guest, as ever.
            let Some(of) = &of else {
                if !names.contains(&module) {
                    names.push(module);
                }
                continue;
            };
            match config.as_ref().map(|config| config.get(option)) {
                Some(Some("y")) => {}
                Some(None) => {
                    return Err(LeaseError::NoDriver {
                        image: request.image.manifest.name.clone(),
                        of: of.clone(),
                        lacks: format!("its kernel is built without CONFIG_{option}"),
                    });
                }
                _ if request.kernel.is_none() && !has_module(&request.image, module) => {
                    return Err(LeaseError::NoDriver {
                        image: request.image.manifest.name.clone(),
                        of: of.clone(),
                        lacks: format!("it has no module `{module}`"),
                    });
                }
                _ => names.push(module),
            }
        }
    }
    Ok(names)
}

/// Can an image have a module? One whose root is a disk has all of its kernel; else they are in the initial RAM file system,
/// whose names stand there as they are (cpio(5), "New ASCII Format").
fn has_module(image: &Image, module: &str) -> bool {
    if image.root.is_some() || image.modules.is_some() || image.disk.is_some() {
        return true;
    }
    let read = |path: &Path| std::fs::read(path).ok();
    let Some(archive) = image.initrd.as_deref().and_then(read) else { return true };
    if !archive.starts_with(b"0707") {
        return true;
    }
    let names = [module.to_owned(), module.replace('_', "-")];
    let names = names.map(|name| format!("/{name}.ko\0").into_bytes());
    names.iter().any(|name| archive.windows(name.len()).any(|window| window == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_in_a_job() {
        let usual = Hardware::default();
        assert_eq!(serde_json::to_string(&usual).unwrap(), "{}");
        let nic = |model: &str| Hardware { nic_model: Some(model.into()), ..Hardware::default() };
        assert_eq!(nic("virtio").nic_device(), None);
        assert_eq!(nic("i82559er").nic_drivers(), [("E100", "e100")]);
        assert!(nic("rocker").nic_drivers().is_empty());
    }

    #[test]
    fn ide_is_the_boards_where_it_has_one() {
        let ide = |machine: Option<&str>| Hardware {
            machine: machine.map(str::to_owned),
            disk_bus: Some(DiskBus::Ide),
            ..Hardware::default()
        };
        assert_eq!(ide(None).disk_drivers()[0].1, "ahci");
        assert_eq!(ide(Some("pc-q35-9.0")).disk_drivers()[0].1, "ahci");
        assert_eq!(ide(Some("pc-i440fx-9.0")).disk_drivers()[0].1, "ata_piix");
    }

    #[test]
    fn what_is_no_name_is_told() {
        let fault = |machine: &str, cpu: &str| {
            let (machine, cpu) = (Some(machine.to_owned()), Some(cpu.to_owned()));
            Hardware { machine, cpu, ..Hardware::default() }.fault()
        };
        assert_eq!(fault("pc", "max,-avx2"), None);
        assert!(fault("microvm", "max").unwrap().contains("no PCI bus"));
        assert!(fault("q35,vmport=on", "max").is_some());
        assert!(fault("q35", "-x").is_some() && fault("q35", "").is_some());
    }
}
