//! What a pull takes of this host: no more than it is allowed, and nothing that was here.

use crate::web::Web;
use guestline::guest::{PullOptions, PushOptions};
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use guestline_tests::wait_for;
use nix::sys::signal::Signal;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_folder_that_is_there_stays_as_it_is() {
    let web = Web::up();
    web.line("mkdir -p /tmp/out/sub && touch -d '2001-02-03 04:05:06' /tmp/out/sub && chmod 1777 /tmp/out");
    web.line("touch -d '2001-02-03 04:05:06' /tmp/out");
    let into = web.0.home().join("into");
    std::fs::create_dir(&into).unwrap();
    std::fs::set_permissions(&into, PermissionsExt::from_mode(0o700)).unwrap();
    let ran = web.0.run(&["pull", "web", "/tmp/out/.", "into"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(mode(&into), 0o700);
    let year = |path: &Path| 1970 + path.metadata().unwrap().mtime() / 31_557_600;
    assert!(year(&into) > 2020);
    assert_eq!(year(&into.join("sub")), 2001);
    // What is copied whole is the guest's.
    assert_eq!(web.0.run(&["pull", "web", "/tmp/out", "into"]).status, 0);
    assert_eq!((mode(&into.join("out")), year(&into.join("out"))), (0o1777, 2001));
    assert_eq!(mode(&into), 0o700);
    // The other way round, too.
    web.line("mkdir -p /tmp/in && chmod 711 /tmp/in");
    assert_eq!(web.0.run(&["push", "web", "into/.", "/tmp/in"]).status, 0);
    assert_eq!(web.line("stat -c %a /tmp/in; ls /tmp/in"), "711\nout\nsub");
    web.down();
}

#[test]
fn nodes_are_made_when_they_are_asked_for() {
    let web = Web::up();
    web.line("mkdir /tmp/out && cd /tmp/out && mknod null c 1 3 && mkfifo pipe && echo y > file");
    let ran = web.0.run(&["pull", "web", "/tmp/out", "out"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("web: null: ") && ran.stderr.contains("no device nodes are made"));
    assert!(ran.stderr.contains("web: pipe: ") && ran.stderr.contains("no pipes are made here"));
    let out = web.0.home().join("out");
    let names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    if nix::unistd::geteuid().is_root() {
        let ran = web.0.run(&["pull", "web", "-p", "/tmp/out", "all"]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let kind = |name: &str| web.0.home().join("all").join(name).symlink_metadata().unwrap();
        assert!(kind("null").file_type().is_char_device());
        assert!(kind("pipe").file_type().is_fifo());
    }
    web.down();
}

#[test]
fn a_pull_has_limits_and_names_what_lifts_them() {
    let web = Web::up();
    web.line(
        "mkdir /tmp/out && cd /tmp/out && touch a b c && truncate -s 100G sparse && \
         head -c 5000 /dev/zero > zero",
    );
    // A hole takes no room.
    let ran = web.0.run(&["pull", "web", "--max-bytes", "5000", "/tmp/out", "all"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let sparse = web.0.home().join("all/sparse").metadata().unwrap();
    assert_eq!((sparse.len(), sparse.blocks()), (100 << 30, 0));
    for (option, value, what, hint) in [
        (
            "--max-bytes",
            "4999",
            "`/tmp/out` in the guest has more than 4999 bytes",
            "--max-bytes SIZE",
        ),
        (
            "--max-entries",
            "5",
            "`/tmp/out` in the guest has more than 5 entries",
            "--max-entries N",
        ),
    ] {
        let ran = web.0.run(&["pull", "web", option, value, "/tmp/out", "some"]);
        assert_eq!(ran.status, 255, "{}", ran.stderr);
        assert!(ran.stderr.contains(what) && ran.stderr.contains(hint), "{}", ran.stderr);
    }
    web.down();
}

/// Bytes that do not repeat soon.
fn content(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Jobs read and write the bulk port by themselves where they can: none takes what is another's, and one that hangs in
/// a file system does not keep the port.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_and_a_command_share_the_port_and_one_that_hangs_stops_no_other() {
    let web = Web::up();
    web.mount_ext4(64);
    let guest = web.session().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, content) = (folder.path().join("file"), content(24 << 20));
    std::fs::write(&file, &content).unwrap();
    let push = |to: &'static str| {
        let (guest, file) = (guest.clone(), file.clone());
        tokio::spawn(async move { guest.push(&file, to.as_bytes(), PushOptions::default()).await })
    };
    let shell = |line: &str| ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()));
    // A command that is fed by the same port.
    let count = || async {
        let output = guest.run(shell("wc -c"), &[b'x'; 3_000_000], 100).await.unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };

    let together = ["/tmp/a", "/tmp/b", "/tmp/c"].map(push);
    assert_eq!(count().await, "3000000");
    for (number, push) in together.into_iter().enumerate() {
        push.await.unwrap().unwrap();
        let back = folder.path().join(number.to_string());
        let from = ["/tmp/a", "/tmp/b", "/tmp/c"][number];
        guest.pull(from.as_bytes(), &back, PullOptions::default()).await.unwrap();
        assert!(std::fs::read(&back).unwrap() == content, "{from}");
    }
    web.line("rm /tmp/b /tmp/c");

    let mut tries = 0;
    let stuck = loop {
        let push = push("/mnt/stuck");
        let begun = shell("until ls /mnt/.guestline-* > /dev/null 2>&1; do :; done");
        assert_eq!(guest.run(begun, &[], 0).await.unwrap().exited.status, ExitStatus::Exited(0));
        guest.freeze(b"/mnt").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        if !push.is_finished() {
            break push;
        }
        // It was quicker.
        guest.thaw(b"/mnt").await.unwrap();
        web.line("rm /mnt/stuck");
        tries += 1;
        assert!(tries < 20, "no push was slow enough");
    };
    assert_eq!(count().await, "3000000");
    push("/tmp/b").await.unwrap().unwrap();
    guest.pull(b"/tmp/b", &folder.path().join("again"), PullOptions::default()).await.unwrap();
    assert!(!stuck.is_finished());
    guest.thaw(b"/mnt").await.unwrap();
    stuck.await.unwrap().unwrap();
    assert_eq!(web.line("cmp /mnt/stuck /tmp/b && echo same"), "same");
    web.down();
}

#[test]
fn an_interrupted_pull_leaves_nothing_and_an_empty_path_is_none() {
    let web = Web::up();
    web.line("dd if=/dev/zero of=/tmp/big bs=1M count=60 2> /dev/null");
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display().to_string();
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let pulling = web.0.start(&["pull", "web", "/tmp/big", &format!("{here}/")]);
        let is_begun = || std::fs::read_dir(&here).unwrap().next().is_some();
        wait_for("a temporary file", || is_begun().then_some(()));
        pulling.signal(signal);
        assert_eq!(pulling.wait().status, status);
        assert!(!is_begun(), "{signal}");
    }
    let ran = web.0.run(&["push", "web", "/etc/hostname", ""]);
    assert!(ran.stderr.contains("a path is empty"), "{}", ran.stderr);
    assert_ne!(ran.status, 0);
    web.down();
}
