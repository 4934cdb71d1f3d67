//! Disks of virt-builder(1), from a repository of our own: it reaches for no other.

use crate::archives::debian_disk;
use crate::import::{root, run, words};
use guestline::digest::Digest;
use guestline_tests::{Guestline, Ran, dirs_of, image, right, shared_cache, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A repository with one template, as virt-builder(1) has it ("Create the templates", "SOURCES OF TEMPLATES").
fn repository(home: &Path, disk: &Path) {
    let folder = home.join("repository");
    fs::create_dir_all(&folder).unwrap();
    let size = fs::metadata(disk).unwrap().len();
    let packed = run(words("xz -0 -T2 -c").arg(disk));
    let (digest, len) = (Digest::of(&packed), packed.len());
    fs::write(folder.join("small.xz"), packed).unwrap();
    let index = format!(
        "[Small]\nname=A small Debian\nosinfo=debian12\narch=x86_64\nfile=small.xz\n\
         checksum[sha256]={digest}\nformat=raw\nsize={size}\ncompressed_size={len}\nrevision=1\n"
    );
    fs::write(folder.join("index"), index).unwrap();
    let sources = home.join("config/virt-builder/repos.d");
    fs::create_dir_all(&sources).unwrap();
    let uri = folder.join("index");
    fs::write(sources.join("own.conf"), format!("[own]\nuri=file://{}\n", uri.display())).unwrap();
}

/// Command lines of processes that name the folder where disks are made; libguestfs follows links.
fn lines(made_in: &Path) -> Vec<String> {
    let made_in = made_in.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(made_in)).collect()
}

/// The folder of libguestfs's sockets that a command line names.
fn sockets(line: &str) -> Option<PathBuf> {
    let (_, rest) = line.split_once("path=")?;
    let socket = Path::new(rest.split([',', ' ']).next()?);
    socket.ends_with("guestfsd.sock").then(|| socket.parent().unwrap().to_owned())
}

fn assert_refused(ran: &Ran, words: &str) {
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

#[tokio::test]
async fn a_template_of_virt_builder_is_a_machine() {
    let guestline = Guestline::new();
    let home = guestline.home().to_owned();
    // Its cache of templates is this test's; images are shared.
    let cache = home.join("cache");
    fs::create_dir_all(&cache).unwrap();
    fs::create_dir_all(shared_cache().join("guestline")).unwrap();
    let shared = shared_cache().canonicalize().unwrap();
    symlink(shared.join("guestline"), cache.join("guestline")).unwrap();
    let made_in = shared.join("guestline/virt-builder");
    let guestline =
        guestline.with("XDG_CACHE_HOME", &cache).with("VIRT_BUILDER_DIRS", home.join("nowhere"));
    root(&home);
    let systemd = image(&dirs_of(&home), "debian-12-systemd").await;
    let making = tokio::task::spawn_blocking(move || {
        let disk = debian_disk(&home, &systemd);
        repository(&home, &disk);
        home
    });
    let home = making.await.unwrap();
    let import =
        |template: &str| guestline.start(&["image", "import", &format!("virt-builder:{template}")]);

    assert_refused(&import("").wait(), "virt-builder has no template ``");
    assert_refused(&import("tiny").wait(), "there is an image `tiny` already");
    assert_refused(
        &import("none").wait(),
        "virt-builder has no template `none` for x86-64\nhint: `virt-builder --list` names",
    );

    // Interrupted while a machine of its own runs.
    let running = import("Small");
    let sockets = wait_for("virt-builder's machine", || {
        lines(&made_in).iter().find_map(|line| sockets(line))
    });
    running.signal(Signal::SIGINT);
    let ran = running.wait();
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("aborted  import of virt-builder:Small"), "{}", ran.stderr);
    let left = || (lines(&made_in).is_empty() && !sockets.exists()).then_some(());
    wait_for("the end of all that virt-builder has", left);
    assert_eq!(fs::read_dir(&made_in).unwrap().count(), 0);

    // What one that was killed left goes.
    fs::create_dir_all(made_in.join("dead")).unwrap();
    let said = right(&import("Small").wait());
    assert!(said.starts_with("image small: made in "), "{said}");
    assert_eq!(fs::read_dir(&made_in).unwrap().count(), 0);
    assert_eq!(lines(&made_in), [""; 0]);
    let manifest = home.join("state/guestline/images/small/image.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    assert!(manifest.contains("imported qcow2 disk small.qcow2"), "{manifest}");
    // By the disk's own boot loader, with its own init, and the password that virt-builder was told.
    let line = "systemctl is-active guestline-agent && findmnt -n -o SOURCE / | grep vda2 && \
                grep -q '^root:[*!]' /etc/shadow";
    guestline.run(&["check", "--image", "small", line]).assert_verdict(0, "passed");
    guestline.assert_nothing_left();
}

#[test]
fn without_virt_builder_its_package_is_named() {
    let guestline = Guestline::new().with("PATH", "/nowhere");
    let ran = guestline.run(&["image", "import", "virt-builder:small"]);
    assert_refused(
        &ran,
        "`virt-builder` is not installed, which makes disks of its templates\n\
         hint: on Debian it is in the package guestfs-tools",
    );
}
