//! A test in its machines: set-up, test, tear-down, and what comes back.

use super::ask::ask;
use super::attempt::Part;
use super::conversation::{Recorder, Side, StepTerms, complaint, is_pass, step, watch};
use super::execute::{Broken, Executor, before};
use super::host_fixtures::Folders;
use super::host_side::{self, HostSide, name_of};
use super::judge::Finding;
use super::place::{Place, Places};
use super::scratch::{At, Scratch, bare, variable};
use super::{Ticket, artifacts};
use crate::job::{InSuite, Job, JobTest, TestCommand};
use crate::lab;
use crate::outcome::Stage;
use crate::suite::settings::On;
use crate::text;
use guestline::guest::FilesError;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A tear-down has so long, also after an interrupt, on a host that is not slower than usual.
const GRACE: Duration = Duration::from_secs(30);

/// A set-up or a tear-down has ended well with this alone.
const WELL: [u8; 1] = [0];

/// Runs the test of a job in machines that are ready.
pub(super) async fn run(
    executor: &Executor,
    job: &Job,
    ticket: &Ticket,
    places: &Places,
    fixtures: &Folders,
    recorder: &mut Recorder<'_>,
    cancel: &CancellationToken,
) -> Finding {
    let test = &job.tests[0];
    let limit = job.limits.check();
    let Some(of) = &test.of else {
        let request = || bare(&test.command);
        let sides =
            places.machines.iter().map(|(_, place)| Side { place, request: request(), of: None });
        let pass = &test.statuses.pass;
        let terms = StepTerms { part: Part::Test, limit, cancel, pass, shared: None };
        return judged(test, terms, sides.collect(), places, recorder).await;
    };
    for (_, place) in &places.machines {
        let image = job.machines.values().next().unwrap_or(&job.machine).image.as_str();
        if let Err(finding) = ask(place, image, &of.requires, cancel).await {
            return before(job, finding);
        }
    }
    let mut scene = match Scene::make(executor, of, ticket, places, fixtures, cancel).await {
        Ok(scene) => scene,
        Err(finding) => return before(job, finding),
    };
    recorder.lines = scene.shared.as_mut().and_then(HostSide::take_lines);
    let finding = acts(&scene, test, of, limit, recorder, cancel).await;
    recorder.attempt.said = scene.shared.as_ref().and_then(HostSide::verdict);
    let brought = scene.bring_back(recorder).await;
    scene.end().await;
    match brought.filter(|_| is_pass(&finding, &test.statuses.pass)) {
        Some(trouble) => trouble,
        None => finding,
    }
}

/// Set-up, test, and tear-down whatever became of them.
async fn acts(
    scene: &Scene<'_>,
    test: &JobTest,
    of: &InSuite,
    limit: Duration,
    recorder: &mut Recorder<'_>,
    cancel: &CancellationToken,
) -> Finding {
    let terms = |part, pass| StepTerms { part, limit, cancel, pass, shared: scene.watched() };
    if let Some(set_up) = &of.setup {
        let finding = step(terms(Part::SetUp, &WELL), scene.sides(set_up), recorder).await;
        if !is_pass(&finding, &WELL) {
            scene.tear_down(of, false, recorder).await;
            return Finding::Step { part: Part::SetUp, inner: Box::new(finding) };
        }
    }
    let began = Instant::now();
    recorder.attempt.began = Some(began);
    let finding = judged(
        test,
        terms(Part::Test, &test.statuses.pass),
        scene.sides(&test.command),
        scene.places,
        recorder,
    )
    .await;
    recorder.attempt.check = Some(began.elapsed());
    let is_well = is_pass(&finding, &test.statuses.pass);
    match (is_well, scene.tear_down(of, is_well, recorder).await) {
        (true, Some(inner)) => Finding::Step { part: Part::TearDown, inner: Box::new(inner) },
        _ => finding,
    }
}

/// The test itself, with an eye on the kernels where that is wanted.
async fn judged(
    test: &JobTest,
    terms: StepTerms<'_>,
    sides: Vec<Side<'_>>,
    places: &Places,
    recorder: &mut Recorder<'_>,
) -> Finding {
    let watches = match watch(&test.fail_on, places, terms.cancel).await {
        Ok(watches) => watches,
        Err(finding) => return finding,
    };
    let finding = step(terms, sides, recorder).await;
    recorder.end_output().await;
    match terms.is_pass(&finding) {
        true => complaint(watches, places, terms.cancel).await.unwrap_or(finding),
        false => finding,
    }
}

/// The folders of a test wherever a part of it runs.
struct Scene<'a> {
    of: &'a InSuite,
    places: &'a Places,
    scratch: Scratch,
    shared: Option<HostSide>,
    /// Of the host: where they are there; in a guest they have folders of the same names.
    fixtures: &'a Folders,
    attempt: u32,
}

impl<'a> Scene<'a> {
    async fn make(
        executor: &Executor,
        of: &'a InSuite,
        ticket: &Ticket,
        places: &'a Places,
        fixtures: &'a Folders,
        cancel: &CancellationToken,
    ) -> Result<Self, Finding> {
        let content = executor.content(&of.content).await.map_err(|(path, error)| {
            broken(
                Stage::Host,
                format!("cannot put the test's files together in `{path}`: {error}"),
            )
        })?;
        let scratch = Scratch::in_guest(ulid::Ulid::generate());
        let guests = places.machines.iter().filter(|_| of.on != On::Host);
        for (_, place) in guests {
            lay_out(place, &scratch, content.as_deref(), cancel).await?;
            for (name, folder) in fixtures {
                bring(place, folder, &scratch.fixture(name), cancel).await?;
            }
        }
        let shared = match host_side::is_wanted(of, places) {
            true => Some(HostSide::new(executor, of, places, &scratch).await?),
            false => None,
        };
        if let Some((place, scratch)) = shared.as_ref().and_then(|shared| shared.host.as_ref()) {
            lay_out(place, scratch, content.as_deref(), cancel).await?;
        }
        Ok(Self { of, places, scratch, shared, fixtures, attempt: ticket.attempt })
    }

    /// The machines that a step has to be ended for.
    fn watched(&self) -> Option<(&HostSide, &Places)> {
        self.shared.as_ref().map(|shared| (shared, self.places))
    }

    /// A command of the test on each side that it runs on.
    fn sides(&self, command: &TestCommand) -> Vec<Side<'_>> {
        let mut sides = Vec::new();
        if let Some(shared) = &self.shared
            && let Some((place, scratch)) = &shared.host
        {
            let mut more = shared.host_variables();
            let known = self
                .fixtures
                .iter()
                .map(|(name, folder)| (variable("FIXTURE", name), folder.display().to_string()));
            more.extend(known);
            let request = scratch.request(command, self.of, At::Host, self.attempt, &more);
            sides.push(Side { place, request, of: Some(lab::Side::Host) });
        }
        for (name, place) in self.places.machines.iter().filter(|_| self.of.on != On::Host) {
            let more = self.shared.as_ref().map(|shared| shared.guest_variables(&self.scratch));
            let at = At::Guest(name.as_ref());
            let mut more = more.unwrap_or_default();
            more.extend(
                self.fixtures
                    .iter()
                    .map(|(name, _)| (variable("FIXTURE", name), self.scratch.fixture(name))),
            );
            let request = self.scratch.request(command, self.of, at, self.attempt, &more);
            let of = self.shared.as_ref().map(|_| lab::Side::Guest(name_of(name.as_ref())));
            sides.push(Side { place, request, of });
        }
        sides
    }

    /// Ends what it has on the host, and takes away what it has put where no machine goes away with it.
    async fn end(self) {
        for (_, place) in &self.places.machines {
            if let Place::Agent(guest) = place {
                let mark = self.scratch.mark();
                let root = self.scratch.root().as_bytes();
                // What was ordered ended before is ended before this is answered.
                let _ = tokio::time::timeout(GRACE, guest.remove(root, true, true)).await;
                // Elsewhere nothing has this mark.
                let _ = tokio::task::spawn_blocking(move || host_side::kill_marked(&mark)).await;
            }
        }
        if let Some(shared) = self.shared {
            shared.end().await;
        }
    }

    /// Runs the tear-down, whatever became of the test, also after an interrupt; what came of it if it did not do. Machines
    /// that are well are watched: those that are not do not end it.
    async fn tear_down(
        &self,
        of: &InSuite,
        is_well: bool,
        recorder: &mut Recorder<'_>,
    ) -> Option<Finding> {
        let command = of.teardown.as_ref()?;
        let cancel = CancellationToken::new();
        let shared = self.watched().filter(|_| is_well);
        let terms =
            StepTerms { part: Part::TearDown, limit: GRACE, cancel: &cancel, pass: &WELL, shared };
        let finding = step(terms, self.sides(command), recorder).await;
        (!is_pass(&finding, &WELL)).then_some(finding)
    }

    /// Brings the artifacts back, from wherever a machine still answers.
    async fn bring_back(&self, recorder: &mut Recorder<'_>) -> Option<Finding> {
        let mut trouble = None;
        if let Some((place, scratch)) = self.shared.as_ref().and_then(|shared| shared.host.as_ref())
        {
            let from = scratch.artifacts();
            trouble = artifacts::bring_back(place, &from, None, recorder.attempt).await.err();
        }
        for (name, place) in self.places.machines.iter().filter(|_| self.of.on != On::Host) {
            let from = self.scratch.artifacts();
            let brought =
                artifacts::bring_back(place, &from, name.as_ref(), recorder.attempt).await;
            trouble = trouble.or(brought.err());
        }
        trouble
    }
}

/// Makes the folders of a test, and puts its files there.
async fn lay_out(
    place: &Place,
    scratch: &Scratch,
    content: Option<&Path>,
    cancel: &CancellationToken,
) -> Result<(), Finding> {
    let made = tokio::select! {
        biased;
        made = scratch.make(place.guest(), content) => made,
        ending = place.ended() => return Err(Finding::MachineEnded(ending)),
        () = cancel.cancelled() => return Err(Finding::Cancelled),
    };
    match made {
        Ok(()) => Ok(()),
        Err(error) => Err(match place.ended_soon().await {
            Some(ending) => Finding::MachineEnded(ending),
            None => no_files(&error),
        }),
    }
}

/// Puts the folder of a fixture of the host into a guest.
async fn bring(
    place: &Place,
    from: &Path,
    to: &str,
    cancel: &CancellationToken,
) -> Result<(), Finding> {
    let brought = tokio::select! {
        biased;
        brought = place.guest().bring(from, to) => brought,
        ending = place.ended() => return Err(Finding::MachineEnded(ending)),
        () = cancel.cancelled() => return Err(Finding::Cancelled),
    };
    brought.map_err(|error| no_files(&error))
}

fn no_files(error: &FilesError) -> Finding {
    let stage = match error {
        FilesError::Link(_) => Stage::Link,
        _ => Stage::Agent,
    };
    broken(stage, format!("cannot put the test's files into the guest: {}", text::chain(error)))
}

fn broken(stage: Stage, reason: String) -> Finding {
    Finding::Broken(Broken { stage, reason, hints: vec![], log: vec![] })
}
