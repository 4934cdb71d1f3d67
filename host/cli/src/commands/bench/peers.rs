//! What others reach a guest by, beside the link, in the same guest: qemu-guest-agent, ssh, a shell on a serial line. Each
//! is the one of Debian, unpacked below `/peers` with the libraries it needs.

use super::link::{EXEC, PULL, PUSH, noise, tiny_request};
use super::stats::{Row, median, ms, rate};
use crate::error::CommandError;
use guestline::guest::{ExecHandle, Guest, PullOptions, PushOptions};
use guestline::image::Store;
use guestline::link::{Lane, QgaHandle};
use guestline_harness::text;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// The port that a qemu-guest-agent looks for.
pub(super) const QGA_PORT: &str = "org.qemu.guest_agent.0";

/// With what qemu-guest-agent and dropbear need, and those need.
const PACKAGES: [&str; 14] = [
    "qemu-guest-agent",
    "libglib2.0-0",
    "libpcre2-8-0",
    "libnuma1",
    "libudev1",
    "libcap2",
    "liburing2",
    "dropbear-bin",
    "libcrypt1",
    "libtomcrypt1",
    "libtommath1",
    "libgmp10",
    "zlib1g",
    "libc6",
];

/// Runs a program of `/peers` with its own libraries.
const RUN: &str = "LD_LIBRARY_PATH=/peers/lib/x86_64-linux-gnu:/peers/usr/lib/x86_64-linux-gnu \
    exec /peers/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 /peers/usr/sbin/";

/// How often a small thing is done, and how much goes through a qemu-guest-agent.
const EXECS: usize = 30;
const FILE_LEN: usize = 4 << 20;

/// A daemon has so long to begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs, and what the host needs to reach them.
pub(super) struct Peers {
    folder: TempDir,
    /// The host's port that leads to the guest's port 22.
    pub(super) ssh_port: u16,
}

impl Peers {
    /// Unpacks the programs, and finds a free port.
    pub(super) fn fetch(store: &Store) -> Result<Self, CommandError> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        std::fs::create_dir(&root)?;
        store.unpack(&PACKAGES, &root, &tokio_util::sync::CancellationToken::new()).map_err(
            |error| {
                CommandError::new(text::chain(&error))
                    .hint("the others beside the link come from Debian's packages")
            },
        )?;
        // Nobody else takes it before QEMU does, but by bad luck.
        let ssh_port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self { folder, ssh_port })
    }

    /// Measures each, and sets the link's own figures, which are in `rows`, against them.
    pub(super) async fn measure(
        &self,
        guest: &Guest,
        qga: UnixStream,
        serial: UnixStream,
        rows: &mut Vec<Row>,
    ) -> Result<(), CommandError> {
        let root = self.folder.path().join("root");
        guest.push(&root, b"/peers", PushOptions::default()).await?;
        let own = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.median);
        let (exec, push, pull) = (own(EXEC), own(PUSH), own(PULL));
        let by_qga = Qga::start(guest, qga).await?.measure(self.folder.path()).await?;
        let by_ssh = self.ssh(guest).await?;
        let by_serial = by_serial(guest, serial).await?;
        let mut exec_row =
            |name, median, wanted| rows.push(Row::new(name, "ms", median, exec, wanted));
        exec_row("exec by qemu-guest-agent", by_qga.exec, "at least 3; floor: exec by the link");
        exec_row("exec by ssh, one connection", by_ssh, "floor: exec by the link");
        exec_row("exec by a shell on a serial line", by_serial, "floor: exec by the link");
        let mut file_row = |name, own: Option<f64>, qga, wanted| {
            rows.extend(own.map(|own| Row::new(name, "MB/s", own, Some(qga), wanted)));
        };
        file_row(
            "push beside qemu-guest-agent's",
            push,
            by_qga.write,
            "at least 40; floor: its write",
        );
        file_row(
            "pull beside qemu-guest-agent's",
            pull,
            by_qga.read,
            "at least 25; floor: its read",
        );
        Ok(())
    }

    /// Milliseconds of an exec by ssh, over a connection that stands.
    async fn ssh(&self, guest: &Guest) -> Result<f64, CommandError> {
        let key = self.folder.path().join("key");
        let mut keygen = Command::new("ssh-keygen");
        succeed(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await?;
        let public = std::fs::read(key.with_extension("pub"))?;
        guest.make_folder(b"/root/.ssh", 0o700, true).await?;
        guest.write(b"/root/.ssh/authorized_keys", &public, 0o600).await?;
        let line = format!(
            "chmod 700 /root; mkdir -p /etc/dropbear; modprobe virtio_net && ip link set eth0 up && \
             ip addr add 10.0.2.15/24 dev eth0 && {RUN}dropbear -F -E -R -p 22"
        );
        let _server = start(guest, &line).await?;
        let (control, began) = (self.folder.path().join("control"), Instant::now());
        let _master = loop {
            let mut master = self.client(&control);
            let mut master = master.args(["-M", "-N"]).stderr(Stdio::null()).spawn()?;
            if is_up(&mut master, &control).await? {
                break master;
            }
            if began.elapsed() > PATIENCE {
                return Err(CommandError::new("the guest's sshd does not answer"));
            }
        };
        let mut samples = Vec::new();
        for _ in 0..EXECS {
            let began = Instant::now();
            succeed(self.client(&control).arg("/tmp/tiny").stderr(Stdio::null())).await?;
            samples.push(ms(began.elapsed()));
        }
        Ok(median(&samples))
    }

    fn client(&self, control: &Path) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ConnectTimeout=10",
            "-S",
        ]);
        command.arg(control).arg("-i").arg(self.folder.path().join("key"));
        command.arg("-p").arg(self.ssh_port.to_string()).arg("root@127.0.0.1");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

/// Runs a program of the host to its end.
async fn succeed(command: &mut Command) -> Result<(), CommandError> {
    let program = PathBuf::from(command.as_std().get_program());
    let status = command.status().await.map_err(|error| {
        CommandError::new(format!("cannot run `{}`: {error}", program.display()))
    })?;
    match status.success() {
        true => Ok(()),
        false => Err(CommandError::new(format!("`{}` failed: {status}", program.display()))),
    }
}

/// Waits until a connection stands; false when it failed.
async fn is_up(master: &mut Child, control: &Path) -> Result<bool, CommandError> {
    while !control.exists() {
        if master.try_wait()?.is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(true)
}

/// Starts a daemon in the guest, which ends when this is dropped.
async fn start(guest: &Guest, line: &str) -> Result<ExecHandle, CommandError> {
    let shell = guestline_protocol::Command::Shell(line.as_bytes().to_vec().into());
    Ok(guest.exec(guestline_protocol::ExecRequest::new(shell)).await?)
}

/// A qemu-guest-agent in the guest.
struct Qga {
    guest: Guest,
    _server: ExecHandle,
}

/// Milliseconds and MB/s.
struct ByQga {
    exec: f64,
    write: f64,
    read: f64,
}

impl Qga {
    async fn start(guest: &Guest, port: UnixStream) -> Result<Self, CommandError> {
        let line = format!(
            "for port in /sys/class/virtio-ports/*; do [ \"$(cat $port/name)\" = {QGA_PORT} ] && \
             {RUN}qemu-ga -m virtio-serial -p /dev/${{port##*/}} -t /tmp -f /tmp/qga.pid; done; exit 9"
        );
        let server = start(guest, &line).await?;
        let opened =
            tokio::time::timeout(PATIENCE, QgaHandle::open(Lane::socket(port), None)).await;
        let handle =
            opened.map_err(|_| CommandError::new("the qemu-guest-agent does not answer"))??;
        Ok(Self { guest: Guest::over_qga(handle), _server: server })
    }

    async fn measure(&self, folder: &Path) -> Result<ByQga, CommandError> {
        let mut execs = Vec::new();
        for _ in 0..EXECS {
            let began = Instant::now();
            self.guest.run(tiny_request(), &[], 0).await?;
            execs.push(ms(began.elapsed()));
        }
        let (here, there) = (folder.join("file"), b"/tmp/by-qga");
        std::fs::write(&here, noise(FILE_LEN))?;
        let began = Instant::now();
        self.guest.push(&here, there, PushOptions::default()).await?;
        let write = rate(FILE_LEN, began.elapsed());
        let began = Instant::now();
        self.guest.pull(there, &folder.join("back"), PullOptions::default()).await?;
        let read = rate(FILE_LEN, began.elapsed());
        Ok(ByQga { exec: median(&execs), write, read })
    }
}

/// Milliseconds of an exec by a shell on a serial line: the line is typed, and its status read back.
async fn by_serial(guest: &Guest, line: UnixStream) -> Result<f64, CommandError> {
    let shell = "stty raw -echo </dev/ttyS2 && exec setsid sh </dev/ttyS2 >/dev/ttyS2 2>&1";
    let _shell = start(guest, shell).await?;
    let mut line = BufReader::new(line);
    let mut samples = Vec::new();
    // Typed before the shell is there, a line could be lost.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..EXECS {
        let began = Instant::now();
        line.get_mut().write_all(b"/tmp/tiny; echo \"=$?=\"\n").await?;
        let mut said = String::new();
        while !said.ends_with("=0=\n") {
            let read = tokio::time::timeout(PATIENCE, line.read_line(&mut said)).await;
            if read.map_err(|_| CommandError::new("the shell on the serial line is silent"))?? == 0
            {
                return Err(CommandError::new("the serial line closed"));
            }
        }
        samples.push(ms(began.elapsed()));
    }
    Ok(median(&samples))
}
