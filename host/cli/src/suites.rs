//! Tests of suites, from references on the command line to a plan.

use crate::args::{GlobalArgs, SelectArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use guestline::machine::{Accel, Offers, Qemu};
use guestline::text;
use guestline_harness::job::Limits;
use guestline_harness::plan::{
    GuestFacts, KnownQemu, Overrides, Plan, PlanTerms, Surroundings, image_facts,
};
use guestline_harness::suite::facts::{HostTools, host_facts};
use guestline_harness::suite::find::{self, FindError, Found, Means};
use guestline_harness::suite::reference::{Reference, Source};
use guestline_harness::suite::test::{Origin, Suite, shown};
use guestline_harness::suite::{
    Checkout, Declared, Environment, Matrix, Requirement, Selector, checkout,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What this host's admin declares, in the configuration folder.
pub(crate) const DECLARED: &str = "environment.toml";

/// So many errors are told at once.
const MAX_TOLD: usize = 20;

/// What references mean.
#[derive(Default)]
pub(crate) struct Selected {
    pub(crate) found: Found,
    /// Of the tests, by suite and name; those that are not named are wanted with all variants.
    selectors: BTreeMap<(PathBuf, String), Vec<Selector>>,
    /// The tests that it has, likewise.
    names: BTreeSet<(PathBuf, String)>,
}

/// Finds what the command line names. Suites in repositories are fetched, through the user's own git.
pub(crate) fn select(
    args: &SelectArgs,
    context: &Context,
    cancel: &CancellationToken,
) -> Result<Selected, CommandError> {
    let here = [".".to_owned()];
    let references = if args.references.is_empty() { &here[..] } else { &args.references };
    let mut selected = Selected::default();
    let mut errors = Vec::new();
    let means = Means { cache: &context.dirs.cache, cancel };
    for text in references {
        let reference: Reference = text.parse()?;
        // A file may have brackets in its name, too.
        let (source, selector) = match Path::new(text).exists() {
            true => (Source::Path(text.into()), None),
            false => (reference.source, reference.selector),
        };
        let found = match source {
            Source::Path(path) => find::find(&path, None, means),
            Source::Git(source) => {
                let checkout = checkout(&source, &context.dirs.cache, cancel).map_err(|error| {
                    let hint = error.hint();
                    CommandError::new(error).hints(hint)
                })?;
                let Checkout { folder, root, commit, url } = checkout;
                find::find(&folder, Some(&Origin { url, commit, root }), means)
            }
        };
        match found {
            Ok(found) => selected.add(found, selector.as_ref()),
            Err(more) => errors.extend(more),
        }
    }
    match errors.is_empty() {
        true => Ok(selected),
        false => Err(told(&errors)),
    }
}

impl Selected {
    fn add(&mut self, more: Found, selector: Option<&Selector>) {
        let mut new = Vec::new();
        for test in more.tests {
            let key = (test.suite.root.clone(), test.name.clone());
            let is_known = !self.names.insert(key.clone());
            match (selector, is_known) {
                (Some(selector), false) => drop(self.selectors.insert(key, vec![selector.clone()])),
                (Some(selector), true) => {
                    if let Some(selectors) = self.selectors.get_mut(&key) {
                        selectors.push(selector.clone());
                    }
                }
                // Named once without, it is wanted with all.
                (None, _) => drop(self.selectors.remove(&key)),
            }
            if !is_known {
                new.push(test);
            }
        }
        self.found.tests.extend(new);
        for suite in more.suites {
            if !self.found.suites.iter().any(|known| known.root == suite.root) {
                self.found.suites.push(suite);
            }
        }
        for none in more.none {
            if !self.found.none.contains(&none) {
                self.found.none.push(none);
            }
        }
    }

    /// Where its suites are, by their names.
    pub(crate) fn suites(&self) -> BTreeMap<String, String> {
        let named = |suite: &Arc<Suite>| {
            let place = match &suite.origin {
                None => shown(&suite.root),
                Some(Origin { url, commit, root }) => {
                    let below = suite.root.strip_prefix(root).unwrap_or(Path::new(""));
                    format!("git+{url}@{commit}#{}", below.display())
                }
            };
            (suite.name.clone(), place)
        };
        self.found.suites.iter().map(named).collect()
    }

    /// Plans it.
    pub(crate) fn plan(
        &self,
        args: &SelectArgs,
        terms: PlanTerms,
        surroundings: &mut Surroundings,
    ) -> Result<Plan, CommandError> {
        let mut plan =
            Plan::new(&self.found, terms, surroundings).map_err(|errors| told(&errors))?;
        plan.retain(|item| {
            let key = (item.test.suite.root.clone(), item.test.name.clone());
            let selectors = self.selectors.get(&key);
            selectors.is_none_or(|all| all.iter().any(|selector| selector.matches(&item.variant)))
        });
        // Shares are of all that there is, so that a filter moves no test from one to another.
        let mut place = 0..;
        if let Some(shard) = args.shard {
            plan.retain(|_| place.next().is_some_and(|place| shard.has(place)));
        }
        if let Some(filter) = &args.filter {
            plan.retain(|item| item.is_meant(filter));
        }
        Ok(plan)
    }
}

/// All that is wrong, a line each.
pub(crate) fn told(errors: &[FindError]) -> CommandError {
    let mut lines: Vec<String> = errors.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if errors.len() > MAX_TOLD {
        lines.push(format!("… and {} more", errors.len() - MAX_TOLD));
    }
    CommandError::new(lines.join("\nerror: "))
}

/// What the command line says of all tests.
pub(crate) fn overrides(args: &SelectArgs) -> Result<Overrides, CommandError> {
    let words: Vec<&str> = args.matrix.iter().map(String::as_str).collect();
    let matrix = Matrix::from_words(&words)
        .map_err(|error| CommandError::new(format!("--matrix: {error}")))?;
    let requires: Result<Vec<Requirement>, _> =
        args.require.iter().map(|text| text.parse()).collect();
    Ok(Overrides {
        matrix,
        image: args.image.clone(),
        cpus: args.cpus,
        memory_mib: args.memory,
        requires: requires.map_err(|error| CommandError::new(format!("--require: {error}")))?,
        ..Overrides::default()
    })
}

/// What there is for tests here: what this host has, what its admin declares, and images.
pub(crate) fn surroundings(
    global: &GlobalArgs,
    files: &[PathBuf],
    context: &Context,
) -> Result<Surroundings, CommandError> {
    let accel = context.acceleration(global.accel, false).accel;
    let tools = HostTools {
        qemu: Qemu::find(&context.dirs).ok().map(|qemu| qemu.version.to_string()),
        kvm: accel == Accel::Kvm,
        path: std::env::var_os("PATH"),
    };
    let mut host = Environment::new("this host", "the guest");
    for (name, capability) in host_facts(Path::new("/"), &tools) {
        host.provide(name, capability);
    }
    let own = context.dirs.config.join(DECLARED);
    let own = own.exists().then_some(own);
    for file in own.iter().chain(files) {
        let text = std::fs::read_to_string(file).map_err(|error| {
            CommandError::new(format!("cannot read `{}`: {error}", file.display()))
        })?;
        Declared::parse(file, &text)?.provide(&mut host);
    }
    let (store, agent) = (context.store(), agent(global).ok());
    let facts = move |name: &str| match store.catalogue().get(name) {
        Ok(recipe) => {
            let image = agent.as_ref().and_then(|agent| store.find(&recipe, agent).ok().flatten());
            image_facts(&recipe, image.as_ref())
        }
        // It is told when it is wanted.
        Err(_) => GuestFacts::default(),
    };
    let dirs = context.dirs.clone();
    let qemus = move |path: Option<&Path>| {
        let qemu = match path {
            Some(path) => Qemu::at(&dirs, path),
            None => Qemu::find(&dirs),
        };
        let qemu = qemu.map_err(|error| text::chain(&error))?;
        let offers = Offers::of(&dirs, &qemu);
        Ok(KnownQemu { qemu, offers })
    };
    Ok(Surroundings::new(host, Box::new(facts)).with_qemus(Box::new(qemus)))
}

/// The terms of a plan that says nothing of running.
pub(crate) fn plain_terms(overrides: Overrides) -> PlanTerms {
    let limits = Limits { check_ms: 0, boot_ms: 0 };
    PlanTerms { overrides, limits, target: "machine", isolation: None, retries: None, repeat: None }
}
