//! What others made, as images: root folders, archives, container images, disks; and what is wrong with some.

use crate::cache::mounted;
use guestline::digest::Digest;
use guestline::image::{PackageSource, Store};
use guestline_tests::{Guestline, dirs_of, right};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_util::sync::CancellationToken;

/// A program without which a test cannot make what it imports.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}

pub(crate) fn words(text: &str) -> Command {
    let mut words = text.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// The folder of the image tiny.
pub(crate) fn tiny() -> PathBuf {
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(guestline_tests::tiny(&dirs_of(home.path()))).folder
}

/// A root of busybox below a folder.
pub(crate) fn root(below: &Path) -> PathBuf {
    let (root, package) = (below.join("root"), below.join("package"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(&package).unwrap();
    let store = Store::new(&dirs_of(below), PackageSource::Apt);
    store.unpack(&["busybox-static"], &package, &CancellationToken::new()).unwrap();
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| package.join(place));
    let busybox = places.iter().find(|place| place.exists()).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "ls", "env", "true", "mkdir", "test"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/greeting"), "hello\n").unwrap();
    fs::remove_dir_all(package).unwrap();
    root
}

pub(crate) fn tar(folder: &Path, to: &Path) {
    run(Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(to).arg("."));
}

/// An OCI layout of these layers.
pub(crate) fn oci(below: &Path, layers: &[Vec<u8>], architecture: &str) -> PathBuf {
    let layout = below.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |content: &[u8], media_type: &str| {
        let digest = Digest::of(content);
        fs::write(blobs.join(digest.as_str()), content).unwrap();
        let digest = format!("sha256:{}", digest.as_str());
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Env": ["PATH=/opt/bin:/bin", "GREETING=hi there"] },
    });
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layer = |layer: &Vec<u8>| blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip");
    let layers: Vec<_> = layers.iter().map(layer).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest =
        blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    layout
}

fn gzip(file: &Path) -> Vec<u8> {
    run(Command::new("gzip").arg("-c").arg(file))
}

/// Nothing of an import is left, be it whole or half.
fn assert_nothing(guestline: &Guestline) {
    let imports = guestline.home().join("state/guestline/images");
    let left: Vec<_> = fs::read_dir(imports).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_container_image_is_a_machine() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let (first, second) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
    tar(&root, &first);
    let upon = folder.path().join("upon");
    fs::create_dir_all(upon.join("etc")).unwrap();
    fs::write(upon.join("etc/.wh.greeting"), "").unwrap();
    fs::write(upon.join("etc/second"), "two\n").unwrap();
    tar(&upon, &second);
    let layout = oci(folder.path(), &[gzip(&first), gzip(&second)], "amd64");
    let said =
        right(&guestline.run(&["image", "import", "--name", "two", layout.to_str().unwrap()]));
    assert!(said.starts_with("image two: "), "{said}");

    let line = "cat /etc/second && ! test -e /etc/greeting && test \"$PATH $GREETING\" = '/opt/bin:/bin hi there'";
    guestline.run(&["check", "--image", "two", line]).assert_verdict(0, "passed");
    // The kernel's modules are there, and one that the image does not load by itself comes.
    let line = "ls /lib/modules/*/kernel/net/netfilter/nf_tables.ko && ls /sys/module/overlay";
    guestline.run(&["check", "--image", "two", line]).assert_verdict(0, "passed");
    assert!(right(&guestline.run(&["image", "list"])).contains("two "));

    // As docker saves it, with --replace; another of its name is refused without.
    let saved = folder.path().join("saved");
    let layer = saved.join("a".repeat(64));
    fs::create_dir_all(&layer).unwrap();
    fs::rename(&first, layer.join("layer.tar")).unwrap();
    let config = format!("{}.json", "b".repeat(64));
    fs::write(saved.join(&config), json!({ "architecture": "amd64", "os": "linux" }).to_string())
        .unwrap();
    let manifest = json!([{
        "Config": config, "RepoTags": ["x:1"], "Layers": [format!("{}/layer.tar", "a".repeat(64))],
    }]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.path().join("saved.tar");
    tar(&saved, &archive);
    let archive = archive.to_str().unwrap();
    let ran = guestline.run(&["image", "import", "--name", "two", archive]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("there is an image `two` already, an import"), "{}", ran.stderr);
    right(&guestline.run(&["image", "import", "--name", "two", "--replace", archive]));
    guestline
        .run(&["check", "--image", "two", "test -e /etc/greeting"])
        .assert_verdict(0, "passed");

    right(&guestline.run(&["image", "rm", "two"]));
    let ran = guestline.run(&["check", "--image", "two", "true"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert_nothing(&guestline);
}

#[test]
fn an_initramfs_and_a_folder_are_machines() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let initrd = tiny().join("initrd.cpio");
    right(&guestline.run(&["image", "import", "--name", "ram", initrd.to_str().unwrap()]));
    let ran = guestline.run(&["check", "--image", "ram", "mount | grep 'on / type overlay'"]);
    ran.assert_verdict(0, "passed");

    let root = root(folder.path());
    let image = format!("dir:{}", root.display());
    let line = "cat /etc/greeting";
    let ran = guestline.run(&["check", "--image", &image, line]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "hello\n");
    // What is written in the guest is not in the folder, and what is written to the folder is in the next guest.
    let ran = guestline.run(&["check", "--image", &image, "mkdir /made"]);
    ran.assert_verdict(0, "passed");
    assert!(!root.join("made").exists());
    fs::write(root.join("etc/greeting"), "again\n").unwrap();
    let ran = guestline.run(&["check", "--image", &image, line]);
    assert_eq!(ran.stdout(), "again\n");
}

/// A program that becomes the init, with something that only it does.
const INIT: &str = "#!/bin/sh\n/bin/mkdir /started\nwhile true; do /bin/sleep 1000; done\n";

#[test]
fn a_tar_and_a_squashfs_are_machines_with_an_init_of_their_own() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    for name in ["sleep", "grep", "uname"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::create_dir(root.join("sbin")).unwrap();
    fs::write(root.join("sbin/init"), INIT).unwrap();
    fs::set_permissions(root.join("sbin/init"), fs::Permissions::from_mode(0o755)).unwrap();
    // Its kernel is that of another image, with the command line that has.
    let manifests = guestline.home().join("config/guestline/images");
    fs::create_dir_all(&manifests).unwrap();
    let marked = "name = \"marked\"\nsummary = \"x\"\nextends = \"debian-12\"\n\
                  kernel = { cmdline = \"marked=yes\" }\n";
    fs::write(manifests.join("marked.toml"), marked).unwrap();

    let (plain, packed) = (folder.path().join("plain.tar"), folder.path().join("packed.squashfs"));
    tar(&root, &plain);
    run(Command::new("mksquashfs").arg(&root).arg(&packed).args(["-quiet", "-no-progress"]));
    let options = ["--init", "/sbin/init", "--memory", "333M", "--kernel-of", "marked"];
    for (file, name) in [(&plain, "plain"), (&packed, "packed")] {
        let file = file.to_str().unwrap();
        right(&guestline.run(&[&["image", "import", file], &options[..]].concat()));
        let line = "cat /proc/1/comm /etc/greeting; grep -o marked=yes /proc/cmdline; \
                    until test -d /started; do sleep 0.1; done; ls -d /lib/modules/$(uname -r)/kernel; \
                    test -e /usr/local/sbin/guestline-agent || echo as it was";
        let ran = guestline.run(&["check", "--image", name, line]);
        ran.assert_verdict(0, "passed");
        let said = ran.stdout();
        assert!(said.starts_with("init\nhello\nmarked=yes\n/lib/modules/6.1."), "{said}");
        assert!(said.ends_with("-cloud-amd64/kernel\nas it was\n"), "{said}");
        let line =
            "while read name kb _; do test $name != MemTotal: || echo $kb; done < /proc/meminfo";
        let kib: u32 =
            guestline.run(&["check", "--image", name, line]).stdout().trim().parse().unwrap();
        assert!((256 << 10..333 << 10).contains(&kib), "{kib}");
    }
    for (options, wanted, status) in [
        (["--init", "/sbin/none"], "has no `/sbin/none`\n", 2),
        (["--init", "init"], "--init is an absolute path in the root", 2),
        (["--kernel-of", "tiny"], "image `tiny` has no kernel package", 2),
        (["--firmware", "uefi"], "--firmware is not for a tar archive", 2),
    ] {
        let import = ["image", "import", "--name", "bad", plain.to_str().unwrap()];
        let ran = guestline.run(&[&import[..], &options].concat());
        assert_eq!(ran.status, status, "{}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
    }
    assert!(!guestline.home().join("state/guestline/images/bad").exists());
    guestline.assert_nothing_left();
}

/// The kernel command line of tiny.
fn cmdline() -> String {
    let manifest = fs::read(tiny().join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["cmdline"].as_str().unwrap().to_owned()
}

/// A disk with one FAT partition, whose boot loader starts tiny's kernel and initial RAM file system.
fn bios_disk(below: &Path) -> PathBuf {
    let (disk, config) = (below.join("disk.img"), below.join("syslinux.cfg"));
    let text = format!(
        "SERIAL 0\nDEFAULT a\nLABEL a\n KERNEL vmlinuz\n INITRD initrd\n APPEND {}\n",
        cmdline()
    );
    fs::write(&config, text).unwrap();
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let table = below.join("table");
    fs::write(&table, "2048,,c,*\n").unwrap();
    run(Command::new("/sbin/sfdisk").arg("-q").arg(&disk).stdin(fs::File::open(table).unwrap()));
    let partition = format!("{}@@1M", disk.display());
    run(Command::new("mformat").args(["-i", &partition, "-F", "::"]));
    let (kernel, initrd) = (tiny().join("kernel"), tiny().join("initrd.cpio"));
    for (from, to) in
        [(&kernel, "::/vmlinuz"), (&initrd, "::/initrd"), (&config, "::/syslinux.cfg")]
    {
        run(Command::new("mcopy").args(["-i", &partition]).arg(from).arg(to));
    }
    run(Command::new("syslinux").args(["--install", "--offset", "1048576"]).arg(&disk));
    let code = fs::read("/usr/lib/syslinux/mbr/mbr.bin").unwrap();
    let file = fs::File::options().write(true).open(&disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &code, 0).unwrap();
    disk
}

#[test]
fn a_disk_is_booted_as_it_is() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let disk = bios_disk(folder.path());
    right(&guestline.run(&["image", "import", disk.to_str().unwrap()]));
    let line = "uname -r && grep -q guestline.modules /proc/cmdline";
    for _ in 0..2 {
        let ran = guestline.run(&["check", "--image", "disk", "--disk", "64M", line]);
        ran.assert_verdict(0, "passed");
    }
    let qcow2 = folder.path().join("packed.qcow2");
    run(words("qemu-img convert -O qcow2").arg(&disk).arg(&qcow2));
    right(&guestline.run(&["image", "import", qcow2.to_str().unwrap()]));
    guestline.run(&["check", "--image", "packed", "true"]).assert_verdict(0, "passed");
    // It has its own kernel.
    let kernel = tiny().join("kernel");
    let ran = guestline.run(&[
        "check",
        "--image",
        "packed",
        "--kernel",
        kernel.to_str().unwrap(),
        "true",
    ]);
    ran.assert_verdict(125, "errored");
    assert!(ran.stderr.contains("boots its own kernel"), "{}", ran.stderr);

    // Without the agent it is told as soon as is wanted.
    let without = folder.path().join("without.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&without, bytes).unwrap();
    let ran =
        guestline.run(&["image", "import", "--boot-timeout", "2s", without.to_str().unwrap()]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("the agent did not answer within 2s"), "{}", ran.stderr);
    assert!(ran.stderr.contains("--boot-timeout says how long"), "{}", ran.stderr);

    // What leads elsewhere or is damaged is refused, and nothing is left of it.
    let upon = folder.path().join("upon.qcow2");
    run(words("qemu-img create -q -f qcow2 -F raw -b").arg(&disk).arg(&upon));
    let damaged = folder.path().join("damaged.qcow2");
    let mut bytes = fs::read(&qcow2).unwrap();
    bytes[40..48].copy_from_slice(&(1u64 << 40).to_be_bytes());
    fs::write(&damaged, bytes).unwrap();
    for (file, wanted) in [(&upon, "lies upon another file"), (&damaged, "lies beyond its end")] {
        let ran = guestline.run(&["image", "import", file.to_str().unwrap()]);
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
        let name = file.file_stem().unwrap();
        assert!(!guestline.home().join("state/guestline/images").join(name).exists());
    }
}

/// A disk with a GPT whose one partition is for UEFI, with a boot loader that starts tiny's kernel.
fn uefi_disk(below: &Path) -> PathBuf {
    let (disk, config, loader) =
        (below.join("efi.img"), below.join("grub.cfg"), below.join("bootx64.efi"));
    let text = format!(
        "search --no-floppy --set=root --file /vmlinuz\nlinux /vmlinuz {}\ninitrd /initrd\nboot\n",
        cmdline()
    );
    fs::write(&config, text).unwrap();
    run(Command::new("grub-mkstandalone")
        .args(["-O", "x86_64-efi", "--fonts=", "--locales=", "--themes="])
        .args([
            "--modules=part_gpt fat",
            "--install-modules=normal linux boot search search_fs_file",
        ])
        .arg("-o")
        .arg(&loader)
        .arg(format!("boot/grub/grub.cfg={}", config.display())));
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let table = below.join("table");
    fs::write(&table, "label: gpt\n2048,122880,U\n").unwrap();
    run(Command::new("/sbin/sfdisk").arg("-q").arg(&disk).stdin(fs::File::open(table).unwrap()));
    let partition = format!("{}@@1M", disk.display());
    run(Command::new("mformat").args(["-i", &partition, "-T", "122880", "-F", "::"]));
    run(Command::new("mmd").args(["-i", &partition, "::/EFI", "::/EFI/BOOT"]));
    let (kernel, initrd) = (tiny().join("kernel"), tiny().join("initrd.cpio"));
    for (from, to) in
        [(&kernel, "::/vmlinuz"), (&initrd, "::/initrd"), (&loader, "::/EFI/BOOT/BOOTX64.EFI")]
    {
        run(Command::new("mcopy").args(["-i", &partition]).arg(from).arg(to));
    }
    disk
}

#[test]
fn a_disk_for_uefi_is_booted_by_it_and_restored() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let disk = uefi_disk(folder.path());
    right(&guestline.run(&["image", "import", "--no-check", disk.to_str().unwrap()]));
    let manifest = guestline.home().join("state/guestline/images/efi/image.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    assert!(manifest.contains("firmware = \"uefi\""), "{manifest}");
    // Booted and saved, then restored.
    for restored in [false, true] {
        let line = "test -e /sys/firmware/efi && modprobe virtio_blk && ls /dev/vda1";
        let ran = guestline.run(&["check", "--image", "efi", "--message-format", "json", line]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let ready = &crate::templates::event(&ran, "machine-ready")[0];
        assert!(ready["template"].is_string() || !restored, "{ready}");
        assert!(ran.stdout().contains("/dev/vda1"), "{}", ran.stdout());
    }
    guestline.assert_nothing_left();
}

#[test]
fn an_iso_is_booted_by_both_kinds_of_firmware() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    let boot = content.join("boot");
    fs::create_dir_all(boot.join("grub")).unwrap();
    fs::copy(tiny().join("kernel"), boot.join("vmlinuz")).unwrap();
    fs::copy(tiny().join("initrd.cpio"), boot.join("initrd")).unwrap();
    let config = format!(
        "set timeout=0\nserial --unit=0\nterminal_output serial\n\
         menuentry a {{\n linux /boot/vmlinuz {}\n initrd /boot/initrd\n}}\n",
        cmdline()
    );
    fs::write(boot.join("grub/grub.cfg"), config).unwrap();
    let iso = folder.path().join("live.iso");
    run(Command::new("grub-mkrescue").arg("-o").arg(&iso).arg(&content));
    let iso = iso.to_str().unwrap();
    for (name, firmware, line) in [
        ("bios", "bios", "! test -e /sys/firmware/efi"),
        ("efi", "uefi", "test -e /sys/firmware/efi"),
    ] {
        let import = ["image", "import", "--name", name, "--firmware", firmware, iso];
        right(&guestline.run(&import));
        // Booted and saved, then restored.
        for _ in 0..2 {
            guestline.run(&["check", "--image", name, line]).assert_verdict(0, "passed");
        }
    }
}

#[test]
fn what_cannot_be_imported_is_said_and_leaves_nothing() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let empty_root = path("shell-less");
    fs::create_dir_all(empty_root.join("bin")).unwrap();
    fs::write(path("text"), "not an image at all").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::copy(tiny().join("kernel"), path("bzimage")).unwrap();

    let root = root(folder.path());
    tar(&root, &path("root.tar"));
    let layer = gzip(&path("root.tar"));
    let arm = oci(&path("arm"), std::slice::from_ref(&layer), "arm64");
    let damaged = oci(&path("blob"), std::slice::from_ref(&layer), "amd64");
    let blob = damaged.join("blobs/sha256").join(Digest::of(&layer).as_str());
    fs::write(&blob, &layer[..layer.len() - 5]).unwrap();
    fs::write(path("cut.tar.gz"), &layer[..layer.len() / 2]).unwrap();
    symlink("../../../../etc", root.join("etc/out")).unwrap();
    run(Command::new("tar").arg("-C").arg(&root).arg("-cPf").arg(path("up.tar")).args([
        "--transform",
        "s,^bin,../bin,",
        "bin",
    ]));
    run(Command::new("tar").arg("-cPf").arg(path("absolute.tar")).arg(root.join("bin")));
    let bomb = "head -c 3G /dev/zero > big; tar --sparse-version=1.0 -czf bomb.tar.gz big; rm big";
    run(Command::new("sh").args(["-c", bomb]).current_dir(folder.path()));
    let mut foreign = fs::read(root.join("bin/busybox")).unwrap();
    foreign[18] = 183;
    let other = path("other");
    fs::create_dir_all(other.join("bin")).unwrap();
    fs::write(other.join("bin/sh"), foreign).unwrap();

    let [text, empty, bzimage, cut, up, absolute, bomb] =
        ["text", "empty", "bzimage", "cut.tar.gz", "up.tar", "absolute.tar", "bomb.tar.gz"]
            .map(path);
    for (file, wanted, status) in [
        (&path("missing"), "No such file", 2),
        (&text, "is no image: it is no root folder", 2),
        (&empty, "is no image: it is empty", 2),
        (&bzimage, "is a Linux kernel", 2),
        (
            &empty_root,
            "has no `/bin/sh`, which runs command lines\n  hint: --busybox puts one in",
            125,
        ),
        (&other, "is for aarch64, and a machine of Guestline is x86-64", 125),
        (&arm, "it is for linux/arm64", 125),
        (&damaged, "is damaged: its content has another digest", 125),
        (&cut, "the data is damaged or cut short", 125),
        (&up, "has `..` in its name\n  hint: make it anew without that member", 125),
        (&absolute, "has an absolute name", 125),
        (&root, "is a link that leads out of it", 125),
        (&bomb, "it unpacks to more than", 125),
    ] {
        let ran = guestline.run(&["image", "import", "--name", "bad", file.to_str().unwrap()]);
        assert_eq!(ran.status, status, "{}: {}", file.display(), ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}: {}", file.display(), ran.stderr);
    }
    let whole = oci(&path("whole"), std::slice::from_ref(&layer), "amd64");
    let saved = path("saved");
    fs::create_dir_all(&saved).unwrap();
    fs::write(saved.join("c.json"), "{}").unwrap();
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": [] }]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).unwrap();
    tar(&saved, &path("saved.tar"));
    for (file, there) in [(whole, "sha256:"), (path("saved.tar"), "x:1")] {
        let file = file.to_str().unwrap();
        let ran = guestline.run(&["image", "import", "--name", "bad", "--pick", "nope", file]);
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        let wanted = format!("it holds no image `nope`; it has {there}");
        assert!(ran.stderr.contains(&wanted), "{}", ran.stderr);
        assert!(ran.stderr.contains("\n  hint: without --pick"), "{}", ran.stderr);
    }
    assert_nothing(&guestline);
    // With a busybox it does.
    let empty_root = empty_root.to_str().unwrap();
    right(&guestline.run(&["image", "import", "--name", "made", "--busybox", empty_root]));
    for name in ["tiny", "No Name"] {
        let ran = guestline.run(&["image", "import", "--name", name, empty_root]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("--name gives it"), "{}", ran.stderr);
    }
}

/// A disk that never says anything, and has no holes.
fn mute_disk(at: &Path, len: usize) {
    let mut bytes = vec![0xf4; len];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(at, bytes).unwrap();
}

/// What lies in the folder of an image in a cache.
fn in_cache(cache: &Path, name: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(cache.join("guestline/images").join(name)).into_iter().flatten();
    folders.flatten().map(|entry| entry.path()).collect()
}

#[test]
fn an_import_that_is_interrupted_leaves_nothing() {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    let guestline = guestline.with("XDG_CACHE_HOME", &cache);
    mute_disk(&guestline.home().join("mute.img"), 1 << 20);
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGKILL, 137)]
    {
        let running = guestline.start(&["image", "import", "mute.img"]);
        guestline.wait_for_qemu();
        // Copied and made, it is being looked at.
        assert_eq!(in_cache(&cache, "mute").len(), 1);
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.status, status, "{}", ran.stderr);
        if signal != Signal::SIGKILL {
            assert!(ran.stderr.contains("aborted  import of mute.img"), "{}", ran.stderr);
            assert_eq!(in_cache(&cache, "mute"), [""; 0].map(PathBuf::from));
            assert_nothing(&guestline);
        }
        guestline.assert_nothing_left();
    }
    // What the killed one left goes with the next.
    right(&guestline.run(&["image", "import", "--no-check", "--name", "other", "mute.img"]));
    let imports = guestline.home().join("state/guestline/images");
    let names = fs::read_dir(imports).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["other"]);
    right(&guestline.run(&["cache", "prune"]));
    assert_eq!(in_cache(&cache, "mute"), [""; 0].map(PathBuf::from));
}

#[test]
fn an_import_that_does_not_do_leaves_the_one_before() {
    let guestline = Guestline::new();
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    right(&guestline.run(&["image", "import", root.to_str().unwrap(), "--name", "kept"]));
    mute_disk(&guestline.home().join("mute.img"), 1 << 20);
    let import =
        ["image", "import", "--replace", "--name", "kept", "--boot-timeout", "2s", "mute.img"];
    let ran = guestline.run(&import);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("the agent did not answer within 2s"), "{}", ran.stderr);
    let ran = guestline.run(&["check", "--image", "kept", "cat /etc/greeting"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "hello\n");
    guestline.assert_nothing_left();
}

#[test]
fn an_import_that_finds_no_room_leaves_nothing() {
    for (variable, wanted) in [
        ("XDG_STATE_HOME", "cannot copy `mute.img` into the folder of imports"),
        ("XDG_CACHE_HOME", "image `mute` cannot be made"),
    ] {
        let guestline = Guestline::new();
        mute_disk(&guestline.home().join("mute.img"), 8 << 20);
        let [small, cache] = ["small", "cache"].map(|name| guestline.home().join(name));
        fs::create_dir(&small).unwrap();
        // The small disk is gone with the program, and so is looked at before.
        let script = format!(
            "mount -t tmpfs -o size=4m,mode=0700 none '{0}'; status=0; \"$@\" || status=$?; \
             find '{0}' -name '.making-*' -o -name mute; exit $status",
            small.display()
        );
        let guestline = guestline.with("XDG_CACHE_HOME", &cache).with(variable, &small);
        let guestline = mounted(guestline, &script);
        let ran = guestline.run(&["image", "import", "--no-check", "mute.img"]);
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        assert!(ran.stderr.contains(wanted), "{}", ran.stderr);
        assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
        assert_eq!(ran.stdout(), "");
        assert_nothing(&guestline);
        assert_eq!(in_cache(&cache, "mute"), [""; 0].map(PathBuf::from));
    }
}
