//! Modules of the user's kernels, and trees that a kernel was built in.

use crate::kernels::{generic_kernel, text};
use crate::templates::event;
use guestline_tests::Guestline;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Its release, and the folder below which its package was unpacked.
fn installed() -> (String, PathBuf) {
    let kernel = generic_kernel();
    let name = kernel.file_name().unwrap().to_string_lossy().into_owned();
    let root = kernel.parent().unwrap().parent().unwrap().to_owned();
    (name.trim_start_matches("vmlinuz-").to_owned(), root)
}

/// A tree as a build leaves it, of a few modules of a package.
fn build_tree(folder: &Path) -> String {
    let (release, root) = installed();
    let modules = root.join("lib/modules").join(&release);
    fs::create_dir_all(folder.join("arch/x86/boot")).unwrap();
    fs::create_dir_all(folder.join("include/config")).unwrap();
    fs::write(folder.join("include/config/kernel.release"), format!("{release}\n")).unwrap();
    symlink(generic_kernel(), folder.join("arch/x86/boot/bzImage")).unwrap();
    fs::copy(root.join("boot").join(format!("config-{release}")), folder.join(".config")).unwrap();
    fs::copy(modules.join("modules.builtin"), folder.join("modules.builtin")).unwrap();
    let mut order = String::new();
    for (number, path) in [
        "drivers/virtio/virtio_ring",
        "drivers/virtio/virtio",
        "drivers/virtio/virtio_pci_legacy_dev",
        "drivers/virtio/virtio_pci_modern_dev",
        "drivers/virtio/virtio_pci",
        "drivers/char/virtio_console",
        "drivers/block/virtio_blk",
        "fs/squashfs/squashfs",
        "fs/overlayfs/overlay",
        "drivers/net/dummy",
    ]
    .iter()
    .enumerate()
    {
        let to = folder.join(format!("{path}.ko"));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(modules.join(format!("kernel/{path}.ko")), to).unwrap();
        // Both ways in which trees name them.
        order += &match number % 2 {
            0 => format!("kernel/{path}.ko\n"),
            _ => format!("{path}.o\n"),
        };
    }
    fs::write(folder.join("modules.order"), order).unwrap();
    release
}

#[test]
fn modules_that_are_installed_go_with_any_image() {
    let guestline = Guestline::new();
    let (release, root) = installed();
    let (kernel, root) = (text(&generic_kernel()), text(&root));
    let line = "uname -r && modprobe fs-xfs && grep -q xfs /proc/filesystems && ls /sys/class/virtio-ports | grep -q .";
    for image in ["tiny", "debian-12"] {
        let args = ["check", "--image", image, "--kernel", &kernel, "--modules", &root, line];
        let ran = guestline.run(&args);
        ran.assert_verdict(0, "passed");
        assert_eq!(ran.stdout().trim(), release);
    }
    // Restored, with nothing packed again; and what is kept is accounted for.
    let json =
        ["check", "--message-format", "json", "--kernel", &kernel, "--modules", &root, "true"];
    let ran = guestline.run(&json);
    assert!(event(&ran, "machine-ready")[0]["template"].is_string(), "{}", ran.stdout());
    let listed = guestline.run(&["cache", "list"]).stdout();
    assert!(listed.contains("of a kernel of yours"), "{listed}");
    guestline.assert_nothing_left();
}

#[test]
fn a_build_tree_brings_its_kernel_and_its_modules() {
    let guestline = Guestline::new();
    let tree = guestline.home().join("linux");
    let release = build_tree(&tree);
    let line = "uname -r && modprobe dummy && ip link show dummy0 >/dev/null && grep -q ' one=1$' /proc/cmdline";
    let args = ["check", "--kernel", "linux", "--cmdline", "one=1", line];
    let ran = guestline.run(&args);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout().trim(), release);
    // A module that changes makes another machine.
    let module = tree.join("drivers/net/dummy.ko");
    let bytes = fs::read(&module).unwrap();
    fs::remove_file(&module).unwrap();
    let ran = guestline.run(&args);
    ran.assert_verdict(125, "image: `");
    ran.assert_verdict(
        125,
        "names the module `drivers/net/dummy` and has it not; `make modules` builds it",
    );
    fs::write(&module, &bytes[..bytes.len() / 2]).unwrap();
    let ran = guestline.run(&args);
    ran.assert_verdict(1, "failed");
    assert!(ran.stderr.contains("--kernel linux --cmdline=one=1"), "{}", ran.stderr);

    let up = guestline.run(&["up", "m", "--kernel", "linux", "--cmdline=two=2"]);
    assert_eq!(up.status, 0, "{}", up.stderr);
    let exec =
        guestline.run(&["exec", "m", "--", "sh", "-c", "uname -r; lsmod; cat /proc/cmdline"]);
    assert!(exec.stdout().starts_with(&release) && exec.stdout().contains("virtio_console"));
    assert!(exec.stdout().trim_end().ends_with(" two=2"), "{}", exec.stdout());
    assert_eq!(guestline.run(&["down", "m"]).status, 0);
    guestline.assert_nothing_left();
}

#[test]
fn modules_of_another_kernel_are_wrong_usage() {
    let guestline = Guestline::new();
    let kernel = text(&generic_kernel());
    let (release, _) = installed();
    fs::create_dir_all(guestline.home().join("mods/lib/modules/5.0-x")).unwrap();
    let wrong = |args: &[&str], words: &str| {
        let ran = guestline.run(&[&["check"], args, &["true"]].concat());
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    };
    let words = format!("has modules for kernel 5.0-x, and the kernel is {release}");
    wrong(&["--kernel", &kernel, "--modules", "mods"], &words);
    wrong(
        &["--kernel", &kernel, "--modules", "run"],
        &format!("has no modules of kernel {release}"),
    );
    wrong(&["--kernel", &kernel, "--modules", "none"], "cannot read `");
    wrong(&["--modules", "mods"], "--kernel");
    wrong(&["--cmdline", "guestline.root=x"], "`guestline.root` is Guestline's own");
    wrong(&["--cmdline", "a\nb"], "control characters");
    guestline.assert_nothing_left();
}

#[test]
fn a_kernel_that_cannot_work_is_told_what_it_lacks() {
    let guestline = Guestline::new();
    let tree = guestline.home().join("linux");
    build_tree(&tree);
    let config = fs::read_to_string(tree.join(".config")).unwrap();
    let configured = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        fs::write(tree.join(".config"), config.replace(from, to)).unwrap();
    };
    let check =
        |image: &str| guestline.run(&["check", "--image", image, "--kernel", "linux", "true"]);
    configured("CONFIG_BINFMT_ELF=y", "# CONFIG_BINFMT_ELF is not set");
    let ran = check("tiny");
    ran.assert_verdict(125, "boot: kernel `");
    ran.assert_verdict(125, "cannot run this image: it lacks CONFIG_BINFMT_ELF");
    let hint = "  hint: scripts/config -e BINFMT_ELF && make olddefconfig\n";
    assert!(ran.stderr.contains(hint), "{}", ran.stderr);
    // What only a root on a disk needs.
    configured("CONFIG_SQUASHFS_ZSTD=y", "");
    check("tiny").assert_verdict(0, "passed");
    check("debian-12").assert_verdict(125, "it lacks CONFIG_SQUASHFS_ZSTD");
    // Modules that are not at hand.
    fs::remove_file(tree.join("modules.order")).unwrap();
    configured("CONFIG_SERIAL_8250=y", "");
    let ran = check("tiny");
    ran.assert_verdict(125, "CONFIG_VIRTIO_CONSOLE (a module, which is not at hand)");
    assert!(ran.stderr.contains("; or name its modules: --modules DIR\n"), "{}", ran.stderr);
    let up = guestline.run(&["up", "m", "--kernel", "linux"]);
    assert_eq!(up.status, 125, "{}", up.stderr);
    assert!(
        up.stderr.contains("hint: scripts/config -e VIRTIO_PCI -e VIRTIO_CONSOLE"),
        "{}",
        up.stderr
    );
    guestline.assert_nothing_left();
}

#[test]
fn options_of_an_images_kernel_are_capabilities() {
    let guestline = Guestline::new();
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    let shown = guestline.run(&["image", "show", "tiny", "--kconfig", "virtio_con"]);
    assert_eq!(
        (shown.status, &*shown.stdout()),
        (0, "kconfig.VIRTIO_CONSOLE=m\n"),
        "{}",
        shown.stderr
    );
    let json = guestline.run(&["image", "show", "tiny", "--kconfig", "--json"]).stdout();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["kconfig.64BIT"], "y");
    let facts = guestline.home().join("state/guestline/runs/latest/1/facts.json");
    let facts: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(facts).unwrap()).unwrap();
    assert_eq!(facts["machine"]["kconfig"].as_str().map(str::len), Some(64), "{facts:#}");
}
