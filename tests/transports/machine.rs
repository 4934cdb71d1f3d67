//! Real machines: the link over their serial line and over a virtual console, and a qemu-guest-agent in one.

use crate::real_qga;
use crate::rig::{exercise, shell, soon};
use guestline::guest::{Guest, PushOptions};
use guestline::link::{Lane, LinkError, QgaHandle, TransportKind};
use guestline::machine::{Accel, Ending, ExtraPort, Qemu};
use guestline::provision::{Lease, LinkChoice, MachineRequest, Provisioner, WorkRoot};
use guestline_protocol::{Command, ErrorKind, ExecRequest};
use guestline_tests::{dirs_of, tiny};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A machine, and the folder that its own is in.
struct Leased {
    lease: Lease,
    _home: tempfile::TempDir,
}

async fn lease(link: LinkChoice, ports: Vec<ExtraPort>) -> Leased {
    let home = tempfile::Builder::new().prefix("gl").tempdir().unwrap();
    let dirs = dirs_of(home.path());
    let image = tiny(&dirs).await;
    let (qemu, root) = (Qemu::find(&dirs).unwrap(), WorkRoot::create(&dirs, false).unwrap());
    let provisioner = Provisioner::new(qemu, Accel::Tcg, root, &dirs);
    let request =
        MachineRequest { ports, link, ..MachineRequest::new(image, Duration::from_secs(120)) };
    match provisioner.lease(&request, &CancellationToken::new()).await {
        Ok(lease) => Leased { lease, _home: home },
        Err(failed) => panic!("{:?} {:?}", failed.error, failed.console),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_serial_line() {
    let leased = lease(LinkChoice::Serial, Vec::new()).await;
    let guest = &leased.lease.guest;
    assert_eq!(guest.transport(), TransportKind::Tty);
    assert!(guest.agent().init);
    exercise(guest, Path::new("/tmp"), 300_000, 31).await;
    // The kernel and a prompt on the same line, and somebody who sets it as he likes it.
    let noise = "for n in 1 2 3 4 5 6 7 8; do echo \"[ 12.3] usb 1-$n: new device\"; printf 'tiny login: '; \
        dd if=/dev/urandom bs=64 count=1 2>/dev/null; sleep 0.1; done > /dev/ttyS1; stty sane < /dev/ttyS1; echo done";
    assert_eq!(shell(guest, noise).await, "done\n");
    exercise(guest, Path::new("/tmp"), 50_000, 32).await;
    leased.lease.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_virtual_console() {
    let leased = lease(LinkChoice::VirtConsole, Vec::new()).await;
    let guest = &leased.lease.guest;
    assert_eq!(guest.transport(), TransportKind::Tty);
    let cmdline = shell(guest, "cat /proc/cmdline").await;
    assert!(cmdline.contains("guestline.link=tty:/dev/hvc0"), "{cmdline}");
    exercise(guest, Path::new("/tmp"), 1_000_000, 33).await;
    assert_eq!(
        shell(guest, "echo noise > /dev/hvc0; stty sane < /dev/hvc0; echo done").await,
        "done\n"
    );
    exercise(guest, Path::new("/tmp"), 100_000, 34).await;
    leased.lease.end().await;
}

/// The program with all that it is linked with.
fn with_libraries(program: &Path) -> Vec<PathBuf> {
    let output = std::process::Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}

/// Puts a qemu-guest-agent into a guest and starts it on a port.
async fn install(guest: &Guest, program: &Path) {
    let options = PushOptions::default();
    for library in with_libraries(program) {
        let folder = library.parent().unwrap().to_str().unwrap();
        guest.make_folder(folder.as_bytes(), 0o755, true).await.unwrap();
        let to = library.to_str().unwrap().as_bytes();
        let pushed = soon("a library", guest.push(&library, to, options)).await.unwrap();
        assert_eq!(pushed.troubles, []);
    }
    soon("a program", guest.push(program, b"/bin/qemu-ga", options)).await.unwrap();
    shell(
        guest,
        "mkdir -p /dev/virtio-ports /run/qga; for p in /sys/class/virtio-ports/*; do \
         [ $(cat $p/name) = org.qemu.guest_agent.0 ] && ln -s /dev/${p##*/} /run/qga/port; done; \
         printf '#!/bin/sh\\necho \"$@\" > /run/qga/shutdown\\nexec /bin/busybox poweroff -f\\n' > /sbin/shutdown; \
         chmod +x /sbin/shutdown",
    )
    .await;
    let words = [
        "/bin/qemu-ga",
        "-m",
        "virtio-serial",
        "-p",
        "/run/qga/port",
        "-t",
        "/run/qga",
        "-f",
        "/run/qga/pid",
    ];
    let words = words.map(|word| word.as_bytes().to_vec().into()).to_vec();
    let mut process = guest.exec(ExecRequest::new(Command::Argv(words))).await.unwrap();
    tokio::spawn(async move {
        while let Ok(event) = process.next().await {
            eprintln!("{event:?}")
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_guest_agent_in_a_guest() {
    let Some(program) = real_qga::program() else {
        eprintln!("qemu-ga does not run on this host: nothing is tried");
        return;
    };
    let port = ExtraPort::Virtio("org.qemu.guest_agent.0".to_owned());
    let mut leased = lease(LinkChoice::Auto, vec![port]).await;
    install(&leased.lease.guest, &program).await;
    let lane = Lane::socket(leased.lease.ports.pop().unwrap());
    let guest = Guest::over_qga(soon("a session", QgaHandle::open(lane, None)).await.unwrap());
    exercise(&guest, Path::new("/tmp"), 300_000, 35).await;
    let facts = guest.facts().await.unwrap();
    assert_eq!(facts.kernel, shell(&guest, "uname -r").await.trim());
    shell(&guest, "date -s '2001-02-03 04:05:06'").await;
    let skew = guest.set_clock().await.unwrap();
    assert!(skew.micros < -600_000_000_000_000, "{skew:?}");
    let skew = guest.skew().await.unwrap();
    assert!(skew.micros.abs() < 2_000_000, "{skew:?}");
    // The initial RAM file system cannot be frozen.
    let error = guest.freeze(b"/").await.unwrap_err();
    let LinkError::Refused(error) = error else { panic!("{error:?}") };
    assert!(matches!(error.kind, ErrorKind::NotFound | ErrorKind::System | ErrorKind::Unsupported));
    guest.power_off().await.unwrap();
    assert_eq!(soon("the end", leased.lease.machine.ended()).await, Ending::PoweredOff);
    leased.lease.end().await;
}
