//! What a variant's machine is made of, as its guest sees it.

use crate::kernels::{cloud_kernel, panicking_kernel};
use crate::suites::{outcomes, suite, write};
use guestline_tests::{Ran, oldest_qemu};
use nix::sys::signal::{Signal, kill};

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

/// A program around QEMU.
fn wrapper(guestline: &guestline_tests::Guestline, name: &str, before: &str) {
    let script = format!("#!/bin/sh\n{before}\nexec qemu-system-x86_64 \"$@\"\n");
    write(&guestline.home().join("t"), &[(&format!("{name}*"), &script)]);
}

#[test]
fn a_variant_runs_on_another_qemu_and_its_version_is_known() {
    let guestline = suite(&[
        (
            "x.checks",
            "#: matrix.qemu = ['../mine', 'qemu-system-x86_64']\n#: requires = ['host.qemu >= 10']\na: true\n",
        ),
        ("y.checks", "#: matrix.qemu = ['../mine']\n#: requires = ['host.qemu >= 99']\nb: true\n"),
    ]);
    let mine = format!("#!/bin/sh\nexec '{}' \"$@\"\n", oldest_qemu().display());
    write(guestline.home(), &[("mine*", &mine)]);
    let all = all(&guestline);
    assert!(all[0].starts_with("x/a[qemu=mine]: incompatible (needs host.qemu >= 10"), "{all:?}");
    assert_eq!(all[1], "x/a[qemu=qemu-system-x86_64]: passed");
    assert!(all[2].starts_with("y/b[qemu=mine]: incompatible (needs host.qemu >= 99"), "{all:?}");
    let ran = guestline.run(&["run", "--matrix", "qemu=../mine", "t/x"]);
    assert_eq!(ran.status, 4, "{}", ran.stderr);
    write(&guestline.home().join("t"), &[("x.checks", "#: matrix.qemu = ['../mine']\na: true\n")]);
    let ran = guestline.run(&["run", "t/x"]);
    ran.assert_verdict(0, "passed  x/a[qemu=mine]");
    let facts = std::fs::read_to_string(guestline.evidence(1).join("facts.json")).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["machine"]["qemu"]["version"], "7.2", "{facts:#}");
    assert_eq!(facts["subjects"], serde_json::json!(["qemu"]));
    write(&guestline.home().join("t"), &[("x.checks", "#: matrix.qemu = ['./none']\na: true\n")]);
    let ran = guestline.run(&["run", "t/x"]);
    assert!(ran.status == 2 && ran.stderr.contains("x.checks:2: "), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_qemu_that_is_tried_has_failed_when_it_dies_by_itself() {
    let guestline = suite(&[]);
    // It dies of its own when it has taken so much time: in the test, and before it.
    wrapper(&guestline, "tired", "ulimit -c 0; ulimit -S -t 12");
    wrapper(&guestline, "weak", "test \"$1\" = --version || { echo 'no more' >&2; exit 3; }");
    wrapper(&guestline, "good", ":");
    let busy = "while :; do :; done";
    let check = |words: &[&str]| guestline.run(&[&["check", "--fresh-reboot"], words].concat());
    let ran = check(&["--qemu", "t/tired", busy]);
    ran.assert_verdict(1, "failed");
    assert!(ran.stderr.contains("QEMU was killed by SIGXCPU"), "{}", ran.stderr);
    let ran = check(&["--qemu", "t/tired", "--not-subject", "qemu", busy]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    let ran = check(&["--qemu", "t/weak", "true"]);
    assert!(
        ran.status == 1 && ran.stderr.contains("exited with status 3: no more"),
        "{}",
        ran.stderr
    );
    let ran = check(&["--qemu-arg=-device", "--qemu-arg=no-such-device", "true"]);
    assert!(ran.status == 1 && ran.stderr.contains("no-such-device"), "{}", ran.stderr);
    let ran = check(&[
        "--qemu-arg=-device",
        "--qemu-arg=edu",
        "grep -l 0x1234 /sys/bus/pci/devices/*/vendor",
    ]);
    ran.assert_verdict(0, "passed");
    // Somebody else's doing is not its own.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let running = guestline.start(&["check", "--qemu", "t/good", "echo up; sleep 100"]);
        guestline.wait_for_qemu();
        // The machine that is tested, and not the one whose template is made.
        std::thread::sleep(std::time::Duration::from_secs(1));
        guestline_tests::wait_for("the test", || {
            let text = std::fs::read_to_string(guestline.evidence(1).join("stdout")).ok()?;
            text.contains("up").then_some(())
        });
        guestline.qemus().iter().for_each(|pid| kill(*pid, signal).unwrap());
        let ran = running.wait();
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("errored  (host)") || ran.stderr.contains("host"),
            "{}",
            ran.stderr
        );
    }
    let ran = guestline.run(&["check", "--qemu", "t/none", "true"]);
    assert!(ran.status == 2 && ran.stderr.contains("--qemu: "), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

/// Makes a package.
fn package(guestline: &guestline_tests::Guestline, name: &str, depends: &str, script: &str) {
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n{depends}"
    );
    let tree = guestline.home().join(name);
    let files = [
        ("DEBIAN/control", control.as_str()),
        ("DEBIAN/postinst*", &format!("#!/bin/sh\n{script}\n")),
        ("usr/bin/said*", "#!/bin/sh\necho said\n"),
    ];
    write(&tree, &files);
    let built = std::process::Command::new("dpkg-deb").arg("--build").arg(&tree).output().unwrap();
    assert!(built.status.success(), "{built:?}");
}

#[test]
fn packages_are_installed_before_the_test_and_judged() {
    let guestline = suite(&[("x.checks", "#: image = 'debian-12'\na: said | grep -q said\n")]);
    package(&guestline, "good", "", "touch /srv/configured");
    package(&guestline, "bad", "", "echo it breaks; exit 3");
    package(&guestline, "needy", "Depends: bash, libnowhere (>= 2)\n", "true");
    let check =
        |words: &[&str]| guestline.run(&[&["check", "--image", "debian-12"], words].concat());
    let good = "said && test -e /srv/configured && dpkg -s good | grep -q 'ok installed'";
    for _ in 0..2 {
        check(&["--install", "good.deb", good]).assert_verdict(0, "passed");
    }
    let ran = guestline.run(&["run", "--message-format", "json", "--install", "good.deb", "t"]);
    assert_eq!(outcomes(&ran)[0].1, "passed", "{}", ran.stderr);
    let schema = serde_json::from_str(include_str!("../../docs/events.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for event in ran.events() {
        let wrong: Vec<_> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{event:#}: {wrong:?}");
    }
    let started = ran.events().into_iter().find(|event| event["event"] == "attempt-started");
    assert_eq!(started.unwrap()["job"]["subjects"], serde_json::json!(["install"]));
    let says = |ran: Ran, status, why: &str| {
        assert_eq!(ran.status, status, "{}", ran.stderr);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    };
    let script = "install of bad.deb: installed bad package post-installation script subprocess returned error exit status 3";
    says(check(&["--install", "bad.deb", "true"]), 1, script);
    says(check(&["--install", "bad.deb", "--not-subject", "install", "true"]), 125, script);
    let lacks = "install of needy.deb: the image lacks libnowhere (>= 2)";
    says(check(&["--install", "needy.deb", "true"]), 125, lacks);
    let ran = guestline.run(&["check", "--install", "good.deb", "true"]);
    says(ran, 125, "install of good.deb: the image has no dpkg");
    says(guestline.run(&["check", "--install", "none.deb", "true"]), 2, "--install: cannot read");
    guestline.assert_nothing_left();
}

#[test]
fn firmware_that_is_tried_is_judged() {
    let guestline = suite(&[]);
    // It halts at once, and takes no CPU of the host.
    std::fs::create_dir_all(guestline.home().join("t")).unwrap();
    std::fs::write(guestline.home().join("t/halts.bin"), [0xf4; 65536]).unwrap();
    let ran = guestline.run(&["check", "--firmware", "/usr/share/seabios/bios-256k.bin", "true"]);
    ran.assert_verdict(0, "passed");
    let ran = guestline.run(&["check", "--boot-timeout", "5", "--firmware", "t/halts.bin", "true"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("(boot)") || ran.stderr.contains("boot: "), "{}", ran.stderr);
    let ran = guestline.run(&["check", "--firmware", "uefi", "true"]);
    assert!(ran.stderr.contains("image `tiny` is started by QEMU itself"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_run_takes_a_kernel_which_is_judged() {
    let guestline = suite(&[("x.checks", "a: uname -r; grep -qw quiz=1 /proc/cmdline\n")]);
    let run = |kernel: &std::path::Path, more: &[&str]| {
        let kernel = kernel.display().to_string();
        let ran = guestline.run(&[&JSON[..], &["--kernel", &kernel], more].concat());
        outcomes(&ran)[0].1.clone()
    };
    let bad = panicking_kernel(&guestline);
    assert_eq!(run(&cloud_kernel(), &["--cmdline", "quiz=1"]), "passed");
    assert_eq!(run(&bad, &[]), "failed (guest panicked)");
    assert_eq!(run(&bad, &["--not-subject", "kernel"]), "errored (guest panicked)");
    guestline.assert_nothing_left();
}
