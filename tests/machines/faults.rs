//! Hosts that lack something: each is an outcome with its stage, never a failed test.

use guestline_tests::{Guestline, shared_cache};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn program(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn no_qemu() {
    let guestline = Guestline::new().with("PATH", "/nowhere");
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(125, "errored  true");
    ran.assert_verdict(125, "host: no `qemu-system-x86_64` on PATH");
    assert!(ran.stderr.contains("guestline doctor"), "{}", ran.stderr);
    guestline.assert_nothing_left();
    let ran = guestline.run(&["doctor"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stdout().contains("apt-get install qemu-system-x86"), "{}", ran.stdout());
    let guestline = Guestline::new().with("GUESTLINE_QEMU", "/none");
    guestline.run(&["check", "true"]).assert_verdict(125, "GUESTLINE_QEMU names `/none`");
}

#[test]
fn a_qemu_too_old_and_one_that_is_none() {
    let guestline = Guestline::new();
    let old = program(guestline.home(), "old", "#!/bin/sh\necho QEMU emulator version 5.2.0\n");
    let guestline = guestline.with("GUESTLINE_QEMU", &old);
    guestline
        .run(&["check", "true"])
        .assert_verdict(125, "is QEMU 5.2, too old: 7.2 is the oldest");
    let none = program(guestline.home(), "none", "#!/bin/sh\necho hello; exit 3\n");
    let guestline = guestline.with("GUESTLINE_QEMU", &none);
    guestline.run(&["check", "true"]).assert_verdict(125, "host: `");
    guestline.assert_nothing_left();
}

#[test]
fn a_qemu_that_refuses_is_quoted() {
    let guestline = Guestline::new();
    let text = "#!/bin/sh\n[ \"$1\" = --version ] && echo QEMU emulator version 10.0.2 && exit\n\
                echo 'could not set up the frobnicator' >&2\nexit 1\n";
    let fake = program(guestline.home(), "fake", text);
    let guestline = guestline.with("GUESTLINE_QEMU", &fake);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(125, "host: QEMU exited with status 1: could not set up the frobnicator");
    guestline.assert_nothing_left();
}

#[test]
fn no_memory_left_for_the_machine() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "--memory", "9999G", "true"]);
    ran.assert_verdict(125, "host: 9999 GiB asked, ");
    assert!(ran.stderr.contains("hint: --memory 256M is the default"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

/// A copy of the shared cache that a test may damage.
fn own_cache(guestline: Guestline) -> (Guestline, PathBuf) {
    // The shared one is made first.
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    let cache = guestline.home().join("cache");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&shared_cache(), &cache])
        .status()
        .unwrap();
    assert!(copied.success());
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    (guestline, cache.join("guestline/images/tiny"))
}

fn file_of_image(images: &Path, name: &str) -> PathBuf {
    let folders = std::fs::read_dir(images).unwrap().flatten().map(|entry| entry.path());
    let mut folders: Vec<_> = folders.filter(|path| path.join(name).exists()).collect();
    folders.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    folders.pop().unwrap().join(name)
}

#[test]
fn a_damaged_image_is_told_and_can_be_made_anew() {
    let (guestline, images) = own_cache(Guestline::new());
    let newest = |name: &str| {
        // Old agents' images may lie beside it; all of them are damaged.
        for entry in std::fs::read_dir(&images).unwrap().flatten() {
            let path = entry.path().join(name);
            if path.exists() {
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }
    };
    assert!(file_of_image(&images, "kernel").exists());
    newest("kernel");
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(125, "image: image `tiny` is damaged: kernel has ");
    assert!(ran.stderr.contains("guestline image build tiny"), "{}", ran.stderr);
    let ran = guestline.run(&["image", "build", "tiny"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    // A byte that changed without the size is found by the digest.
    for entry in std::fs::read_dir(&images).unwrap().flatten() {
        let path = entry.path().join("initrd.cpio");
        if let Ok(mut bytes) = std::fs::read(&path) {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    guestline.run(&["check", "true"]).assert_verdict(125, "initrd.cpio has another content");
    // What a manifest says is believed as it was written only.
    assert_eq!(guestline.run(&["image", "build", "tiny"]).status, 0);
    for entry in std::fs::read_dir(&images).unwrap().flatten() {
        let path = entry.path().join("manifest.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"memory_mib\": 256", "\"memory_mib\": 300")).unwrap();
    }
    guestline.run(&["check", "true"]).assert_verdict(125, "manifest.json was written to");
    newest("manifest.json");
    guestline.run(&["check", "true"]).assert_verdict(125, "is damaged: manifest.json");
    guestline.assert_nothing_left();
}

/// Runs the program with a small file system mounted at `folder`, in a mount namespace of its own.
fn on_small_disk(guestline: Guestline, folder: &Path, kib: u32) -> Guestline {
    std::fs::create_dir_all(folder).unwrap();
    let mount = format!(
        "mount -t tmpfs -o size={kib}k,mode=0700 none '{}' && exec \"$@\"",
        folder.display()
    );
    let user = if nix::unistd::Uid::effective().is_root() { "-m" } else { "-Urm" };
    guestline.under(&["unshare", user, "sh", "-c", &mount, "sh"])
}

#[test]
fn a_full_disk_below_the_evidence() {
    let guestline = Guestline::new();
    let state = guestline.home().join("state");
    let guestline = on_small_disk(guestline, &state, 256);
    let ran = guestline.run(&["check", "head -c 5000000 /dev/zero"]);
    ran.assert_verdict(125, "host: cannot keep the evidence in ");
    ran.assert_verdict(125, "No space left on device");
    guestline.assert_nothing_left();
}

#[test]
fn a_full_disk_below_the_cache() {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    let guestline = on_small_disk(guestline, &cache, 4096);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(125, "image: image `tiny` cannot be made");
    guestline.assert_nothing_left();
}

#[test]
fn a_full_disk_below_the_work_folder() {
    let guestline = Guestline::new();
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    // What is unpacked already is copied there.
    let kernel = file_of_image(&shared_cache().join("guestline/kernels/1"), "vmlinux");
    let small = guestline.home().join("small");
    let guestline = guestline.with("XDG_RUNTIME_DIR", &small);
    let guestline = on_small_disk(guestline, &small, 1024);
    let ran = guestline.run(&["check", "--kernel", &kernel.display().to_string(), "true"]);
    ran.assert_verdict(125, "host: cannot write `");
    ran.assert_verdict(125, "No space left on device");
    guestline.assert_nothing_left();
}

#[test]
fn a_runtime_folder_that_others_may_enter_is_refused() {
    let guestline = Guestline::new();
    let run = guestline.home().join("run/guestline");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).unwrap();
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(125, "host: cannot make a work folder");
    assert!(ran.stderr.contains("mode 0700"), "{}", ran.stderr);
}

#[test]
fn what_a_dead_run_left_is_swept_by_the_next() {
    let guestline = Guestline::new();
    let dead = guestline.home().join("run/guestline/dead");
    std::fs::create_dir_all(dead.join("1")).unwrap();
    std::fs::set_permissions(dead.parent().unwrap(), std::fs::Permissions::from_mode(0o700))
        .unwrap();
    std::fs::write(dead.join("lock"), "").unwrap();
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    assert!(!dead.exists());
    guestline.assert_nothing_left();
}

#[test]
fn an_accelerator_that_does_not_run_is_not_taken_and_can_be_forced() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["-v", "check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("accelerator: "), "{}", ran.stderr);
    let ran = guestline.run(&["-v", "check", "--accel", "tcg", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("accelerator: tcg (as asked)"), "{}", ran.stderr);
    let ran = guestline.run(&["doctor"]);
    assert_eq!(ran.status, 0, "{}", ran.stdout());
    assert!(ran.stdout().contains("accelerator"), "{}", ran.stdout());
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let guestline = Guestline::new();
    let folder = guestline.home().join("config/guestline");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("guestline.toml"), "[packages]\nmiror = \"x\"\n").unwrap();
    let ran = guestline.run(&["check", "true"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("unknown field `miror`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("guestline.toml"), "{}", ran.stderr);
}
