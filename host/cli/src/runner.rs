//! A run of tests, from the command line to the exit status: host, executor, reports.

use crate::args::{GlobalArgs, MessageFormat, RunOptions};
use crate::commands::sdk::PYTHON;
use crate::context::{Context, GUEST};
use crate::error::CommandError;
use crate::limits::cores;
use crate::signals::{self, Interrupted};
use guestline::digest::Digest;
use guestline::machine::accel::Acceleration;
use guestline::machine::{Accel, Qemu, QemuError};
use guestline::provision::{Images, WorkRoot};
use guestline_harness::event::RunEvent;
use guestline_harness::outcome::{RunEnd, Stage};
use guestline_harness::report::{Human, HumanConfig, Json, Report, feed};
use guestline_harness::run::{self, Broken, Dispatch, Emitter, Executor, Queue, RunFolder, Target};
use guestline_harness::text;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// How long an interrupted run waits for its report.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What tests run on.
pub(crate) struct Host<'a> {
    context: &'a Context,
    runtime: &'a Runtime,
    acceleration: Acceleration,
    qemu: Result<Qemu, Arc<QemuError>>,
    images: Images,
    /// The run is interrupted.
    pub(crate) cancel: CancellationToken,
    interrupted: Interrupted,
}

impl<'a> Host<'a> {
    /// This one, as it is now. Signals are listened to from here on, in the runtime that calls.
    pub(crate) fn new(
        global: &GlobalArgs,
        context: &'a Context,
        runtime: &'a Runtime,
        bisect: bool,
        named: Option<&Qemu>,
    ) -> Result<Self, CommandError> {
        let acceleration = context.acceleration(global.accel, false);
        // One that is tried makes no images, unless there is no other.
        let qemu = match (Qemu::find(&context.dirs), named) {
            (Err(_), Some(named)) => Ok(named.clone()),
            (found, _) => found.map_err(Arc::new),
        };
        let images = context.images_by(global, qemu.clone(), acceleration.accel)?;
        let cancel = CancellationToken::new();
        let interrupted = signals::listen(cancel.clone(), bisect)?;
        Ok(Self { context, runtime, acceleration, qemu, images, cancel, interrupted })
    }

    pub(crate) fn accel(&self) -> Accel {
        self.acceleration.accel
    }
}

/// A run of tests.
pub(crate) struct Run<'a> {
    /// Where the content is that jobs name by digest.
    pub(crate) files: HashMap<Digest, PathBuf>,
    /// Why no machine can be had.
    pub(crate) broken: Option<Broken>,
    /// Machines wait for a debugger, whose socket is told here.
    pub(crate) gdb: Option<UnboundedSender<PathBuf>>,
    /// CPUs of most machines.
    pub(crate) cpus: u32,
    pub(crate) options: &'a RunOptions,
    /// More is to be said.
    pub(crate) verbose: bool,
    pub(crate) fail_fast: bool,
    /// The command that runs a test again, up to the test.
    pub(crate) again: String,
    /// The QEMU that all machines have.
    pub(crate) qemu: Option<Qemu>,
    /// QEMUs that jobs name beside the usual one.
    pub(crate) qemus: Vec<Qemu>,
    /// Where suites are, by their names.
    pub(crate) suites: BTreeMap<String, String>,
    /// Where tests run.
    pub(crate) target: Target,
}

impl Run<'_> {
    /// Runs the tests of a queue, reports, and says with what status to exit.
    pub(crate) fn tests(self, host: Host<'_>, queue: impl Queue) -> Result<u8, CommandError> {
        let Host { context, runtime, acceleration, cancel, interrupted, .. } = &host;
        let options = self.options;
        let run_id = Ulid::generate();
        let folder = RunFolder::new(&context.dirs.state, run_id);
        let (mut emitter, events) = Emitter::new(run_id, cancel.clone());
        let report = self.report();
        let reporting = std::thread::spawn(move || feed(report, events));

        let version = |qemu: &Qemu| qemu.version.to_string();
        let qemu_version = match &self.qemu {
            Some(named) => version(named),
            None => host.qemu.as_ref().map_or("none".to_owned(), version),
        };
        let started = RunEvent::RunStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tests: queue.tests(),
            accelerator: acceleration.accel.as_str().to_owned(),
            accelerator_why: acceleration.why.clone(),
            accelerator_probed: acceleration.fresh,
            qemu: qemu_version.clone(),
            folder: folder.path().display().to_string(),
        };
        let facts = json!({
            "guestline": env!("CARGO_PKG_VERSION"),
            "qemu": qemu_version,
            "accelerator": acceleration,
            "host_kernel": nix::sys::utsname::uname().map(|name| name.release().display().to_string()).ok(),
        });
        let root = WorkRoot::create(&context.dirs, options.keep);
        let work = root.as_ref().map(|root| root.path().to_owned()).unwrap_or_default();
        let kept = options.keep.then(|| work.clone()).filter(|_| root.is_ok());
        let mut held = None;
        let provisioner = match (host.qemu.clone(), root) {
            (Ok(qemu), Ok(root)) => {
                let provisioner = context.provisioner(qemu, acceleration.accel, root);
                let cores = u32::try_from(cores()).unwrap_or(1);
                // Who asks for more than there are gets them.
                let asked = options.jobs.unwrap_or(0).saturating_mul(self.cpus.min(cores));
                Ok(provisioner.with_cores(cores.max(asked)))
            }
            (Err(error), Ok(root)) => {
                // Tests may run elsewhere, and want folders, too.
                held = Some(root);
                Err(no_qemu(&error))
            }
            (_, Err(error)) => {
                let runtime = context.dirs.runtime.display();
                let reason = format!("cannot make a work folder in `{runtime}`: {error}");
                Err(Broken { stage: Stage::Host, reason, hints: vec![], log: vec![] })
            }
        };
        let provisioner = self.broken.map_or(provisioner, Err);
        let executor =
            Executor::new(provisioner, host.images.clone(), self.files, folder, facts, work);
        let qemus = self.qemus.into_iter().chain(host.qemu.iter().cloned()).collect();
        let executor = Arc::new(
            executor
                .with_qemus(qemus)
                .with_gdb(self.gdb)
                .with_guest(GUEST, PYTHON)
                .with_target(self.target.clone())
                .with_kept_fixtures(context.dirs.cache.join("fixtures")),
        );
        let parallel = if self.target.is_shared() { options.parallel() } else { 1 };
        let dispatch = Dispatch { parallel, fail_fast: self.fail_fast };
        let result = runtime.block_on(async {
            emitter.emit(started).await;
            run::run(queue, dispatch, executor.clone(), emitter).await
        });
        let lost = end_report(reporting, interrupted);
        // The verdict stands; what is done for the next run is done now.
        for trouble in runtime.block_on(executor.finish()) {
            eprintln!("warning: {trouble}");
        }
        drop(held);
        let mut err = io::stderr();
        if let Some(error) = &lost {
            let _ = writeln!(err, "error: the report is lost: {error}");
        }
        if let Some(kept) = kept {
            let _ = writeln!(err, "work folders kept: {}", kept.display());
        }
        let (allow_none, bisect) = (options.allow_none, options.bisect);
        let (tally, interrupt) = (result.tally, interrupted.get());
        Ok(RunEnd { tally, interrupt, lost: lost.is_some(), allow_none, bisect }.status())
    }

    fn report(&self) -> Box<dyn Report> {
        let stderr_is_terminal = io::stderr().is_terminal();
        match self.options.message_format {
            MessageFormat::Json => Box::new(Json::new(io::BufWriter::new(io::stdout()))),
            MessageFormat::Human => {
                let config = HumanConfig {
                    stdout_is_terminal: io::stdout().is_terminal(),
                    stderr_is_terminal,
                    colour: stderr_is_terminal
                        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
                    verbose: self.verbose,
                    again: self.again.clone(),
                    suites: self.suites.clone(),
                    home: std::env::var("HOME").ok().filter(|home| home.len() > 1),
                };
                Box::new(Human::new(config, io::stdout(), io::BufWriter::new(io::stderr())))
            }
        }
    }
}

fn no_qemu(error: &QemuError) -> Broken {
    let hints = vec!["`guestline doctor` says what to install".to_owned()];
    Broken { stage: Stage::Host, reason: text::chain(error), hints, log: vec![] }
}

/// Waits for the report's end; not for long once the run is interrupted, since who reads it may be
/// stuck.
fn end_report(
    reporting: JoinHandle<Option<io::Error>>,
    interrupted: &Interrupted,
) -> Option<io::Error> {
    let mut deadline = None;
    while !reporting.is_finished() {
        if interrupted.get().is_some() {
            deadline.get_or_insert_with(|| Instant::now() + LAST_WAIT);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Some(io::Error::new(io::ErrorKind::TimedOut, "its reader is stuck"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    reporting.join().unwrap_or_else(|_| Some(io::Error::other("the report died")))
}
