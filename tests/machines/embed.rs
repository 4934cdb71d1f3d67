//! The agent put into disks, and taken out: in machines, with tools that are none of ours looking at what came of it.

use crate::archives::debian_disk;
use crate::import::root;
use crate::snapshots::shell;
use guestline::digest::Digest;
use guestline::dirs::Dirs;
use guestline::image::Image;
use guestline::machine::{Accel, Disk, DiskFile, DiskFormat, Qemu};
use guestline::provision::{Lease, MachineRequest, Provisioner, WorkRoot};
use guestline_tests::{Guestline, dirs_of, image, named_by, right, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const AGENT: &str = "/usr/local/sbin/guestline-agent";
const UNIT: &str = "/etc/systemd/system/guestline-agent.service";

/// A folder that looks like a system with systemd, of this name.
fn system(at: &Path, name: &str) {
    for folder in ["etc/systemd/system", "usr/lib/systemd", "usr/sbin", "usr/bin"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::write(at.join("etc/os-release"), format!("PRETTY_NAME=\"{name}\"\n")).unwrap();
    fs::write(at.join("usr/lib/systemd/systemd"), "x").unwrap();
    fs::write(at.join("usr/bin/sh"), "x").unwrap();
    symlink("/usr/lib/systemd/systemd", at.join("usr/sbin/init")).unwrap();
    symlink("usr/sbin", at.join("sbin")).unwrap();
    symlink("usr/bin", at.join("bin")).unwrap();
}

fn tool(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).stderr(Stdio::piped()).output().unwrap();
    assert!(ran.status.success(), "{program} {args:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw file with an ext4 that holds such a system.
fn ext4(folder: &Path, name: &str) -> PathBuf {
    let (root, file) = (folder.join(format!("{name}.root")), folder.join(format!("{name}.ext4")));
    system(&root, name);
    File::create_new(&file).unwrap().set_len(48 << 20).unwrap();
    tool("mkfs.ext4", &["-q", "-F", "-d", text(&root), text(&file)]);
    file
}

/// A disk with a partition for each of these files (MBR; UEFI specification, 5.2.1).
fn partitioned(disk: &Path, parts: &[&Path]) {
    const MIB: u64 = 1 << 20;
    let mut file = File::create_new(disk).unwrap();
    let mut at = MIB;
    for (number, part) in parts.iter().enumerate() {
        let mut content = Vec::new();
        File::open(part).unwrap().read_to_end(&mut content).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&content).unwrap();
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&u32::try_from(at / 512).unwrap().to_le_bytes());
        let sectors = u32::try_from(content.len() / 512).unwrap();
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        file.write_all_at(&entry, 446 + 16 * number as u64).unwrap();
        at += content.len() as u64;
    }
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

/// What debugfs(8) finds at a path of an ext4 file; empty when nothing is there.
fn in_ext4(file: &Path, path: &str) -> Vec<u8> {
    let ran = Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(file).output();
    ran.unwrap().stdout
}

#[test]
fn a_disk_gets_the_agent_the_same_again_and_gives_it_back() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let raw = ext4(home, "One");
    let before = fs::read(&raw).unwrap();
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&home.join("in.qcow2"))],
    );
    let lint = guestline.run(&["image", "lint", "--json", "in.qcow2"]);
    assert_eq!(lint.status, 1, "{}", lint.stderr);
    let lint: Value = serde_json::from_str(&lint.stdout()).unwrap();
    assert_eq!(lint["findings"][0]["id"], "no-agent");

    let dry = right(&guestline.run(&["image", "embed", "in.qcow2", "--dry-run"]));
    assert!(dry.contains(&format!("would add {AGENT}")), "{dry}");
    for (from, to) in [("in.qcow2", "out.qcow2"), ("One.ext4", "out.raw")] {
        let said = right(&guestline.run(&["image", "embed", from, "-o", to]));
        assert!(
            said.starts_with(&format!("{from}: One, systemd, in disk (ext4, 48.0 MiB)\n")),
            "{said}"
        );
        assert!(said.contains(&format!("  added {UNIT} (")), "{said}");
    }
    assert_eq!(fs::read(&raw).unwrap(), before);
    let check = tool("qemu-img", &["check", text(&home.join("out.qcow2"))]);
    assert!(check.contains("No errors"), "{check}");
    let converted = home.join("converted.raw");
    tool("qemu-img", &["convert", "-O", "raw", text(&home.join("out.qcow2")), text(&converted)]);
    for file in [&converted, &home.join("out.raw")] {
        assert_eq!(in_ext4(file, AGENT), fs::read(named_by("GUESTLINE_AGENT")).unwrap());
        assert!(String::from_utf8(in_ext4(file, UNIT)).unwrap().contains(AGENT));
        tool("e2fsck", &["-f", "-n", text(file)]);
    }

    // Once more changes nothing, byte for byte; and what was put in can be taken out.
    let again = right(&guestline.run(&["image", "embed", "out.qcow2", "-o", "again.qcow2"]));
    assert!(again.contains("nothing to add"), "{again}");
    assert!(
        fs::read(home.join("again.qcow2")).unwrap() == fs::read(home.join("out.qcow2")).unwrap()
    );
    right(&guestline.run(&["image", "lint", "out.raw"]));
    let gone = right(&guestline.run(&["image", "unembed", "--in-place", "out.raw"]));
    assert!(gone.contains(&format!("removed {AGENT}")), "{gone}");
    let out = home.join("out.raw");
    for path in [AGENT, UNIT, "/etc/guestline/embedded"] {
        assert_eq!(in_ext4(&out, path), b"", "{path}");
    }
    assert!(!tool("debugfs", &["-R", "ls -p /usr", text(&out)]).contains("/local/"));
    tool("e2fsck", &["-f", "-n", text(&out)]);
    guestline.assert_nothing_left();
}

#[test]
fn of_several_systems_one_has_to_be_named() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let (one, two) = (ext4(home, "One"), ext4(home, "Two"));
    partitioned(&home.join("disk"), &[&one, &two]);
    let ran = guestline.run(&["image", "embed", "disk", "-o", "out"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("more than one system: 1 (One, systemd), 2 (Two, systemd)"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("hint: --root NAME"), "{}", ran.stderr);
    let ran = guestline.run(&["image", "embed", "disk", "-o", "out", "--root", "3"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(!home.join("out").exists());
    let said = right(&guestline.run(&["image", "embed", "disk", "-o", "out", "--root", "2"]));
    assert!(said.contains("Two, systemd, in partition 2 (ext4"), "{said}");
    let (disk, part) = (fs::read(home.join("out")).unwrap(), home.join("part"));
    let (first, second) = disk[1 << 20..].split_at(48 << 20);
    assert!(first == fs::read(&one).unwrap());
    fs::write(&part, second).unwrap();
    assert_eq!(in_ext4(&part, AGENT), fs::read(named_by("GUESTLINE_AGENT")).unwrap());
    guestline.assert_nothing_left();
}

/// A machine with a disk that is a file of ours.
async fn with_disk(home: &Path, image: Image, disk: Disk) -> Lease {
    let dirs: Dirs = dirs_of(home);
    let root = WorkRoot::create(&dirs, false).unwrap();
    let provisioner = Provisioner::new(Qemu::find(&dirs).unwrap(), Accel::Tcg, root, &dirs);
    let mut request = MachineRequest::new(image, Duration::from_secs(180));
    request.given.push(disk);
    match provisioner.lease(&request, &CancellationToken::new()).await {
        Ok(lease) => {
            assert!(lease.template.is_none());
            lease
        }
        Err(failed) => panic!("{:?} {:?}", failed.error, failed.console),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_subvolumes_are_found() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let tools = image(&dirs_of(home), "tools").await;
    let path = home.join("disk");
    let make = "mkdir -p usr/lib/systemd usr/sbin etc; echo ID=here >etc/os-release; \
                echo x >usr/lib/systemd/systemd; ln -s /usr/lib/systemd/systemd usr/sbin/init; ln -s usr/sbin sbin";
    let lvm = format!(
        "pvcreate -q /dev/vda && vgcreate -q my-vg /dev/vda && lvcreate -q -Zn -L 100M -n root my-vg && \
         lvcreate -q -Zn -L 50M -n swap my-vg && mkswap /dev/my-vg/swap && mkfs.ext4 -q /dev/my-vg/root && \
         mount /dev/my-vg/root /mnt && cd /mnt && {make} && cd / && umount /mnt && vgchange -q -an"
    );
    let btrfs = format!(
        "mkfs.btrfs -q /dev/vda && mount -t btrfs /dev/vda /mnt && btrfs subvolume create /mnt/@home && \
         btrfs subvolume create /mnt/@ && cd /mnt/@ && {make} && cd / && umount /mnt"
    );
    let cases = [
        (lvm, "in volume my-vg/root (ext4, 100.0 MiB)"),
        (btrfs, "in disk (btrfs, 200.0 MiB), subvolume @"),
    ];
    for (line, place) in cases {
        File::create(&path).unwrap().set_len(200 << 20).unwrap();
        let disk = Disk::given(DiskFile::at(path.clone(), DiskFormat::Raw), 200 << 20, false);
        let lease = with_disk(home, tools.clone(), disk).await;
        shell(&lease.guest, &format!("export DM_DISABLE_UDEV=1; ({line}) 2>&1; sync")).await;
        drop(lease.end().await);
        let said = right(&guestline.run(&["image", "embed", "disk", "--in-place"]));
        assert!(said.contains("here, systemd, ") && said.contains(place), "{said}");
        assert!(said.contains(&format!("added {AGENT}")), "{said}");
        let again = right(&guestline.run(&["image", "embed", "disk", "--dry-run"]));
        assert!(again.contains("nothing to add"), "{again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_was_not_unmounted_is_named() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let tools = image(&dirs_of(home), "tools").await;
    let path = ext4(home, "One");
    let size = path.metadata().unwrap().len();
    let disk = Disk::given(DiskFile::at(path, DiskFormat::Raw), size, false);
    let lease = with_disk(home, tools, disk).await;
    shell(&lease.guest, "mount /dev/vda /mnt && touch /mnt/x && sync").await;
    // As when the power goes.
    drop(lease.end().await);
    let lint = guestline.run(&["image", "lint", "One.ext4"]);
    assert!(
        lint.stdout().contains("was not unmounted cleanly"),
        "{}\n{}",
        lint.stdout(),
        lint.stderr
    );
    let said = right(&guestline.run(&["image", "embed", "One.ext4", "-o", "out"]));
    assert!(said.contains("note: disk (ext4, 48.0 MiB) was not unmounted cleanly"), "{said}");
    tool("e2fsck", &["-f", "-n", text(&home.join("out"))]);
}

#[test]
fn what_cannot_be_is_said_and_nothing_is_left() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let raw = ext4(home, "One");
    let wrong = |args: &[&str], status: i32, words: &str| {
        let mut all = vec!["image", "embed"];
        all.extend(args);
        let ran = guestline.run(&all);
        assert_eq!(ran.status, status, "{args:?} {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{args:?} {}", ran.stderr);
    };
    fs::write(home.join("text"), "no image").unwrap();
    wrong(&["text", "-o", "out"], 2, "is no image");
    wrong(&["nowhere", "-o", "out"], 2, "No such file");
    wrong(&["One.ext4"], 2, "-o OUT writes it there");
    wrong(&["One.ext4", "-o", "text"], 2, "`text` is there already");
    wrong(&["One.ext4", "-o", "nowhere/out"], 125, "cannot write");
    wrong(&["One.root", "-o", "text"], 2, "`text` is there already");
    wrong(&["One.root", "-o", "One.root/out"], 2, "of which it is to be a copy");
    // No file system, half of one, and one without a system.
    let mut cut = fs::read(&raw).unwrap();
    cut.truncate(10 << 20);
    fs::write(home.join("cut"), cut).unwrap();
    wrong(&["cut", "-o", "out"], 125, "cannot mount disk (ext4, 10.0 MiB): EXT4-fs");
    partitioned(&home.join("empty"), &[&home.join("text")]);
    File::options().write(true).open(home.join("empty")).unwrap().set_len(4 << 20).unwrap();
    wrong(&["empty", "-o", "out"], 125, "holds no Linux system; it has: disk (partition table");
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", text(&raw), "-F", "raw", text(&home.join("over"))],
    );
    wrong(&["over", "-o", "out"], 125, "lies upon another file");

    let mut user = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "sleep 120000", text(&raw)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Looked for where it is no trial: one would keep qemu-io from it (proc_locks(5)).
    let inode = format!(":{} ", fs::metadata(&raw).unwrap().ino());
    wait_for("the lock", || {
        fs::read_to_string("/proc/locks").unwrap().contains(&inode).then_some(())
    });
    let said = guestline.run(&["image", "embed", "One.ext4", "-o", "out", "--root", "9"]);
    assert!(said.stderr.contains("is in use"), "{}", said.stderr);
    user.kill().unwrap();
    user.wait().unwrap();
    assert_eq!(said.status, 125, "{}", said.stderr);
    assert!(!home.join("out").exists());

    let running = guestline.start(&["image", "embed", "One.ext4", "-o", "out"]);
    guestline.wait_for_qemu();
    running.signal(Signal::SIGTERM);
    let ran = running.wait();
    assert_eq!(ran.status, 143, "{}", ran.stderr);
    guestline.assert_nothing_left();
    let mut left: Vec<_> =
        fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    left.retain(|name| !["state", "config", "run"].iter().any(|ours| name == ours));
    assert_eq!(left, ["One.ext4", "One.root", "cut", "empty", "over", "text"]);
}

#[test]
fn a_folder_is_changed_on_the_host() {
    let guestline = Guestline::new();
    let home = guestline.home();
    system(&home.join("root"), "One");
    let said = right(&guestline.run(&["image", "embed", "root", "-o", "out"]));
    assert!(said.starts_with("root: One, systemd\n  added "), "{said}");
    let agent = fs::read(named_by("GUESTLINE_AGENT")).unwrap();
    assert_eq!(fs::read(home.join("out").join(&AGENT[1..])).unwrap(), agent);
    assert!(!home.join("root/usr/local").exists());
    right(&guestline.run(&["image", "embed", "out", "-o", "again"]));
    tool("diff", &["-r", "--no-dereference", text(&home.join("out")), text(&home.join("again"))]);
    right(&guestline.run(&["image", "unembed", "out", "--in-place"]));
    tool("diff", &["-r", "--no-dereference", text(&home.join("root")), text(&home.join("out"))]);
}

/// A disk with cloud-init in it and no agent, by its own boot loader: what answers is what the seed has put in.
#[tokio::test(flavor = "multi_thread")]
async fn cloud_init_puts_the_agent_in() {
    let guestline = Guestline::new();
    let home = guestline.home();
    right(&guestline.run(&["image", "embed", "--nocloud", "-o", "seed"]));
    assert_eq!(guestline.run(&["image", "embed", "--nocloud", "-o", "seed"]).status, 2);
    let manifest = home.join("cloud.toml");
    let of_cloud = "name = \"cloud\"\nsummary = \"cloud-init\"\nextends = \"debian-12-systemd\"\npackages = [\"cloud-init\"]\n";
    fs::write(&manifest, of_cloud).unwrap();
    let cloud = image(&dirs_of(home), text(&manifest)).await;
    let disk = tokio::task::spawn_blocking({
        let home = home.to_owned();
        move || {
            root(&home);
            debian_disk(&home, &cloud)
        }
    });
    assert!(!home.join("system").join(&AGENT[1..]).exists());
    let disk = disk.await.unwrap();
    let import = ["image", "import", "--name", "sown", "--seed", "seed", text(&disk)];
    right(&guestline.run(&import));
    // The seed is behind what was asked for, and cannot be written to.
    let line = format!(
        "systemctl is-enabled guestline-agent; findmnt -n -o SOURCE /; lsblk -dnbo NAME,RO,SIZE; \
         cat /sys/block/vdc/serial; sha256sum {AGENT}"
    );
    let agent = Digest::of_file(&named_by("GUESTLINE_AGENT")).unwrap();
    let (size, seed) =
        (disk.metadata().unwrap().len(), home.join("seed").metadata().unwrap().len());
    let wanted = format!(
        "enabled\n/dev/vda2\nvda 0 {size}\nvdb 0 {}\nvdc 1 {seed}\ndisk2{agent}  {AGENT}\n",
        64 << 20
    );
    // Booted and saved, then restored.
    for _ in 0..2 {
        let ran = guestline.run(&["check", "--image", "sown", "--disk", "64M", &line]);
        ran.assert_verdict(0, "passed");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&ran.stdout()), words(&wanted));
    }
    guestline.assert_nothing_left();
}

/// A disk of zeros that a BIOS would try to boot.
fn blank_disk(at: &Path) {
    let mut bytes = vec![0; 1 << 20];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(at, bytes).unwrap();
}

#[test]
fn a_seed_goes_where_its_disk_goes() {
    // A cache of its own, in which nobody else makes an image.
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    let home = guestline.home();
    right(&guestline.run(&["image", "embed", "--nocloud", "-o", "seed"]));
    blank_disk(&home.join("blank.img"));
    let import = ["image", "import", "--no-check", "--seed", "seed", "blank.img"];
    right(&guestline.run(&import));
    let digest = Digest::of_file(&home.join("seed")).unwrap();
    let bill = right(&guestline.run(&["image", "sbom", "blank"]));
    assert!(bill.contains("\"file:seed\"") && bill.contains(digest.as_str()), "{bill}");
    assert_eq!(right(&guestline.run(&["image", "verify", "blank"])), "blank: right\n");
    right(&guestline.run(&["image", "export", "blank", "-o", "archive"]));
    right(&guestline.run(&["image", "publish", "published", "blank"]));
    assert!(home.join("published/files").join(digest.as_str()).exists());

    // On another host, which takes it from the archive.
    let other = Guestline::new();
    let cache = other.home().join("cache");
    let other = other.with("XDG_CACHE_HOME", &cache);
    right(&other.run(&["image", "import", text(&home.join("archive"))]));
    let kept = fs::read_dir(cache.join("guestline/images/blank")).unwrap().next().unwrap().unwrap();
    assert_eq!(Digest::of_file(&kept.path().join("seed")).unwrap(), digest);
    fs::write(kept.path().join("seed"), "another").unwrap();
    assert_eq!(other.run(&["image", "verify", "blank"]).status, 1);

    // Another seed is another image; what is none, or is for no disk, is refused.
    let made = |guestline: &Guestline| -> Value {
        let shown = right(&guestline.run(&["image", "show", "blank", "--json"]));
        serde_json::from_str::<Value>(&shown).unwrap()["made"].clone()
    };
    let before = made(&guestline);
    let mut bytes = fs::read(home.join("seed")).unwrap();
    bytes.extend([0; 512]);
    fs::write(home.join("seed"), bytes).unwrap();
    right(&guestline.run(&[&import[..], &["--replace"]].concat()));
    assert_ne!(made(&guestline)["recipe"], before["recipe"]);
    fs::write(home.join("text"), "no seed").unwrap();
    system(&home.join("folder"), "One");
    for (seed, from, wanted) in [
        ("text", "blank.img", "cannot take `text` as a seed\ncaused by: `text` is no image"),
        ("nowhere", "blank.img", "hint: guestline image embed --nocloud -o SEED writes one"),
        ("folder", "blank.img", "it is a root folder, and cloud-init reads a raw disk"),
        ("seed", "folder", "--seed is not for a root folder"),
    ] {
        let ran = guestline.run(&["image", "import", "--name", "bad", "--seed", seed, from]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    }
    assert!(!home.join("state/guestline/images/bad").exists());
    guestline.assert_nothing_left();
}
