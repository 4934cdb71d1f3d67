//! `guestline bench machine`: machines from a template, beside bare QEMU with the same template in the same run.
//!
//! The floors start QEMU with the machine's own command line, load the state over QMP and give the guest one command over
//! a link without any settling, evidence or report. Figure and floor in turn, run by run.

use super::stats::{Row, Setting, median, ms};
use super::{LINE, PATIENCE};
use crate::args::{BenchArgs, GlobalArgs};
use crate::context::Context;
use crate::error::CommandError;
use guestline::guest::Guest;
use guestline::image::Image;
use guestline::link::{Link, Transport};
use guestline::machine::{Machine, MachineSpec, Origin, Qemu};
use guestline::provision::{Lease, MachineRequest, Provisioner, Template, WorkRoot};
use guestline_harness::text;
use guestline_protocol::{Command as GuestCommand, ExecRequest, ExitStatus};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// So many machines at once.
const TOGETHER: usize = 8;

/// So many one-liners in a row.
const MANY: usize = 100;

/// Machines that are restored from the template of an image.
pub(super) struct Restored {
    context: Context,
    global_args: Vec<String>,
    qemu: Qemu,
    spec: MachineSpec,
    template: Template,
    provisioner: Provisioner,
    request: MachineRequest,
    folder: tempfile::TempDir,
    /// What is run in them.
    line: &'static str,
    runs: u32,
}

/// What one restored machine took.
struct Sample {
    wall_ms: f64,
    /// Of QEMU.
    cpu_ms: f64,
}

pub(super) fn run(global: &GlobalArgs, args: &BenchArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let image = super::tiny(&context, global)?;
    let kernel = image.manifest.kernel_release.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (rows, setting) = runtime.block_on(async {
        let bench = Restored::of(global, image, LINE, args.runs).await?;
        let rows = bench.measure().await;
        bench.finish().await;
        Ok::<_, CommandError>((rows?, bench.setting(kernel, args.runs)))
    })?;
    setting.print(args.message_format, json!({}), &rows)
}

impl Restored {
    /// Machines of an image, in which this line is run.
    pub(super) async fn of(
        global: &GlobalArgs,
        image: Image,
        line: &'static str,
        runs: u32,
    ) -> Result<Self, CommandError> {
        let context = Context::new()?;
        let accel = context.acceleration(global.accel, false).accel;
        let qemu = Qemu::find(&context.dirs)?;
        let mut global_args = vec!["--accel".to_owned(), accel.as_str().to_owned()];
        if let Some(path) = &global.agent {
            global_args.extend(["--agent".to_owned(), path.display().to_string()]);
        }
        let root = WorkRoot::create(&context.dirs, false)?;
        let provisioner = Provisioner::new(qemu.clone(), accel, root, &context.dirs);
        let request = MachineRequest::new(image, PATIENCE);
        let template = provisioner.template_of(&request, &CancellationToken::new()).await;
        let (spec, template, _) =
            template.map_err(|failed| CommandError::new(text::chain(&failed.error)))?;
        let folder = tempfile::tempdir()?;
        Ok(Self {
            context,
            global_args,
            qemu,
            spec,
            template,
            provisioner,
            request,
            folder,
            line,
            runs,
        })
    }

    async fn measure(&self) -> Result<Vec<Row>, CommandError> {
        let mut rows = Vec::new();
        let name = "a check from a template, start to exit";
        self.verdict(name, "at most 1.3 x and 60 ms more", &mut rows).await?;
        self.first(&mut rows)?;
        self.ready(&mut rows).await?;
        self.together(&mut rows).await?;
        self.memory(&mut rows).await?;
        self.many(&mut rows).await?;
        self.others(&mut rows)?;
        Ok(rows)
    }

    /// From the start of the controller to its end, and QEMU alone.
    pub(super) async fn verdict(
        &self,
        name: &str,
        wanted: &'static str,
        rows: &mut Vec<Row>,
    ) -> Result<(), CommandError> {
        let (mut checks, mut floors) = (Vec::new(), Vec::new());
        for counted in 0..=self.runs {
            let floor = self.bare().await?;
            let check = self.check(&[], None)?.0;
            if counted > 0 {
                floors.push(floor);
                checks.push(check);
            }
        }
        let (check, floor) = (wall(&checks), wall(&floors));
        rows.push(Row::new(name, "ms", check, Some(floor), wanted));
        rows.push(Row::new("  more than bare QEMU", "ms", check - floor, None, "at most 60"));
        let (all, qemu) = (cpu(&checks), cpu(&floors));
        let name = "  CPU, with QEMU's own";
        rows.push(Row::new(name, "ms", all, Some(qemu), "at most 120 ms more"));
        Ok(())
    }

    /// The first check of all, beside one that boots.
    fn first(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let (mut first, mut cold, mut saved) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..self.runs {
            let home = self.folder.path().join(format!("first-{number}"));
            self.fresh_home(&home)?;
            cold.push(self.check(&["--fresh-reboot"], Some(&home))?.0);
            let (sample, events) = self.check(&[], Some(&home))?;
            first.push(sample);
            let made = events.iter().find(|event| event["event"] == "template-made");
            let made = made.and_then(|event| event["saved_us"].as_f64());
            saved.push(made.ok_or_else(|| CommandError::new("no template was made"))? / 1e3);
            std::fs::remove_dir_all(&home)?;
        }
        let (first, cold) = (wall(&first), wall(&cold));
        rows.push(Row::new(
            "the first check of all",
            "ms",
            first,
            Some(cold),
            "at most 1.1 x cold",
        ));
        let saved = median(&saved);
        rows.push(Row::new("  from quiet to published", "ms", saved, None, "at most 100"));
        Ok(())
    }

    /// A check in a machine that a pool has ready, beside the same line in a bare machine that has run the same warm-up.
    async fn ready(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let home = self.folder.path().join("pool");
        std::fs::create_dir_all(&home)?;
        symlink(&self.context.dirs.cache, home.join("cache"))?;
        let mut start = vec!["pool", "start", "--size", "1"];
        start.extend(self.global_args.iter().map(String::as_str));
        self.program(&start, &home)?;
        let measured = self.measure_ready(&home).await;
        self.program(&["pool", "stop"], &home)?;
        let (check, floor) = measured?;
        let name = "a check in a ready machine, start to exit";
        rows.push(Row::new(name, "ms", check, Some(floor), "at most 1.2 x and 20 ms more"));
        let more = check - 1.2 * floor;
        rows.push(Row::new("  more than 1.2 x the bare one", "ms", more, None, "at most 20"));
        Ok(())
    }

    async fn measure_ready(&self, home: &Path) -> Result<(f64, f64), CommandError> {
        let (mut checks, mut floors) = (Vec::new(), Vec::new());
        for counted in 0..=self.runs {
            let floor = self.bare_warm().await?;
            let until = Instant::now() + PATIENCE;
            while !self.program(&["pool", "list", "--json"], home)?.contains("\"ready\":1") {
                if Instant::now() > until {
                    return Err(CommandError::new("the pool has no machine ready"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let (check, events) = self.check(&[], Some(home))?;
            if !events.iter().any(|event| event["pool"].is_object()) {
                return Err(CommandError::new("the check had no machine out of the pool"));
            }
            if counted > 0 {
                floors.push(floor);
                checks.push(check.wall_ms);
            }
        }
        Ok((median(&checks), median(&floors)))
    }

    /// The line in a bare machine that has run its image's warm-up, milliseconds.
    async fn bare_warm(&self) -> Result<f64, CommandError> {
        let (machine, guest) = self.bare_machine().await?;
        let run = async |line: &str| {
            let line = GuestCommand::Shell(line.as_bytes().to_vec().into());
            guest.run(ExecRequest::new(line), &[], 4096).await
        };
        if let Some(warm_up) = &self.request.image.manifest.warm_up {
            run(warm_up).await?;
        }
        let began = Instant::now();
        run(self.line).await?;
        let took = ms(began.elapsed());
        machine.kill().await;
        Ok(took)
    }

    /// What this program says when it does something else, in another home.
    fn program(&self, words: &[&str], home: &Path) -> Result<String, CommandError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).env(guestline::dirs::HOME_VARIABLE, home);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(CommandError::new(format!("`guestline {}` failed", words.join(" ")))),
        }
    }

    /// A home without templates, with all else that this one has.
    fn fresh_home(&self, home: &Path) -> Result<(), CommandError> {
        let cache = home.join("cache");
        std::fs::create_dir_all(&cache)?;
        for entry in std::fs::read_dir(&self.context.dirs.cache)? {
            let entry = entry?;
            if entry.file_name() != "templates" {
                symlink(entry.path(), cache.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Eight at once: until all have answered.
    async fn together(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let (mut answered, mut ready, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for counted in 0..=self.runs {
            let began = Instant::now();
            let bare = (0..TOGETHER).map(|_| self.bare_ping());
            let machines = try_all(bare).await?;
            let floor = ms(began.elapsed());
            for machine in machines {
                machine.kill().await;
            }
            let began = Instant::now();
            let leases = self.leases().await?;
            let all = ms(began.elapsed());
            let last = leases.iter().map(|lease| ms(lease.answered_in)).fold(0.0, f64::max);
            for lease in leases {
                lease.end().await;
            }
            if counted > 0 {
                floors.push(floor);
                answered.push(last);
                ready.push(all);
            }
        }
        let (answered, floor) = (median(&answered), median(&floors));
        let name = format!("{TOGETHER} machines restored at once, all answered");
        rows.push(Row::new(&name, "ms", answered, Some(floor), "at most 1.2"));
        let name = "  until all have their time, randomness and name";
        rows.push(Row::new(name, "ms", median(&ready), None, ""));
        Ok(())
    }

    async fn leases(&self) -> Result<Vec<Lease>, CommandError> {
        let cancel = CancellationToken::new();
        try_all((0..TOGETHER).map(|_| async {
            let lease = self.provisioner.lease(&self.request, &cancel).await;
            lease.map_err(|failed| CommandError::new(text::chain(&failed.error)))
        }))
        .await
    }

    /// What an idle machine takes of the host's memory with eight up: QEMU's proportional share (proc_pid_smaps(5), `Pss`).
    async fn memory(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let leases = self.leases().await?;
        let pss: Option<Vec<f64>> =
            leases.iter().map(|lease| pss_mib(lease.machine.pid())).collect();
        for lease in leases {
            lease.end().await;
        }
        let pss = pss.ok_or_else(|| CommandError::new("the kernel tells no memory of QEMU"))?;
        let each = median(&pss);
        let name = format!("memory of an idle machine, {TOGETHER} up");
        rows.push(Row::new(&name, "MiB", each, None, "at most 30"));
        Ok(())
    }

    /// A hundred one-liners, each in a machine of its own; the floor is the CPU that bare QEMU takes for so many, on all
    /// cores.
    async fn many(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut floors = Vec::new();
        for _ in 0..self.runs {
            floors.push(self.bare().await?);
        }
        let lines: Vec<&str> = std::iter::repeat_n(LINE, MANY - 1).collect();
        let mut alls = Vec::new();
        for _ in 0..self.runs.min(3) {
            alls.push(self.check(&lines, None)?.0.wall_ms / 1e3);
        }
        let floor = cpu(&floors) * MANY as f64 / cores as f64 / 1e3;
        let name = format!("{MANY} checks in {MANY} machines, {cores} cores");
        let all = median(&alls);
        rows.push(Row::new(&name, "s", all, Some(floor), "at most 1.25 x their CPU time"));
        Ok(())
    }

    /// What else runs a line in a fresh machine, where it is installed.
    fn others(&self, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let boot =
            super::bare_boot(&self.qemu, self.spec.accel, &self.request.image, self.folder.path())?;
        let name = "for comparison: QEMU boots and powers off";
        rows.push(Row::new(name, "ms", ms(boot), None, ""));
        let kernel = self.request.image.kernel.as_deref().unwrap_or(Path::new(""));
        let image = &kernel.display().to_string();
        let virtme = ["virtme-run", "--kimg", image, "--disable-kvm", "--script-sh", LINE];
        let vmtest = ["vmtest", "--kernel", image, LINE];
        // A test of avocado that boots the same machine.
        let (script, results) =
            (self.folder.path().join("boot.sh"), self.folder.path().join("avocado"));
        let boot = super::bare_boot_command(
            &self.qemu,
            self.spec.accel,
            &self.request.image,
            self.folder.path(),
        )?;
        let words = std::iter::once(boot.get_program()).chain(boot.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let line = text::shell_line(words.iter().map(|word| &**word));
        std::fs::write(&script, format!("#!/bin/sh\nexec {line}\n"))?;
        std::fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let (script, results) = (script.display().to_string(), results.display().to_string());
        let avocado =
            ["avocado", "run", "--disable-sysinfo", "--job-results-dir", &results, &script];
        for words in [&virtme[..], &vmtest[..], &avocado[..]] {
            let name = format!("for comparison: {}", words[0]);
            match other(words) {
                Some(Ok(took)) => rows.push(Row::new(&name, "ms", ms(took), None, "")),
                Some(Err(status)) => eprintln!("{name}: {status}"),
                None => eprintln!("{name}: not installed"),
            }
        }
        Ok(())
    }

    /// The floor: QEMU, the state, the first shell command.
    async fn bare(&self) -> Result<Sample, CommandError> {
        let began = Instant::now();
        let (machine, guest) = self.bare_machine().await?;
        let line = GuestCommand::Shell(self.line.as_bytes().to_vec().into());
        let ran = guest.run(ExecRequest::new(line), &[], 4096).await?;
        let wall_ms = ms(began.elapsed());
        let cpu_ms = ms(machine.cpu_time());
        machine.kill().await;
        if ran.exited.status != ExitStatus::Exited(0) {
            return Err(CommandError::new(format!("the floor's command: {:?}", ran.exited.status)));
        }
        Ok(Sample { wall_ms, cpu_ms })
    }

    /// What QEMU used for one bare check.
    pub(super) async fn bare_cpu_ms(&self) -> Result<f64, CommandError> {
        Ok(self.bare().await?.cpu_ms)
    }

    /// One bare machine, restored, that runs the line so often, one after the other, and is killed.
    pub(super) async fn bare_execs(&self, times: usize) -> Result<f64, CommandError> {
        let began = Instant::now();
        let (machine, guest) = self.bare_machine().await?;
        for _ in 0..times {
            let line = GuestCommand::Shell(self.line.as_bytes().to_vec().into());
            let ran = guest.run(ExecRequest::new(line), &[], 4096).await?;
            if ran.exited.status != ExitStatus::Exited(0) {
                let status = ran.exited.status;
                return Err(CommandError::new(format!("the floor's command: {status:?}")));
            }
        }
        machine.kill().await;
        Ok(ms(began.elapsed()))
    }

    /// This program with these words, from its start to its end.
    pub(super) fn program_ms(&self, words: &[&str]) -> Result<f64, CommandError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&self.global_args).args(words).stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let output = command.stderr(Stdio::piped()).output()?;
        match output.status.success() {
            true => Ok(ms(began.elapsed())),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(CommandError::new(format!("`guestline {}` failed:\n{said}", words.join(" "))))
            }
        }
    }

    pub(super) fn setting(&self, kernel: String, runs: u32) -> Setting {
        let (accelerator, qemu) = (self.spec.accel.as_str(), self.qemu.version.to_string());
        Setting { accelerator, qemu, kernel, runs }
    }

    /// Waits for what is still done.
    pub(super) async fn finish(&self) {
        self.provisioner.finish().await;
    }

    /// A bare machine that has answered.
    async fn bare_ping(&self) -> Result<Machine, CommandError> {
        Ok(self.bare_machine().await?.0)
    }

    async fn bare_machine(&self) -> Result<(Machine, Guest), CommandError> {
        let (ram, state) = (self.template.ram(), self.template.state());
        let origin = Origin::Restore { ram: &ram };
        let (machine, channels) =
            Machine::start(&self.qemu, &self.spec, &origin, self.folder.path()).await?;
        machine.restore(&state).await?;
        let transport = Transport::virtio_serial(channels.control, channels.bulk);
        let (link, hello) = Link::open(transport).await?;
        Ok((machine, Guest::new(link, hello)))
    }

    /// This program as a user runs it, with what it says.
    fn check(
        &self,
        words: &[&str],
        home: Option<&Path>,
    ) -> Result<(Sample, Vec<Value>), CommandError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&self.global_args).args(["check", "--message-format", "json"]);
        command.args(["--image", &self.request.image.manifest.name]).args(words).arg(self.line);
        if let Some(home) = home {
            command.env(guestline::dirs::HOME_VARIABLE, home);
        }
        let before = children_ms()?;
        let began = Instant::now();
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        let sample = Sample { wall_ms: ms(began.elapsed()), cpu_ms: children_ms()? - before };
        if !output.status.success() {
            let said = format!("`guestline check` did not pass: {}", output.status);
            return Err(CommandError::new(said));
        }
        let lines = output.stdout.split(|&byte| byte == b'\n');
        Ok((sample, lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()))
    }
}

/// All of them side by side; the first error ends it.
async fn try_all<T>(
    all: impl Iterator<Item = impl Future<Output = Result<T, CommandError>>>,
) -> Result<Vec<T>, CommandError> {
    let mut pending: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        let mut is_waiting = false;
        for (future, done) in pending.iter_mut().zip(&mut done) {
            if done.is_some() {
                continue;
            }
            match future.as_mut().poll(context) {
                std::task::Poll::Ready(Ok(value)) => *done = Some(value),
                std::task::Poll::Ready(Err(error)) => return std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => is_waiting = true,
            }
        }
        match is_waiting {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(Ok(done.iter_mut().filter_map(Option::take).collect())),
        }
    })
    .await
}

/// How long another tool takes; none when it is not installed.
fn other(words: &[&str]) -> Option<Result<Duration, String>> {
    let (program, arguments) = words.split_first()?;
    let program: PathBuf = guestline::machine::on_path(std::ffi::OsStr::new(program))?;
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    Some(match command.status() {
        Ok(status) if status.success() => Ok(began.elapsed()),
        Ok(status) => Err(format!("did not pass ({status})")),
        Err(error) => Err(error.to_string()),
    })
}

fn wall(samples: &[Sample]) -> f64 {
    median(&samples.iter().map(|sample| sample.wall_ms).collect::<Vec<_>>())
}

fn cpu(samples: &[Sample]) -> f64 {
    median(&samples.iter().map(|sample| sample.cpu_ms).collect::<Vec<_>>())
}

/// CPU time of all children that have ended, with theirs.
fn children_ms() -> Result<f64, CommandError> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e3)
}

fn pss_mib(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}
