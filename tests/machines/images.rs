//! Making and listing images.

use guestline::digest::Digest;
use guestline_tests::{Guestline, dirs_of, image, right, shared_cache};
use serde_json::Value;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The manifest of the one image below a cache.
fn manifest(cache: &Path) -> PathBuf {
    let folder = cache.join("guestline/images/tiny");
    let folders = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("manifest.json")).find(|path| path.exists()).unwrap()
}

#[test]
fn two_builds_are_the_same_byte_for_byte_and_are_listed() {
    let builds: Vec<_> = [(), ()]
        .iter()
        .map(|()| {
            let guestline = Guestline::new();
            let cache = guestline.home().join("cache");
            let guestline = guestline.with("XDG_CACHE_HOME", &cache);
            let ran = guestline.run(&["image", "list"]);
            assert!(ran.stdout().contains("not made"), "{}", ran.stdout());
            let ran = guestline.run(&["image", "build", "tiny"]);
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            let ran = guestline.run(&["image", "list"]);
            assert!(ran.stdout().contains("MB"), "{}", ran.stdout());
            let manifest = manifest(&cache);
            let folder = manifest.parent().unwrap();
            let files = ["manifest.json", "kernel", "initrd.cpio"];
            files.map(|name| std::fs::read(folder.join(name)).unwrap())
        })
        .collect();
    assert!(builds[0] == builds[1], "two builds differ");
    let manifest: Value = serde_json::from_slice(&builds[0][0]).unwrap();
    let packages = manifest["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 2);
    for package in packages {
        assert_eq!(package["sha256"].as_str().unwrap().len(), 64);
        assert!(!package["version"].as_str().unwrap().is_empty());
    }
}

#[test]
fn the_first_check_makes_the_image_and_says_so() {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("image tiny: made from 2 packages in "), "{}", ran.stderr);
    let again = guestline.run(&["check", "true"]);
    assert!(!again.stderr.contains("image tiny"), "{}", again.stderr);
}

#[test]
fn lint_takes_names_and_says_what_it_can_of_what_it_does_not_look_into() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["image", "lint", "tiny"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout().starts_with("tiny: manifest of image tiny"), "{}", ran.stdout());
    let ran = guestline.run(&["image", "lint", "tinny"]);
    assert_eq!(ran.status, 2, "{}", ran.stdout());
    let wanted = "`tinny` is no file, and no image is called that; there is: tiny, ";
    assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    let mut iso = vec![0; 0x8001];
    iso.extend(b"CD001");
    for (name, bytes, kind) in
        [("x.sqfs", b"hsqs".to_vec(), "squashfs"), ("x.iso", iso, "ISO image")]
    {
        std::fs::write(guestline.home().join(name), bytes).unwrap();
        let ran = guestline.run(&["image", "lint", "--json", name]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let said: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!((&said["what"], &said["findings"][0]["id"]), (&kind.into(), &"unseen".into()));
    }
}

#[test]
fn a_damaged_image_and_a_wrong_manifest_are_said_and_the_others_are_looked_at() {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    assert_eq!(guestline.run(&["image", "build", "tiny"]).status, 0);
    let ran = guestline.run(&["image", "verify"]);
    assert_eq!((ran.status, &*ran.stdout()), (0, "tiny: right\n"), "{}", ran.stderr);
    let config = guestline.home().join("config/guestline/images");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("a.toml"), "extends = \"tiny\"\nmemory = 1\n").unwrap();
    let ran = guestline.run(&["image", "verify"]);
    assert_eq!((ran.status, &*ran.stdout()), (2, "tiny: right\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("images/a.toml`): unknown field `memory`"), "{}", ran.stderr);
    let share = guestline.home().join("share");
    let ran = guestline.run(&["image", "publish", share.to_str().unwrap()]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stdout().contains("new      image tiny"), "{}", ran.stdout());
    assert!(ran.stderr.contains("unknown field `memory`"), "{}", ran.stderr);

    let kernel = manifest(&cache).with_file_name("kernel");
    let mut bytes = std::fs::read(&kernel).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&kernel, bytes).unwrap();
    for names in [&[][..], &["tiny"]] {
        let ran = guestline.run(&[&["image", "verify"], names].concat());
        assert_eq!(ran.status, 1, "{}", ran.stderr);
        let said = ran.stdout();
        assert!(said.starts_with("tiny: damaged: ") && said.contains("kernel"), "{said}");
        assert!(said.ends_with("`guestline image build tiny` makes it anew\n"), "{said}");
    }
}

/// A Debian repository made here, signed by a key made here, behind a `file:` address: what a host without
/// apt is given.
fn mirror(folder: &Path) {
    let pool = shared_cache().join("guestline/packages");
    let script = format!(
        "set -e; cd '{folder}'; mkdir -p pool dists/test/main/binary-amd64 gpg; chmod 700 gpg; \
         cp '{pool}'/*.deb pool/; \
         for deb in pool/*.deb; do dpkg-deb -f $deb Package Version Depends; \
           printf 'Filename: %s\\nSHA256: %s\\n\\n' $deb $(sha256sum $deb | cut -d' ' -f1); done > Packages; \
         kernel=$(sed -n 's/^Package: \\(linux-image-.*\\)/\\1/p' Packages | head -n 1); \
         printf 'Package: linux-image-cloud-amd64\\nVersion: 1\\nDepends: %s (= 1)\\nFilename: pool/x\\nSHA256: %064d\\n' $kernel 0 >> Packages; \
         xz -k Packages; mv Packages.xz dists/test/main/binary-amd64/; \
         printf 'Suite: test\\nSHA256:\\n %s 1 main/binary-amd64/Packages.xz\\n' \
           $(sha256sum dists/test/main/binary-amd64/Packages.xz | cut -d' ' -f1) > Release; \
         export GNUPGHOME=$PWD/gpg; \
         gpg -q --batch --passphrase '' --quick-gen-key test@example.org rsa2048 sign never; \
         gpg -q --batch --clearsign -o dists/test/InRelease Release; \
         gpg -q --export > keyring.gpg; gpgconf --kill all",
        folder = folder.display(),
        pool = pool.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_configured_mirror_is_checked_and_used() {
    let guestline = Guestline::new();
    // The pool of the shared cache is filled first.
    assert_eq!(guestline.run(&["image", "build", "tiny"]).status, 0);
    let folder = guestline.home().join("mirror");
    std::fs::create_dir_all(&folder).unwrap();
    mirror(&folder);
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    let config = guestline.home().join("config/guestline");
    std::fs::create_dir_all(&config).unwrap();
    let write = |keyring: &str| {
        let address = folder.display();
        let text = format!(
            "[packages]\nmirror = \"file://{address}\"\nsuite = \"test\"\nkeyring = \"{keyring}\"\n"
        );
        std::fs::write(config.join("guestline.toml"), text).unwrap();
    };
    // Signed by another key.
    write("/usr/share/keyrings/debian-archive-keyring.gpg");
    let ran = guestline.run(&["image", "build", "tiny"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("gpgv"), "{}", ran.stderr);
    write(&folder.join("keyring.gpg").display().to_string());
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    // A package that was changed on the mirror.
    for entry in std::fs::read_dir(folder.join("pool")).unwrap().flatten() {
        let mut bytes = std::fs::read(entry.path()).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(entry.path(), bytes).unwrap();
    }
    std::fs::remove_dir_all(cache.join("guestline/packages")).unwrap();
    let ran = guestline.run(&["image", "build", "tiny"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("has the wrong SHA-256"), "{}", ran.stderr);
}

#[test]
fn the_smallest_image_has_a_lock_too() {
    let guestline = Guestline::new();
    // An image of its own: what is made anew here is nobody else's.
    let folder = guestline.home().join("config/guestline/images");
    std::fs::create_dir_all(&folder).unwrap();
    let manifest = "name = \"mine\"\nsummary = \"tiny\"\nextends = \"tiny\"\n";
    std::fs::write(folder.join("mine.toml"), manifest).unwrap();
    let lock = folder.join("mine.lock");
    let build = |more: &[&str]| guestline.run(&[&["image", "build", "mine"], more].concat());

    let ran = build(&["--locked"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("there is none"), "{}", ran.stderr);
    assert_eq!(build(&[]).status, 0);
    let text = std::fs::read_to_string(&lock).unwrap();
    assert!(text.contains("name = \"busybox-static\""), "{text}");
    assert_eq!(build(&["--locked"]).status, 0);

    // A version that was never there.
    let version = |text: &str| {
        let (_, rest) = text.split_once("name = \"busybox-static\"\nversion = \"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let of_now = version(&text);
    let digest = text.rsplit_once("sha256 = \"").map(|(_, rest)| &rest[..64]).unwrap();
    let other = text.replace(&of_now, "0.1").replace(digest, &"0".repeat(64));
    std::fs::write(&lock, &other).unwrap();
    let ran = build(&["--locked"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    let ran = build(&[]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let moved = format!("image mine: moved on: busybox-static 0.1 -> {of_now}");
    assert!(ran.stderr.contains(&moved), "{}", ran.stderr);
    assert!(ran.stderr.contains("--update-lock writes what was used"), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), other);
    assert_eq!(build(&["--update-lock"]).status, 0);
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), text);
}

/// A manifest of the user's.
fn own(guestline: &Guestline, name: &str, text: &str) {
    let folder = guestline.home().join("config/guestline/images");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.toml")), text).unwrap();
}

#[test]
fn a_build_that_does_not_do_leaves_the_image_that_was_there() {
    let guestline = Guestline::new();
    let text = "name = \"kept\"\nsummary = \"x\"\nextends = \"tiny\"\nmemory_mib = 251\n";
    own(&guestline, "kept", text);
    right(&guestline.run(&["image", "build", "kept"]));
    let made = || -> Value {
        let shown = right(&guestline.run(&["image", "show", "kept", "--json"]));
        serde_json::from_str::<Value>(&shown).unwrap()["made"].clone()
    };
    let folders = || {
        let all = std::fs::read_dir(shared_cache().join("guestline/images/kept")).unwrap();
        let mut all: Vec<_> = all
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().ino()))
            .collect();
        all.sort();
        all
    };
    let (before, there) = (made(), folders());
    assert!(before.is_object());

    // The same once more, on a host whose QEMU does not do.
    let fails = guestline.home().join("fails");
    let words =
        "#!/bin/sh\n[ \"$1\" = --version ] && echo QEMU emulator version 10.0.2 && exit\nexit 1\n";
    std::fs::write(&fails, words).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&fails, mode).unwrap();
    let build = ["GUESTLINE_QEMU=".to_owned() + fails.to_str().unwrap()];
    let program = guestline_tests::named_by("GUESTLINE_PROGRAM");
    let build = [&build[0], program.to_str().unwrap(), "image", "build", "kept"];
    let ran = guestline.run_other("env", &build, std::process::Stdio::null());
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("it was made, and does not do: QEMU exited"), "{}", ran.stderr);
    assert_eq!(folders(), there);

    // Changed so that its line fails; nothing of that is left, and what it was before needs not be made.
    own(&guestline, "kept", &format!("{text}warm_up = \"echo cold >&2; exit 3\"\n"));
    let ran = guestline.run(&["image", "build", "kept"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("it was made, and does not do: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("exit 3"), "{}", ran.stderr);
    assert_eq!(folders(), there);
    own(&guestline, "kept", text);
    assert_eq!(made(), before);
    guestline.run(&["check", "--image", "kept", "true"]).assert_verdict(0, "passed");
    assert_eq!(folders(), there);
    guestline.assert_nothing_left();
}

/// A manifest of what is made already: the root of `debian-12-systemd`, in whose machines units come seconds after the agent.
async fn unit_image(guestline: &Guestline, name: &str, unit: &str, cmdline: &str) {
    let systemd = image(&dirs_of(guestline.home()), "debian-12-systemd").await;
    let root = systemd.root.as_ref().unwrap();
    let text = format!(
        "name = \"{name}\"\nsummary = \"x\"\nsuite = \"bookworm\"\npackages = []\nmemory_mib = 512\n\
         init = \"/sbin/init\"\nready = \"{unit}\"\n\
         [root]\nfile = \"root\"\nsha256 = \"{digest}\"\n\
         [kernel]\npackage = \"linux-image-cloud-amd64\"\n\
         cmdline = \"console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.firstboot=off {cmdline}\"\n\
         load = [\"virtio_pci\", \"virtio_console\", \"virtio_blk\", \"squashfs\", \"overlay\"]\n",
        digest = Digest::of_file(root).unwrap(),
    );
    own(guestline, name, &text);
    let folder = guestline.home().join("config/guestline/images");
    symlink(root.canonicalize().unwrap(), folder.join("root")).unwrap();
}

#[tokio::test]
async fn an_image_is_ready_when_its_unit_is_active() {
    let guestline = Guestline::new();
    unit_image(&guestline, "by-unit", "multi-user.target", "").await;
    // Asked once and at once, booted and then restored.
    let line = "systemctl is-active multi-user.target";
    for _ in 0..2 {
        let ran = guestline.run(&["check", "--image", "by-unit", line]);
        ran.assert_verdict(0, "passed");
        assert_eq!(ran.stdout(), "active\n");
    }
    guestline.assert_nothing_left();
}

#[tokio::test]
async fn an_image_whose_unit_fails_is_not_made() {
    let guestline = Guestline::new();
    let (unit, cmdline) =
        ("kernel-command-line.service", "systemd.run=/bin/false systemd.run_failure_action=none");
    unit_image(&guestline, "by-failure", unit, cmdline).await;
    let ran = guestline.run(&["image", "build", "by-failure"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains(unit), "{}", ran.stderr);
    guestline.assert_nothing_left();
}
