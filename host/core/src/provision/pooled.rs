//! A lease of a machine that a pool has ready.

use super::lease::{Lease, LeaseError, Pooled};
use super::making::Plan;
use super::pool::{self, Taken, Wanted};
use super::start::{Launched, NotStarted, Terms};
use super::template::Found;
use super::{Begun, MachineRequest, Provisioner};
use crate::image::Ready;
use crate::text;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a machine out of a pool may take until its agent answers; it takes a hundredth of a second.
const HANDOVER: Duration = Duration::from_secs(3);

impl Provisioner {
    /// A machine that somebody's pool has ready; none, and no error, for whatever reason there is none.
    pub(super) async fn lease_out_of_pool(
        &self,
        request: &MachineRequest,
        cancel: &CancellationToken,
    ) -> Result<Option<Lease>, LeaseError> {
        let runtime = self.root.runtime();
        let is_for_pools =
            !(request.always_boots() || request.for_pool || self.reboots || request.reboots);
        if !is_for_pools || !pool::is_there(runtime) {
            return Ok(None);
        }
        let began = Instant::now();
        let spec = self.spec(request).await?;
        let key = self.key(request, &spec);
        if !pool::is_there_of(runtime, &key.id()) {
            return Ok(None);
        }
        let Ok(folder) = self.root.machine_folder() else { return Ok(None) };
        // Its memory is mapped from there: it is looked at as at each use.
        let Found::Ready(template) = self.templates.open(&key) else { return Ok(None) };
        let (qemu, slots) = (self.qemu(request), &self.slots);
        let (ram, instance, folder_path) = (template.ram(), template.instance(), folder.path());
        let (spec, instance) = (&spec, &*instance);
        let wanted = Wanted { qemu, spec, slots, instance, ram: &ram, folder: folder_path };
        let Some(taken) = pool::take(runtime, &key.id(), wanted).await else { return Ok(None) };
        let Taken { machine, channels, slot, warm_up, ready_for } = taken;
        let plan = Plan { key: &key, request, spec, folder: folder.path(), slot: &slot, cancel };
        let hostname = request.hostname.clone().unwrap_or_else(|| plan.any_hostname());
        let launched = Launched { machine, channels, started: began };
        // It was ready before.
        let terms = plan.terms(&hostname, HANDOVER).going_on(template.record.tty_link);
        let terms = Terms { ready: &Ready::Agent, ..terms };
        match launched.open(None, folder.path(), terms).await {
            Ok(running) => {
                let begun = Begun { running, template: Some(*template), draft: None };
                let (ready_in, pooled) = (began.elapsed(), Some(Pooled { ready_for, warm_up }));
                Ok(Some(Lease { ready_in, pooled, ..begun.into_lease(request, folder, slot) }))
            }
            Err(NotStarted { error: LeaseError::Cancelled, .. }) => Err(LeaseError::Cancelled),
            Err(NotStarted { error, .. }) => {
                tracing::warn!(error = %text::chain(&error), "a machine out of a pool is of no use");
                Ok(None)
            }
        }
    }
}
