//! One job to its outcome: image, lease, command, evidence.

use super::Emitter;
use super::attempt::{Attempt, status};
use super::conversation::watched;
use super::evidence::RunFolder;
use super::judge::{Finding, judge};
use crate::event::{AttemptFinished, PooledMachine, RunEvent};
use crate::job::{FilesWanted, Job, ModulesWanted};
use crate::outcome::{Outcome, Stage};
use crate::text;
use guestline::digest::Digest;
use guestline::guest::FilesError;
use guestline::image::{BuildNews, BuildTerms, Image, LockPolicy, OwnModules};
use guestline::provision::{Images, Lease, LeaseError, MachineRequest, Notice, Provisioner};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
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
