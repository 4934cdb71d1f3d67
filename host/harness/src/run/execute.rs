//! One job to its outcome: image, lease, command, evidence.

use super::attempt::{Attempt, Part, status};
use super::conversation::Recorder;
use super::evidence::RunFolder;
use super::fixtures::Fixtures;
use super::host_fixtures::HostFixtures;
use super::judge::{Finding, judge};
use super::place::Place;
use super::seat::Seat;
use super::{Emitter, Execute, Target, Terms, Ticket, scene};
use crate::event::{AttemptFinished, PooledMachine, RunEvent};
use crate::job::{
    Content, FilesWanted, FirmwareWanted, Job, MachineWanted, ModulesWanted, QemuWanted,
};
use crate::outcome::{Outcome, Stage};
use crate::suite::settings::On;
use crate::text;
use guestline::digest::Digest;
use guestline::guest::{FilesError, Guest};
use guestline::image::{BuildNews, BuildTerms, Image, LockPolicy, OwnModules};
use guestline::machine::{FirmwareChoice, FirmwareKind, Qemu};
use guestline::provision::{Images, Lease, LeaseError, MachineRequest, Notice, Provisioner};
use guestline::supervise::MachineName;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Why no machine can be had at all: every attempt errors with it.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Where the set-up is broken.
    pub stage: Stage,
    /// In words.
    pub reason: String,
    /// What mends it.
    pub hints: Vec<String>,
    /// The end of what was said meanwhile.
    pub log: Vec<String>,
}

/// Takes jobs; has what they name by digest or name.
#[derive(Debug)]
pub struct Executor {
    provisioner: Result<Provisioner, Broken>,
    maker: Arc<Images>,
    files: HashMap<Digest, PathBuf>,
    /// Those that jobs may name.
    qemus: Vec<Qemu>,
    folder: RunFolder,
    facts: serde_json::Value,
    images: Mutex<HashMap<String, Result<Image, Broken>>>,
    /// Where files of tests are put together, and which are.
    pub(super) work: PathBuf,
    pub(super) contents: Mutex<HashMap<Content, PathBuf>>,
    pub(super) fixtures: Fixtures,
    pub(super) host_fixtures: HostFixtures,
    /// Where those of them are that are kept.
    pub(super) kept_fixtures: PathBuf,
    target: Target,
    /// The agent as a program of this host, once it was wanted.
    pub(super) agent_file: Mutex<Option<PathBuf>>,
    /// The program `guest` for machines, and the Python module.
    pub(super) guest_program: &'static [u8],
    pub(super) python_module: &'static str,
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
        work: PathBuf,
    ) -> Self {
        let (maker, images, contents) = (Arc::new(maker), Mutex::default(), Mutex::default());
        let fixtures = Fixtures::default();
        Self {
            provisioner,
            maker,
            files,
            qemus: Vec::new(),
            folder,
            facts,
            images,
            work,
            contents,
            fixtures,
            host_fixtures: HostFixtures::default(),
            kept_fixtures: PathBuf::new(),
            target: Target::Machine,
            agent_file: Mutex::default(),
            guest_program: &[],
            python_module: "",
            gdb: None,
        }
    }

    /// Fixtures of the host are kept below this folder.
    pub fn with_kept_fixtures(self, kept_fixtures: PathBuf) -> Self {
        Self { kept_fixtures, ..self }
    }

    /// Its tests run there.
    pub fn with_target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// With QEMUs that jobs name by their digests.
    pub fn with_qemus(self, qemus: Vec<Qemu>) -> Self {
        Self { qemus, ..self }
    }

    /// With the program `guest` for machines, and the module for Python.
    pub fn with_guest(self, guest_program: &'static [u8], python_module: &'static str) -> Self {
        Self { guest_program, python_module, ..self }
    }

    /// The agent that is in its images.
    pub(super) fn agent_bytes(&self) -> &[u8] {
        self.maker.agent().bytes()
    }

    /// Its machines wait for a debugger, whose socket is told here.
    pub fn with_gdb(self, gdb: Option<UnboundedSender<PathBuf>>) -> Self {
        Self { gdb, ..self }
    }

    async fn attempt(
        &self,
        job: &Job,
        ticket: &Ticket,
        seat: &mut Seat,
        attempt: &mut Attempt,
        emitter: &mut Emitter,
        terms: &Terms,
    ) -> Finding {
        if terms.cancel.is_cancelled() {
            return Finding::Cancelled;
        }
        match self.folder.attempt(ticket.number, ticket.attempt) {
            Ok(folder) => attempt.folder = Some(folder),
            Err(error) => {
                let path = self.folder.path().display().to_string();
                return Finding::Evidence { path, error };
            }
        }
        let fixtures = match self.host_fixtures(job, &terms.cancel).await {
            Ok(fixtures) => fixtures,
            Err(finding) => return finding,
        };
        let is_new = seat.places.machines.is_empty();
        if is_new && let Err(finding) = self.seat(job, seat, attempt, emitter, terms).await {
            return finding;
        }
        if let Some(Finding::MachineEnded(ending)) = seat.ended_meanwhile().await {
            return before(job, Finding::MachineEnded(ending));
        }
        let waiting = Instant::now();
        let place = tokio::select! {
            place = seat.place(&terms.places) => Some(place),
            () = terms.cancel.cancelled() => None,
        };
        attempt.waited = waiting.elapsed();
        match place {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                return Finding::Broken(Broken {
                    stage: Stage::Host,
                    reason: text::chain(&error),
                    hints: vec![],
                    log: vec![],
                });
            }
            None => return Finding::Cancelled,
        }
        for (_, place) in seat.places.machines.iter().filter(|_| is_new) {
            if let Err(finding) = self.bring(job, place.guest(), &terms.cancel).await {
                return finding;
            }
        }
        if is_new {
            seat.look().await;
        }
        let began = Instant::now();
        attempt.began = Some(began);
        let recorder = &mut Recorder { attempt, emitter, lines: None };
        let finding =
            scene::run(self, job, ticket, &seat.places, &fixtures, recorder, &terms.cancel).await;
        attempt.check.get_or_insert(began.elapsed());
        finding
    }

    /// Leases the machines of a job.
    async fn seat(
        &self,
        job: &Job,
        seat: &mut Seat,
        attempt: &mut Attempt,
        emitter: &mut Emitter,
        terms: &Terms,
    ) -> Result<(), Finding> {
        if self.target != Target::Machine {
            let place = tokio::select! {
                place = self.target.open(self, job) => place?,
                () = terms.cancel.cancelled() => return Err(Finding::Cancelled),
            };
            self.set_up_in(&place, &job.machine.layers, job.limits.check()).await?;
            attempt.record_target(&self.facts, &self.target, place.guest());
            seat.places.machines.push((None, place));
            return Ok(());
        }
        let provisioner =
            self.provisioner.as_ref().map_err(|broken| Finding::Broken(broken.clone()))?;
        let one = [(None, &job.machine)];
        let named = job.machines.iter().map(|(name, wanted)| (Some(name.clone()), wanted));
        let wanted: Vec<_> = if job.machines.is_empty() { one.to_vec() } else { named.collect() };
        let began = Instant::now();
        for (name, wanted) in wanted {
            let lease = self
                .lease(provisioner, job, name.as_ref(), wanted, attempt, emitter, &terms.cancel)
                .await?;
            seat.places.machines.push((name, Place::Machine(Box::new(lease))));
        }
        let ready_in = match &seat.places.machines[..] {
            [(_, Place::Machine(lease))] => lease.ready_in,
            _ => began.elapsed(),
        };
        attempt.machine = Some(ready_in);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of an attempt at this point")]
    async fn lease(
        &self,
        provisioner: &Provisioner,
        job: &Job,
        name: Option<&MachineName>,
        wanted: &MachineWanted,
        attempt: &mut Attempt,
        emitter: &mut Emitter,
        cancel: &CancellationToken,
    ) -> Result<Lease, Finding> {
        let image = match self.image(&wanted.image, emitter, cancel).await {
            Ok(image) => image,
            // What was interrupted is nobody's defect.
            Err(_) if cancel.is_cancelled() => return Err(Finding::Cancelled),
            Err(broken) => return Err(Finding::Broken(broken)),
        };
        let request = MachineRequest {
            memory_mib: wanted.memory_mib.unwrap_or(image.manifest.memory_mib),
            cpus: wanted.cpus,
            hostname: name.map(|name| name.as_str().to_owned()),
            disks: wanted.disks.clone(),
            nics: wanted.nics.clone(),
            qemu: wanted.qemu.as_ref().map(|qemu| self.qemu(qemu)).transpose()?,
            qemu_args: wanted.qemu_args.clone(),
            firmware: wanted.firmware.as_ref().map(|firmware| match firmware {
                FirmwareWanted::Bios => FirmwareChoice::Kind(FirmwareKind::Bios),
                FirmwareWanted::Uefi => FirmwareChoice::Kind(FirmwareKind::Uefi),
                FirmwareWanted::File(digest) => {
                    FirmwareChoice::File(self.file(digest), digest.clone())
                }
            }),
            hardware: wanted.hardware.clone(),
            fresh_reboot: wanted.fresh_reboot,
            // What happens on the host may boot them anew.
            reboots: job
                .tests
                .iter()
                .any(|test| test.of.as_ref().is_some_and(|of| of.on != On::Guest)),
            layers: self.layers(&wanted.layers).await?,
            kernel: wanted.kernel.as_ref().map(|digest| (self.file(digest), digest.clone())),
            kconfig: wanted.kconfig.as_ref().map(|digest| (self.file(digest), digest.clone())),
            modules: wanted.modules.as_ref().map(|ModulesWanted { early, names, disk }| {
                let file = |digest: &Digest| (digest.clone(), self.file(digest));
                OwnModules::of_files(file(early), disk.as_ref().map(file), names.clone())
            }),
            cmdline: wanted.cmdline.clone(),
            gdb: self.gdb.clone(),
            set_up_timeout: job.limits.check(),
            ..MachineRequest::new(image, job.limits.boot())
        };
        attempt.record_facts(&self.facts, name, &request, None);
        let trying = match self.fixtures.wait(wanted).await {
            Ok(trying) => trying,
            Err(broken) => return Err(Finding::Broken(broken)),
        };
        let lease = match provisioner.lease(&request, cancel).await {
            Ok(lease) => {
                Fixtures::succeeded(trying);
                lease
            }
            Err(failed) => {
                tell(failed.notices, emitter).await;
                let broken = self.fixtures.failed(wanted, &failed.error).await;
                drop(trying);
                attempt.console = failed.console;
                if let (Some(from), Some(to)) = (&failed.folder, &attempt.folder) {
                    let _ =
                        to.adopt(&from.path().join("console.log"), name.map(MachineName::as_str));
                }
                return Err(match (failed.error, broken) {
                    (LeaseError::Cancelled, _) => Finding::Cancelled,
                    (_, Some(broken)) => Finding::Broken(broken),
                    (error, None) => Finding::NoMachine(error),
                });
            }
        };
        tell(lease.notices.clone(), emitter).await;
        let pool = lease.pooled.as_ref().map(|pooled| PooledMachine {
            ready_us: u64::try_from(pooled.ready_for.as_micros()).unwrap_or(u64::MAX),
            warm_up: pooled.warm_up.clone(),
        });
        if pool.is_some() {
            attempt.record_facts(&self.facts, name, &request, pool.as_ref());
        }
        let agent = lease.guest.agent();
        let ready = RunEvent::MachineReady {
            machine: name.cloned(),
            elapsed_us: u64::try_from(lease.ready_in.as_micros()).unwrap_or(u64::MAX),
            agent: text::one_line(&agent.build, 64),
            guest_time_us: agent.clock_us,
            template: lease.template.as_ref().map(|id| id.to_string()),
            skew_us: lease.skew.micros,
            pool: pool.clone(),
        };
        emitter.emit(ready).await;
        Ok(lease)
    }

    /// Puts the files that the job has into its machine.
    async fn bring(
        &self,
        job: &Job,
        guest: &Guest,
        cancel: &CancellationToken,
    ) -> Result<(), Finding> {
        for FilesWanted { digest, to } in &job.machine.with {
            let from = self.file(digest);
            let brought = tokio::select! {
                brought = guest.bring(&from, to) => brought,
                () = cancel.cancelled() => return Err(Finding::Cancelled),
            };
            brought.map_err(|error| {
                let stage = match &error {
                    FilesError::Link(_) => Stage::Link,
                    _ => Stage::Fixture,
                };
                let from = from.display();
                let reason = format!("cannot put `{from}` at `{to}`: {}", text::chain(&error));
                Finding::Broken(Broken { stage, reason, hints: vec![], log: vec![] })
            })?;
        }
        Ok(())
    }

    /// The QEMU that a job names.
    fn qemu(&self, wanted: &QemuWanted) -> Result<Qemu, Finding> {
        let known = self.qemus.iter().find(|qemu| qemu.digest == wanted.digest);
        known.cloned().ok_or_else(|| {
            let QemuWanted { digest, version } = wanted;
            let reason = format!("QEMU {version} with the digest {digest} is not on this host");
            let hints = vec!["name its program: --qemu FILE".to_owned()];
            Finding::Broken(Broken { stage: Stage::Host, reason, hints, log: vec![] })
        })
    }

    /// A file that a job names by its digest; what is not there is told when it is read.
    pub(super) fn file(&self, digest: &Digest) -> PathBuf {
        self.files.get(digest).cloned().unwrap_or_default()
    }

    /// Tears down what was set up for all tests, and waits for what is still done for the next run. What did not do is told.
    pub async fn finish(&self) -> Vec<String> {
        let troubles = self.tear_down_fixtures().await;
        if let Ok(provisioner) = &self.provisioner {
            provisioner.finish().await;
        }
        troubles
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
            log: vec![],
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

impl Execute for Executor {
    async fn execute(&self, job: Job, tickets: Vec<Ticket>, terms: Terms) -> Vec<(u32, Outcome)> {
        let mut outcomes = Vec::new();
        let mut seat = Seat::of(tickets.len());
        let last = tickets.len().saturating_sub(1);
        for (index, (mut ticket, test)) in tickets.into_iter().zip(&job.tests).enumerate() {
            if terms.stop.is_cancelled() {
                break;
            }
            let job = job.only(test);
            let outcome = self.one(&job, &mut ticket, &mut seat, index == last, &terms).await;
            outcomes.push((ticket.number, outcome));
        }
        outcomes
    }
}

impl Executor {
    /// One test of a job to its outcome, which is told as an event before it is returned. Its machines stay if the next
    /// test may have them.
    async fn one(
        &self,
        job: &Job,
        ticket: &mut Ticket,
        seat: &mut Seat,
        is_last: bool,
        terms: &Terms,
    ) -> Outcome {
        let test = &job.tests[0];
        let name = test.name();
        let started = Instant::now();
        let mut emitter = ticket.emitter.attempt();
        let event = RunEvent::AttemptStarted {
            number: ticket.number,
            attempt_number: ticket.attempt,
            test: name.clone(),
            job: Box::new(job.clone()),
        };
        emitter.emit(event).await;
        let mut attempt = Attempt::new(job, test);
        let mut finding = {
            let span = tracing::info_span!("test", number = ticket.number, name = %text::one_line(&name, 60));
            let attempting = self.attempt(job, ticket, seat, &mut attempt, &mut emitter, terms);
            attempting.instrument(span).await
        };
        let outcome = judge(&finding, &attempt.circumstances());
        let is_clean = matches!(outcome, Outcome::Passed | Outcome::Skipped { .. });
        if is_last || !is_clean || !seat.is_as_it_was(&terms.cancel).await {
            if let Some(failed) = seat.cleared().end(&mut attempt).await {
                finding = failed;
            }
        } else {
            seat.rest();
        }
        let outcome = judge(&finding, &attempt.circumstances());
        let notes = match outcome {
            Outcome::Passed => attempt.notes,
            _ => attempt.explain(&finding),
        };
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let finished = AttemptFinished {
            number: ticket.number,
            attempt_number: ticket.attempt,
            test: name,
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
}

/// A machine that ended before the test began is nobody's failed test, and nothing that a test expects; unless something is
/// tried that is judged.
pub(super) fn before(job: &Job, finding: Finding) -> Finding {
    match finding {
        Finding::MachineEnded(_) if job.subjects.is_empty() => {
            Finding::Step { part: Part::SetUp, inner: Box::new(finding) }
        }
        finding => finding,
    }
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
