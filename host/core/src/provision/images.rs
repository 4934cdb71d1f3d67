//! Images as machines need them: found, or made, and checked in a machine before anybody else gets them.

use super::cache::{ImportError, import_image};
use super::set_up::{SetUpTerms, set_up};
use super::{Layer, MachineRequest, Provisioner, WorkRoot};
use crate::capture::ConsoleLine;
use crate::dirs::Dirs;
use crate::image::share::{Offers, Placing, PullError, PullTerms, Pulled, Received};
use crate::image::{
    Agent, BuildTerms, Image, ImageError, ImportError as ForeignError, ImportSpec, Recipe, Store,
};
use crate::machine::{Accel, Ending, Qemu, QemuError};
use crate::text;
use guestline_protocol::PowerAction;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A line of a new image, and its end, may take so long.
const LINE: Duration = Duration::from_secs(120);
const POWER_OFF: Duration = Duration::from_secs(120);

/// So many of the console's last lines tell why an image does not boot.
const CONSOLE_SHOWN: usize = 3;

/// The images of one user, and what looks at a new one.
#[derive(Debug, Clone)]
pub struct Images {
    /// The images.
    pub store: Store,
    agent: Agent,
    dirs: Dirs,
    qemu: Result<Qemu, Arc<QemuError>>,
    accel: Accel,
    /// How long a boot may take.
    boot: Duration,
}

impl Images {
    /// A new image is booted by this QEMU.
    pub fn new(
        store: Store,
        agent: Agent,
        dirs: &Dirs,
        qemu: Result<Qemu, Arc<QemuError>>,
        accel: Accel,
        boot: Duration,
    ) -> Self {
        Self { store, agent, dirs: dirs.clone(), qemu, accel, boot }
    }

    /// With another limit for a boot.
    pub fn with_boot(self, boot: Duration) -> Self {
        Self { boot, ..self }
    }

    /// The image of a recipe, made first when it is not there. It blocks, and wants a tokio runtime around it.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn get(&self, recipe: &Recipe, terms: &BuildTerms<'_>) -> Result<Image, ImageError> {
        self.store.get(recipe, &self.agent, terms, &|image| self.check(image, terms.cancel))
    }

    /// Makes the image anew. It blocks, and wants a tokio runtime around it.
    ///
    /// # Errors
    /// [`ImageError`]; an image that was there is still there then.
    pub fn build(&self, recipe: &Recipe, terms: &BuildTerms<'_>) -> Result<Image, ImageError> {
        self.store.build(recipe, &self.agent, terms, &|image| self.check(image, terms.cancel))
    }

    /// Makes an image of what others made. It blocks, and wants a tokio runtime around it.
    ///
    /// # Errors
    /// [`ForeignError`]; what was there is still there then.
    pub fn import(&self, spec: &ImportSpec, terms: &BuildTerms<'_>) -> Result<Image, ForeignError> {
        self.store.import(spec, &self.agent, terms, &|image| self.check(image, terms.cancel))
    }

    /// The agent that goes into images.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Takes an image out of its archive. It blocks, and wants a tokio runtime around it.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn receive(
        &self,
        from: impl Read,
        name: Option<&str>,
        replace: bool,
        cancel: &CancellationToken,
    ) -> Result<Received, ImportError> {
        let check = |image: &Image| self.check(image, cancel);
        let placing = Placing { agent: &self.agent, name, replace, check: &check };
        import_image(&self.store, from, placing, cancel)
    }

    /// Brings a published image into the store, called `own_name` there where that is given. It blocks, and wants a tokio
    /// runtime around it.
    ///
    /// # Errors
    /// [`PullError`].
    pub fn pull(
        &self,
        offers: &Offers,
        name: &str,
        own_name: Option<&str>,
        terms: &PullTerms<'_>,
    ) -> Result<Pulled, PullError> {
        let check = |image: &Image| self.check(image, terms.cancel);
        let placing = Placing { agent: &self.agent, name: own_name, replace: true, check: &check };
        self.store.pull(offers, name, placing, terms)
    }

    /// Says what is wrong with an image: whether it boots, says hello, runs a line, and powers off.
    fn check(&self, image: &Image, cancel: &CancellationToken) -> Result<(), String> {
        let qemu = self.qemu.as_ref().map_err(|error| text::chain(&**error))?.clone();
        let root = WorkRoot::create(&self.dirs, false);
        let root = root.map_err(|error| format!("cannot make a work folder: {error}"))?;
        let provisioner = Provisioner::new(qemu, self.accel, root, &self.dirs);
        let mut request = MachineRequest::new(image.clone(), self.boot);
        request.fresh_reboot = true;
        Handle::current().block_on(check(&provisioner, &request, cancel))
    }
}

async fn check(
    provisioner: &Provisioner,
    request: &MachineRequest,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let lease = match provisioner.lease(request, cancel).await {
        Ok(lease) => lease,
        Err(failed) => {
            return Err(text::chain(&failed.error) + &last_words(&failed.console));
        }
    };
    let line = request.image.manifest.warm_up.clone().unwrap_or_else(|| "true".to_owned());
    let terms = SetUpTerms { limit: LINE, cancel };
    let layer = Layer::from(vec![line.clone()]);
    let ran = set_up(terms, &lease.machine, &lease.guest, &layer).await;
    let ended = match &ran {
        Ok(()) => {
            let ending = async {
                tokio::select! {
                    ending = lease.machine.ended() => ending,
                    // The answer may be lost with the machine.
                    _ = lease.guest.power(PowerAction::Off, false) => lease.machine.ended().await,
                }
            };
            timeout(POWER_OFF, ending).await.ok()
        }
        Err(_) => None,
    };
    let console = lease.console();
    lease.end().await;
    ran.map_err(|error| text::chain(&error) + &last_words(&console))?;
    match ended {
        Some(Ending::PoweredOff) => Ok(()),
        _ => Err(format!("it does not power off{}", last_words(&console))),
    }
}

/// "; its console ends with: …"
fn last_words(console: &[ConsoleLine]) -> String {
    let from = console.len().saturating_sub(CONSOLE_SHOWN);
    let lines: Vec<String> =
        console.iter().skip(from).map(|line| text::one_line(line.text.trim(), 120)).collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("; its console ends with: {}", lines.join(" / ")),
    }
}
