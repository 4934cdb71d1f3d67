//! Images with a root of Debian's packages: made, the same again, and what a machine of them is.

use crate::templates::event;
use crate::web::Web;
use guestline_tests::{Guestline, right, shared_cache, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Enough for an image, and nothing that a test can do without.
const SMALL: &str = r#"
name = "small"
summary = "As small as it gets"
suite = "bookworm"
packages = ["iproute2", "kmod", "usr-is-merged"]
memory_mib = 256
ready = "agent"
provides = ["small"]
owner = "tests"

[kernel]
package = "linux-image-cloud-amd64"
cmdline = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check net.ifnames=0"
load = ["virtio_pci", "virtio_console", "virtio_blk", "squashfs", "overlay"]

[files]
"etc/motd" = "hello\n"

[links]
"etc/greeting" = "motd"
"#;

fn own(guestline: &Guestline, name: &str, text: &str) -> PathBuf {
    let folder = guestline.home().join("config/guestline/images");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path
}

fn manifest(guestline: &Guestline, name: &str) -> Value {
    let shown: Value =
        serde_json::from_str(&right(&guestline.run(&["image", "show", name, "--json"]))).unwrap();
    shown["made"].clone()
}

#[test]
fn a_users_own_image_is_made_the_same_from_its_lock() {
    let guestline = Guestline::new();
    let beside = "\"usr/bin/probe\" = { file = \"probe\", mode = \"0755\" }\n\
                  \"etc/secret\" = { content = \"s\", mode = \"0600\" }\n";
    let path = own(&guestline, "small", &SMALL.replace("[files]\n", &format!("[files]\n{beside}")));
    let ran = guestline.run(&["image", "build", "small"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("files.\"usr/bin/probe\": `/"), "{}", ran.stderr);
    fs::write(path.with_file_name("probe"), "#!/bin/sh\necho probed\n").unwrap();
    let ran = guestline.run(&["image", "build", "small", "--locked"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("there is none\n  hint: --update-lock"), "{}", ran.stderr);
    right(&guestline.run(&["image", "build", "small"]));
    let first = manifest(&guestline, "small");
    assert_eq!(first["provides"], serde_json::json!(["small"]));
    let lock = path.with_extension("lock");
    let written = fs::read_to_string(&lock).unwrap();
    assert!(written.contains("suite = \"bookworm\"") && written.contains("name = \"iproute2\""));
    let line = "test \"$(cat /etc/greeting)\" = hello && ip link show lo >/dev/null && modprobe nf_tables && \
                ! touch /run/root/disk/x 2>/dev/null && touch /x && probe && stat -c %a-%u /usr/bin/probe /etc/secret && . /etc/os-release && echo $VERSION_CODENAME";
    let ran = guestline.run(&["check", "--image", "small", line]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "probed\n755-0\n600-0\nbookworm\n");
    // What was written is gone, and the next one is restored.
    let ran =
        guestline.run(&["check", "--image", "small", "--message-format", "json", "test ! -e /x"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(event(&ran, "machine-ready")[0]["template"].is_string());

    // A test may want a package more; its image has a lock of its own. One that is of another list of packages is not
    // built from, and stays.
    let other = path.with_file_name("small+hello.lock");
    fs::write(&other, &written).unwrap();
    let ran = guestline.run(&["check", "--image", "small", "--package", "hello", "hello -g hi"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "hi\n");
    assert!(ran.stderr.contains("moved on: hello none -> "), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(&other).unwrap(), written);

    // A version that is not to be had: not made at all, or of what there is.
    let moved =
        written.replace("name = \"iproute2\"\nversion = \"", "name = \"iproute2\"\nversion = \"0.");
    let at = written.find("name = \"iproute2\"").unwrap();
    let from = at + written[at..].find("sha256 = \"").unwrap() + 10;
    fs::write(&lock, moved.replace(&written[from..from + 64], &"0".repeat(64))).unwrap();
    let ran = guestline.run(&["image", "build", "small", "--locked"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    let ran = guestline.run(&["image", "build", "small", "--update-lock"]);
    right(&ran);
    assert!(ran.stderr.contains("image small: moved on: iproute2 0."), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(&lock).unwrap(), written);
    assert_eq!(manifest(&guestline, "small"), first, "two builds differ");

    // What extends it in two lines is another one, and takes nothing with it.
    own(&guestline, "derived", "extends = \"small\"\npackages = [\"hello\"]\n");
    let listed = right(&guestline.run(&["image", "list"]));
    let line = listed.lines().find(|line| line.starts_with("derived ")).unwrap();
    assert!(line.contains("not made") && line.ends_with("small with hello"), "{line}");
    right(&guestline.run(&["image", "rm", "derived"]));
    assert_eq!(right(&guestline.run(&["image", "verify", "small"])), "small: right\n");
    // So is one with more packages.
    let variant = ["image", "verify", "small+hello"];
    assert_eq!(right(&guestline.run(&variant)), "small+hello: right\n");
    right(&guestline.run(&["image", "rm", "small+hello"]));
    assert_eq!(right(&guestline.run(&variant)), "small+hello: not made\n");
    assert_eq!(right(&guestline.run(&["image", "verify", "small"])), "small: right\n");
    right(&guestline.run(&["image", "rm", "small"]));
    assert_eq!(right(&guestline.run(&["image", "verify", "small"])), "small: not made\n");
    guestline.assert_nothing_left();
}

#[test]
fn what_cannot_be_made_is_said_and_nothing_is_left() {
    let guestline = Guestline::new();
    let errored = |name: &str, text: &str, words: &str| {
        own(&guestline, name, text);
        let ran = guestline.run(&["image", "build", name]);
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    };
    let lacking = SMALL
        .replace("iproute2", "no-such-package")
        .replace("\"small\"\nsummary", "\"lacking\"\nsummary");
    errored("lacking", &lacking, "no package `no-such-package` in suite `bookworm`");
    let dumb =
        SMALL.replace("\"virtio_blk\", ", "").replace("\"small\"\nsummary", "\"dumb\"\nsummary");
    errored(
        "dumb",
        &dumb,
        "it was made, and does not do: the guest powered off before its agent answered; its console ends with: guestline-agent: no disk with serial number `root`",
    );
    let wrong = |name: &str, text: &str, words: &str| {
        own(&guestline, name, text);
        let ran = guestline.run(&["image", "build", name]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    };
    wrong("odd", "name = \"odd\"\nextends = \"tiny\"\nmemory = 1\n", "unknown field `memory`");
    wrong(
        "lost",
        "name = \"lost\"\nextends = \"debian-11\"\n",
        "no image is called `debian-11`; there is: debian-1",
    );
    let ran = guestline.run(&["check", "--image", "debain-12", "true"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr.contains("no image is called `debain-12`; there is: debian-12, "),
        "{}",
        ran.stderr
    );
    let listed = guestline.run(&["image", "list"]);
    assert_eq!(listed.status, 2);
    assert!(
        listed.stderr.contains("unknown field `memory`") && listed.stdout().contains("debian-13")
    );
    let folder = shared_cache().join("guestline/images");
    for name in ["lacking", "dumb"] {
        let left: Vec<_> = fs::read_dir(folder.join(name)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    guestline.assert_nothing_left();
}

#[test]
fn a_machine_with_systemd_has_units_a_journal_and_a_network() {
    let image = ["--image", "debian-12-systemd"];
    let guestline = Guestline::new();
    let line = "systemctl is-system-running && test \"$(cat /proc/1/comm)\" = systemd && \
                systemctl is-active systemd-networkd dbus && journalctl -b -q | grep -q 'Reached target'";
    let nic = ["--nic=10.1.0.5/24", "ip -o addr show dev eth0 | grep 'inet 10.1.0.5/24'"];
    for _ in 0..2 {
        let ran = guestline.run(&[&["check"], &image[..], &[line]].concat());
        ran.assert_verdict(0, "passed");
        assert_eq!(ran.stdout(), "running\nactive\nactive\n");
        guestline.run(&[&["check"], &image[..], &nic].concat()).assert_verdict(0, "passed");
    }
    let ids = ["-j", "1", "cat /etc/machine-id", "cat /etc/machine-id"];
    let ran = guestline.run(&[&["check", "--message-format", "json"], &image[..], &ids].concat());
    let said: Vec<_> =
        event(&ran, "output").iter().map(|event| event["text"].to_string()).collect();
    assert!(said.len() == 2 && said[0] != said[1] && said[0].len() == said[1].len(), "{said:?}");

    // The agent lives on beside systemd, over a reboot as well, and systemd ends the machine.
    let web = Web::up_with(guestline, &image);
    web.line("systemctl start systemd-timesyncd; systemctl stop systemd-timesyncd");
    assert_eq!(web.0.run(&["power", "web", "reboot"]).status, 0);
    web.line("until systemctl is-system-running --wait 2>/dev/null | grep -q running; do sleep 0.5; done");
    assert_eq!(web.line("cat /proc/1/comm"), "systemd");
    web.down();
}

/// An image, with kernel, initramfs and modules, is smaller than so many MB.
fn assert_small(name: &str, most: u64) {
    let guestline = Guestline::new();
    guestline.run(&["check", "--image", name, "true"]).assert_verdict(0, "passed");
    let made = manifest(&guestline, name);
    let files = made["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["name"] == "kernel"), "{files:?}");
    let size: u64 = files.iter().map(|file| file["size"].as_u64().unwrap()).sum();
    assert!(size < most * 1_000_000, "{name} has {size} bytes");
}

#[test]
fn tiny_and_debian_are_small() {
    assert_small("tiny", 20);
    assert_small("debian-12", 90);
}

#[test]
fn debian_with_systemd_is_small() {
    assert_small("debian-12-systemd", 90);
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing() {
    // A cache of its own, in which nobody else makes an image; with the packages, should they be there.
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    fs::create_dir_all(cache.join("guestline")).unwrap();
    for name in ["packages", "apt"] {
        let from = shared_cache().join("guestline").join(name);
        let _ = Command::new("cp").arg("-r").arg(from).arg(cache.join("guestline")).status();
    }
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    own(&guestline, "broken-off", &SMALL.replace("\"small\"\nsummary", "\"broken-off\"\nsummary"));
    let folder = cache.join("guestline/images/broken-off");
    let made = || fs::read_dir(&folder).into_iter().flatten().count();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let running = guestline.start(&["image", "build", "broken-off"]);
        // In the midst of it: packages are unpacked.
        wait_for("a root that is being made", || {
            let making = fs::read_dir(&folder).ok()?.flatten().map(|entry| entry.path());
            let scratch =
                making.flat_map(|making| fs::read_dir(making).into_iter().flatten().flatten());
            let roots =
                scratch.filter(|entry| entry.file_name().to_string_lossy().contains("-root-"));
            let mut all =
                roots.flat_map(|root| fs::read_dir(root.path()).into_iter().flatten().flatten());
            all.find(|entry| entry.path().join("usr/bin").is_dir()).map(drop)
        });
        let _ = kill(running.pid(), signal);
        let ran = running.wait();
        if signal == Signal::SIGINT {
            assert_eq!(ran.status, 130, "{}", ran.stderr);
            assert_eq!(made(), 0);
        }
        wait_for("the end of what it ran", || {
            let mut all = fs::read_dir("/proc").unwrap().flatten();
            let runs = |entry: &fs::DirEntry| {
                let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&words).contains("images/broken-off/")
            };
            (!all.any(|entry| runs(&entry))).then_some(())
        });
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains("broken-off"), "{mounts}");
    }
    // What the killed one left is swept by whoever looks next.
    assert_eq!(guestline.run(&["cache", "prune"]).status, 0);
    assert_eq!(made(), 0);
}

#[test]
fn lines_are_run_by_the_shell_that_the_image_names() {
    let guestline = Guestline::new();
    let text = "name = \"bashed\"\nsummary = \"Its shell is bash\"\nextends = \"debian-12\"\nshell = \"/bin/bash\"\n";
    own(&guestline, "bashed", text);
    let bashism = "[[ x == [a-z] ]] && a=(1 2 3) && echo ${#a[@]} $0";
    let ran = guestline.run(&["check", "--image", "bashed", bashism]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "3 /bin/bash\n");
    // The other's is as it was.
    let ran = guestline.run(&["check", "--image", "debian-12", bashism]);
    ran.assert_verdict(1, "failed");
    guestline.assert_nothing_left();
}
