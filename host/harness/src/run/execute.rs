//! One job to its outcome: image, lease, command, evidence.

use super::Emitter;
use super::evidence::{AttemptFolder, RunFolder};
use super::judge::{Circumstances, Finding, judge, refused_status};
use super::kernel_watch::KernelWatch;
use crate::event::{AttemptFinished, OutputData, PooledMachine, RunEvent};
use crate::job::{FilesWanted, Job, ModulesWanted};
use crate::outcome::{Outcome, Stage};
use crate::text;
use guestline::capture::{ConsoleLine, PANIC_MARK};
use guestline::digest::Digest;
use guestline::guest::{ExecEvent, ExecHandle, FilesError};
use guestline::image::{BuildNews, BuildTerms, Image, LockPolicy, OwnModules};
use guestline::link::LinkError;
use guestline::machine::Ending;
use guestline::provision::{Images, Lease, LeaseError, MachineRequest, Notice, Provisioner};
use guestline_protocol::{ExecExitedEvent, ExecRequest, ExitStatus, Stream};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// So many last lines of the console are shown where it is the evidence.
const CONSOLE_SHOWN: usize = 5;

/// How long a guest that has gone down is still listened to.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Reading the kernel's log may take so long.
const WATCH: Duration = Duration::from_secs(30);

/// How often the clock is looked at; much later than that, and this process itself was stopped.
const TICK: Duration = Duration::from_millis(500);

/// A slow reader of the output gives a test at most so many times its limit more.
const MAX_CREDIT: u32 = 10;

/// Images boot with this much memory, MiB; with less, that may be why one did not.
const SMALL_MIB: u64 = 128;

/// What the host says of a full disk (`ENOSPC`, errno(3)).
const FULL: &str = "No space left on device";

/// So much of the end of the output is looked at for its last line.
const TAIL_LEN: usize = 4096;

/// Why no machine can be had at all: every attempt errors with it.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Where the set-up is broken.
    pub stage: Stage,
    /// In words.
    pub reason: String,
    /// What mends it.
    pub hints: Vec<String>,
}

/// Takes jobs; has what they name by digest or name.
#[derive(Debug)]
pub struct Executor {
    provisioner: Result<Provisioner, Broken>,
    maker: Arc<Images>,
    files: HashMap<Digest, PathBuf>,
    folder: RunFolder,
    facts: serde_json::Value,
    images: Mutex<HashMap<String, Result<Image, Broken>>>,
    gdb: Option<UnboundedSender<PathBuf>>,
}

impl Executor {
    /// `files` says where the kernels and modules are that jobs name by digest; `facts` go into every attempt's `facts.json`.
    pub fn new(
        provisioner: Result<Provisioner, Broken>,
        maker: Images,
        files: HashMap<Digest, PathBuf>,
        folder: RunFolder,
        facts: serde_json::Value,
    ) -> Self {
        let (maker, images) = (Arc::new(maker), Mutex::default());
        Self { provisioner, maker, files, folder, facts, images, gdb: None }
    }

    /// Its machines wait for a debugger, whose socket is told here.
    pub fn with_gdb(self, gdb: Option<UnboundedSender<PathBuf>>) -> Self {
        Self { gdb, ..self }
    }

    /// Runs a job: its machine is made ready at once, its test waits for one of the `places`. Every outcome is told as an event before it is returned.
    pub async fn execute(
        &self,
        number: u32,
        job: Job,
        mut emitter: Emitter,
        places: &Semaphore,
        cancel: &CancellationToken,
    ) -> Outcome {
        let test = job.command.name();
        let started = Instant::now();
        let event =
            RunEvent::AttemptStarted { number, test: test.clone(), job: Box::new(job.clone()) };
        emitter.emit(event).await;
        let mut attempt = Attempt::new(&job);
        let finding = {
            let span = tracing::info_span!("test", number, name = %text::one_line(&test, 60));
            let attempting = self.attempt(&job, number, &mut attempt, &mut emitter, places, cancel);
            attempting.instrument(span).await
        };
        let outcome = judge(&finding, &attempt.circumstances());
        let notes = match outcome {
            Outcome::Passed => attempt.notes,
            _ => attempt.explain(&finding, &job),
        };
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let finished = AttemptFinished {
            number,
            test,
            outcome: outcome.clone(),
            status: status(&finding),
            machine_us: attempt.machine.map(us),
            check_us: attempt.check.map(us),
            guest_check_us: match &finding {
                Finding::Exited(exited) => Some(exited.elapsed_us),
                _ => None,
            },
            elapsed_us: us(started.elapsed().saturating_sub(attempt.waited)),
            notes,
            folder: attempt.folder.map(|folder| folder.path().display().to_string()),
        };
        emitter.emit(RunEvent::AttemptFinished(Box::new(finished))).await;
        outcome
    }

    async fn attempt(
        &self,
        job: &Job,
        number: u32,
        attempt: &mut Attempt,
        emitter: &mut Emitter,
        places: &Semaphore,
        cancel: &CancellationToken,
    ) -> Finding {
        if cancel.is_cancelled() {
            return Finding::Cancelled;
        }
        match self.folder.attempt(number) {
            Ok(folder) => attempt.folder = Some(folder),
            Err(error) => {
                let path = self.folder.path().display().to_string();
                return Finding::Evidence { path, error };
            }
        }
        let provisioner = match &self.provisioner {
            Ok(provisioner) => provisioner,
            Err(broken) => return Finding::Broken(broken.clone()),
        };
        let image = match self.image(&job.machine.image, emitter, cancel).await {
            Ok(image) => image,
            // What was interrupted is nobody's defect.
            Err(_) if cancel.is_cancelled() => return Finding::Cancelled,
            Err(broken) => return Finding::Broken(broken),
        };
        let request = MachineRequest {
            memory_mib: job.machine.memory_mib.unwrap_or(image.manifest.memory_mib),
            cpus: job.machine.cpus,
            disks: job.machine.disks.clone(),
            nics: job.machine.nics.clone(),
            fresh_reboot: job.machine.fresh_reboot,
            layers: job.machine.layers.clone(),
            kernel: job.machine.kernel.as_ref().map(|digest| (self.file(digest), digest.clone())),
            kconfig: job.machine.kconfig.as_ref().map(|digest| (self.file(digest), digest.clone())),
            modules: job.machine.modules.as_ref().map(|ModulesWanted { early, names, disk }| {
                let file = |digest: &Digest| (digest.clone(), self.file(digest));
                OwnModules::of_files(file(early), disk.as_ref().map(file), names.clone())
            }),
            cmdline: job.machine.cmdline.clone(),
            gdb: self.gdb.clone(),
            set_up_timeout: job.limits.check(),
            ..MachineRequest::new(image, job.limits.boot())
        };
        attempt.record_facts(&self.facts, &request, None);
        let mut lease = match provisioner.lease(&request, cancel).await {
            Ok(lease) => lease,
            Err(failed) => {
                tell(failed.notices, emitter).await;
                attempt.console = failed.console;
                if let (Some(from), Some(to)) = (&failed.folder, &attempt.folder) {
                    let _ = to.adopt(&from.path().join("console.log"));
                }
                return match failed.error {
                    LeaseError::Cancelled => Finding::Cancelled,
                    error => Finding::NoMachine(error),
                };
            }
        };
        tell(lease.notices.clone(), emitter).await;
        attempt.machine = Some(lease.ready_in);
        let pool = lease.pooled.as_ref().map(|pooled| PooledMachine {
            ready_us: u64::try_from(pooled.ready_for.as_micros()).unwrap_or(u64::MAX),
            warm_up: pooled.warm_up.clone(),
        });
        if pool.is_some() {
            attempt.record_facts(&self.facts, &request, pool.as_ref());
        }
        let agent = lease.guest.agent();
        let ready = RunEvent::MachineReady {
            elapsed_us: u64::try_from(lease.ready_in.as_micros()).unwrap_or(u64::MAX),
            agent: text::one_line(&agent.build, 64),
            guest_time_us: agent.clock_us,
            template: lease.template.as_ref().map(|id| id.to_string()),
            skew_us: lease.skew.micros,
            pool: pool.clone(),
        };
        emitter.emit(ready).await;
        let waiting = Instant::now();
        let place = tokio::select! {
            place = place(places, &mut lease) => Some(place),
            () = cancel.cancelled() => None,
        };
        attempt.waited = waiting.elapsed();
        let finding = match &place {
            Some(Ok(_)) => match self.bring(job, &lease, cancel).await {
                Ok(()) => watched(job, &lease, attempt, emitter, cancel).await,
                Err(finding) => finding,
            },
            Some(Err(error)) => Finding::Broken(Broken {
                stage: Stage::Host,
                reason: text::chain(error),
                hints: vec![],
            }),
            None => Finding::Cancelled,
        };
        let remains = lease.end().await;
        attempt.console = remains.console;
        if let Some(folder) = &attempt.folder {
            let adopted = folder.adopt(&remains.folder.path().join("console.log"));
            if let Err(error) = remains.console_error.map_or(adopted, Err) {
                let path = folder.path().display().to_string();
                return Finding::Evidence { path, error };
            }
        }
        finding
    }

    /// Puts the files that the job has into its machine.
    async fn bring(
        &self,
        job: &Job,
        lease: &Lease,
        cancel: &CancellationToken,
    ) -> Result<(), Finding> {
        for FilesWanted { digest, to } in &job.machine.with {
            let from = self.file(digest);
            let brought = tokio::select! {
                brought = lease.guest.bring(&from, to) => brought,
                () = cancel.cancelled() => return Err(Finding::Cancelled),
            };
            brought.map_err(|error| {
                let stage = match &error {
                    FilesError::Link(_) => Stage::Link,
                    _ => Stage::Fixture,
                };
                let from = from.display();
                let reason = format!("cannot put `{from}` at `{to}`: {}", text::chain(&error));
                Finding::Broken(Broken { stage, reason, hints: vec![] })
            })?;
        }
        Ok(())
    }

    /// A file that a job names by its digest; what is not there is told when it is read.
    fn file(&self, digest: &Digest) -> PathBuf {
        self.files.get(digest).cloned().unwrap_or_default()
    }

    /// Waits for what is still done for the next run.
    pub async fn finish(&self) {
        if let Ok(provisioner) = &self.provisioner {
            provisioner.finish().await;
        }
    }

    /// The image, from the store; the first attempt that wants it makes it, the others wait.
    async fn image(
        &self,
        name: &str,
        emitter: &mut Emitter,
        cancel: &CancellationToken,
    ) -> Result<Image, Broken> {
        let mut images = self.images.lock().await;
        if let Some(image) = images.get(name) {
            return image.clone();
        }
        let (maker, wanted, cancel) = (self.maker.clone(), name.to_owned(), cancel.clone());
        let (telling, mut told) = tokio::sync::mpsc::unbounded_channel();
        let get = tokio::task::spawn_blocking(move || {
            let tell = |news: BuildNews<'_>| {
                let image = wanted.clone();
                let _ = telling.send(match news {
                    BuildNews::Step(step) => RunEvent::ImageMaking { image, step: step.to_owned() },
                    BuildNews::Note(text) => RunEvent::ImageNote { image, text: text.to_owned() },
                });
            };
            let terms = BuildTerms { lock: LockPolicy::default(), cancel: &cancel, tell: &tell };
            let recipe = maker.store.catalogue().get(&wanted)?;
            maker.get(&recipe, &terms)
        });
        while let Some(event) = told.recv().await {
            emitter.emit(event).await;
        }
        let image = match get.await {
            Ok(image) => image.map_err(|error| (text::chain(&error), error.hint())),
            Err(error) => Err((error.to_string(), None)),
        };
        let image = image.map_err(|(reason, hint)| Broken {
            stage: Stage::Image,
            reason,
            hints: hint.into_iter().collect(),
        });
        if let Ok(image) = &image
            && let Some(elapsed) = image.made_in
        {
            let event = RunEvent::ImageMade {
                image: name.to_owned(),
                digest: image.manifest.digest(),
                packages: u32::try_from(image.manifest.packages.len()).unwrap_or(u32::MAX),
                elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            };
            emitter.emit(event).await;
            if let Ok(provisioner) = &self.provisioner {
                provisioner.make_room();
            }
        }
        images.insert(name.to_owned(), image.clone());
        image
    }
}

/// A place among the tests of this run, and cores of the host.
async fn place<'a>(
    places: &'a Semaphore,
    lease: &mut Lease,
) -> Result<Option<SemaphorePermit<'a>>, LeaseError> {
    // Closed by nobody.
    let place = places.acquire().await.ok();
    lease.take_cores().await?;
    Ok(place)
}

/// What became of templates, as events.
async fn tell(notices: Vec<Notice>, emitter: &mut Emitter) {
    for notice in notices {
        let event = match notice {
            Notice::Made { id, elapsed, saved_in } => RunEvent::TemplateMade {
                template: id.to_string(),
                elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
                saved_us: u64::try_from(saved_in.as_micros()).unwrap_or(u64::MAX),
            },
            Notice::Dropped { id, why } => RunEvent::TemplateDropped {
                template: id.to_string(),
                why: text::one_line(&why, 300),
            },
            Notice::Without { why } => RunEvent::TemplateMissing { why: text::one_line(&why, 300) },
        };
        emitter.emit(event).await;
    }
}

/// As [`check`], with an eye on the kernel where that is wanted.
async fn watched(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
    cancel: &CancellationToken,
) -> Finding {
    let watch = match look_at(lease, cancel, KernelWatch::begin(&job.fail_on, &lease.guest)).await {
        Ok(watch) => watch,
        Err(finding) => return finding,
    };
    let finding = check(job, lease, attempt, emitter, cancel).await;
    let passed =
        matches!(&finding, Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(0), .. }));
    match watch.filter(|_| passed) {
        Some(before) => match look_at(lease, cancel, before.complaint(&lease.guest)).await {
            Ok(Some(complaint)) => Finding::Complained(complaint),
            Ok(None) => finding,
            Err(finding) => finding,
        },
        None => finding,
    }
}

/// Looks at the kernel of a machine, which may end or hang over that.
async fn look_at<T>(
    lease: &Lease,
    cancel: &CancellationToken,
    looking: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, Finding> {
    tokio::select! {
        biased;
        ending = lease.machine.ended() => Err(Finding::MachineEnded(ending)),
        looked = timeout(WATCH, looking) => match looked {
            Ok(Ok(looked)) => Ok(looked),
            Ok(Err(error)) => Err(Finding::LinkLost(error)),
            Err(_) => Err(Finding::Broken(Broken {
                stage: Stage::Agent,
                reason: format!("the kernel's log cannot be read within {}", text::limit(WATCH)),
                hints: vec![],
            })),
        },
        () = cancel.cancelled() => Err(Finding::Cancelled),
    }
}

/// Runs the command on a leased machine: an answer, an end of machine or link, a timeout or a
/// cancellation, whichever comes first.
async fn check(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
    cancel: &CancellationToken,
) -> Finding {
    let began = Instant::now();
    attempt.began = Some(began);
    let finding = {
        let mut conversation = std::pin::pin!(converse(job, lease, attempt, emitter));
        tokio::select! {
            biased;
            finding = &mut conversation => finding,
            ending = lease.machine.ended() => {
                // What the test said before is perhaps still on its way, also that it was done.
                match timeout(LAST_WORDS, conversation).await {
                    Ok(Finding::Exited(exited)) => Finding::Exited(exited),
                    _ => Finding::MachineEnded(ending),
                }
            }
            () = cancel.cancelled() => Finding::Cancelled,
        }
    };
    attempt.check = Some(began.elapsed());
    match finding {
        // A guest that goes down takes the link, and sometimes the command, with it first.
        Finding::LinkLost(error) => match lease.machine.ended_soon().await {
            Some(ending) => Finding::MachineEnded(ending),
            None => Finding::LinkLost(error),
        },
        finding => finding,
    }
}

async fn converse(
    job: &Job,
    lease: &Lease,
    attempt: &mut Attempt,
    emitter: &mut Emitter,
) -> Finding {
    let before = lease.machine.cpu_share();
    let limit = job.limits.check();
    let timed_out = || {
        let cpu = lease.machine.cpu_share();
        let (waited, stopped) = (cpu.waited_since(&before), cpu.is_stopped());
        Finding::TimedOut { limit, waited, stopped }
    };
    let began = tokio::time::Instant::now();
    let mut deadline = began + limit;
    let last_deadline = began + limit * (1 + MAX_CREDIT);
    let starting = lease.guest.exec(ExecRequest::new(job.command.to_command()));
    let mut process: ExecHandle = match timeout_at(deadline, starting).await {
        Ok(Ok(process)) => process,
        Ok(Err(error)) => return Finding::LinkLost(error),
        Err(_) => return timed_out(),
    };
    loop {
        // Looked at here too: a flood always has a next event at hand.
        if tokio::time::Instant::now() >= deadline {
            return timed_out();
        }
        let asleep = tokio::time::Instant::now();
        let Ok(event) = timeout_at(deadline.min(asleep + TICK), process.next()).await else {
            // Woken late, this process was stopped (Ctrl-Z) and the guest perhaps long done.
            let missed = asleep.elapsed().saturating_sub(TICK);
            if missed > TICK {
                deadline += missed;
            }
            continue;
        };
        match event {
            Ok(ExecEvent::Started { .. }) => {}
            Ok(ExecEvent::Output { stream, data }) => {
                if let Err(error) = attempt.keep(stream, &data) {
                    let folder = attempt.folder.as_ref();
                    let path = folder.map(|folder| folder.path().display().to_string());
                    return Finding::Evidence { path: path.unwrap_or_default(), error };
                }
                let event = RunEvent::Output { stream: stream.into(), data: OutputData(data) };
                // The test does not pay for a reader of its output who takes his time.
                let waiting = Instant::now();
                emitter.emit(event).await;
                deadline = (deadline + waiting.elapsed()).min(last_deadline);
            }
            Ok(ExecEvent::Exited(exited)) => {
                if exited.output_held {
                    let note =
                        "a child still held its output open; what it wrote later is not kept";
                    attempt.notes.push(note.to_owned());
                }
                return Finding::Exited(exited);
            }
            Ok(ExecEvent::Refused(error)) => {
                attempt.tail = error.message.clone().into_bytes();
                return Finding::Refused(error);
            }
            Err(error) => return Finding::LinkLost(error),
        }
    }
}

fn status(finding: &Finding) -> Option<u8> {
    match finding {
        Finding::Exited(ExecExitedEvent { status: ExitStatus::Exited(status), .. }) => {
            Some(*status)
        }
        Finding::Refused(error) => refused_status(error),
        _ => None,
    }
}

/// What is gathered while a job runs.
struct Attempt {
    folder: Option<AttemptFolder>,
    machine: Option<Duration>,
    began: Option<Instant>,
    check: Option<Duration>,
    /// How long the machine was ready and waited for its turn, which is no time of the test.
    waited: Duration,
    console: Vec<ConsoleLine>,
    /// The end of the output, both streams as they came.
    tail: Vec<u8>,
    notes: Vec<String>,
    kernel_is_subject: bool,
}

impl Attempt {
    fn new(job: &Job) -> Self {
        Self {
            folder: None,
            machine: None,
            began: None,
            check: None,
            waited: Duration::ZERO,
            console: Vec::new(),
            tail: Vec::new(),
            notes: Vec::new(),
            kernel_is_subject: job.machine.kernel.is_some(),
        }
    }

    fn keep(&mut self, stream: Stream, data: &[u8]) -> std::io::Result<()> {
        self.tail.extend_from_slice(&data[data.len().saturating_sub(TAIL_LEN)..]);
        let over = self.tail.len().saturating_sub(TAIL_LEN);
        self.tail.drain(..over);
        self.folder.as_mut().map_or(Ok(()), |folder| folder.keep(stream, data))
    }

    fn record_facts(
        &self,
        facts: &serde_json::Value,
        request: &MachineRequest,
        pool: Option<&PooledMachine>,
    ) {
        let mut facts = facts.clone();
        let manifest = &request.image.manifest;
        facts["image"] = json!({
            "name": manifest.name,
            "digest": manifest.digest(),
            "kernel": manifest.kernel_release,
            "packages": manifest.packages,
            "agent": manifest.agent,
        });
        facts["machine"] = json!({
            "memory_mib": request.memory_mib,
            "cpus": request.cpus,
            "disks_mib": request.disks,
            "nics": request.nics,
            "cmdline": manifest.cmdline,
            "kconfig": match &request.kernel {
                Some(_) => request.kconfig.as_ref().map(|(_, digest)| digest),
                None => manifest.file("config").map(|file| &file.sha256),
            },
            "cmdline_more": request.cmdline,
            "modules": request.modules.as_ref().map(|modules| json!({
                "early": modules.early.0,
                "disk": modules.disk.as_ref().map(|(digest, _)| digest),
            })),
            "kernel": request.kernel.as_ref().map(|(path, digest)| json!({ "path": path, "sha256": digest })),
        });
        if let Some(pool) = pool {
            facts["machine"]["pool"] = json!(pool);
        }
        if let Some(folder) = &self.folder {
            // A disk that is full is told when the test's own output cannot be kept.
            let _ = folder.write("facts.json", format!("{facts:#}\n").as_bytes());
        }
    }

    fn circumstances(&self) -> Circumstances {
        let tail = text::escape(&self.tail);
        let last_line = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Circumstances {
            kernel_is_subject: self.kernel_is_subject,
            panic_on_console: self.panic_line().is_some(),
            last_line: text::one_line(last_line.trim(), 200),
        }
    }

    fn panic_line(&self) -> Option<&ConsoleLine> {
        // The last one: a guest may have printed the words before. The kernel repeats them at its end.
        let panics = |line: &&ConsoleLine| {
            line.text.contains(PANIC_MARK) && !line.text.contains(&format!("end {PANIC_MARK}"))
        };
        self.console.iter().rfind(panics)
    }

    /// The evidence of what did not pass, a line each.
    fn explain(&self, finding: &Finding, job: &Job) -> Vec<String> {
        let mut notes = self.notes.clone();
        let went_down = match finding {
            Finding::MachineEnded(Ending::Panicked | Ending::Reset | Ending::PoweredOff) => true,
            Finding::NoMachine(error) => matches!(
                error,
                LeaseError::Ended { .. } | LeaseError::Silent { .. } | LeaseError::NoPort { .. }
            ),
            _ => false,
        };
        if went_down {
            let powered_off = matches!(finding, Finding::MachineEnded(Ending::PoweredOff));
            match self.panic_line().filter(|_| !powered_off) {
                Some(line) => notes.push(self.with_time(line)),
                None => {
                    let from = self.console.len().saturating_sub(CONSOLE_SHOWN);
                    notes.extend(self.console[from..].iter().map(|line| self.with_time(line)));
                    if self.console.is_empty() {
                        notes.push("nothing came on the console".to_owned());
                    }
                }
            }
        }
        if let Finding::NoMachine(LeaseError::QemuDied { stderr, .. })
        | Finding::MachineEnded(Ending::QemuDied { stderr, .. }) = finding
        {
            // The last line stands in the verdict.
            let lines = stderr.lines().count().saturating_sub(1);
            notes.extend(stderr.lines().take(lines).map(|line| text::one_line(line, 300)));
        }
        if let Finding::NoMachine(LeaseError::SetUp { failure, .. }) = finding {
            notes.extend(failure.output_before_last(CONSOLE_SHOWN));
        }
        if let Finding::Complained(complaint) = finding {
            notes.extend(complaint.line.as_ref().map(|line| format!("{line}   (kernel's log)")));
        }
        if let Finding::Broken(broken) = finding {
            notes.extend(broken.hints.iter().map(|hint| format!("hint: {hint}")));
        }
        if let Finding::NoMachine(error) = finding {
            notes.extend(error.hint().map(|hint| format!("hint: {hint}")));
            let is_judged = self.kernel_is_subject && went_down;
            notes.extend(is_judged.then(|| boot_hint(&self.console)).flatten());
        }
        if let Finding::NoMachine(LeaseError::Memory(_)) = finding {
            let default = "--memory 256M is the default; `guestline doctor` shows what is free";
            notes.push(format!("hint: {default}"));
        }
        if let (Finding::NoMachine(LeaseError::Ended { .. } | LeaseError::Silent { .. }), Some(mib)) =
            (finding, job.machine.memory_mib)
            && mib < SMALL_MIB
        {
            notes.push(format!(
                "hint: {mib} MiB of memory may be too little to boot; 256 is the default"
            ));
        }
        if judge(finding, &self.circumstances()).why().contains(FULL) {
            let home = guestline::dirs::HOME_VARIABLE;
            notes
                .push(format!("hint: make room on that disk, or set {home} to a folder elsewhere"));
        }
        if let Finding::Refused(error) = finding {
            notes.push(error.message.clone());
        }
        if let Some(status @ (126 | 127)) = status(finding) {
            notes.extend(missing_tool(&text::escape(&self.tail), status).map(|tool| {
                let image = &job.machine.image;
                match status {
                    127 => format!("the image `{image}` has no `{tool}`"),
                    _ => format!("the image `{image}` cannot execute `{tool}`"),
                }
            }));
        }
        let dropped = self.folder.as_ref().map_or(0, AttemptFolder::dropped);
        if dropped > 0 {
            notes.push(format!("{dropped} bytes of output over the limit were not kept"));
        }
        notes
    }

    /// "TEXT   (console, 0.41 s after the check began)".
    fn with_time(&self, line: &ConsoleLine) -> String {
        let text = text::one_line(line.text.trim_end(), 200);
        match self.began.and_then(|began| line.at.checked_duration_since(began)) {
            Some(after) => {
                format!("{text}   (console, {} after the check began)", text::seconds(after))
            }
            None => format!("{text}   (console)"),
        }
    }
}

/// What the console of a kernel that does not get to the agent says of its configuration.
fn boot_hint(console: &[ConsoleLine]) -> Option<String> {
    const SAYS: [(&str, &str); 5] = [
        (
            "Unable to mount root fs",
            "it found no initramfs: CONFIG_BLK_DEV_INITRD (a packed one also wants CONFIG_RD_GZIP or its like)",
        ),
        ("No working init found", "it cannot run the agent: CONFIG_BINFMT_ELF and CONFIG_64BIT"),
        ("Failed to execute /init", "it cannot run the agent: CONFIG_BINFMT_ELF and CONFIG_64BIT"),
        (
            "unable to open an initial console",
            "CONFIG_TTY and CONFIG_SERIAL_8250_CONSOLE give it one",
        ),
        ("Out of memory", "more memory may do: --memory"),
    ];
    let said = |mark: &str| console.iter().any(|line| line.text.contains(mark));
    let known = SAYS.iter().find(|(mark, _)| said(mark)).map(|(_, hint)| *hint);
    let silent = "a kernel that says nothing may lack CONFIG_SERIAL_8250_CONSOLE";
    let hint = known.or(console.is_empty().then_some(silent))?;
    Some(format!("hint: {hint}"))
}

/// The program that a shell's or the agent's last complaint names: "sh: nginx: not found",
/// "/bin/sh: 1: nginx: Permission denied", "bash: line 1: nginx: command not found".
fn missing_tool(output: &str, status: u8) -> Option<String> {
    let complaints: &[&str] = match status {
        127 => &[": not found", ": command not found", ": No such file or directory"],
        _ => &[
            ": Permission denied",
            ": may not be executed",
            ": no executable file",
            ": Exec format error",
        ],
    };
    output.lines().rev().find_map(|line| {
        let named = complaints.iter().find_map(|end| line.trim_end().strip_suffix(end))?;
        let tool = named.rsplit(": ").next()?.trim();
        (!tool.is_empty()).then(|| text::one_line(tool, 60))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_tool_that_a_shell_misses() {
        let tool = |output, status| missing_tool(output, status);
        assert_eq!(tool("sh: systemctl: not found\n", 127).as_deref(), Some("systemctl"));
        assert_eq!(tool("/bin/sh: 1: nginx: not found", 127).as_deref(), Some("nginx"));
        assert_eq!(tool("bash: line 1: x: command not found\nend", 127).as_deref(), Some("x"));
        assert_eq!(tool("nginx: not found", 127).as_deref(), Some("nginx"));
        assert_eq!(tool("sh: /etc/passwd: Permission denied", 126).as_deref(), Some("/etc/passwd"));
        assert_eq!(tool("something else", 127), None);
    }
}
