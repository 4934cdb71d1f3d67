//! What there is for a test: the host, the image, the machine that it is to have.

use crate::suite::known::NAMES;
use crate::suite::test::Suite;
use crate::suite::{Capability, CapabilityName, Environment, Side};
use guestline::machine::{Offers, Qemu};
use guestline::provision::Hardware;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is known of a guest before it runs.
#[derive(Debug, Clone, Default)]
pub struct GuestFacts {
    /// What is provided, by name.
    pub facts: Vec<(CapabilityName, Capability)>,
    /// Names of which nothing is known yet, with all below.
    pub open: Vec<CapabilityName>,
}

/// Gives the facts of an image by its name.
pub type ImageFacts = Box<dyn Fn(&str) -> GuestFacts + Send>;

/// A QEMU that tests may run on.
#[derive(Debug, Clone)]
pub struct KnownQemu {
    /// It.
    pub qemu: Qemu,
    /// What it offers, where it says that.
    pub offers: Option<Offers>,
}

/// Gives the QEMU of this path, or the one that machines have where nothing else is said.
pub type Qemus = Box<dyn Fn(Option<&Path>) -> Result<KnownQemu, String> + Send>;

/// The environments of a run's tests.
pub struct Surroundings {
    host: Arc<Environment>,
    qemus: Option<Qemus>,
    known_qemus: HashMap<Option<PathBuf>, Result<Arc<KnownQemu>, String>>,
    image_facts: ImageFacts,
    images: HashMap<String, Arc<Environment>>,
    machines: HashMap<Key, Arc<Environment>>,
}

/// What no target but a machine has.
const LACKED: [&str; 5] = ["fresh_reboot", "pristine", "screen", "image.name", "target"];

/// What tells the environments of two machines apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) image: String,
    pub(super) cpus: u32,
    pub(super) memory_mib: Option<u64>,
    pub(super) fresh_reboot: bool,
    pub(super) is_shared: bool,
    /// Another kernel than the image's.
    pub(super) own_kernel: bool,
    /// The version of another QEMU than the usual one.
    pub(super) qemu: Option<String>,
    pub(super) target: &'static str,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

impl Surroundings {
    /// On a host with what is declared there.
    pub fn new(host: Environment, image_facts: ImageFacts) -> Self {
        Self {
            host: Arc::new(host),
            qemus: None,
            known_qemus: HashMap::new(),
            image_facts,
            images: HashMap::new(),
            machines: HashMap::new(),
        }
    }

    /// With what finds QEMUs; else nothing is known of them.
    pub fn with_qemus(self, qemus: Qemus) -> Self {
        Self { qemus: Some(qemus), ..self }
    }

    /// A QEMU that was named; none where nothing is known of any.
    ///
    /// # Errors
    /// It is of no use, in words.
    pub(super) fn named_qemu(&mut self, path: &Path) -> Result<Option<Qemu>, String> {
        match self.qemu(Some(path)) {
            Some(Ok(known)) => Ok(Some(known.qemu.clone())),
            Some(Err(why)) => Err(why.clone()),
            None => Ok(None),
        }
    }

    /// A QEMU; none where nothing is known of any.
    fn qemu(&mut self, path: Option<&Path>) -> Option<&Result<Arc<KnownQemu>, String>> {
        let find = self.qemus.as_ref()?;
        let entry = self.known_qemus.entry(path.map(Path::to_owned));
        Some(entry.or_insert_with(|| find(path).map(Arc::new)))
    }

    /// Looks whether QEMU knows what a machine is to be made of.
    ///
    /// # Errors
    /// It does not, in words.
    pub(super) fn check(&mut self, hardware: &Hardware, qemu: Option<&Path>) -> Result<(), String> {
        let Hardware { machine, cpu, .. } = hardware;
        let nic = hardware.nic_device();
        if machine.is_none() && cpu.is_none() && nic.is_none() {
            return Ok(());
        }
        // That there is none is told when it is wanted.
        let Some(Ok(known)) = self.qemu(qemu) else { return Ok(()) };
        let KnownQemu { qemu, offers: Some(offers) } = &**known else { return Ok(()) };
        let checks = [
            machine.as_deref().map(|machine| offers.check_machine(qemu, machine)),
            cpu.as_deref().map(|cpu| offers.check_cpu(qemu, cpu)),
            nic.map(|model| offers.check_nic(qemu, model)),
        ];
        let checked: Result<(), _> = checks.into_iter().flatten().collect();
        checked.map_err(|error| error.to_string())
    }

    /// The host alone.
    pub fn host(&self) -> &Environment {
        &self.host
    }

    /// What a suite says that names mean holds from now on.
    pub(super) fn introduce(&mut self, suite: &Suite) {
        let is_new = suite
            .config
            .tags
            .iter()
            .any(|(name, doc)| self.host.doc(name, Side::Host) != Some(doc));
        if is_new {
            let mut host = Environment::over(self.host.clone());
            suite.config.tags.document(&mut host);
            self.host = Arc::new(host);
            self.images.clear();
            self.machines.clear();
        }
    }

    /// Of a machine.
    pub(super) fn of(&mut self, key: &Key) -> Arc<Environment> {
        if let Some(known) = self.machines.get(key) {
            return known.clone();
        }
        if key.target != "machine" {
            let target = self.target(key.target);
            self.machines.insert(key.clone(), target.clone());
            return target;
        }
        let mut machine = Environment::over(self.image(&key.image));
        let mut provide = |name: &str, capability| machine.provide_named(name, capability);
        provide("guest.root", Capability::flag());
        provide("guest.cpus", Capability::fact(&key.cpus.to_string()));
        provide("target", Capability::fact(key.target));
        if let Some(mib) = key.memory_mib {
            provide("guest.memory", Capability::fact(&format!("{mib}M")));
        }
        if key.fresh_reboot {
            provide("fresh_reboot", Capability::flag());
        }
        if !key.is_shared {
            provide("pristine", Capability::flag());
        }
        if let Some(version) = &key.qemu {
            provide("host.qemu", Capability::fact(version));
        }
        if key.own_kernel {
            ["guest.kernel", "guest.kconfig", "guest.module"]
                .iter()
                .filter_map(|name| name.parse().ok())
                .for_each(|name| machine.leave_open(name));
        }
        let machine = Arc::new(machine);
        self.machines.insert(key.clone(), machine.clone());
        machine
    }

    /// Of what is no machine of ours: this host, or another one, of which nothing is known before it is asked.
    fn target(&self, word: &str) -> Arc<Environment> {
        let mut target =
            Environment::over(self.host.clone()).with_guest(format!("the target ({word})"));
        target.provide_named("target", Capability::fact(word));
        if word == "host" {
            let facts: Vec<_> = self.host.capabilities().collect();
            for (name, capability) in
                facts.into_iter().filter(|(name, _)| name.side() == Some(Side::Host))
            {
                target.provide(name.on(Side::Guest), capability.clone());
            }
        } else {
            for known in NAMES.iter().filter(|known| !LACKED.contains(&known.name)) {
                if let Ok(name) = known.name.trim_end_matches(".*").parse::<CapabilityName>() {
                    target.leave_open(name.on(Side::Guest));
                }
            }
        }
        Arc::new(target)
    }

    /// Of an image, in whatever machine.
    pub fn image(&mut self, name: &str) -> Arc<Environment> {
        if let Some(known) = self.images.get(name) {
            return known.clone();
        }
        let mut image = Environment::over(self.host.clone()).with_guest(name);
        image.leave_guest_open();
        let GuestFacts { facts, open } = (self.image_facts)(name);
        facts.into_iter().for_each(|(name, capability)| image.provide(name, capability));
        open.into_iter().for_each(|name| image.leave_open(name));
        let image = Arc::new(image);
        self.images.insert(name.to_owned(), image.clone());
        image
    }
}
