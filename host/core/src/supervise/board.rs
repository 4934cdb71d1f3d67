//! What a machine is and does, as those who ask are told.

use super::control::{MachineState, MachineStatus};
use super::name::MachineName;
use super::server::Door;
use super::supervision::Source;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Where the state of the machine is written for those who ask.
#[derive(Clone)]
pub(super) struct Board {
    status: Arc<Mutex<MachineStatus>>,
    door: watch::Receiver<Door>,
    changed: watch::Sender<()>,
}

impl Board {
    pub(super) fn new(
        name: &MachineName,
        source: &Source,
        boot_timeout: Duration,
        door: watch::Receiver<Door>,
        changed: watch::Sender<()>,
    ) -> Self {
        let (request, endpoint) = match source {
            Source::Boot { request, .. } => (Some(request), None),
            Source::Connect(endpoint) => (None, Some(endpoint.to_string())),
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let status = MachineStatus {
            name: name.clone(),
            state: MachineState::Booting,
            why: None,
            image: request.map(|request| request.image.manifest.name.clone()),
            endpoint,
            kernel: None,
            memory_mib: request.map(|request| request.memory_mib),
            cpus: request.map(|request| request.cpus),
            pid: std::process::id(),
            qemu_pid: None,
            since_us: u64::try_from(since.as_micros()).unwrap_or(0),
            ready_in_us: None,
            boot: 1,
            transport: None,
            agent: None,
            silence_ms: None,
            boot_timeout_ms: u64::try_from(boot_timeout.as_millis()).unwrap_or(u64::MAX),
            console: None,
        };
        Self { status: Arc::new(Mutex::new(status)), door, changed }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut MachineStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }

    pub(super) fn read(&self) -> MachineStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Door::Open { link, .. } = &*self.door.borrow() {
            let silence = link.silence();
            status.silence_ms = silence.and_then(|silence| u64::try_from(silence.as_millis()).ok());
        }
        status
    }
}
