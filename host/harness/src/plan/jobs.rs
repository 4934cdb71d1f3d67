//! The jobs of a plan, made one after the other.

use super::content::{Files, command};
use super::item::{Fit, Item};
use super::parts::FirmwareNamed;
use super::{Plan, PlanTerms};
use crate::job::{
    Content, FirmwareWanted, FixtureWanted, InSuite, InstallWanted, Job, JobTest, LayerWanted,
    Limits, MachineWanted, ModulesWanted,
};
use crate::outcome::Outcome;
use crate::run::{Next, Queue};
use crate::suite::find::FindError;
use crate::suite::fixture::{self, FixtureOn};
use crate::suite::settings::Isolation;
use crate::suite::test::Test;
use guestline::digest::Digest;
use guestline::machine::Qemu;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// So many tests share a machine at most, so that all cores have some.
const MAX_SHARING: usize = 50;

/// A kernel that takes the place of an image's, with what belongs to it.
#[derive(Debug, Clone)]
pub struct KernelWanted {
    /// It.
    pub kernel: Digest,
    /// Its configuration.
    pub kconfig: Option<Digest>,
    /// Its modules, as they are packed for the image.
    pub modules: Option<ModulesWanted>,
}

/// The jobs of a plan, in the order of its items; those that share a machine come with the first of them.
#[derive(Debug)]
pub struct PlanQueue {
    plan: Plan,
    /// Of each item.
    contents: Vec<Arc<Content>>,
    /// Of kernels and firmware.
    digests: HashMap<PathBuf, Digest>,
    /// By image, what machines boot that have no kernel of their own.
    kernels: HashMap<String, KernelWanted>,
    /// Packages that machines get.
    install: Option<InstallWanted>,
    /// By suite and name.
    fixtures: HashMap<(PathBuf, String), Content>,
    /// Which items are run together.
    groups: std::vec::IntoIter<Vec<usize>>,
    /// The items by the numbers that their tests have.
    numbered: Vec<usize>,
}

impl PlanQueue {
    /// Of a plan; what its tests have with them is looked at now. `parallel` of its jobs run at once.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn new(plan: Plan, files: &mut Files, parallel: usize) -> Result<Self, Vec<FindError>> {
        let mut errors = Vec::new();
        let mut contents: Vec<Arc<Content>> = Vec::with_capacity(plan.items.len());
        let (mut digests, mut fixtures) = (HashMap::new(), HashMap::new());
        let mut last: Option<&Arc<Test>> = None;
        for item in &plan.items {
            let fault = |why| FindError {
                file: item.test.suite.root.join(&item.test.file),
                line: item.test.line,
                why,
            };
            let is_same = last.is_some_and(|last| Arc::ptr_eq(last, &item.test));
            let content = match contents.last().filter(|_| is_same) {
                Some(content) => content.clone(),
                None => match files.of(&item.test) {
                    Ok(content) => Arc::new(content),
                    Err(why) => {
                        errors.push(fault(why));
                        Arc::default()
                    }
                },
            };
            contents.push(content);
            if !is_same && let Err(why) = fixtures_of(&item.test, files, &mut fixtures) {
                errors.push(fault(why));
            }
            last = Some(&item.test);
            let firmware = match &item.firmware {
                Some(FirmwareNamed::File(file)) => Some(("firmware", file)),
                _ => None,
            };
            let kernel = item.kernel.as_ref().map(|kernel| ("kernel", kernel));
            for (what, file) in kernel.into_iter().chain(firmware) {
                if digests.contains_key(file) {
                    continue;
                }
                match Digest::of_file(file) {
                    Ok(digest) => {
                        files.add(digest.clone(), file.clone());
                        digests.insert(file.clone(), digest);
                    }
                    Err(error) => errors
                        .push(fault(format!("cannot read {what} `{}`: {error}", file.display()))),
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let groups = groups(&plan, parallel).into_iter();
        let (kernels, install) = (HashMap::new(), None);
        let numbered = Vec::new();
        Ok(Self { plan, contents, digests, kernels, install, fixtures, groups, numbered })
    }

    /// Machines boot these, each by the image that it has.
    pub fn with_kernels(self, kernels: HashMap<String, KernelWanted>) -> Self {
        Self { kernels, ..self }
    }

    /// Machines get these packages before anything else is set up.
    pub fn with_install(self, install: Option<InstallWanted>) -> Self {
        Self { install, ..self }
    }

    /// The QEMUs that its jobs name.
    pub fn qemus(&self) -> Vec<Qemu> {
        let mut qemus: Vec<Qemu> = Vec::new();
        for qemu in self.plan.items.iter().filter_map(|item| item.qemu.as_ref()) {
            if !qemus.iter().any(|known| known.digest == qemu.digest) {
                qemus.push(qemu.clone());
            }
        }
        qemus
    }

    /// Gives a machine of an item what is known by digests.
    fn name_in(&self, item: &Item, machine: &mut MachineWanted) {
        machine.kernel = item.kernel.as_ref().and_then(|file| self.digests.get(file)).cloned();
        if let Some(FirmwareNamed::File(file)) = &item.firmware {
            machine.firmware = self.digests.get(file).cloned().map(FirmwareWanted::File);
        }
        let own = self.kernels.get(&machine.image).filter(|_| machine.kernel.is_none());
        if let Some(KernelWanted { kernel, kconfig, modules }) = own.cloned() {
            machine.kernel = Some(kernel);
            machine.kconfig = kconfig;
            machine.modules = modules;
        }
        machine.layers.extend(self.install.clone().map(LayerWanted::Install));
    }

    fn job(&self, indices: &[usize]) -> Option<Job> {
        let items: Vec<&Item> = indices.iter().map(|index| &self.plan.items[*index]).collect();
        let first = items.first()?;
        let terms = &self.plan.terms;
        let mut machine = first.wanted(terms);
        let mut machines = first.wanted_by_name(terms);
        for machine in machines.values_mut().chain([&mut machine]) {
            self.name_in(first, machine);
        }
        let subjects = machine.subjects(&terms.overrides.not_subjects);
        let mut fixtures = Vec::new();
        for (on, fixture) in self.fixtures(first) {
            match on {
                FixtureOn::Host => fixtures.push(fixture),
                FixtureOn::Guest => {
                    for machine in machines.values_mut().chain([&mut machine]) {
                        machine.layers.push(LayerWanted::Fixture(fixture.clone()));
                    }
                }
            }
        }
        let tests =
            indices.iter().zip(&items).map(|(index, item)| self.test(item, &self.contents[*index]));
        Some(Job {
            tests: tests.collect(),
            machine,
            machines,
            fixtures,
            subjects,
            limits: limits(first, terms),
        })
    }

    /// What has to be set up for an item, in order.
    fn fixtures(&self, item: &Item) -> Vec<(FixtureOn, FixtureWanted)> {
        let config = &item.test.suite.config;
        let default_ms = self.plan.terms.limits.check_ms;
        let names = fixture::chain(
            &config.fixtures,
            item.test.settings.fixtures.as_deref().unwrap_or_default(),
        );
        let wanted = names.into_iter().filter_map(|name| {
            let settings = config.fixtures.get(&name)?;
            let content = self.fixtures.get(&(item.test.suite.root.clone(), name.clone()));
            let wanted = FixtureWanted {
                name,
                run: settings.run.to_string(),
                teardown: settings.teardown.as_ref().map(ToString::to_string),
                content: content.cloned().unwrap_or_default(),
                variables: item
                    .variant
                    .variables()
                    .map(|(name, value)| (name, value.to_owned()))
                    .collect(),
                // A test that is to be quick does not hurry what it stands upon.
                timeout_ms: Some(settings.timeout.map_or(default_ms, |time| ms(time.0))),
                owner: settings.owner.clone().or_else(|| config.settings.owner.clone()),
            };
            Some((settings.on, wanted))
        });
        wanted.collect()
    }

    fn test(&self, item: &Item, content: &Arc<Content>) -> JobTest {
        let test = &item.test;
        let settings = &test.settings;
        let step = |step: &Option<_>, function| {
            step.as_ref().map(|step| command(step, test.kind, function))
        };
        let of = InSuite {
            suite: test.suite.name.clone(),
            origin: test.suite.origin.clone(),
            name: test.name.clone(),
            variant: item.variant.id(),
            kind: test.kind,
            owner: settings.owner.clone(),
            on: test.on(),
            content: content.as_ref().clone(),
            setup: step(&test.setup, "setup"),
            teardown: step(&test.teardown, "teardown"),
            variables: item
                .variant
                .variables()
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
            format: settings.format.unwrap_or_default(),
            expect: settings.expect.clone().unwrap_or_default(),
            requires: item.later.clone(),
        };
        JobTest {
            command: command(&test.run, test.kind, "run"),
            fail_on: settings.fail_on.clone().unwrap_or_default(),
            statuses: settings.statuses.clone().unwrap_or_default(),
            of: Some(Box::new(of)),
        }
    }
}

impl Queue for PlanQueue {
    fn next(&mut self) -> Option<Next> {
        let group = self.groups.next()?;
        self.numbered.extend(&group);
        let terms = &self.plan.terms;
        if let [index] = group[..]
            && let item = &self.plan.items[index]
            && let Fit::Lacks(lacks) = &item.fit
        {
            let lacks: Vec<_> = lacks.iter().map(ToString::to_string).collect();
            let outcome = Outcome::Incompatible { reason: lacks.join("; ") };
            return Some(Next::Without { test: item.name(), outcome });
        }
        let trials = group.iter().map(|index| self.plan.items[*index].trial(terms)).collect();
        self.job(&group).map(|job| Next::Job(Box::new(job), trials))
    }

    fn again(&mut self, number: u32) -> Option<Job> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        let index = *self.numbered.get(at)?;
        self.job(&[index])
    }

    fn tests(&self) -> u32 {
        u32::try_from(self.plan.items.len()).unwrap_or(u32::MAX)
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Looks at the files of the fixtures that a test needs, each once.
fn fixtures_of(
    test: &Test,
    files: &mut Files,
    known: &mut HashMap<(PathBuf, String), Content>,
) -> Result<(), String> {
    let suite = &test.suite;
    for name in fixture::chain(
        &suite.config.fixtures,
        test.settings.fixtures.as_deref().unwrap_or_default(),
    ) {
        let key = (suite.root.clone(), name.clone());
        let Some(settings) = suite.config.fixtures.get(&name).filter(|_| !known.contains_key(&key))
        else {
            continue;
        };
        let content =
            files.of_fixture(suite, settings).map_err(|why| format!("fixture `{name}`: {why}"))?;
        known.insert(key, content);
    }
    Ok(())
}

fn limits(item: &Item, terms: &PlanTerms) -> Limits {
    let own = item.test.settings.timeout.map(|time| ms(time.0));
    Limits { check_ms: own.unwrap_or(terms.limits.check_ms), ..terms.limits }
}

/// Which items are run together, by the order of the first of each.
fn groups(plan: &Plan, parallel: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // Those that share, by what their machines are.
    let mut shared: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, item) in plan.items.iter().enumerate() {
        let shares = item.fit == Fit::Fits && item.isolation(&plan.terms) == Isolation::Suite;
        if !shares {
            groups.push(vec![index]);
            continue;
        }
        let machine = (
            item.wanted(&plan.terms),
            &item.kernel,
            &item.firmware,
            limits(item, &plan.terms),
            &item.test.settings.fixtures,
        );
        let key = format!("{}\n{:?}", item.test.suite.root.display(), machine);
        shared.entry(key).or_default().push(index);
    }
    for indices in shared.into_values() {
        let size = indices.len().div_ceil(parallel.max(1)).clamp(1, MAX_SHARING);
        groups.extend(indices.chunks(size).map(<[usize]>::to_vec));
    }
    groups.sort_by_key(|group| group[0]);
    groups
}
