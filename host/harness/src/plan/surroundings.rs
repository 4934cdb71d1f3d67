//! What there is for a test: the host, the image, the machine that it is to have.

use crate::suite::known::NAMES;
use crate::suite::test::Suite;
use crate::suite::{Capability, CapabilityName, Environment, Side};
use std::collections::HashMap;
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

/// The environments of a run's tests.
pub struct Surroundings {
    host: Arc<Environment>,
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
        Self { host: Arc::new(host), image_facts, images: HashMap::new(), machines: HashMap::new() }
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
