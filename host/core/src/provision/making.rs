//! Making templates: a machine is booted, or restored from the template below; its layer's lines are run; when it is quiet
//! it is saved, and killed.
//!
//! ```text
//! boot, or the template below ─> lines ─> quiet ─> saved to a draft in memory, killed ─┬─> written, published
//!                                           └─ QEMU of the machine that it is made for ─┴─> goes on
//! ```

use super::lease::{LeaseError, SetUpFailure};
use super::start::{Launched, NotStarted, Running, Terms, launch};
use super::template::{
    Draft, Found, Making, Notice, PATIENCE, Quiet, SAMPLE, Template, TemplateId, TemplateKey,
    TemplateRecord,
};
use super::{MachineRequest, Provisioner, Pruned, identity};
use crate::capture::PANIC_MARK;
use crate::clock::now_us;
use crate::guest::{Guest, Skew};
use crate::host::free_mib;
use crate::link::LinkError;
use crate::machine::{Ending, Machine, MachineSpec, Origin};
use crate::text;
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether another process has made it.
const LOOK: Duration = Duration::from_millis(10);

/// Beside a machine's memory, so much room has to be on the disk.
const ROOM_MIB: u64 = 64;

/// So often a machine is booted whose clock goes wrong.
const CLOCKS: u32 = 3;

/// A clock that was set over the link is not exacter than this.
const CLOCK_GRAIN: Duration = Duration::from_millis(5);

/// So much of a set-up line's output is read, and so much of its end is shown.
const OUTPUT: usize = 1024 * 1024;
const OUTPUT_SHOWN: usize = 4096;

/// What is made, and out of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) key: &'a TemplateKey,
    pub(super) request: &'a MachineRequest,
    pub(super) spec: &'a MachineSpec,
    /// Where its QEMU works.
    pub(super) folder: &'a Path,
    pub(super) cancel: &'a CancellationToken,
}

/// Why there is no template.
#[derive(Debug)]
pub(super) enum NoTemplate {
    /// It cannot be kept; a machine can still be booted.
    Impossible(String),
    /// Its machine did not come up, or its set-up failed.
    NotStarted(NotStarted),
}

/// What is there for a machine.
#[derive(Debug)]
pub(super) struct Provided {
    /// None where it was pruned in the moment in which it was published, or could not be kept.
    pub(super) template: Option<Template>,
    /// The machine itself, where the template was made for it, and what it goes on from.
    pub(super) running: Option<Box<(Running, Draft)>>,
}

/// What came of saving a machine.
enum Saved {
    /// Its template, and how long it took from when the machine was quiet; or why it cannot be kept.
    Draft {
        kept: Result<(Option<Box<Template>>, Duration), String>,
        running: Option<Box<(Running, Draft)>>,
    },
    /// Nothing: the guest's clock goes wrong, for this reason, and would go wrong in every machine. A guest's does that
    /// measured its CPU's counter while the host kept it waiting.
    WrongClock(String),
}

impl<E: Into<LeaseError>> From<E> for NoTemplate {
    fn from(error: E) -> Self {
        Self::NotStarted(error.into().into())
    }
}

impl Provisioner {
    /// The template of a key: found, or made.
    pub(super) async fn template(
        &self,
        plan: Plan<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Template, NoTemplate> {
        loop {
            if let Some(template) = self.provide(plan, None, notices).await?.template {
                return Ok(template);
            }
        }
    }

    /// The template of a key: found, or made. A machine that it is made for goes on at once, on these terms.
    pub(super) async fn provide(
        &self,
        plan: Plan<'_>,
        go_on: Option<Terms<'_>>,
        notices: &mut Vec<Notice>,
    ) -> Result<Provided, NoTemplate> {
        let impossible = |why: String| Err(NoTemplate::Impossible(why));
        let found = |template| Ok(Provided { template: Some(template), running: None });
        let mut wrong_clocks = 0;
        loop {
            match self.templates.open(plan.key) {
                Found::Ready(template) => return found(*template),
                Found::Foreign(why) => return impossible(why),
                Found::Absent => {}
                Found::Damaged(why) => {
                    self.templates.drop_id(&plan.key.id());
                    notices.push(Notice::Dropped { id: plan.key.id(), why });
                }
            }
            let making = match self.templates.begin(plan.key) {
                Ok(Some(making)) => making,
                Ok(None) => {
                    // Another process makes it.
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => continue,
                        () = plan.cancel.cancelled() => return Err(LeaseError::Cancelled.into()),
                    }
                }
                Err(error) => {
                    let folder = self.templates.folder().display();
                    return impossible(format!("cannot use `{folder}`: {error}"));
                }
            };
            // It may have been made just before its lock was had.
            if let Found::Ready(template) = self.templates.open(plan.key) {
                return found(*template);
            }
            let began = Instant::now();
            let made = match plan.key.parent() {
                None => self.make_booted(plan, making, go_on).await,
                Some(below) => {
                    Box::pin(self.make_layer(plan, &below, making, go_on, notices)).await
                }
            };
            match made? {
                Saved::Draft { kept: Ok((template, saved_in)), running } => {
                    if let Some(template) = &template {
                        let elapsed = began.elapsed();
                        notices.push(Notice::Made { id: template.id(), elapsed, saved_in });
                    }
                    return Ok(Provided { template: template.map(|template| *template), running });
                }
                Saved::Draft { kept: Err(why), running: None } => return impossible(why),
                Saved::Draft { kept: Err(why), running } => {
                    notices.push(Notice::Without { why });
                    return Ok(Provided { template: None, running });
                }
                Saved::WrongClock(why) => {
                    wrong_clocks += 1;
                    if wrong_clocks >= CLOCKS {
                        return impossible(why);
                    }
                    tracing::warn!(why, "the machine is not saved, and booted again");
                }
            }
        }
    }

    /// Boots the machine and saves it.
    async fn make_booted(
        &self,
        plan: Plan<'_>,
        making: Making,
        go_on: Option<Terms<'_>>,
    ) -> Result<Saved, NoTemplate> {
        check_room(making.folder(), plan.spec.memory_mib)?;
        let draft = Draft::new(plan.spec.memory_mib).map_err(no_draft)?;
        let origin = Origin::BootSavable { ram: &draft.ram() };
        let launched = launch(&self.qemu, plan.spec, origin, plan.folder).await?;
        // It is given a name as those that are restored from it are: what that takes is ready then.
        let name = plan.any_hostname();
        let terms = plan.terms(&name, plan.request.boot_timeout);
        let running = launched.open(None, plan.folder, terms).await;
        self.save(plan, making, draft, running.map_err(NoTemplate::NotStarted)?, go_on).await
    }

    /// Restores the template below with memory that can be saved again, runs the layer's lines and saves it.
    async fn make_layer(
        &self,
        plan: Plan<'_>,
        below: &TemplateKey,
        making: Making,
        go_on: Option<Terms<'_>>,
        notices: &mut Vec<Notice>,
    ) -> Result<Saved, NoTemplate> {
        let below = self.template(Plan { key: below, ..plan }, notices).await?;
        check_room(making.folder(), plan.spec.memory_mib)?;
        let state = below.state();
        let draft = tokio::task::spawn_blocking(move || Draft::above(&below));
        let draft = draft.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let draft = draft.map_err(no_draft)?;
        let origin = Origin::RestoreSavable { ram: &draft.ram() };
        let launched = launch(&self.qemu, plan.spec, origin, plan.folder).await?;
        let name = plan.any_hostname();
        let terms = plan.terms(&name, plan.request.boot_timeout);
        let running = launched.open(Some(&state), plan.folder, terms).await;
        let running = running.map_err(NoTemplate::NotStarted)?;
        let lines = plan.key.layers.last().map(Vec::as_slice).unwrap_or_default();
        if let Err(error) = set_up(plan, &running.machine, &running.guest, lines).await {
            return Err(NoTemplate::NotStarted(not_set_up(running, error).await));
        }
        self.save(plan, making, draft, running, go_on).await
    }

    /// Waits until a machine is quiet, saves and kills it, and publishes what was saved, while the machine that is to go
    /// on from it does so.
    async fn save(
        &self,
        plan: Plan<'_>,
        making: Making,
        draft: Draft,
        running: Running,
        go_on: Option<Terms<'_>>,
    ) -> Result<Saved, NoTemplate> {
        let Running { machine, mut console, started, guest, .. } = running;
        let (ready, waiting) = (started.elapsed(), Instant::now());
        let saved = tokio::select! {
            biased;
            ending = machine.ended() => Err(LeaseError::ended(ending).into()),
            () = plan.cancel.cancelled() => Err(LeaseError::Cancelled.into()),
            saved = async {
                // QEMU of the machine that goes on is started meanwhile.
                let next = async {
                    match go_on {
                        Some(_) => self.launch_next(plan, &draft).await.ok(),
                        None => None,
                    }
                };
                let (quiet, next) = tokio::join!(until_quiet(&machine), next);
                let clock = guest.skew().await.map_err(|error| NoTemplate::from(LeaseError::Settle(error)))?;
                let waited = waiting.elapsed();
                if let Some(why) = wrong_clock(&clock, waited) {
                    return Ok(Err(why));
                }
                let saved = machine.save(&draft.state()).await;
                saved.map(|()| Ok((quiet, waited, next))).map_err(|error| {
                    NoTemplate::Impossible(format!("cannot save the machine: {}", text::chain(&error)))
                })
            } => saved,
        };
        machine.kill().await;
        drop(guest);
        let _ = console.finish().await;
        let (quiet, waited, next) = match saved? {
            Ok(saved) => saved,
            Err(why) => return Ok(Saved::WrongClock(why)),
        };
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let manifest = &plan.request.image.manifest;
        let record = TemplateRecord {
            key: plan.key.clone(),
            image: manifest.name.clone(),
            kernel_release: manifest.kernel_release.clone(),
            qemu: self.qemu.version.to_string(),
            memory_mib: plan.spec.memory_mib,
            guestline: env!("CARGO_PKG_VERSION").to_owned(),
            made_us: now_us(),
            ready_us: us(ready),
            quiet_us: us(waited),
            quiet,
        };
        let draft = Arc::new(draft);
        let publishing = async {
            let (draft, opens_read_only) = (draft.clone(), self.qemu.opens_read_only());
            let publishing = tokio::task::spawn_blocking(move || {
                draft.write(&making)?;
                making.publish(record, opens_read_only)
            });
            let published = publishing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            let saved_in = waiting.elapsed().saturating_sub(waited);
            published.map(|template| (template.map(Box::new), saved_in))
        };
        let going_on = async {
            match go_on {
                Some(terms) => self.go_on(plan, next, &draft, terms).await,
                None => Ok(None),
            }
        };
        let (kept, running) = tokio::join!(publishing, going_on);
        if let Ok((Some(template), _)) = &kept {
            self.digest_later(template.id(), plan.cancel);
        }
        let running =
            running.map_err(NoTemplate::NotStarted)?.zip(Arc::into_inner(draft)).map(Box::new);
        let kept = kept.map_err(|error| format!("cannot keep the saved machine: {error}"));
        Ok(Saved::Draft { kept, running })
    }

    async fn launch_next(&self, plan: Plan<'_>, draft: &Draft) -> Result<Launched, LeaseError> {
        let origin = Origin::Restore { ram: &draft.ram() };
        launch(&self.qemu, plan.spec, origin, plan.folder).await
    }

    /// The machine that goes on from what was just saved; none when that does not do, which the next attempt tells.
    async fn go_on(
        &self,
        plan: Plan<'_>,
        next: Option<Launched>,
        draft: &Draft,
        terms: Terms<'_>,
    ) -> Result<Option<Running>, NotStarted> {
        let next = match next {
            // What QEMU has written to, it would not see as it was saved.
            Some(next)
                if next.machine.is_running().await.is_ok()
                    && draft.is_untouched_by(next.machine.pid()) =>
            {
                next
            }
            _ => self.launch_next(plan, draft).await?,
        };
        match next.open(Some(&draft.state()), plan.folder, terms).await {
            Ok(running) => Ok(Some(running)),
            Err(not) if not.error.is_templates_fault() => {
                tracing::warn!(why = %text::chain(&not.error), "nothing goes on from what was saved");
                Ok(None)
            }
            Err(not) => Err(not),
        }
    }

    /// Makes room for a template in the cache, and takes the digest of its memory, beside what is done next.
    fn digest_later(&self, id: TemplateId, cancel: &CancellationToken) {
        let (store, cancel, limit) = (self.templates.clone(), cancel.clone(), self.limit.clone());
        self.beside(move || {
            if let Found::Ready(template) = store.open_id(&id) {
                // It is in use now, and stays.
                if let Some((cache, bytes)) = limit {
                    tell_evicted(&cache.evict(bytes));
                }
                let taken = template.digest_ram(&|| !cancel.is_cancelled());
                if let Err(error) = taken {
                    tracing::debug!(%error, "no digest of a template's memory");
                }
            }
        });
    }

    /// Makes room in the cache beside what is done next; for who has made an image. It is in use, and stays.
    pub fn make_room(&self) {
        if let Some((cache, bytes)) = self.limit.clone() {
            self.beside(move || tell_evicted(&cache.evict(bytes)));
        }
    }

    /// Does something for the next run beside what is done for this one.
    fn beside(&self, work: impl FnOnce() + Send + 'static) {
        let working = tokio::task::spawn_blocking(work);
        self.working.lock().unwrap_or_else(PoisonError::into_inner).push(working);
    }

    /// Waits for what is still done beside: digests of templates that were made, and room.
    pub async fn finish(&self) {
        let working =
            std::mem::take(&mut *self.working.lock().unwrap_or_else(PoisonError::into_inner));
        for work in working {
            let _ = work.await;
        }
    }
}

fn tell_evicted(pruned: &[Pruned]) {
    for Pruned { entry, removal, .. } in pruned {
        tracing::info!(kind = entry.content.kind(), id = %entry.id, ?removal, "the cache is over its limit");
    }
}

impl<'a> Plan<'a> {
    /// How its machine is begun, under a name, and how long that may take.
    pub(super) fn terms(self, hostname: &'a str, timeout: Duration) -> Terms<'a> {
        let (link, is_spare) = (self.request.link, self.request.is_spare);
        Terms { link, hostname, timeout, is_spare, cancel: self.cancel }
    }

    /// A host name that no other machine has.
    pub(super) fn any_hostname(self) -> String {
        identity::hostname(&self.request.image.manifest.name)
    }
}

fn no_draft(error: io::Error) -> NoTemplate {
    NoTemplate::Impossible(format!("no memory to save the machine to: {error}"))
}

/// What cannot be kept in the end is not begun.
fn check_room(folder: &Path, memory_mib: u64) -> Result<(), NoTemplate> {
    let Ok(free_mib) = free_mib(folder) else { return Ok(()) };
    let wanted_mib = memory_mib.saturating_add(ROOM_MIB);
    match free_mib >= wanted_mib {
        true => Ok(()),
        false => Err(NoTemplate::Impossible(format!(
            "the disk of `{}` has {free_mib} MiB free, and {wanted_mib} MiB are wanted to save the machine",
            folder.parent().unwrap_or(folder).display(),
        ))),
    }
}

/// True when it came to rest.
async fn until_quiet(machine: &Machine) -> bool {
    let (mut quiet, began) = (Quiet::default(), Instant::now());
    let before = machine.cpu_share();
    while began.elapsed() < PATIENCE {
        if quiet.on_sample(Instant::now(), machine.cpu_share().ran_since(&before)) {
            return true;
        }
        tokio::time::sleep(SAMPLE).await;
    }
    false
}

/// What is wrong with a guest's clock that was right so long ago.
fn wrong_clock(skew: &Skew, since: Duration) -> Option<String> {
    let allowed = since / 5 + skew.error + CLOCK_GRAIN;
    let off = Duration::from_micros(skew.micros.unsigned_abs());
    let ahead = if skew.micros > 0 { "ahead" } else { "behind" };
    (off > allowed).then(|| {
        format!("the guest's clock goes wrong: {off:.1?} {ahead} {since:.1?} after it was set")
    })
}

/// Runs lines one after the other; the first that does not end with status 0 is the last.
pub(super) async fn set_up(
    plan: Plan<'_>,
    machine: &Machine,
    guest: &Guest,
    lines: &[String],
) -> Result<(), LeaseError> {
    for line in lines {
        let failed = |failure| LeaseError::SetUp { line: line.clone(), failure };
        let request = ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()));
        let limit = plan.request.set_up_timeout;
        let before = machine.cpu_share();
        let ran = tokio::select! {
            biased;
            ran = guest.run(request, &[], OUTPUT) => ran,
            ending = machine.ended() => return Err(ended_in_set_up(ending, line)),
            () = plan.cancel.cancelled() => return Err(LeaseError::Cancelled),
            () = tokio::time::sleep(limit) => {
                let starved = machine.cpu_share().waited_since(&before);
                return Err(failed(SetUpFailure::TimedOut { limit, starved }));
            }
        };
        match ran {
            Ok(output) if output.exited.status == ExitStatus::Exited(0) => {}
            Ok(output) => {
                let (status, mut said) = (output.exited.status, output.stdout);
                said.extend(output.stderr);
                let from = said.len().saturating_sub(OUTPUT_SHOWN);
                let output = String::from_utf8_lossy(said.get(from..).unwrap_or_default());
                let output = output.trim_end().to_owned();
                return Err(failed(SetUpFailure::Ended { status, output }));
            }
            Err(LinkError::Refused(error)) => {
                return Err(failed(SetUpFailure::Refused { error }));
            }
            // A guest that goes down takes the link with it first.
            Err(error) => {
                return Err(match machine.ended_soon().await {
                    Some(ending) => ended_in_set_up(ending, line),
                    None => LeaseError::Link(error),
                });
            }
        }
    }
    Ok(())
}

/// Ends a machine whose set-up did not do. A kernel without pvpanic panics into a reset (`panic=-1`): its console tells.
pub(super) async fn not_set_up(mut running: Running, mut error: LeaseError) -> NotStarted {
    running.machine.kill().await;
    let _ = running.console.finish().await;
    let console = running.console.last_lines();
    if let LeaseError::SetUp { failure: SetUpFailure::GuestEnded(ending), .. } = &mut error
        && *ending == Ending::Reset
        && console.iter().any(|line| line.text.contains(PANIC_MARK))
    {
        *ending = Ending::Panicked;
    }
    NotStarted { error, console }
}

fn ended_in_set_up(ending: Ending, line: &str) -> LeaseError {
    match ending {
        Ending::QemuDied { .. } => LeaseError::ended(ending),
        ending => {
            LeaseError::SetUp { line: line.to_owned(), failure: SetUpFailure::GuestEnded(ending) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_wrong_is_told_from_one_that_was_set_late() {
        let wrong = |micros: i64, since_ms: u64| {
            let skew = Skew { micros, error: Duration::from_millis(1) };
            wrong_clock(&skew, Duration::from_millis(since_ms))
        };
        for (micros, since_ms) in [(0, 20), (-5_000, 20), (9_000, 20), (100_000, 1000)] {
            assert_eq!(wrong(micros, since_ms), None);
        }
        // One and a half times as fast, thirty times, at half the speed.
        for (micros, since_ms) in [(15_000, 30), (600_000, 20), (-15_000, 30)] {
            assert!(wrong(micros, since_ms).is_some());
        }
        let why = wrong(600_000, 20).unwrap();
        assert_eq!(why, "the guest's clock goes wrong: 600.0ms ahead 20.0ms after it was set");
    }
}
