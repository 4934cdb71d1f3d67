//! Kernels of the user's: they are the subject, and judged.

use guestline_tests::{Guestline, shared_cache};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of a package of this host's Debian, unpacked once below the test cache.
fn from_package(package: &str, find: &str) -> PathBuf {
    let folder = shared_cache().join("packages").join(package);
    if !folder.join("done").exists() {
        let scratch = folder.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&scratch).unwrap();
        let script = format!(
            "set -e; name=$(apt-cache depends {package} | sed -n 's/.*Depends: \\(linux-image-[^ ]*\\)/\\1/p' | head -n 1); \
             apt-get -q -o APT::Sandbox::User=root download \"$name\"; dpkg-deb -x ./*.deb .; rm -f ./*.deb; touch done"
        );
        let output =
            Command::new("sh").args(["-c", &script]).current_dir(&scratch).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test may have been quicker.
        if std::fs::rename(&scratch, &folder).is_err() {
            std::fs::remove_dir_all(&scratch).unwrap();
        }
    }
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder.join("boot"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(find));
    names.pop().unwrap()
}

pub(crate) fn cloud_kernel() -> PathBuf {
    from_package("linux-image-cloud-amd64", "vmlinuz-")
}

/// With everything as modules.
pub(crate) fn generic_kernel() -> PathBuf {
    from_package("linux-image-amd64", "vmlinuz-")
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The cloud kernel with a hole in its payload: it halts while it unpacks itself, without a word.
fn halting_kernel(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(cloud_kernel()).unwrap();
    let (start, end) = (bytes.len() / 2, bytes.len() / 2 + 1_000_000);
    bytes[start..end].fill(0);
    let path = folder.join("halting");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The image's vmlinux with another name for the init that it starts: it panics at boot.
pub(crate) fn panicking_kernel(guestline: &Guestline) -> PathBuf {
    guestline.run(&["check", "true"]).assert_verdict(0, "passed");
    let folders = std::fs::read_dir(shared_cache().join("guestline/kernels/1")).unwrap();
    let kernels = folders.map(|folder| folder.unwrap().path().join("vmlinux"));
    let mut bytes = std::fs::read(kernels.into_iter().find(|path| path.exists()).unwrap()).unwrap();
    let name = b"/init\0";
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            bytes[at..at + 5].copy_from_slice(b"/none");
        }
    }
    let path = guestline.home().join("panicking");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_kernel_that_fits_boots_and_can_be_named() {
    let guestline = Guestline::new();
    let kernel = cloud_kernel();
    let ran = guestline.run(&["check", "--kernel", &text(&kernel), "uname -r"]);
    ran.assert_verdict(0, "passed");
    let release = kernel.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(format!("vmlinuz-{}", ran.stdout().trim()), release);
    guestline.assert_nothing_left();
}

#[test]
fn a_kernel_without_ports_is_reached_over_the_serial_line() {
    let guestline = Guestline::new();
    let kernel = text(&generic_kernel());
    let line = "test ! -e /sys/class/virtio-ports && seq 2000";
    let ran = guestline.run(&["-v", "check", "--kernel", &kernel, line]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout().lines().count(), 2000);
    // Why it is slower is said to whoever asks.
    assert!(ran.stderr.contains("the link goes over the serial line"), "{}", ran.stderr);
    assert!(ran.stderr.contains("virtio_console"), "{}", ran.stderr);
    assert!(ran.stderr.contains("template: booted and saved"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("template: dropped"), "{}", ran.stderr);
    // What is restored is reached there too.
    let ran = guestline.run(&["check", "--kernel", &kernel, line]);
    ran.assert_verdict(0, "passed");
    assert!(!ran.stderr.contains("template:"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn what_is_no_whole_kernel_is_the_images_error() {
    let guestline = Guestline::new();
    let cut = guestline.home().join("cut");
    let bytes = std::fs::read(cloud_kernel()).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let ran = guestline.run(&["check", "--kernel", &text(&cut), "true"]);
    ran.assert_verdict(125, "image: kernel `");
    ran.assert_verdict(125, "is cut short: ");
    let none = guestline.home().join("none");
    std::fs::write(&none, "not a kernel").unwrap();
    let ran = guestline.run(&["check", "--kernel", &text(&none), "true"]);
    ran.assert_verdict(125, "is no x86 kernel");
    let ran = guestline.run(&["check", "--kernel", "/dev/zero", "true"]);
    ran.assert_verdict(125, "image: `/dev/zero` is no x86 kernel");
    let ran = guestline.run(&["check", "--kernel", &text(guestline.home()), "true"]);
    ran.assert_verdict(125, "has no kernel: neither arch/x86/boot/bzImage nor vmlinux is in it");
    guestline.assert_nothing_left();
}

#[test]
fn a_kernel_that_panics_at_boot_has_failed() {
    let guestline = Guestline::new();
    let kernel = panicking_kernel(&guestline);
    let ran = guestline.run(&["check", "--kernel", &text(&kernel), "true"]);
    ran.assert_verdict(1, "failed  true");
    ran.assert_verdict(1, "boot: guest panicked");
    assert!(ran.stderr.contains("Kernel panic - not syncing"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_kernel_that_hangs_at_boot_has_failed() {
    let guestline = Guestline::new();
    let kernel = text(&halting_kernel(guestline.home()));
    let ran = guestline.run(&["check", "--boot-timeout", "6", "--kernel", &kernel, "true"]);
    ran.assert_verdict(1, "boot: no answer from the guest within 6 s");
    guestline.assert_nothing_left();
}

#[test]
fn git_bisect_finds_the_kernel_that_broke() {
    let guestline = Guestline::new();
    let (good, broken) = (text(&cloud_kernel()), text(&panicking_kernel(&guestline)));
    // Seven revisions; the fourth and later break. The program is `$0`.
    let script = format!(
        "set -e; git init -q repo; cd repo; git config user.email t@example.org; git config user.name t; \
         for n in 1 2 3 4 5 6 7; do [ $n -lt 4 ] && ln -sf '{good}' kernel || ln -sf '{broken}' kernel; \
         echo $n > n; git add .; git commit -qm \"revision $n\"; done; \
         git bisect start HEAD HEAD~6; \
         git bisect run \"$0\" check --bisect --kernel kernel true"
    );
    let ran = guestline.under(&["sh", "-c", &script]).run(&[]);
    assert_eq!(ran.status, 0, "{}{}", ran.stdout(), ran.stderr);
    assert!(ran.stdout().contains("is the first bad commit"), "{}", ran.stdout());
    assert!(ran.stdout().contains("revision 4"), "{}", ran.stdout());
}
