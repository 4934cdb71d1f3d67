//! The agent put into archives and container images, and taken out again; and a disk that it was put into, booted by its own
//! boot loader.

use crate::import::{oci, root, run, tar, words};
use guestline_tests::{Guestline, dirs_of, image, right};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const AGENT: &str = "./usr/local/sbin/guestline-agent";

fn names(tar: &Path) -> String {
    String::from_utf8(run(Command::new("tar").arg("-tf").arg(tar))).unwrap()
}

/// What a tar archive holds, with owners, modes and sizes, but for times of folders that were made for it.
fn listed(tar: &Path) -> Vec<String> {
    let mut listed = run(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(tar));
    listed.extend(b"\n");
    let listed = String::from_utf8(listed).unwrap();
    let mut lines: Vec<String> = listed
        .lines()
        .map(|line| line.replace(" ./", " ").trim_end_matches('/').to_owned())
        .filter(|line| !line.ends_with(' '))
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_tar_gets_the_agent_the_same_again_and_gives_it_back() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let root = root(home);
    let plain = home.join("in.tar");
    tar(&root, &plain);
    let before = fs::read(&plain).unwrap();
    run(words("gzip -k in.tar").current_dir(home));
    let lint = guestline.run(&["image", "lint", "--json", "in.tar.gz"]);
    assert_eq!(lint.status, 1, "{}", lint.stderr);
    let lint: Value = serde_json::from_str(&lint.stdout()).unwrap();
    assert_eq!(lint["findings"][0]["id"], "no-agent");
    let dry = right(&guestline.run(&["image", "embed", "in.tar.gz", "--dry-run"]));
    assert!(dry.contains("would add /usr/local/sbin/guestline-agent"), "{dry}");

    let said = right(&guestline.run(&["image", "embed", "in.tar.gz", "-o", "out.tar.gz"]));
    assert!(said.contains("added /sbin/init"), "{said}");
    let out = home.join("out.tar.gz");
    assert!(fs::read(&out).unwrap().starts_with(&[0x1f, 0x8b]));
    assert!(names(&out).contains(AGENT.trim_start_matches("./")), "{}", names(&out));
    let again = right(&guestline.run(&["image", "embed", "out.tar.gz", "-o", "again.tar.gz"]));
    assert!(again.contains("nothing to add"), "{again}");
    assert!(fs::read(home.join("again.tar.gz")).unwrap() == fs::read(&out).unwrap());
    right(&guestline.run(&["image", "lint", "out.tar.gz"]));
    right(&guestline.run(&["image", "unembed", "out.tar.gz", "-o", "back.tar"]));
    assert_eq!(listed(&home.join("back.tar")), listed(&plain));
    assert!(fs::read(&plain).unwrap() == before);
    // What is there is not written over.
    let ran = guestline.run(&["image", "embed", "in.tar", "-o", "out.tar.gz"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_container_image_gets_a_layer_more() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let root = root(home);
    let layer = home.join("layer.tar");
    tar(&root, &layer);
    let layout = oci(home, &[run(Command::new("gzip").arg("-c").arg(&layer))], "amd64");
    let layers = |layout: &Path| {
        let read =
            |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |digest: &Value| {
            read(layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")))
        };
        let index = read(layout.join("index.json"));
        blob(&index["manifests"][0]["digest"])["layers"].as_array().unwrap().clone()
    };
    let first = layers(&layout);
    right(&guestline.run(&["image", "embed", "layout", "-o", "more"]));
    let more = layers(&home.join("more"));
    assert_eq!((&more[..1], more.len()), (&first[..], 2));
    right(&guestline.run(&["image", "unembed", "more", "-o", "back"]));
    assert_eq!(layers(&home.join("back")), first);
    // In its place, as an archive, which is a machine.
    let archive = home.join("image.tar");
    tar(&layout, &archive);
    right(&guestline.run(&["image", "embed", "--in-place", "image.tar"]));
    let again = right(&guestline.run(&["image", "embed", "--in-place", "image.tar"]));
    assert!(again.contains("nothing to add"), "{again}");
    right(&guestline.run(&["image", "import", "--name", "layered", "image.tar"]));
    let line = "test -x /usr/local/sbin/guestline-agent && cat /etc/greeting";
    guestline.run(&["check", "--image", "layered", line]).assert_verdict(0, "passed");
}

#[test]
fn what_stands_before_an_initramfs_stays() {
    let guestline = Guestline::new();
    let home = guestline.home();
    let root = root(home);
    // As distributions have microcode before what is packed.
    let (early, file) = (home.join("early"), home.join("initrd.img"));
    fs::create_dir_all(early.join("kernel/x86")).unwrap();
    fs::write(early.join("kernel/x86/code"), "microcode").unwrap();
    let archive = |folder: &Path| {
        let line = "find . -print0 | sort -z | cpio -o0 -H newc --quiet -R 0:0";
        run(Command::new("sh").args(["-c", line]).current_dir(folder))
    };
    let head = archive(&early);
    let packed = home.join("packed");
    fs::write(&packed, archive(&root)).unwrap();
    // The kernel reads the legacy frame of lz4, and no other.
    let ways =
        [("gzip", "gzip -c", "gzip -dc", [0x1f, 0x8b]), ("lz4", "lz4 -lc", "lz4 -dc", [2, 0x21])];
    for (name, pack, unpack, magic) in ways {
        let mut bytes = head.clone();
        bytes.extend(run(words(pack).arg(&packed)));
        fs::write(&file, &bytes).unwrap();
        let to = format!("out.{name}");
        let said = right(&guestline.run(&["image", "embed", "initrd.img", "-o", &to]));
        assert!(said.contains("added /init"), "{said}");
        let out = fs::read(home.join(&to)).unwrap();
        assert!(out.starts_with(&head) && out[head.len()..].starts_with(&magic));
        let rest = home.join("rest");
        fs::write(&rest, &out[head.len()..]).unwrap();
        let unpacked = run(words(unpack).stdin(fs::File::open(&rest).unwrap()));
        fs::write(&rest, unpacked).unwrap();
        let names = run(words("cpio -t --quiet").stdin(fs::File::open(&rest).unwrap()));
        let names = String::from_utf8(names).unwrap();
        assert!(names.contains("usr/local/sbin/guestline-agent") && names.contains("bin/busybox"));
        right(&guestline.run(&["image", "unembed", "--in-place", &to]));
    }
}

/// A disk as a distribution's: a boot partition with a boot loader, and a root with systemd, all without root.
pub(crate) fn debian_disk(home: &Path, systemd: &guestline::image::Image) -> PathBuf {
    const MIB: u64 = 1 << 20;
    let (disk, root) = (home.join("debian.img"), home.join("system"));
    let packed = systemd.root.as_ref().unwrap();
    run(Command::new("unsquashfs").args(["-q", "-n", "-d"]).arg(&root).arg(packed));
    fs::write(root.join("etc/fstab"), "").unwrap();
    let part = home.join("root.ext4");
    fs::File::create_new(&part).unwrap().set_len(600 * MIB).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&part));
    // Finds the root, as an initramfs of a distribution does.
    let first = home.join("first");
    for folder in ["bin", "dev", "proc", "sys", "new", "lib"] {
        fs::create_dir_all(first.join(folder)).unwrap();
    }
    fs::copy(home.join("root/bin/busybox"), first.join("bin/busybox")).unwrap();
    let release = &systemd.manifest.kernel_release;
    let modules = root.join("usr/lib/modules").join(release).join("kernel");
    let mut load = String::new();
    for name in [
        "virtio/virtio_ring",
        "virtio/virtio",
        "virtio/virtio_pci_legacy_dev",
        "virtio/virtio_pci_modern_dev",
        "virtio/virtio_pci",
        "block/virtio_blk",
    ] {
        let file = format!("{}.ko", name.rsplit('/').next().unwrap());
        fs::copy(modules.join(format!("drivers/{name}.ko")), first.join("lib").join(&file))
            .unwrap();
        load += &format!("/bin/busybox insmod /lib/{file}\n");
    }
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs none /dev\n{load}\
         while ! /bin/busybox test -b /dev/vda2; do /bin/busybox sleep 0.1; done\n\
         /bin/busybox mount -t ext4 /dev/vda2 /new\nexec /bin/busybox switch_root /new /sbin/init\n"
    );
    fs::write(first.join("init"), init).unwrap();
    fs::set_permissions(first.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let line = "find . -print0 | sort -z | cpio -o0 -H newc --quiet -R 0:0";
    fs::write(home.join("initrd"), run(Command::new("sh").args(["-c", line]).current_dir(first)))
        .unwrap();

    let table = home.join("table");
    fs::write(&table, "2048,98304,c,*\n102400,1228800,83\n").unwrap();
    fs::File::create_new(&disk).unwrap().set_len(652 * MIB).unwrap();
    run(Command::new("/sbin/sfdisk").arg("-q").arg(&disk).stdin(fs::File::open(table).unwrap()));
    let partition = format!("{}@@1M", disk.display());
    run(Command::new("mformat").args(["-i", &partition, "-T", "98304", "-F", "::"]));
    let config = home.join("syslinux.cfg");
    let cmdline = "console=ttyS0 panic=-1 net.ifnames=0";
    fs::write(
        &config,
        format!(
            "SERIAL 0\nDEFAULT a\nLABEL a\n KERNEL vmlinuz\n INITRD initrd\n APPEND {cmdline}\n"
        ),
    )
    .unwrap();
    let kernel = systemd.folder.join("kernel");
    for (from, to) in
        [(&kernel, "vmlinuz"), (&home.join("initrd"), "initrd"), (&config, "syslinux.cfg")]
    {
        run(Command::new("mcopy").args(["-i", &partition]).arg(from).arg(format!("::/{to}")));
    }
    run(Command::new("syslinux").args(["--install", "--offset", "1048576"]).arg(&disk));
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&fs::read("/usr/lib/syslinux/mbr/mbr.bin").unwrap(), 0).unwrap();
    run(Command::new("dd")
        .arg(format!("if={}", part.display()))
        .arg(format!("of={}", disk.display()))
        .args(["bs=1M", "seek=50", "conv=notrunc,sparse", "status=none"]));
    disk
}

#[tokio::test]
async fn a_disk_with_the_agent_put_in_boots_by_its_own_loader() {
    let guestline = Guestline::new();
    let home = guestline.home().to_owned();
    root(&home);
    let systemd = image(&dirs_of(&home), "debian-12-systemd").await;
    let disk = tokio::task::spawn_blocking({
        let home = home.clone();
        move || debian_disk(&home, &systemd)
    });
    let disk = disk.await.unwrap();
    assert!(disk.exists());
    let said = right(&guestline.run(&["image", "embed", "debian.img", "-o", "with.img"]));
    assert!(said.contains("Debian GNU/Linux 12") && said.contains("partition 2"), "{said}");
    right(&guestline.run(&["image", "import", "with.img"]));
    for _ in 0..2 {
        let line = "systemctl is-active guestline-agent && findmnt -n -o SOURCE / | grep vda2";
        guestline.run(&["check", "--image", "with", line]).assert_verdict(0, "passed");
    }
}
