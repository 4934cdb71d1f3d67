//! Fixtures of the host: each is set up once, and keeps a folder. One without a tear-down is kept for the next runs, by what
//! it is made of; one with a tear-down, which may have something running, is torn down at the end of the run.
//!
//! ```text
//! CACHE/fixtures/KEY/         what a fixture has left there
//! CACHE/fixtures/KEY.lock     held by who sets it up
//! CACHE/fixtures/KEY.done     it was set up to its end
//! ```

use super::execute::{Broken, Executor};
use super::fixtures::said;
use super::host_side::{kill_marked, open_here};
use super::judge::Finding;
use super::scratch::variable;
use crate::job::{FixtureWanted, Job};
use crate::outcome::Stage;
use crate::suite::config::API;
use crate::text;
use guestline::digest::Digest;
use guestline::guest::Guest;
use guestline::provision::SetUpFailure;
use guestline_protocol::{ByteBuf, Command, EnvChange, ExecRequest, ExitStatus};
use nix::fcntl::{Flock, FlockArg};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// So much of what a fixture says is read, and so many of its last lines are shown.
const MAX_LOG: usize = 1 << 20;
const LOG_SHOWN: usize = 20;

/// A tear-down has so long.
const GRACE: Duration = Duration::from_secs(30);

/// The folders of fixtures, by their names.
pub(super) type Folders = Vec<(String, PathBuf)>;

/// What was set up on the host.
#[derive(Debug, Default)]
pub(super) struct HostFixtures {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By what they are made of.
    done: HashMap<Digest, Result<PathBuf, Broken>>,
    /// What runs them; what they leave running lives as long as it.
    agent: Option<Guest>,
    /// Those that are torn down at the end, in the order in which they were set up.
    standing: Vec<(ExecRequest, FixtureWanted)>,
    /// How many have a folder of this run.
    own: u32,
}

impl Executor {
    /// Sets up what a job needs on the host, and says where it is.
    pub(super) async fn host_fixtures(
        &self,
        job: &Job,
        cancel: &CancellationToken,
    ) -> Result<Folders, Finding> {
        let mut folders = Folders::new();
        if job.fixtures.is_empty() {
            return Ok(folders);
        }
        let mut state = tokio::select! {
            state = self.host_fixtures.state.lock() => state,
            () = cancel.cancelled() => return Err(Finding::Cancelled),
        };
        // Whatever stands upon another one is made of that, too.
        let mut key = Digest::of(&serde_json::to_vec(&job.machine.image).unwrap_or_default());
        for fixture in &job.fixtures {
            // How long it may take, and who answers for it, make it no other one.
            let own = FixtureWanted { timeout_ms: None, owner: None, ..fixture.clone() };
            let own = serde_json::to_string(&own).unwrap_or_default();
            key = Digest::of(format!("{key}\n{own}").as_bytes());
            let outcome = match state.done.get(&key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let making =
                        self.set_up_here(&mut state, fixture, &key, &folders, job.limits.check());
                    let outcome = tokio::select! {
                        outcome = making => outcome,
                        () = cancel.cancelled() => return Err(Finding::Cancelled),
                    };
                    state.done.insert(key.clone(), outcome.clone());
                    outcome
                }
            };
            folders.push((fixture.name.clone(), outcome.map_err(Finding::Broken)?));
        }
        Ok(folders)
    }

    async fn set_up_here(
        &self,
        state: &mut State,
        fixture: &FixtureWanted,
        key: &Digest,
        needed: &Folders,
        limit: Duration,
    ) -> Result<PathBuf, Broken> {
        let failed =
            |error: io::Error| broken(fixture, format!("cannot have a folder: {error}"), vec![]);
        let is_kept = fixture.teardown.is_none();
        let folder = match is_kept {
            true => self.kept_fixtures.join(key.short()),
            false => {
                state.own += 1;
                self.work.join(format!("fixture-{}", state.own))
            }
        };
        let done = folder.with_extension("done");
        let mut lock = None;
        if is_kept {
            fs::create_dir_all(&self.kept_fixtures).map_err(failed)?;
            let path = folder.with_extension("lock");
            let locking = tokio::task::spawn_blocking(move || {
                let file = File::options().create(true).append(true).open(path)?;
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, error)| io::Error::from(error))
            });
            lock = Some(
                locking
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
                    .map_err(failed)?,
            );
            if done.exists() && folder.is_dir() {
                return Ok(folder);
            }
            // First, so that what is interrupted is not taken for done.
            let _ = fs::remove_file(&done);
            let _ = fs::remove_dir_all(&folder);
        }
        fs::create_dir_all(&folder).map_err(failed)?;
        let content = self.content(&fixture.content).await.map_err(|(path, error)| {
            broken(fixture, format!("cannot put its files together in `{path}`: {error}"), vec![])
        })?;
        let cwd = content.unwrap_or_else(|| folder.clone());
        let mark = mark(&self.work);
        let request = |line: &str| request(line, fixture, &mark, &cwd, &folder, needed);
        let agent = match &state.agent {
            Some(agent) => agent.clone(),
            None => {
                let agent = open_here(self).await.map_err(|_| {
                    broken(fixture, "the agent does not run here".to_owned(), vec![])
                })?;
                state.agent = Some(agent.clone());
                agent
            }
        };
        let limit = fixture.timeout_ms.map_or(limit, Duration::from_millis);
        if let Some(line) = &fixture.teardown {
            // Also when the set-up fails, or is interrupted.
            state.standing.push((request(line), fixture.clone()));
        }
        let outcome = carry_out(&agent, request(&fixture.run), fixture, limit).await;
        match &outcome {
            _ if !is_kept => {}
            Ok(()) => fs::write(&done, b"").map_err(failed)?,
            Err(_) => drop(fs::remove_dir_all(&folder)),
        }
        drop(lock);
        outcome.map(|()| folder)
    }

    /// Tears down what stands, the last one first. What does not do is told.
    pub(super) async fn tear_down_fixtures(&self) -> Vec<String> {
        let mut state = std::mem::take(&mut *self.host_fixtures.state.lock().await);
        let mut troubles = Vec::new();
        if let Some(agent) = state.agent.take() {
            while let Some((request, fixture)) = state.standing.pop() {
                if let Err(trouble) = carry_out(&agent, request, &fixture, GRACE).await {
                    troubles.push(format!("tear-down of {}", trouble.reason));
                }
            }
            drop(agent);
            let mark = mark(&self.work);
            let _ = tokio::task::spawn_blocking(move || kill_marked(mark.as_bytes())).await;
        }
        troubles
    }
}

/// What all that fixtures of this run start has in its environment.
fn mark(work: &Path) -> String {
    format!("GUESTLINE_RUN_FOLDER={}", work.display())
}

fn request(
    line: &str,
    fixture: &FixtureWanted,
    mark: &str,
    cwd: &Path,
    folder: &Path,
    needed: &Folders,
) -> ExecRequest {
    let bytes = |text: &str| ByteBuf::from(text.as_bytes().to_vec());
    let path = |path: &Path| path.display().to_string();
    let mut variables = vec![
        ("GUESTLINE_API".to_owned(), API.to_string()),
        ("GUESTLINE_FIXTURE".to_owned(), fixture.name.clone()),
        ("GUESTLINE_FIXTURE_FOLDER".to_owned(), path(folder)),
    ];
    if let Some((name, value)) = mark.split_once('=') {
        variables.push((name.to_owned(), value.to_owned()));
    }
    variables.extend(needed.iter().map(|(name, folder)| (variable("FIXTURE", name), path(folder))));
    variables.extend(fixture.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    let change = |(name, value): (String, String)| EnvChange {
        name: bytes(&name),
        value: Some(bytes(&value)),
    };
    ExecRequest {
        env: variables.into_iter().map(change).collect(),
        cwd: Some(bytes(&path(cwd))),
        ..ExecRequest::new(Command::Shell(bytes(line)))
    }
}

async fn carry_out(
    agent: &Guest,
    request: ExecRequest,
    fixture: &FixtureWanted,
    limit: Duration,
) -> Result<(), Broken> {
    let output = match tokio::time::timeout(limit, agent.run(request, &[], MAX_LOG)).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(broken(fixture, text::chain(&error), vec![])),
        Err(_) => {
            return Err(broken(
                fixture,
                format!("did not end within {}", text::limit(limit)),
                vec![],
            ));
        }
    };
    if output.exited.status == ExitStatus::Exited(0) {
        return Ok(());
    }
    let mut said = output.stdout;
    said.extend(output.stderr);
    let output_text = String::from_utf8_lossy(&said).trim_end().to_owned();
    let failure = SetUpFailure::Ended { status: output.exited.status, output: output_text };
    Err(broken(fixture, failure.to_string(), failure.output_before_last(LOG_SHOWN)))
}

fn broken(fixture: &FixtureWanted, why: String, log: Vec<String>) -> Broken {
    let reason = format!("{} {why}", said(fixture));
    Broken { stage: Stage::Fixture, reason, hints: vec![], log }
}
