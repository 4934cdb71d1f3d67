//! Debian's own qemu-guest-agent, on this host and on a socket. What would end the host or stop its clock and disks is
//! forbidden to it; those are tried with a scripted one.

use crate::rig::{exercise, shell, soon};
use guestline::guest::{FilesError, Guest, PullOptions};
use guestline::link::{Endpoint, LinkError, TransportKind};
use guestline_protocol::{Command, EnvChange, ErrorKind, ExecRequest, ExitStatus};
use guestline_tests::{shared_cache, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const FORBIDDEN: &str = "guest-shutdown,guest-set-time,guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,\
    guest-fsfreeze-thaw,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-set-user-password,\
    guest-set-vcpus,guest-set-memory-blocks,guest-ssh-add-authorized-keys,guest-fstrim";

/// The program out of Debian's package, unpacked once below the test cache; none where it does not run.
pub(crate) fn program() -> Option<PathBuf> {
    let folder = shared_cache().join("packages/qemu-guest-agent");
    if !folder.join("done").exists() {
        let scratch = folder.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&scratch).unwrap();
        let script = "set -e; apt-get -q -o APT::Sandbox::User=root download qemu-guest-agent; \
            dpkg-deb -x ./*.deb .; rm -f ./*.deb; touch done";
        let output =
            std::process::Command::new("sh").args(["-c", script]).current_dir(&scratch).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test may have been quicker.
        if std::fs::rename(&scratch, &folder).is_err() {
            std::fs::remove_dir_all(&scratch).unwrap();
        }
    }
    let program = folder.join("usr/sbin/qemu-ga");
    let runs = std::process::Command::new(&program).arg("--version").output();
    runs.is_ok_and(|output| output.status.success()).then_some(program)
}

struct Qga {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Qga {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qga {
    /// None, with a word about it, where the program's libraries (libglib2.0-0, liburing2) are not installed.
    fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("qemu-ga does not run on this host: nothing is tried");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&program, folder.path());
        Some(Self { child, folder })
    }

    fn spawn(program: &Path, folder: &Path) -> Child {
        let socket = folder.join("qga.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = std::process::Command::new(program);
        command.args(["-m", "unix-listen", "-b", FORBIDDEN, "-p"]).arg(&socket);
        command.arg("-t").arg(folder).arg("-f").arg(folder.join("pid"));
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("its socket", || socket.exists().then_some(()));
        child
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&program().unwrap(), self.folder.path());
    }

    async fn open(&self) -> Guest {
        let endpoint = format!("qga:{}", self.folder.path().join("qga.sock").display());
        let endpoint: Endpoint = endpoint.parse().unwrap();
        soon("a session", Guest::open(&endpoint)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_files() {
    let Some(qga) = Qga::start() else { return };
    let guest = qga.open().await;
    assert_eq!(guest.transport(), TransportKind::Qga);
    assert!(guest.agent().build.starts_with("qemu-guest-agent "), "{:?}", guest.agent());
    exercise(&guest, qga.folder.path(), 1_000_000, 21).await;
    // Input, both outputs, a status of its own.
    let request = ExecRequest::new(Command::Shell(b"cat; echo err >&2; exit 7".to_vec().into()));
    let output = soon("an end", guest.run(request, b"\0in\xff", 100)).await.unwrap();
    assert_eq!(output.exited.status, ExitStatus::Exited(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"\0in\xff"[..], &b"err\n"[..])
    );
    // Variables, added and alone.
    let line = b"echo $A-${HOME:+home}".to_vec();
    let mut request = ExecRequest::new(Command::Shell(line.into()));
    let (name, value) = (b"A".to_vec().into(), Some(b"1 2".to_vec().into()));
    request.env = vec![EnvChange { name, value }];
    let with_home = if std::env::var_os("HOME").is_some() { "1 2-home\n" } else { "1 2-\n" };
    let output = soon("an end", guest.run(request.clone(), &[], 100)).await.unwrap();
    assert_eq!(output.stdout, with_home.as_bytes());
    request.clear_env = true;
    let output = soon("an end", guest.run(request, &[], 100)).await.unwrap();
    assert_eq!(output.stdout, b"1 2-\n");
    let request = ExecRequest::new(Command::Shell(b"kill -9 $$".to_vec().into()));
    let output = soon("an end", guest.run(request, &[], 100)).await.unwrap();
    assert_eq!(output.exited.status, ExitStatus::Signaled { signal: 9, core_dumped: false });
    let request = ExecRequest::new(Command::Argv(vec![b"/nonexistent".to_vec().into()]));
    let error = soon("a refusal", guest.run(request, &[], 100)).await.unwrap_err();
    let LinkError::Refused(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert_eq!(shell(&guest, "head -c 1000000 /dev/zero | tr '\\0' x").await.len(), 1_000_000);
    let flood = ExecRequest::new(Command::Shell(b"head -c 20000000 /dev/zero".to_vec().into()));
    let error = soon("a refusal", guest.run(flood, &[], 100)).await.unwrap_err().to_string();
    assert_eq!(error, "qemu-guest-agent cannot carry more than 16 MiB of a process's output");
    shell(&guest, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_none() {
    let Some(qga) = Qga::start() else { return };
    let guest = qga.open().await;
    let error = soon("a refusal", guest.read(b"/nonexistent", 10)).await.unwrap_err();
    let FilesError::Link(LinkError::Refused(error)) = error else { panic!("{error:?}") };
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    let to = qga.folder.path().join("to");
    let pulled = guest.pull(b"/etc", &to, PullOptions::default());
    let error = soon("a refusal", pulled).await.unwrap_err();
    assert!(matches!(error, FilesError::Link(LinkError::Refused(_))), "{error:?}");
    let empty = qga.folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let name = empty.to_str().unwrap().as_bytes();
    assert_eq!(soon("a file", guest.read(name, 10)).await.unwrap(), b"");
    // Of /proc, whose files have no length.
    let version = soon("a file", guest.read(b"/proc/version", 4096)).await.unwrap();
    assert_eq!(version, std::fs::read("/proc/version").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_knows_and_what_it_is_forbidden() {
    let Some(qga) = Qga::start() else { return };
    let guest = qga.open().await;
    let facts = soon("facts", guest.facts()).await.unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts.kernel, release.trim());
    let skew = soon("a clock", guest.skew()).await.unwrap();
    assert!(skew.micros.abs() < 5_000_000, "{skew:?}");
    for refused in
        [guest.power_off().await, guest.set_clock().await.map(drop), guest.freeze(b"/").await]
    {
        let Err(LinkError::Refused(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_start_of_it_is_found_again() {
    let Some(mut qga) = Qga::start() else { return };
    let guest = qga.open().await;
    shell(&guest, "true").await;
    qga.restart();
    let error = soon("an end", guest.ping()).await.unwrap_err();
    assert!(matches!(error, LinkError::Closed), "{error:?}");
    soon("a session", guest.reconnect()).await.unwrap();
    shell(&guest, "true").await;
}
