//! Fixtures of guests, as layers of machines: each is set up once, and what depends on one that failed is not tried.

use super::execute::{Broken, Executor};
use super::install;
use super::judge::Finding;
use super::place::Place;
use super::scratch::fixture_folder;
use crate::job::{Content, FixtureWanted, InstallWanted, LayerWanted, MachineWanted};
use crate::outcome::Stage;
use crate::suite::config::API;
use crate::text;
use guestline::digest::Digest;
use guestline::provision::{Layer, LayerFiles, LeaseError, SetUpFailure};
use guestline_protocol::{ByteBuf, Command, EnvChange, ExecRequest, ExitStatus};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// So much of what it said is read.
const MAX_LOG: usize = 1 << 20;

/// So many lines of what a fixture said before its last one are shown.
const LOG_SHOWN: usize = 20;

/// What became of the machines of each kind that have fixtures.
#[derive(Debug, Default)]
pub(super) struct Fixtures {
    /// By what the machine is.
    machines: Mutex<HashMap<String, Arc<Mutex<State>>>>,
    /// What a fixture failed with, by the machine up to it.
    failed: Mutex<HashMap<String, Broken>>,
    /// What came of those that were set up where no template keeps them.
    done: Mutex<HashMap<String, Result<(), Broken>>>,
}

/// Whether the fixtures of a machine can be set up.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Unknown,
    Good,
}

/// The right to find out whether fixtures can be set up; nobody else tries meanwhile.
pub(super) type Trying = OwnedMutexGuard<State>;

impl Fixtures {
    /// Waits until it is known whether the fixtures of this machine can be set up. None when they can, or there are none;
    /// the right to try when nothing is known.
    ///
    /// # Errors
    /// One of them failed before.
    pub(super) async fn wait(&self, wanted: &MachineWanted) -> Result<Option<Trying>, Broken> {
        if !wanted.layers.iter().any(|layer| matches!(layer, LayerWanted::Fixture(_))) {
            return Ok(None);
        }
        let state =
            self.machines.lock().await.entry(key(wanted, wanted.layers.len())).or_default().clone();
        let trying = state.lock_owned().await;
        let failed = self.failed.lock().await;
        let known = (1..=wanted.layers.len()).find_map(|len| failed.get(&key(wanted, len)));
        match known {
            Some(broken) => Err(broken.clone()),
            None if matches!(*trying, State::Good) => Ok(None),
            None => Ok(Some(trying)),
        }
    }

    /// They can be set up.
    pub(super) fn succeeded(trying: Option<Trying>) {
        if let Some(mut trying) = trying {
            *trying = State::Good;
        }
    }

    /// A machine could not be had; if a fixture is the cause, all that need it are told so. What it was is given back.
    pub(super) async fn failed(
        &self,
        wanted: &MachineWanted,
        error: &LeaseError,
    ) -> Option<Broken> {
        let LeaseError::SetUp { step, failure } = error else { return None };
        let name = step.name.as_ref()?;
        let is_it = |layer: &LayerWanted| matches!(layer, LayerWanted::Fixture(fixture) if said(fixture) == *name);
        let at = wanted.layers.iter().position(is_it)?;
        let log = failure.output_before_last(LOG_SHOWN);
        let broken =
            Broken { stage: Stage::Fixture, reason: text::chain(error), hints: vec![], log };
        self.failed.lock().await.insert(key(wanted, at + 1), broken.clone());
        Some(broken)
    }
}

/// Puts the files of a layer into a target and runs its lines.
async fn in_place(place: &Place, layer: &Layer, limit: Duration) -> Result<(), Broken> {
    let limit = layer.timeout.unwrap_or(limit);
    let name = layer.name.clone().unwrap_or_default();
    let broken = |why: String, log: Vec<String>| Broken {
        stage: Stage::Fixture,
        reason: format!("{name} {why}"),
        hints: vec![],
        log,
    };
    for files in &layer.files {
        let brought = place.guest().bring(&files.from, &files.to).await;
        brought.map_err(|error| {
            broken(format!("cannot be put there: {}", text::chain(&error)), vec![])
        })?;
    }
    for line in &layer.lines {
        let bytes = |text: &str| ByteBuf::from(text.as_bytes().to_vec());
        let change = |(name, value): &(String, String)| EnvChange {
            name: bytes(name),
            value: Some(bytes(value)),
        };
        let request = ExecRequest {
            env: layer.env.iter().map(change).collect(),
            cwd: layer.cwd.as_deref().map(bytes),
            ..ExecRequest::new(Command::Shell(bytes(line)))
        };
        let running = place.guest().run(request, &[], MAX_LOG);
        let output = match tokio::time::timeout(limit, running).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(broken(text::chain(&error), vec![])),
            Err(_) => {
                return Err(broken(format!("did not end within {}", text::limit(limit)), vec![]));
            }
        };
        if output.exited.status != ExitStatus::Exited(0) {
            let mut said = output.stdout;
            said.extend(output.stderr);
            let said = String::from_utf8_lossy(&said).trim_end().to_owned();
            let failure = SetUpFailure::Ended { status: output.exited.status, output: said };
            return Err(broken(failure.to_string(), failure.output_before_last(LOG_SHOWN)));
        }
    }
    Ok(())
}

/// What a machine is, up to one of its layers.
fn key(wanted: &MachineWanted, layers: usize) -> String {
    let up_to = MachineWanted { layers: wanted.layers[..layers].to_vec(), ..wanted.clone() };
    serde_json::to_string(&up_to).unwrap_or_default()
}

/// "fixture `site` (owner: web-team@example.org)".
pub(super) fn said(fixture: &FixtureWanted) -> String {
    match &fixture.owner {
        Some(owner) => format!("fixture `{}` (owner: {owner})", fixture.name),
        None => format!("fixture `{}`", fixture.name),
    }
}

impl Executor {
    /// Sets up a guest's fixtures in a target, where no template keeps them: each once in a run.
    pub(super) async fn set_up_in(
        &self,
        place: &Place,
        wanted: &[LayerWanted],
        limit: Duration,
    ) -> Result<(), Finding> {
        let mut done = self.fixtures.done.lock().await;
        for layer in wanted {
            let LayerWanted::Fixture(fixture) = layer else { continue };
            let key = serde_json::to_string(fixture).unwrap_or_default();
            let outcome = match done.get(&key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let layer = self.layer(fixture).await?;
                    let outcome = in_place(place, &layer, limit).await;
                    done.insert(key, outcome.clone());
                    outcome
                }
            };
            outcome.map_err(Finding::Broken)?;
        }
        Ok(())
    }

    /// Layers, as a machine gets them.
    pub(super) async fn layers(&self, wanted: &[LayerWanted]) -> Result<Vec<Layer>, Finding> {
        let mut layers = Vec::new();
        for layer in wanted {
            layers.push(match layer {
                LayerWanted::Lines(lines) => Layer::from(lines.clone()),
                LayerWanted::Fixture(fixture) => self.layer(fixture).await?,
                LayerWanted::Install(packages) => self.install(packages).await?,
            });
        }
        Ok(layers)
    }

    async fn install(&self, packages: &InstallWanted) -> Result<Layer, Finding> {
        let content = Content { files: packages.install.clone(), ..Content::default() };
        let from = self.content(&content).await.map_err(|(path, error)| {
            let what = install::said(packages);
            let reason = format!("{what}: cannot put the files together in `{path}`: {error}");
            Finding::Broken(Broken { stage: Stage::Host, reason, hints: vec![], log: vec![] })
        })?;
        Ok(install::layer(packages, from.unwrap_or_default()))
    }

    async fn layer(&self, fixture: &FixtureWanted) -> Result<Layer, Finding> {
        let to = fixture_folder(&fixture.name);
        let from = self.content(&fixture.content).await.map_err(|(path, error)| {
            let reason =
                format!("{}: cannot put its files together in `{path}`: {error}", said(fixture));
            Finding::Broken(Broken { stage: Stage::Host, reason, hints: vec![], log: vec![] })
        })?;
        let files = from.map(|from| {
            let content = serde_json::to_vec(&fixture.content).unwrap_or_default();
            LayerFiles { digest: Digest::of(&content), from, to: to.clone() }
        });
        let cwd = match fixture.content.folder.as_str() {
            "" => to.clone(),
            folder => format!("{to}/{folder}"),
        };
        let own = [
            ("GUESTLINE_API".to_owned(), API.to_string()),
            ("GUESTLINE_FIXTURE".to_owned(), fixture.name.clone()),
        ];
        let more = fixture.variables.iter().map(|(name, value)| (name.clone(), value.clone()));
        Ok(Layer {
            lines: vec![fixture.run.clone()],
            name: Some(said(fixture)),
            cwd: files.is_some().then_some(cwd),
            files: files.into_iter().collect(),
            env: own.into_iter().chain(more).collect(),
            timeout: fixture.timeout_ms.map(Duration::from_millis),
        })
    }
}
