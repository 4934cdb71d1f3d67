//! From a machine that is up to a template: it comes to rest, is saved to a draft and killed; the draft is published while the
//! machine that goes on from it does so.

use super::making::{NoTemplate, Plan, Saved};
use super::opening::is_over_tty;
use super::start::{Launched, NotStarted, Running, Terms, launch};
use super::template::{Draft, Making, PATIENCE, Quiet, SAMPLE, Template, TemplateRecord};
use super::{LeaseError, Provisioner};
use crate::clock::now_us;
use crate::guest::{Guest, Skew};
use crate::machine::{Machine, Origin};
use crate::text;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// A clock that was set over the link is not exacter than this.
const CLOCK_GRAIN: Duration = Duration::from_millis(5);

/// A QEMU that is started is there sooner, and a link that nobody wants is closed sooner.
const THERE: Duration = Duration::from_secs(1);

/// A machine that was saved, and stands.
struct Stood {
    /// It came to rest before.
    quiet: bool,
    /// So long that was waited for.
    waited: Duration,
    /// QEMU of the machine that goes on.
    next: Option<Launched>,
}

impl Provisioner {
    /// Waits until a machine is quiet, saves and kills it, and publishes what was saved, while the machine that is to go
    /// on from it does so.
    pub(super) async fn save(
        &self,
        plan: Plan<'_>,
        making: Making,
        draft: Draft,
        running: Running,
        go_on: Option<Terms<'_>>,
    ) -> Result<Saved, NoTemplate> {
        // Its lines stay open until it is killed.
        let Running { machine, mut console, started, guest, lines: _lines, .. } = running;
        let (ready, waiting, tty_link) = (started.elapsed(), Instant::now(), is_over_tty(&guest));
        let saved = tokio::select! {
            biased;
            ending = machine.ended() => Err(LeaseError::ended(ending).into()),
            () = plan.cancel.cancelled() => Err(LeaseError::Cancelled.into()),
            saved = self.save_quiet(plan, &draft, &machine, guest, go_on.is_some()) => saved,
        };
        let ending = async {
            machine.kill().await;
            let _ = console.finish().await;
        };
        let Stood { quiet, waited, next } = match saved {
            Ok(Ok(stood)) => stood,
            Ok(Err(why)) => {
                ending.await;
                return Ok(Saved::WrongClock(why));
            }
            Err(error) => {
                ending.await;
                return Err(error);
            }
        };
        let record = TemplateRecord { tty_link, ..self.record(plan, ready, waited, quiet) };
        let draft = Arc::new(draft);
        let publishing = async {
            let published = self.publish(plan, draft.clone(), making, record).await;
            let saved_in = waiting.elapsed().saturating_sub(waited);
            published.map(|template| (template.map(Box::new), saved_in))
        };
        let going_on = async {
            // It stands since it was saved; its console's file is the next one's.
            ending.await;
            match go_on {
                Some(terms) => self.go_on(plan, next, &draft, terms.going_on(tty_link)).await,
                None => Ok(None),
            }
        };
        let (kept, running) = tokio::join!(publishing, going_on);
        if let Ok((Some(template), _)) = &kept {
            self.digest_later(template.id(), plan.cancel);
        }
        let running = running.map_err(NoTemplate::NotStarted)?;
        let running = running.zip(Arc::into_inner(draft)).map(Box::new);
        let kept = kept.map_err(|error| format!("cannot keep the saved machine: {error}"));
        Ok(Saved::Draft { kept, running })
    }

    /// Saves a machine when it is quiet; meanwhile QEMU of the one that goes on is started. In words, why its clock lets it
    /// not be saved.
    async fn save_quiet(
        &self,
        plan: Plan<'_>,
        draft: &Draft,
        machine: &Machine,
        guest: Guest,
        goes_on: bool,
    ) -> Result<Result<Stood, String>, NoTemplate> {
        let waiting = Instant::now();
        let next = async {
            // What still writes to its disks would be read too early.
            match goes_on && plan.spec.writable_disks().next().is_none() {
                true => self.launch_next(plan, draft).await.ok(),
                false => None,
            }
        };
        let (quiet, next) = tokio::join!(until_quiet(machine), next);
        let clock = guest.skew().await.map_err(LeaseError::Settle)?;
        let waited = waiting.elapsed();
        if let Some(why) = wrong_clock(&clock, waited) {
            return Ok(Err(why));
        }
        // What the host says meets a guest that stands: its device would write to memory that is saved already.
        close(guest).await;
        match machine.save(&draft.state()).await {
            Ok(()) => Ok(Ok(Stood { quiet, waited, next })),
            Err(error) => {
                let why = text::chain(&error);
                Err(NoTemplate::Impossible(format!("cannot save the machine: {why}")))
            }
        }
    }

    fn record(
        &self,
        plan: Plan<'_>,
        ready: Duration,
        waited: Duration,
        quiet: bool,
    ) -> TemplateRecord {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let manifest = &plan.request.image.manifest;
        TemplateRecord {
            key: plan.key.clone(),
            image: manifest.name.clone(),
            kernel_release: manifest.kernel_release.clone(),
            qemu: self.qemu(plan.request).version.to_string(),
            memory_mib: plan.spec.memory_mib,
            disks: plan.spec.writable_disks().count(),
            guestline: env!("CARGO_PKG_VERSION").to_owned(),
            made_us: now_us(),
            ready_us: us(ready),
            quiet_us: us(waited),
            quiet,
            tty_link: false,
        }
    }

    async fn publish(
        &self,
        plan: Plan<'_>,
        draft: Arc<Draft>,
        making: Making,
        record: TemplateRecord,
    ) -> io::Result<Option<Template>> {
        let opens_read_only = self.qemu(plan.request).opens_read_only();
        let publishing = tokio::task::spawn_blocking(move || {
            draft.write(&making)?;
            making.publish(record, opens_read_only)
        });
        publishing.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn launch_next(&self, plan: Plan<'_>, draft: &Draft) -> Result<Launched, LeaseError> {
        let origin = Origin::Restore { ram: &draft.ram() };
        let spec = self.with_own_disks(plan, draft.disks())?;
        launch(self.qemu(plan.request), &spec, origin, plan.folder).await
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
            Some(next) if is_fresh(&next.machine, draft, terms.timeout).await => next,
            next => {
                if let Some(next) = next {
                    next.machine.kill().await;
                }
                self.launch_next(plan, draft).await?
            }
        };
        plan.slot.set_qemu(next.machine.pid());
        match next.open(Some(&draft.state()), plan.folder, terms).await {
            Ok(running) => Ok(Some(running)),
            Err(not) if not.error.is_templates_fault() => {
                tracing::warn!(why = %text::chain(&not.error), "nothing goes on from what was saved");
                Ok(None)
            }
            Err(not) => Err(not),
        }
    }
}

/// Is all of it there, and the memory as it was saved? What QEMU has written to, it would not see so.
async fn is_fresh(machine: &Machine, draft: &Draft, limit: Duration) -> bool {
    matches!(timeout(limit.min(THERE), machine.is_running()).await, Ok(Ok(_)))
        && draft.is_untouched_by(machine.pid())
}

/// Ends the session with the agent.
async fn close(guest: Guest) {
    let link = guest.link().cloned();
    drop(guest);
    if let Some(link) = link {
        let _ = timeout(THERE, link.closed()).await;
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
