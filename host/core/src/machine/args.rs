//! A machine spec as a QEMU command line. Options: QEMU `qemu-options.hx` (qemu(1)), 7.2 and later.

use super::buses::Attached;
use super::{
    Disk, Drive, ExtraPort, Firmware, GDB_SOCKET, MachineSpec, Nic, Origin, QemuVersion, Uefi,
};
use guestline_protocol::{BULK_PORT, CONTROL_PORT};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// From here on QEMU opens a memory file that others may not write read-only, and still lets the guest write to what it
/// maps of it (`rom=off`); it takes `file:` for a migration as well.
pub(super) const READS_ONLY: QemuVersion = QemuVersion(8, 2);

/// The first place of a network card on the bus, and of a disk.
const FIRST_NIC: usize = 0x8;
const FIRST_DISK: usize = 0x10;

/// A card whose virtual functions take the places of others, unless it has a bus to itself (QEMU `docs/system/devices/igb.rst`).
const HAS_FUNCTIONS: &str = "igb";

/// Behind those of the ports for hot-plug.
const FIRST_CHASSIS: usize = 3;

/// The place of the disk that is the root: the last, so that others are called /dev/vda and so on with and without it.
const ROOT: usize = 0x18;

/// The place of the disk with modules, behind all others.
const MODULES: usize = 0x19;

/// Descriptor numbers that QEMU inherits.
pub(super) struct Ends {
    qmp: RawFd,
    control: RawFd,
    console: RawFd,
    reserve: RawFd,
    bulk: RawFd,
    ports: Vec<RawFd>,
}

impl Ends {
    /// In the order of [`super::Machine::start`].
    pub(super) fn of(fds: &[OwnedFd]) -> Self {
        let fd = |index: usize| fds.get(index).map_or(-1, AsRawFd::as_raw_fd);
        let ports = fds.iter().skip(5).map(AsRawFd::as_raw_fd).collect();
        Self { qmp: fd(0), control: fd(1), console: fd(2), reserve: fd(3), bulk: fd(4), ports }
    }
}

/// The devices of the default spec (DESIGN.md), each with its id, so that a saved state will fit.
///
/// q35 without its SATA, SMBus, USB, HPET and VMware port, which cost boot time and which nothing
/// here uses; measured in `docs/boot.md`.
pub(super) fn command_line(
    spec: &MachineSpec,
    version: QemuVersion,
    origin: &Origin<'_>,
    ends: &Ends,
) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |option: &str, value: String| {
        args.push(format!("-{option}"));
        args.push(value);
    };
    let socket = |id: &str, fd: RawFd| format!("socket,id={id},fd={fd}");

    add("name", "guestline".to_owned());
    // Versioned: what a state was saved on is what it is restored on.
    let board = Board::of(spec.machine.as_deref(), version);
    let mut machine = format!("{},sata=off,smbus=off,usb=off,hpet=off,vmport=off", board.name);
    if let Some((ram, sharing)) = memory(origin, version) {
        let (size, path) = (spec.memory_mib, value(ram));
        add("object", format!("memory-backend-file,id=ram,size={size}M,mem-path={path},{sharing}"));
        machine += ",memory-backend=ram";
    }
    if let Some(firmware) = &spec.firmware {
        // SeaBIOS and what it starts write to the first serial line then, instead of a screen that is not there.
        machine += ",graphics=off";
        if let Some(Uefi { code, vars, .. }) = &firmware.uefi {
            machine += ",pflash0=code,pflash1=vars";
            add("blockdev", flash("code", code, true));
            add("blockdev", flash("vars", vars, false));
        }
    }
    add("machine", machine);
    if let Some((bios, _)) = &spec.bios {
        add("bios", bios.display().to_string());
    }
    add("accel", spec.accel.as_str().to_owned());
    add("cpu", spec.cpu.clone().unwrap_or_else(|| spec.accel.cpu().to_owned()));
    add("smp", spec.cpus.to_string());
    add("m", format!("{}M", spec.memory_mib));
    let reboot = if spec.reboots { "reset" } else { "shutdown" };
    add("action", format!("panic=pause,reboot={reboot},shutdown=pause"));
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    add("sandbox", sandbox.to_owned());
    add("display", "none".to_owned());
    add("rtc", "base=utc".to_owned());

    add("chardev", socket("qmp", ends.qmp));
    add("mon", "chardev=qmp,mode=control".to_owned());
    add("chardev", socket("console", ends.console));
    add("device", "isa-serial,id=ttyS0,chardev=console,index=0".to_owned());
    add("chardev", socket("reserve", ends.reserve));
    add("device", "isa-serial,id=ttyS1,chardev=reserve,index=1".to_owned());
    add("device", "pvpanic,id=pvpanic".to_owned());

    add("device", ports(3 + spec.ports.len()));
    add("chardev", socket("control", ends.control));
    add(
        "device",
        format!("virtserialport,id=control,chardev=control,bus=ports.0,nr=1,name={CONTROL_PORT}"),
    );
    add("chardev", socket("bulk", ends.bulk));
    add("device", format!("virtserialport,id=bulk,chardev=bulk,bus=ports.0,nr=2,name={BULK_PORT}"));
    for (number, (port, fd)) in spec.ports.iter().zip(&ends.ports).enumerate() {
        let id = format!("port{number}");
        add("chardev", socket(&id, *fd));
        let device = match port {
            ExtraPort::Virtio(name) => {
                let place = format!("bus=ports.0,nr={}", number + 3);
                format!("virtserialport,id={id},chardev={id},{place},name={name}")
            }
            ExtraPort::VirtConsole => {
                format!("virtconsole,id={id},chardev={id},bus=ports.0,nr={}", number + 3)
            }
            ExtraPort::Serial => format!("isa-serial,id={id},chardev={id},index=2"),
        };
        add("device", device);
    }
    if let Some(port) = spec.ssh_port {
        let forward = format!("hostfwd=tcp:127.0.0.1:{port}-:22");
        add("netdev", format!("user,id=net0,restrict=on,{forward}"));
        add("device", "virtio-net-pci,id=net0,netdev=net0,addr=0x6,romfile=".to_owned());
    }
    for (number, mac) in spec.nics.iter().enumerate() {
        let (id, place) = (format!("nic{number}"), FIRST_NIC + number);
        add("netdev", format!("hubport,id={id},hubid={number}"));
        let model = spec.nic_model.as_deref().unwrap_or("virtio-net-pci");
        let at = match model == HAS_FUNCTIONS && board.is_express {
            true => {
                let (port, chassis) = (format!("port{place:x}"), FIRST_CHASSIS + number);
                let root_port = format!("pcie-root-port,id={port},chassis={chassis}");
                add("device", format!("{root_port},addr={place:#x}"));
                format!("bus={port}")
            }
            false => format!("addr={place:#x}"),
        };
        add("device", format!("{model},id={id},netdev={id},mac={mac},{at},romfile="));
    }
    let disks = spec.disks.iter().enumerate().map(|(number, disk)| {
        (format!("disk{number}"), disk_node(number), FIRST_DISK + number, disk)
    });
    let of_image = |name: &str, place, disk| (name.to_owned(), format!("{name}-node"), place, disk);
    let root = spec.root.iter().map(|disk| of_image("root", ROOT, disk));
    let modules = spec.modules.iter().map(|disk| of_image("modules", MODULES, disk));
    let mut on_bus = BTreeMap::new();
    for (id, node, place, disk) in disks.chain(root).chain(modules) {
        add("blockdev", disk.node(&node).to_string());
        let attached = Attached { id: &id, node: &node, place, bus: disk.bus, before: 0 };
        let devices = match spec.firmware.as_ref().filter(|_| place == FIRST_DISK) {
            Some(Firmware { drive: Drive::Cdrom, .. }) => vec![
                format!("ich9-ahci,id=ahci,addr={place:#x}"),
                format!("ide-cd,id={id},drive={node},bus=ahci.0,serial={id},bootindex=0"),
            ],
            first => {
                let before = on_bus.entry(disk.bus.as_str()).or_insert(0);
                let mut devices = Attached { before: *before, ..attached }.devices(board.has_ide());
                *before += 1;
                if let (Some(_), Some(device)) = (first, devices.last_mut()) {
                    device.push_str(",bootindex=0");
                }
                devices
            }
        };
        devices.into_iter().for_each(|device| add("device", device));
    }
    add("object", "rng-random,id=entropy,filename=/dev/urandom".to_owned());
    add("device", "virtio-rng-pci,id=rng,rng=entropy,addr=0x3".to_owned());
    // What is put into a machine later has a port of its own, or a place on the board's PCI bus.
    if board.is_express {
        add("device", "pcie-root-port,id=hotplug0,chassis=1,addr=0x4".to_owned());
        add("device", "pcie-root-port,id=hotplug1,chassis=2,addr=0x5".to_owned());
    }

    if origin.is_restored() {
        add("incoming", "defer".to_owned());
    }
    for (option, file) in [("kernel", &spec.kernel), ("initrd", &spec.initrd)] {
        if let Some(file) = file {
            add(option, file.display().to_string());
        }
    }
    if spec.kernel.is_some() {
        add("append", spec.cmdline.clone());
    }
    if spec.gdb {
        // QEMU's working folder is the machine's.
        args.push("-gdb".to_owned());
        args.push(format!("unix:{GDB_SOCKET},server=on,wait=off"));
    }
    if spec.gdb || matches!(origin, Origin::Again { .. }) {
        args.push("-S".to_owned());
    }
    args.extend(spec.more_args.iter().cloned());
    args.splice(0..0, ["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
    args
}

/// What devices are put into.
struct Board {
    name: String,
    /// It has PCI Express.
    is_express: bool,
}

impl Board {
    /// Of a machine type. A name without a version is of this QEMU's.
    fn of(machine: Option<&str>, version: QemuVersion) -> Self {
        let name = match machine {
            None | Some("q35") => format!("pc-q35-{version}"),
            Some("pc") => format!("pc-i440fx-{version}"),
            Some(name) => name.to_owned(),
        };
        let is_express = !(name.starts_with("pc-i440fx-") || name == "xenfv");
        Self { name, is_express }
    }

    /// Disks can be put into its own IDE.
    fn has_ide(&self) -> bool {
        !self.is_express
    }
}

/// The node of a disk that its device has.
pub(super) fn disk_node(number: usize) -> String {
    format!("disk{number}-node")
}

/// What of a machine its guest can see, but for the kernel, the initial RAM file system and the kernel's command line: the
/// same text is the same machine.
pub(super) fn seen_by_guest(spec: &MachineSpec, version: QemuVersion) -> String {
    let spec = MachineSpec {
        kernel: spec.kernel.as_ref().map(|_| "".into()),
        initrd: spec.initrd.as_ref().map(|_| "".into()),
        firmware: spec.firmware.as_ref().map(Firmware::without_files),
        // What is in it is another machine, wherever it lies.
        bios: spec.bios.as_ref().map(|(_, digest)| (digest.as_str().into(), digest.clone())),
        cmdline: String::new(),
        reboots: false,
        gdb: false,
        disks: spec.disks.iter().map(Disk::without_files).collect(),
        root: spec.root.as_ref().map(Disk::without_files),
        modules: spec.modules.as_ref().map(Disk::without_files),
        nics: vec![Nic { mac: [0; 6] }; spec.nics.len()],
        ..spec.clone()
    };
    let ports = vec![-1; spec.ports.len()];
    let ends = Ends { qmp: -1, control: -1, console: -1, reserve: -1, bulk: -1, ports };
    command_line(&spec, version, &Origin::Boot, &ends).join("\n")
}

/// The file that is the guest's memory, and how QEMU has it.
fn memory<'a>(origin: &Origin<'a>, version: QemuVersion) -> Option<(&'a Path, &'static str)> {
    match origin {
        Origin::Boot | Origin::Again { ram: None } => None,
        Origin::BootSavable { ram } | Origin::RestoreSavable { ram } => Some((ram, "share=on")),
        Origin::Restore { ram } | Origin::Again { ram: Some(ram) } if version >= READS_ONLY => {
            Some((ram, "share=off,readonly=on,rom=off"))
        }
        Origin::Restore { ram } | Origin::Again { ram: Some(ram) } => Some((ram, "share=off")),
    }
}

/// A node of the firmware's flash memory (QEMU `docs/system/i386/pc.rst`, "Machine-specific options").
fn flash(node: &str, file: &Path, read_only: bool) -> String {
    let file = json!({ "driver": "file", "filename": file, "read-only": read_only });
    json!({ "driver": "raw", "node-name": node, "read-only": read_only, "file": file }).to_string()
}

/// A path as the value of an option: a comma would end it there (qemu(1), "-drive").
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The device of all ports, numbers below `count`. It has no more queues than these need, each with an interrupt of its
/// own: else Linux looks at all of 64 queues for each interrupt (`vp_vring_interrupt`).
fn ports(count: usize) -> String {
    // Two queues a port and two for the device, and an interrupt for its configuration.
    let vectors = 2 * count + 3;
    format!("virtio-serial-pci,id=ports,addr=0x2,max_ports={count},vectors={vectors}")
}

#[cfg(test)]
mod tests {
    use super::super::{Accel, DiskBus, DiskFile, DiskFormat};
    use super::*;
    use crate::digest::Digest;

    fn spec() -> MachineSpec {
        MachineSpec {
            memory_mib: 256,
            cpus: 1,
            kernel: Some("/k".into()),
            initrd: Some("/i".into()),
            cmdline: "quiet console=ttyS0".into(),
            firmware: None,
            bios: None,
            accel: Accel::Tcg,
            machine: None,
            cpu: None,
            reboots: false,
            ports: Vec::new(),
            root: None,
            modules: None,
            disks: Vec::new(),
            nics: Vec::new(),
            nic_model: None,
            ssh_port: None,
            more_args: Vec::new(),
            gdb: false,
        }
    }

    fn shared(path: &str) -> Disk {
        let file = DiskFile::at(path.into(), DiskFormat::Raw);
        Disk {
            bus: DiskBus::Virtio,
            size: 1 << 20,
            read_only: true,
            is_own: false,
            files: vec![file],
        }
    }

    fn args(spec: &MachineSpec, version: QemuVersion, origin: &Origin<'_>) -> Vec<String> {
        let ends =
            Ends { qmp: 10, control: 11, console: 12, reserve: 13, bulk: 14, ports: Vec::new() };
        command_line(spec, version, origin, &ends)
    }

    #[test]
    fn the_default_machine() {
        let mut text = String::new();
        for arg in args(&spec(), QemuVersion(10, 0), &Origin::Boot) {
            text += if arg.starts_with('-') { "\n" } else { " " };
            text += &arg;
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn another_board_has_the_same_devices_at_the_same_places() {
        let on = |machine: &str| {
            let spec = MachineSpec { machine: Some(machine.to_owned()), ..spec() };
            args(&spec, QemuVersion(10, 0), &Origin::Boot).join(" ")
        };
        let default = args(&spec(), QemuVersion(10, 0), &Origin::Boot).join(" ");
        assert_eq!(on("q35"), default);
        assert_eq!(on("pc-q35-7.2"), default.replace("q35-10.0", "q35-7.2"));
        let pc = on("pc");
        assert!(pc.contains("-machine pc-i440fx-10.0,sata=off,"), "{pc}");
        assert!(!pc.contains("pcie-root-port") && pc.contains("virtio-rng-pci,id=rng"), "{pc}");
    }

    #[test]
    fn a_card_with_functions_has_a_port_to_itself() {
        let nics = vec![Nic { mac: [0; 6] }; 2];
        let spec = MachineSpec { nics, nic_model: Some("igb".into()), ..spec() };
        let line = args(&spec, QemuVersion(10, 0), &Origin::Boot).join(" ");
        for number in 0..2 {
            let (place, chassis) = (8 + number, 3 + number);
            let port = format!("pcie-root-port,id=port{place},chassis={chassis},addr=0x{place} ");
            assert!(line.contains(&port), "{line}");
            let card = format!(
                "igb,id=nic{number},netdev=nic{number},mac=00:00:00:00:00:00,bus=port{place},"
            );
            assert!(line.contains(&card), "{line}");
        }
    }

    #[test]
    fn a_machine_waits_for_a_debugger() {
        let spec = MachineSpec { gdb: true, ..spec() };
        let line = args(&spec, QemuVersion(10, 0), &Origin::Boot).join(" ");
        assert!(line.ends_with(" -gdb unix:gdb,server=on,wait=off -S"), "{line}");
    }

    #[test]
    fn memory_in_a_file() {
        let ram = Path::new("/a,b/ram");
        let (new, old) = (QemuVersion(8, 2), QemuVersion(7, 2));
        let text = |version, origin: &Origin<'_>| args(&spec(), version, origin).join(" ");
        let file = "-object memory-backend-file,id=ram,size=256M,mem-path=/a,,b/ram";
        let restored = text(new, &Origin::Restore { ram });
        assert!(restored.contains(&format!("{file},share=off,readonly=on,rom=off ")), "{restored}");
        assert!(restored.contains(",memory-backend=ram ") && restored.contains("-incoming defer"));
        assert!(text(old, &Origin::Restore { ram }).contains(&format!("{file},share=off -")));
        let savable = text(new, &Origin::BootSavable { ram });
        assert!(savable.contains(&format!("{file},share=on ")) && !savable.contains("-incoming"));
        assert!(text(new, &Origin::RestoreSavable { ram }).contains("-incoming defer"));
        // What takes a machine's place has its memory, and does not run by itself.
        for (ram, origin) in [(Some(ram), Origin::Restore { ram }), (None, Origin::Boot)] {
            let wanted = text(new, &origin).replace(" -incoming defer", "") + " -S";
            assert_eq!(text(new, &Origin::Again { ram }), wanted);
        }
    }

    #[test]
    fn disks_and_cards_have_places_of_their_own() {
        let file = |path: &str| DiskFile::at(path.into(), DiskFormat::Qcow2);
        let base = DiskFile::at("/a,b/base".into(), DiskFormat::Raw);
        let disks = vec![
            Disk { size: 1 << 30, read_only: true, files: vec![base.clone()], ..Disk::empty(0) },
            Disk { size: 1 << 30, files: vec![base], ..Disk::empty(0) },
            Disk::empty(1 << 20),
        ];
        let nics = vec![Nic { mac: [0x52, 0x54, 0, 1, 2, 0xab] }; 2];
        let (root, modules) = (Some(shared("/root")), Some(shared("/modules")));
        let spec = MachineSpec { disks, nics, root, modules, ..spec() };
        let own =
            spec.upon([file("/t/disk0"), file("/t/disk1")]).upon([file("/own"), file("/own1")]);
        let mut text = String::new();
        for arg in args(&own, QemuVersion(10, 0), &Origin::Boot) {
            text += if arg.starts_with('-') { "\n" } else { " " };
            text += &arg;
        }
        let lines = text
            .lines()
            .filter(|line| ["blk", "block", "net"].iter().any(|word| line.contains(word)));
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
        // What they lie in is nothing that the guest sees, and their sizes are.
        let seen = |spec: &MachineSpec| seen_by_guest(spec, QemuVersion(10, 0));
        assert_eq!(seen(&own), seen(&spec));
        let other = MachineSpec { disks: vec![Disk::empty(2 << 20)], ..spec.clone() };
        assert_ne!(seen(&other), seen(&MachineSpec { disks: vec![Disk::empty(1 << 20)], ..spec }));
    }

    #[test]
    fn what_the_guest_sees_has_no_paths_and_no_policy() {
        let seen = |spec: &MachineSpec| seen_by_guest(spec, QemuVersion(10, 0));
        let same =
            MachineSpec { kernel: Some("/other".into()), reboots: true, gdb: true, ..spec() };
        assert_eq!(seen(&same), seen(&spec()));
        for other in [
            MachineSpec { memory_mib: 512, ..spec() },
            MachineSpec { cpus: 2, ..spec() },
            MachineSpec { accel: Accel::Kvm, ..spec() },
            MachineSpec { ports: vec![ExtraPort::Serial], ..spec() },
            MachineSpec { machine: Some("pc".into()), ..spec() },
            MachineSpec { more_args: vec!["-nodefaults".into()], ..spec() },
            MachineSpec { bios: Some(("/bios".into(), Digest::of(b"a"))), ..spec() },
            MachineSpec { cpu: Some("qemu64".into()), ..spec() },
            MachineSpec {
                nics: vec![Nic { mac: [0; 6] }],
                nic_model: Some("e1000".into()),
                ..spec()
            },
            MachineSpec { root: Some(shared("/a")), ..spec() },
            MachineSpec { modules: Some(shared("/a")), ..spec() },
        ] {
            assert_ne!(seen(&other), seen(&spec()));
        }
        let bios =
            |path: &str| MachineSpec { bios: Some((path.into(), Digest::of(b"a"))), ..spec() };
        assert_eq!(seen(&bios("/a")), seen(&bios("/b")));
        let with = |path| MachineSpec { modules: Some(shared(path)), ..spec() };
        assert_eq!(seen(&with("/a")), seen(&with("/b")));
        assert_ne!(seen_by_guest(&spec(), QemuVersion(9, 2)), seen(&spec()));
    }
}
