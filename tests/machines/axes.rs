//! What a variant's machine is made of, as its guest sees it.

use crate::suites::{outcomes, suite};

const JSON: [&str; 4] = ["run", "--message-format", "json", "t"];

/// Names and outcomes, as text.
fn all(guestline: &guestline_tests::Guestline) -> Vec<String> {
    let ran = guestline.run(&JSON);
    let all = outcomes(&ran);
    assert!(!all.is_empty(), "{}", ran.stderr);
    all.into_iter().map(|(name, outcome)| format!("{name}: {outcome}")).collect()
}

#[test]
fn a_guest_has_the_cpu_and_the_board_that_are_asked_for() {
    let guestline = suite(&[
        (
            "cpu.checks",
            "#: matrix.cpu = ['qemu64', 'max', 'max,-avx2']\n\
             avx2: if test $GUESTLINE_VARIANT_CPU = max; then grep -qw avx2 /proc/cpuinfo; else ! grep -qw avx2 /proc/cpuinfo; fi\n",
        ),
        (
            "board.checks",
            "#: matrix.machine = ['pc', 'q35', 'pc-q35-7.2']\n\
             name: cat /sys/class/dmi/id/product_name /sys/class/dmi/id/product_version; \
             case $GUESTLINE_VARIANT_MACHINE in pc) grep -q i440FX /sys/class/dmi/id/product_name;; \
             q35) grep -q Q35 /sys/class/dmi/id/product_name;; *) grep -qx pc-q35-7.2 /sys/class/dmi/id/product_version;; esac\n",
        ),
    ]);
    let wanted = [
        "board/name[machine=pc-q35-7.2]: passed",
        "board/name[machine=pc]: passed",
        "board/name[machine=q35]: passed",
        "cpu/avx2[cpu=max%2C-avx2]: passed",
        "cpu/avx2[cpu=max]: passed",
        "cpu/avx2[cpu=qemu64]: passed",
    ];
    assert_eq!(all(&guestline), wanted);
    // They are in the evidence, and restored machines have them too.
    assert_eq!(all(&guestline), wanted);
    let facts = |number: u32| {
        let text = std::fs::read_to_string(guestline.evidence(number).join("facts.json"));
        serde_json::from_str::<serde_json::Value>(&text.unwrap()).unwrap()["machine"]["hardware"]
            .clone()
    };
    let facts: Vec<_> = (1..=6).map(facts).collect();
    assert!(facts.contains(&serde_json::json!({ "cpu": "qemu64" })), "{facts:?}");
    assert!(facts.contains(&serde_json::json!({ "machine_type": "pc" })), "{facts:?}");
    guestline.assert_nothing_left();
}

#[test]
fn disks_and_cards_are_of_the_kind_that_is_asked_for() {
    // Debian's cloud kernel has NVMe built in, and some drivers as modules of the root.
    let disk = "#: disks = ['64M', '32M']\n#: matrix.disk_bus = ['virtio', 'nvme', 'sata', 'usb']\n\
        disks: cat /sys/block/*/size; case $GUESTLINE_VARIANT_DISK_BUS in \
        virtio) test $(cat /sys/block/vdb/size) = 65536;; nvme) test $(cat /sys/block/nvme1n1/size) = 65536;; esac\n";
    let scsi = "#: image = 'debian-12'\n#: disks = ['64M', '32M']\n#: matrix.disk_bus = ['scsi', 'ide']\n\
        #: matrix.machine = ['q35', 'pc']\n\
        disks: ls -l /sys/block; test $(cat /sys/block/sdb/size) = 65536 && echo x > /dev/sdb && sync /dev/sdb\n";
    let nic = "#: image = 'debian-12'\n#: nics = ['10.1.0.5/24']\n#: matrix.nic = ['virtio', 'vmxnet3', 'e1000']\n\
        nic: ip addr show dev eth0 | grep -q 'inet 10.1.0.5/24' && \
        case $(readlink /sys/class/net/eth0/device/driver) in */vmxnet3|*/virtio_net) ;; *) false;; esac\n";
    let guestline = suite(&[("disk.checks", disk), ("scsi.checks", scsi), ("nic.checks", nic)]);
    let no = |of: &str, option: &str| {
        format!(
            "errored (image `{}` has no driver for {of}: its kernel is built without {option})",
            if of.contains("sata") || of.contains("usb") { "tiny" } else { "debian-12" }
        )
    };
    assert_eq!(
        all(&guestline),
        [
            "disk/disks[disk_bus=nvme]: passed".to_owned(),
            format!("disk/disks[disk_bus=sata]: {}", no("disk_bus = sata", "CONFIG_SATA_AHCI")),
            format!("disk/disks[disk_bus=usb]: {}", no("disk_bus = usb", "CONFIG_USB_XHCI_HCD")),
            "disk/disks[disk_bus=virtio]: passed".to_owned(),
            format!("nic/nic[nic=e1000]: {}", no("nic = e1000", "CONFIG_E1000")),
            "nic/nic[nic=virtio]: passed".to_owned(),
            "nic/nic[nic=vmxnet3]: passed".to_owned(),
            "scsi/disks[machine=pc,disk_bus=ide]: passed".to_owned(),
            "scsi/disks[machine=pc,disk_bus=scsi]: passed".to_owned(),
            format!(
                "scsi/disks[machine=q35,disk_bus=ide]: {}",
                no("disk_bus = ide", "CONFIG_SATA_AHCI")
            ),
            "scsi/disks[machine=q35,disk_bus=scsi]: passed".to_owned(),
        ]
    );
    guestline.assert_nothing_left();
}

#[test]
fn what_qemu_does_not_know_is_told_before_anything_boots() {
    for (matrix, why) in [
        ("cpu = ['qemu65,-sse3']", "has no CPU model `qemu65`; perhaps `qemu64` is meant"),
        ("machine = ['q36']", "has no machine type `q36`; perhaps `q35` is meant"),
        ("machine = ['microvm']", "machine type `microvm` has no PCI bus"),
        ("nic = ['e100']", "has no network card `e100`; perhaps `e1000` is meant"),
        ("disk_bus = ['floppy']", "axis `disk_bus`: `floppy`: want one of virtio, scsi, ide"),
    ] {
        let guestline = suite(&[("x.checks", &format!("#: matrix.{matrix}\na: true\n"))]);
        let ran = guestline.run(&["run", "t"]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("x.checks:2: ") && ran.stderr.contains(why), "{}", ran.stderr);
    }
    // What QEMU alone can tell is said by it.
    let guestline = suite(&[("x.checks", "#: matrix.cpu = ['max,no-such-flag=1']\na: true\n")]);
    let all = all(&guestline);
    assert!(all[0].contains(": errored (QEMU exited with status 1: "), "{all:?}");
    assert!(all[0].contains("no-such-flag"), "{all:?}");
    guestline.assert_nothing_left();
}
