//! Making templates: a machine is booted, or restored from the template below; its layer's lines are run; when it is quiet
//! it is saved, and killed.
//!
//! ```text
//! boot, or the template below ─> lines ─> quiet ─> saved to a draft in memory, killed ─┬─> written, published
//!                                           └─ QEMU of the machine that it is made for ─┴─> goes on
//! ```

use super::lease::LeaseError;
use super::set_up::{SetUpTerms, not_set_up, set_up};
use super::slots::Slot;
use super::start::{NotStarted, Running, Terms};
use super::template::{Draft, Found, Making, Notice, Template, TemplateKey};
use super::{MachineRequest, Provisioner, identity};
use crate::host::free_mib;
use crate::machine::{MachineSpec, Origin};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether another process has made it.
const LOOK: Duration = Duration::from_millis(10);

/// Beside a machine's memory, so much room has to be on the disk.
const ROOM_MIB: u64 = 64;

/// So often a machine is booted whose clock goes wrong.
const CLOCKS: u32 = 3;

/// What is made, and out of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) key: &'a TemplateKey,
    pub(super) request: &'a MachineRequest,
    pub(super) spec: &'a MachineSpec,
    /// Where its QEMU works.
    pub(super) folder: &'a Path,
    /// What it takes of the host.
    pub(super) slot: &'a Slot,
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
pub(super) enum Saved {
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
        let (mut wrong_clocks, waiting) = (0, Instant::now());
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
                    // Another process makes it, which may be stopped.
                    if waiting.elapsed() > plan.request.boot_timeout {
                        let id = plan.key.id();
                        return impossible(format!(
                            "another process has been making template {id} for longer than a boot may take"
                        ));
                    }
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
        let draft = Draft::new(plan.spec, &making).map_err(no_draft)?;
        let origin = Origin::BootSavable { ram: &draft.ram() };
        let launched = self.launch(plan, &plan.spec.upon(draft.disks()), origin).await?;
        // It is given a name as those that are restored from it are: what that takes is ready then.
        let name = plan.any_hostname();
        let terms = plan.terms_of_maker(&name);
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
        let (state, tty_link) = (below.state(), below.record.tty_link);
        let copying = tokio::task::spawn_blocking(move || {
            Draft::above(&below, &making).map(|draft| (draft, making))
        });
        let copied = copying.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (draft, making) = copied.map_err(no_draft)?;
        let origin = Origin::RestoreSavable { ram: &draft.ram() };
        let launched = self.launch(plan, &plan.spec.upon(draft.disks()), origin).await?;
        let name = plan.any_hostname();
        let terms = plan.terms_of_maker(&name);
        let running = launched.open(Some(&state), plan.folder, terms.going_on(tty_link)).await;
        let running = running.map_err(NoTemplate::NotStarted)?;
        let layer =
            plan.key.layers.len().checked_sub(1).and_then(|last| plan.request.layers.get(last));
        let layer = layer.cloned().unwrap_or_default();
        if let Err(error) =
            set_up(SetUpTerms::of(plan), &running.machine, &running.guest, &layer).await
        {
            return Err(NoTemplate::NotStarted(not_set_up(running, error).await));
        }
        self.save(plan, making, draft, running, go_on).await
    }
}

impl<'a> Plan<'a> {
    /// How its machine is begun, under a name, and how long that may take.
    pub(super) fn terms(self, hostname: &'a str, timeout: Duration) -> Terms<'a> {
        let (link, keeps_lines) = (self.request.link, self.request.for_pool);
        let (nics, ready) = (&self.request.nics, &self.request.image.manifest.ready);
        Terms {
            link,
            hostname,
            nics,
            ready,
            spec: self.spec,
            timeout,
            keeps_lines,
            cancel: self.cancel,
        }
    }

    /// How a machine is begun that is to be saved: what closes its link before the save does not show in the guest.
    fn terms_of_maker(self, hostname: &'a str) -> Terms<'a> {
        Terms { keeps_lines: true, nics: &[], ..self.terms(hostname, self.request.boot_timeout) }
    }

    /// A host name that no other machine has.
    pub(super) fn any_hostname(self) -> String {
        identity::hostname(&self.request.image.manifest.name)
    }
}

fn no_draft(error: io::Error) -> NoTemplate {
    NoTemplate::Impossible(format!("cannot make the files to save the machine to: {error}"))
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
