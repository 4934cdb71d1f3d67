//! `guestline bench`: every figure as a median, with the floor taken in the same run and their ratio.
//!
//! Figures and floors alternate, run by run, so that a machine that speeds up or slows down does so for both.

mod image;
mod link;
mod machine;
mod peers;
mod stats;
mod suite;
mod tiny;

use super::image::print;
use crate::args::{BenchArgs, Figure, GlobalArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::lease;
use crate::terminal::Progress;
use guestline::image::{Agent, Image};
use guestline::machine::{Accel, Qemu};
use guestline::provision::{Lease, MachineRequest, Provisioner, WorkRoot};
use guestline_harness::text;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What every check of the benchmark runs.
const LINE: &str = "grep -q sse2 /proc/cpuinfo";

/// A bare boot or a check that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    context: Context,
    global_args: Vec<String>,
    qemu: Qemu,
    accel: Accel,
    agent: Agent,
    image: Image,
    runs: u32,
}

pub(crate) fn run(global: &GlobalArgs, args: &BenchArgs) -> Result<u8, CommandError> {
    if let [Figure::Link] = args.figures[..] {
        return link::run(global, args);
    }
    if let [Figure::Machine] = args.figures[..] {
        return machine::run(global, args);
    }
    if let [Figure::Image] = args.figures[..] {
        return image::run(global, args);
    }
    if let [Figure::Suite] = args.figures[..] {
        return suite::run(global, args);
    }
    let context = Context::new()?;
    let agent = agent(global)?;
    let acceleration = context.acceleration(global.accel, false);
    let qemu = Qemu::find(&context.dirs)?;
    let image = tiny(&context, global)?;
    let mut global_args = vec!["--accel".to_owned(), acceleration.accel.as_str().to_owned()];
    if let Some(path) = &global.agent {
        global_args.extend(["--agent".to_owned(), path.display().to_string()]);
    }
    let accel = acceleration.accel;
    let bench = Bench { context, global_args, qemu, accel, agent, image, runs: args.runs };
    print(&format!(
        "accelerator {} ({}), QEMU {}, kernel {}, medians of {}\n{}",
        accel.as_str(),
        acceleration.why,
        bench.qemu.version,
        bench.image.manifest.kernel_release,
        args.runs,
        stats::heading(42, 10),
    ))?;
    let wanted = |figure| args.figures.is_empty() || args.figures.contains(&figure);
    if wanted(Figure::Boot) || wanted(Figure::Controller) {
        let checks = bench.checks()?;
        if wanted(Figure::Boot) {
            let ratio = median(&checks, |c| c.whole).as_secs_f64()
                / median(&checks, |c| c.floor).as_secs_f64();
            let name = "cold boot to verdict, s";
            print(&row(
                name,
                s(median(&checks, |c| c.whole)),
                s(median(&checks, |c| c.floor)),
                format!("{ratio:.2}"),
                "at most 1.25",
            ))?;
            print(&row(
                "  until the agent answers, s",
                s(median(&checks, |c| c.machine)),
                String::new(),
                String::new(),
                "",
            ))?;
            print(&row(
                "  the check itself, s",
                s(median(&checks, |c| c.check)),
                String::new(),
                String::new(),
                "",
            ))?;
        }
        if wanted(Figure::Controller) {
            let (whole, inside) =
                (median(&checks, |c| c.whole), median(&checks, |c| c.machine + c.check));
            let added = median(&checks, |c| c.whole.saturating_sub(c.machine + c.check));
            let ratio = whole.as_secs_f64() / inside.as_secs_f64();
            print(&row(
                "added by the controller, ms",
                ms(added),
                "0.0".to_owned(),
                format!("{ratio:.3}"),
                "at most 60 ms",
            ))?;
        }
    }
    if wanted(Figure::Agent) {
        bench.agent_figures()?;
    }
    Ok(0)
}

fn row(name: &str, median: String, floor: String, ratio: String, wanted: &str) -> String {
    format!("{name:<42} {median:>10} {floor:>10} {ratio:>7}   {wanted}").trim_end().to_owned()
        + "\n"
}

fn s(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}

fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

fn median<T>(samples: &[T], value: impl Fn(&T) -> Duration) -> Duration {
    let mut values: Vec<Duration> = samples.iter().map(value).collect();
    values.sort();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// One check and the bare boot beside it.
struct Check {
    floor: Duration,
    /// The command, from its start to its end.
    whole: Duration,
    machine: Duration,
    check: Duration,
}

impl Bench {
    /// After one of each that is not counted: files come into the page cache.
    fn checks(&self) -> Result<Vec<Check>, CommandError> {
        let folder = tempfile::tempdir()?;
        let mut checks = Vec::new();
        for counted in 0..=self.runs {
            let floor = bare_boot(&self.qemu, self.accel, &self.image, folder.path())?;
            let (whole, machine, check) = self.check()?;
            if counted > 0 {
                checks.push(Check { floor, whole, machine, check });
            }
        }
        Ok(checks)
    }

    /// This program as a user runs it: the whole of it, and what it says of machine and check.
    fn check(&self) -> Result<(Duration, Duration, Duration), CommandError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&self.global_args).args([
            "check",
            "--fresh-reboot",
            "--message-format",
            "json",
            LINE,
        ]);
        let started = Instant::now();
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let whole = started.elapsed();
        let lines = output.stdout.split(|&byte| byte == b'\n');
        let mut events = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let end = events.find(|event| event["event"] == "attempt-finished");
        let passed = end.filter(|end| end["outcome"] == "passed");
        let Some(end) = passed else {
            return Err(CommandError::new(format!(
                "`guestline check` did not pass: {}",
                output.status
            )));
        };
        let us = |key: &str| Duration::from_micros(end[key].as_u64().unwrap_or_default());
        Ok((whole, us("machine_us"), us("check_us")))
    }

    fn agent_figures(&self) -> Result<(), CommandError> {
        let size = self.agent.bytes().len();
        let floor = "386".to_owned();
        let ratio = format!("{:.2}", size as f64 / 386e3);
        print(&row(
            "agent, kB",
            format!("{}", size / 1000),
            floor,
            ratio,
            "at most 700 kB; floor: a hello with nix",
        ))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (resident, busybox) = runtime.block_on(self.resident())?;
        let ratio = format!("{:.2}", resident as f64 / busybox as f64);
        let (resident, busybox) = (resident.to_string(), busybox.to_string());
        print(&row(
            "agent resident in the guest, kB",
            resident,
            busybox,
            ratio,
            "at most 2048 kB; floor: its shell",
        ))?;
        Ok(())
    }

    /// Resident memory (proc_pid_smaps(5), exact, unlike `VmRSS`) of process 1 and of the shell that asks, in kB.
    async fn resident(&self) -> Result<(u64, u64), CommandError> {
        let root = WorkRoot::create(&self.context.dirs, false)?;
        let provisioner = Provisioner::new(self.qemu.clone(), self.accel, root, &self.context.dirs);
        let request = MachineRequest::new(self.image.clone(), PATIENCE);
        let lease = provisioner.lease(&request, &CancellationToken::new()).await;
        let lease = lease.map_err(|failed| CommandError::new(text::chain(&failed.error)))?;
        let result = read_resident(&lease).await;
        lease.end().await;
        result
    }
}

async fn read_resident(lease: &Lease) -> Result<(u64, u64), CommandError> {
    const SCRIPT: &str =
        "sed -n 's/^Rss:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/smaps_rollup /proc/$$/smaps_rollup";
    let (_, said) = lease.guest.output(&["/bin/sh", "-c", SCRIPT], 4096).await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut numbers = said.lines().filter_map(|line| line.trim().parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(agent), Some(busybox)) => Ok((agent, busybox)),
        _ => Err(CommandError::new(format!(
            "the guest tells no memory: {}",
            text::one_line(&said, 80)
        ))),
    }
}

/// The floor: the same kernel, entered the same way, to a userspace that powers off at once; a
/// machine with nothing but a serial port.
fn bare_boot(
    qemu: &Qemu,
    accel: Accel,
    image: &Image,
    folder: &Path,
) -> Result<Duration, CommandError> {
    let mut command = bare_boot_command(qemu, accel, image, folder)?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            return match status.success() {
                true => Ok(started.elapsed()),
                false => Err(CommandError::new(format!("the bare boot: QEMU ended with {status}"))),
            };
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(CommandError::new("the bare boot does not come to its end"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn bare_boot_command(
    qemu: &Qemu,
    accel: Accel,
    image: &Image,
    folder: &Path,
) -> Result<Command, CommandError> {
    let initrd = folder.join("bare.cpio");
    std::fs::write(&initrd, image.bare_initrd()?)?;
    let cmdline = &image.manifest.cmdline;
    let words = cmdline.split(' ').filter(|word| !word.starts_with("guestline."));
    let cmdline = words.chain(["rdinit=/bin/busybox", "--", "poweroff", "-f"]).collect::<Vec<_>>();
    let mut command = Command::new(&qemu.path);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"]);
    command.args(["-serial", "null", "-m", "256", "-smp", "1", "-no-reboot"]);
    // The same CPU: what the guest sees of it is part of what is tested, not of what it costs.
    command.args(["-accel", accel.as_str(), "-cpu", accel.cpu()]);
    command
        .args(image.kernel.iter().flat_map(|kernel| [OsStr::new("-kernel"), kernel.as_os_str()]));
    command.arg("-initrd").arg(initrd).arg("-append").arg(cmdline.join(" "));
    Ok(command)
}

/// The image that is measured with.
fn tiny(context: &Context, global: &GlobalArgs) -> Result<Image, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let (cancel, mut progress) = (CancellationToken::new(), Progress::new());
    lease::image(context, global, "tiny", &cancel, &mut progress)?.map_err(CommandError::new)
}
