//! A machine spec as a QEMU command line. Options: QEMU `qemu-options.hx` (qemu(1)), 7.2 and later.

use super::{ExtraPort, MachineSpec};
use guestline_protocol::{BULK_PORT, CONTROL_PORT};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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
pub(super) fn command_line(spec: &MachineSpec, ends: &Ends) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |option: &str, value: String| {
        args.push(format!("-{option}"));
        args.push(value);
    };
    let socket = |id: &str, fd: RawFd| format!("socket,id={id},fd={fd}");

    add("name", "guestline".to_owned());
    add("machine", "q35,sata=off,smbus=off,usb=off,hpet=off,vmport=off".to_owned());
    add("accel", spec.accel.as_str().to_owned());
    add("cpu", spec.accel.cpu().to_owned());
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
    add("object", "rng-random,id=entropy,filename=/dev/urandom".to_owned());
    add("device", "virtio-rng-pci,id=rng,rng=entropy,addr=0x3".to_owned());
    add("device", "pcie-root-port,id=hotplug0,chassis=1,addr=0x4".to_owned());
    add("device", "pcie-root-port,id=hotplug1,chassis=2,addr=0x5".to_owned());

    add("kernel", spec.kernel.display().to_string());
    add("initrd", spec.initrd.display().to_string());
    add("append", spec.cmdline.clone());
    args.splice(0..0, ["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
    args
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
    use super::super::Accel;
    use super::*;

    #[test]
    fn the_default_machine() {
        let spec = MachineSpec {
            memory_mib: 256,
            cpus: 1,
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "quiet console=ttyS0".into(),
            accel: Accel::Tcg,
            reboots: false,
            ports: Vec::new(),
            ssh_port: None,
        };
        let ends =
            Ends { qmp: 10, control: 11, console: 12, reserve: 13, bulk: 14, ports: Vec::new() };
        let mut text = String::new();
        for arg in command_line(&spec, &ends) {
            text += if arg.starts_with('-') { "\n" } else { " " };
            text += &arg;
        }
        insta::assert_snapshot!(text);
    }
}
