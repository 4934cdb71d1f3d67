//! The command `guest` on a real machine: its program inside, reboots and a power-off that are announced; and the
//! fixture for pytest.

use guestline::machine::{Accel, Ending, Qemu};
use guestline::provision::{MachineRequest, Provisioner, WorkRoot};
use guestline_harness::lab::{Announce, Expected, GUEST_FOLDER, Lab, Side, enter, serve};
use guestline_tests::{Guestline, Ran, dirs_of, named_by, tiny};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Announced(Mutex<Vec<Expected>>);

impl Announce for Announced {
    fn announce(&self, _machine: &str, what: Expected) {
        self.0.lock().unwrap().push(what);
    }
}

async fn guest(socket: &Path, words: &[&str]) -> Ran {
    let mut command = Command::new(named_by("GUESTLINE_GUEST"));
    command.args(words).env("GUESTLINE_SOCKET", socket).stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    Ran::from(running.await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reboots_its_machine_talks_with_it_and_powers_it_off() {
    let home = tempfile::Builder::new().prefix("gl").tempdir().unwrap();
    let dirs = dirs_of(home.path());
    let image = tiny(&dirs).await;
    let root = WorkRoot::create(&dirs, false).unwrap();
    let qemu = Qemu::find(&dirs).unwrap();
    let provisioner = Provisioner::new(qemu, Accel::Tcg, root, &dirs).with_reboots();
    let request = MachineRequest::new(image, Duration::from_secs(120));
    let lease = provisioner.lease(&request, &CancellationToken::new()).await;
    let lease = lease.unwrap_or_else(|failed| panic!("{:?} {:?}", failed.error, failed.console));
    let web = Side::Guest("web".to_owned());
    let announced = Arc::new(Announced::default());
    let machines = [("web".to_owned(), lease.guest.clone())];
    let (lab, _lines) = Lab::new(machines, [Side::Host, web.clone()], announced.clone());
    let cancel = CancellationToken::new();
    let sockets = tempfile::Builder::new().prefix("gl").tempdir().unwrap();
    let bind = |side: Side| -> PathBuf {
        let socket = sockets.path().join(side.to_string());
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(serve(listener, lab.clone(), side, cancel.clone()));
        socket
    };
    let (host, inside) = (bind(Side::Host), bind(web));
    let program = std::fs::read(named_by("GUESTLINE_GUEST")).unwrap();
    for round in 0..2 {
        let _listening = enter(&lease.guest, GUEST_FOLDER, &program, &inside).await.unwrap();
        let line = format!(
            "export PATH={GUEST_FOLDER}:$PATH GUESTLINE_SOCKET={GUEST_FOLDER}/socket; \
             guest sync ready && guest await key && cat /proc/sys/kernel/random/boot_id > /root/boot"
        );
        let words = ["exec", &line];
        let both = async {
            guest(&host, &["send", &format!("key={round}")]).await;
            guest(&host, &["sync", "ready"]).await
        };
        let (ran, synced) = tokio::join!(guest(&host, &words), both);
        assert_eq!(ran.stdout(), format!("{round}\n"), "{}", ran.stderr);
        assert_eq!(synced.status, 0, "{}", synced.stderr);
        let boot = guest(&host, &["exec", "cat /proc/sys/kernel/random/boot_id"]).await.stdout();
        let rebooted = guest(&host, &["reboot"]).await;
        assert_eq!(rebooted.status, 0, "{}", rebooted.stderr);
        let again = guest(&host, &["exec", "cat /proc/sys/kernel/random/boot_id"]).await;
        assert!(again.status == 0 && again.stdout() != boot, "{again:?}");
    }
    let ending = async {
        assert_eq!(lease.machine.ended().await, Ending::PoweredOff);
        lab.machine_ended("web", "the guest powered off");
    };
    let (off, ()) = tokio::join!(guest(&host, &["poweroff"]), ending);
    assert_eq!(off.status, 0, "{}", off.stderr);
    let over = guest(&host, &["exec", "true"]).await;
    let said = "guest: web: the machine has ended: the guest powered off\n";
    assert_eq!((over.status, over.stderr.as_str()), (255, said));
    let reboot = [Expected::Reboot, Expected::Back];
    let wanted = [&reboot[..], &reboot, &[Expected::PowerOff]].concat();
    assert_eq!(*announced.0.lock().unwrap(), wanted);
    cancel.cancel();
    drop(lease.end().await);
}

#[test]
fn the_example_for_pytest_works() {
    let guestline = Guestline::new().with("GUESTLINE_PROGRAM", named_by("GUESTLINE_PROGRAM"));
    let there = guestline.run_other("python3", &["-c", "import pytest"], Stdio::null());
    if there.status != 0 {
        eprintln!("left out: this host's python3 has no pytest");
        return;
    }
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/examples/pytest");
    let words = ["-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", example];
    let ran = guestline.run_other("python3", &words, Stdio::null());
    assert_eq!(ran.status, 0, "{}{}", ran.stdout(), ran.stderr);
    assert!(ran.stdout().contains("3 passed"), "{}", ran.stdout());
    guestline.assert_nothing_left();
}
