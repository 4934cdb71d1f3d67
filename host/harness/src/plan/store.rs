//! A plan as files: jobs, and what they name by digest. Another process or host runs them.
//!
//! ```text
//! DIR/jobs/0001.json      {"format": 1, "job": …}
//! DIR/objects/SHA256      the content of a file
//! ```

use super::{Files, PlanQueue};
use crate::job::{Content, FirmwareWanted, InstallWanted, Job, LayerWanted};
use crate::run::{Next, Queue};
use crate::suite::find;
use guestline::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The format of a job's file.
pub const FORMAT: u32 = 1;

/// A job's file is not longer, bytes.
const MAX_LEN: u64 = 256 << 20;

/// A job as a file has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    format: u32,
    job: Job,
}

/// A file that is no job.
#[derive(Debug, Error)]
pub enum JobFileError {
    /// It cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("`{path}` is no job: {why}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// In words.
        why: String,
    },
    /// Of another version.
    #[error("`{path}` has format {format}, and this version knows {FORMAT}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
}

/// Writes the jobs of a plan; how many, and which tests have none.
///
/// # Errors
/// What writing gives.
pub fn write(mut queue: PlanQueue, files: &Files, to: &Path) -> io::Result<(usize, Vec<String>)> {
    let (jobs, objects) = (to.join("jobs"), to.join("objects"));
    fs::create_dir_all(&jobs)?;
    fs::create_dir_all(&objects)?;
    let (mut count, mut without) = (0, Vec::new());
    while let Some(next) = queue.next() {
        let job = match next {
            Next::Job(job, _) => *job,
            Next::Without { test, outcome } => {
                without.push(format!("{test}: {}", outcome.why()));
                continue;
            }
        };
        count += 1;
        for digest in digests(&job) {
            let object = objects.join(digest.to_string());
            if let Some(from) = files.by_digest().get(&digest).filter(|_| !object.exists()) {
                fs::copy(from, &object)?;
            }
        }
        let text = serde_json::to_vec_pretty(&JobFile { format: FORMAT, job })?;
        fs::write(jobs.join(format!("{count:04}.json")), text)?;
    }
    Ok((count, without))
}

/// Reads the file of a job, and finds what it names by digest beside it.
///
/// # Errors
/// [`JobFileError`].
pub fn read(path: &Path) -> Result<(Job, HashMap<Digest, PathBuf>), JobFileError> {
    let failed = |source| JobFileError::Read { path: path.to_owned(), source };
    let wrong = |why: String| JobFileError::Wrong { path: path.to_owned(), why };
    if fs::metadata(path).map_err(failed)?.len() > MAX_LEN {
        return Err(wrong(format!("it is longer than {} MiB", MAX_LEN >> 20)));
    }
    let text = fs::read(path).map_err(failed)?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => return Err(JobFileError::Format { path: path.to_owned(), format }),
        None => return Err(wrong("it has no `format`".to_owned())),
    }
    let JobFile { job, .. } =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if let Some(path) =
        paths(&job).find(|path| find::join("", path).as_deref() != Some(path.as_str()))
    {
        let path = crate::text::one_line(&path, 80);
        return Err(wrong(format!("`{path}` is no path of a file below a suite")));
    }
    if job.tests.is_empty() {
        return Err(wrong("it has no tests".to_owned()));
    }
    let above = path.canonicalize().map_err(failed)?;
    let above = above.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let object = |digest: Digest| {
        let file = above.join("objects").join(digest.to_string());
        (digest, file)
    };
    let files = digests(&job).into_iter().map(object).collect();
    Ok((job, files))
}

/// Where its files are to lie, and the names that become folders.
fn paths(job: &Job) -> impl Iterator<Item = String> {
    let mut paths = Vec::new();
    let mut content = |content: &Content| {
        paths.extend(content.files.iter().map(|file| file.path.clone()));
        paths.extend(content.libs.iter().cloned());
        paths.extend(Some(content.folder.clone()).filter(|folder| !folder.is_empty()));
    };
    job.tests.iter().filter_map(|test| test.of.as_ref()).for_each(|of| content(&of.content));
    let layers = job.machines.values().chain([&job.machine]).flat_map(|machine| &machine.layers);
    let of_guest = layers.filter_map(|layer| match layer {
        LayerWanted::Fixture(fixture) => Some(fixture),
        _ => None,
    });
    let mut names = Vec::new();
    for fixture in job.fixtures.iter().chain(of_guest) {
        content(&fixture.content);
        names.push(fixture.name.clone());
    }
    paths.extend(names);
    paths.into_iter()
}

/// What a job names.
fn digests(job: &Job) -> BTreeSet<Digest> {
    let mut all = BTreeSet::new();
    let mut content =
        |content: &Content| all.extend(content.files.iter().map(|file| file.digest.clone()));
    job.tests.iter().filter_map(|test| test.of.as_ref()).for_each(|of| content(&of.content));
    job.fixtures.iter().for_each(|fixture| content(&fixture.content));
    for machine in job.machines.values().chain([&job.machine]) {
        for layer in &machine.layers {
            match layer {
                LayerWanted::Fixture(fixture) => content(&fixture.content),
                LayerWanted::Install(InstallWanted { install }) => {
                    content(&Content { files: install.clone(), ..Content::default() });
                }
                LayerWanted::Lines(_) => {}
            }
        }
    }
    for machine in job.machines.values().chain([&job.machine]) {
        all.extend(machine.kernel.iter().chain(&machine.kconfig).cloned());
        if let Some(FirmwareWanted::File(digest)) = &machine.firmware {
            all.insert(digest.clone());
        }
        all.extend(machine.with.iter().map(|with| with.digest.clone()));
        if let Some(modules) = &machine.modules {
            all.extend(
                [Some(&modules.early), modules.disk.as_ref()].into_iter().flatten().cloned(),
            );
        }
    }
    all
}
