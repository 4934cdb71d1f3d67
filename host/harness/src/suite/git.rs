//! Suites in repositories: fetched and checked out by the user's own `git`, with the rights and the secrets that the user has.
//!
//! ```text
//! CACHE/git/DIGEST/           DIGEST is the URL's
//!     lock                    held (flock(2)) by who makes something below
//!     repository.git          all branches and tags, bare
//!     commits/COMMIT/         what a commit holds; there whole or not at all
//! ```
//! It is fetched each time, but for a whole commit id that is there: that needs neither the network nor a lock. Hooks,
//! submodules and transports that run programs (`ext::`) are off; what is checked out is not written to any more.

use super::child::{self, ChildError, Limits};
use super::reference::GitSource;
use crate::text::one_line;
use guestline::digest::Digest;
use guestline::dirs;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// One call of git is not waited for longer; a fetch may take its time.
const LIMITS: Limits = Limits { time: Duration::from_secs(30 * 60), stdout: 64 * 1024 };

/// While somebody else fetches the same repository, so often it is looked whether that is done.
const LOOK: Duration = Duration::from_millis(50);

/// Where HEAD is kept: a mirror's own is of no use.
const HEAD: &str = "refs/guestline/head";

/// What is set in a hook, or by other programs that use git, and would lead it elsewhere (`git rev-parse
/// --local-env-vars`; what configures it is the user's and stays).
const LOCAL: [&str; 14] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// A suite from a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// What was asked for: the whole, or the path in it.
    pub folder: PathBuf,
    /// Where the whole begins.
    pub root: PathBuf,
    /// The commit, in full.
    pub commit: String,
    /// Where it is from, without a password.
    pub url: String,
}

/// There is no such suite to be had.
#[derive(Debug, Error)]
pub enum GitError {
    /// There is no git.
    #[error("cannot start `git`")]
    NoGit(#[source] io::Error),
    /// Git failed.
    #[error("git cannot {doing} {url}{at}: {said}", at = at(revision.as_deref()))]
    Git {
        /// What it was to do.
        doing: &'static str,
        /// Where.
        url: String,
        /// What was asked for.
        revision: Option<String>,
        /// Its last lines.
        said: String,
    },
    /// There is no such revision.
    #[error("{url} has no `{revision}`")]
    NoRevision {
        /// Where.
        url: String,
        /// What was asked for.
        revision: String,
    },
    /// There is no such path.
    #[error("{url} has no `{folder}` in {commit}")]
    NoFolder {
        /// Where.
        url: String,
        /// In which commit.
        commit: String,
        /// What was asked for.
        folder: String,
    },
    /// A link leads out of it.
    #[error("`{folder}` in {commit} of {url} leads out of the repository")]
    Outside {
        /// Where.
        url: String,
        /// In which commit.
        commit: String,
        /// What was asked for.
        folder: String,
    },
    /// It cannot be kept.
    #[error("cannot keep {url} in {}", path.display())]
    Cache {
        /// What.
        url: String,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Git hangs.
    #[error("git was to {doing} {url}, and was not done in time: {said}")]
    TimedOut {
        /// What it was to do.
        doing: &'static str,
        /// Where.
        url: String,
        /// Its last lines.
        said: String,
    },
    /// Interrupted.
    #[error("interrupted")]
    Cancelled,
}

fn at(revision: Option<&str>) -> String {
    revision.map_or(String::new(), |revision| format!(" at `{revision}`"))
}

impl GitError {
    /// The way out, where there is a likely one.
    pub fn hint(&self) -> Option<String> {
        let look =
            |url: &str| format!("`git ls-remote {url}` has to work, without asking anything");
        match self {
            Self::NoGit(_) => {
                Some("install git; suites in repositories are fetched by it".to_owned())
            }
            Self::NoRevision { url, .. } => Some(format!(
                "`git ls-remote {url}` lists branches and tags; a commit stands in full"
            )),
            Self::NoFolder { .. } => {
                Some("the path behind `#` begins at the top of the repository".to_owned())
            }
            Self::Git { url, said, .. } => {
                let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
                if has(&["dubious ownership"]) {
                    return Some(format!(
                        "the repository is somebody else's: {}",
                        last_of(said, "git config")
                    ));
                }
                if has(&["Could not resolve", "Couldn't connect", "Connection", "unreachable"]) {
                    return Some(
                        "a whole commit id that was fetched once needs no network".to_owned(),
                    );
                }
                Some(look(url))
            }
            Self::TimedOut { url, .. } => Some(look(url)),
            Self::Outside { .. } | Self::Cache { .. } | Self::Cancelled => None,
        }
    }
}

/// What git proposes.
fn last_of(said: &str, words: &str) -> String {
    let found = said.find(words).map(|at| said[at..].to_owned());
    found.unwrap_or_else(|| "see `safe.directory` in git-config(1)".to_owned())
}

/// Fetches a repository, unless a whole commit id is asked for and there, and gives the folder that holds what is asked for.
///
/// Blocks: for the network, and while another process does the same.
///
/// # Errors
/// What is wrong with it; git's own words.
pub fn checkout(
    source: &GitSource,
    cache: &Path,
    cancel: &CancellationToken,
) -> Result<Checkout, GitError> {
    let url = source.shown_url();
    let name = Digest::of(source.url().as_bytes()).short().to_owned();
    let folder = cache.join("git").join(name);
    let kept = Kept { source, url, folder, cancel };
    let full = source.revision().and_then(full_id);
    let there = full.clone().filter(|commit| kept.commit(commit).is_dir());
    let commit = match there {
        Some(commit) => commit,
        None => kept.make(full)?,
    };
    kept.found(commit)
}

/// A whole commit id (SHA-1 or SHA-256).
fn full_id(revision: &str) -> Option<String> {
    let is_full = [40, 64].contains(&revision.len());
    (is_full && revision.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| revision.to_ascii_lowercase())
}

/// What stands behind HEAD: nothing, or steps back as `~2`.
fn of_head(revision: &str) -> Option<&str> {
    revision.strip_prefix("HEAD").filter(|rest| rest.is_empty() || rest.starts_with('~'))
}

/// What is kept of a repository.
struct Kept<'a> {
    source: &'a GitSource,
    url: String,
    folder: PathBuf,
    cancel: &'a CancellationToken,
}

impl Kept<'_> {
    fn repository(&self) -> PathBuf {
        self.folder.join("repository.git")
    }

    fn commit(&self, commit: &str) -> PathBuf {
        self.folder.join("commits").join(commit)
    }

    fn no_cache(&self, path: &Path) -> impl FnOnce(io::Error) -> GitError {
        let (url, path) = (self.url.clone(), path.to_owned());
        move |source| GitError::Cache { url, path, source }
    }

    /// Makes the checkout of what is asked for, and gives its commit.
    fn make(&self, full: Option<String>) -> Result<String, GitError> {
        let commits = self.folder.join("commits");
        let parent = self.folder.parent().unwrap_or(&self.folder);
        dirs::make_private(parent).map_err(self.no_cache(parent))?;
        fs::create_dir_all(&commits).map_err(self.no_cache(&commits))?;
        let _lock = self.lock()?;
        let repository = self.repository();
        if !repository.join("HEAD").exists() {
            let init = [OsStr::new("init"), "--quiet".as_ref(), "--bare".as_ref()];
            self.git_plain("make a copy of", init.into_iter().chain([repository.as_os_str()]))?;
        }
        let commit = match full {
            Some(commit) if self.resolve(&commit)?.is_some() => commit,
            full => {
                self.fetch(full.as_deref())?;
                let wanted = self.source.revision().unwrap_or(HEAD);
                let found = self.resolve(wanted)?;
                let revision = || self.source.revision().unwrap_or("HEAD").to_owned();
                found.ok_or_else(|| GitError::NoRevision {
                    url: self.url.clone(),
                    revision: revision(),
                })?
            }
        };
        if !self.commit(&commit).is_dir() {
            self.check_out(&commit)?;
        }
        Ok(commit)
    }

    /// Waits until nobody else makes something here.
    fn lock(&self) -> Result<Flock<File>, GitError> {
        let path = self.folder.join("lock");
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let mut file = file.map_err(self.no_cache(&path))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(self.no_cache(&path)(errno.into())),
            }
            if self.cancel.is_cancelled() {
                return Err(GitError::Cancelled);
            }
            thread::sleep(LOOK);
        }
    }

    /// Takes all branches and tags; a commit that is on none of them is asked for by its id, and what has a long name by that.
    fn fetch(&self, full: Option<&str>) -> Result<(), GitError> {
        let mut specs =
            vec!["+refs/heads/*:refs/heads/*".into(), "+refs/tags/*:refs/tags/*".into()];
        match self.source.revision() {
            name if name.is_none_or(|name| of_head(name).is_some()) => {
                specs.push(format!("+HEAD:{HEAD}"));
            }
            Some(name) if name.starts_with("refs/") => specs.push(format!("+{name}:{name}")),
            _ => {}
        }
        self.fetch_specs(&specs)?;
        match full {
            Some(id) if self.resolve(id)?.is_none() => {
                self.fetch_specs(&[format!("+{id}:refs/guestline/commits/{id}")])
            }
            _ => Ok(()),
        }
    }

    fn fetch_specs(&self, specs: &[String]) -> Result<(), GitError> {
        let options = ["fetch", "--quiet", "--force", "--no-tags", "--no-recurse-submodules"];
        let words = options.into_iter().chain(["--prune", "--"]);
        let words = words.chain([self.source.url()]).chain(specs.iter().map(String::as_str));
        self.git("fetch", words.map(OsStr::new)).map(drop)
    }

    /// The commit that a revision is; none where there is none such.
    fn resolve(&self, revision: &str) -> Result<Option<String>, GitError> {
        let peeled = match of_head(revision) {
            Some(steps) => format!("{HEAD}{steps}^{{commit}}"),
            None => format!("{revision}^{{commit}}"),
        };
        let words = ["rev-parse", "--quiet", "--verify", "--end-of-options", &peeled];
        match self.git("look into", words.map(OsStr::new)) {
            Ok(stdout) => {
                let text = String::from_utf8_lossy(&stdout);
                Ok(text.lines().next_back().and_then(|line| full_id(line.trim())))
            }
            // With --quiet, one that is not there has no words.
            Err(GitError::Git { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the files of a commit beside, and puts them in their place when they are whole.
    fn check_out(&self, commit: &str) -> Result<(), GitError> {
        let making = self.folder.join("making");
        match fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(self.no_cache(&making)(error));
            }
            _ => {}
        }
        let files = making.join("files");
        fs::create_dir_all(&files).map_err(self.no_cache(&files))?;
        let mut tree = std::ffi::OsString::from("--work-tree=");
        tree.push(&files);
        let index = making.join("index");
        let write = |words: &[&str]| {
            let words = [tree.as_os_str()].into_iter().chain(words.iter().map(OsStr::new));
            let mut command = self.command(Some(&self.repository()), words);
            command.env("GIT_INDEX_FILE", &index).current_dir(&files);
            self.run("check out", &mut command)
        };
        write(&["read-tree", commit])?;
        write(&["checkout-index", "--all", "--force", "--quiet"])?;
        let place = self.commit(commit);
        fs::rename(&files, &place).map_err(self.no_cache(&place))?;
        let _ = fs::remove_dir_all(&making);
        Ok(())
    }

    /// The place in a checkout that is asked for.
    fn found(&self, commit: String) -> Result<Checkout, GitError> {
        let place = self.commit(&commit);
        let root = place.canonicalize().map_err(self.no_cache(&place))?;
        let url = self.url.clone();
        let Some(inner) = self.source.folder() else {
            return Ok(Checkout { folder: root.clone(), root, commit, url });
        };
        let shown = || one_line(&inner.to_string_lossy(), 200);
        // A name of a test below a suite is no file: what there is of its path must not lead out.
        let mut part = root.join(inner);
        while part.symlink_metadata().is_err() && part != root {
            part.pop();
        }
        let is_inside = part.canonicalize().is_ok_and(|real| real.starts_with(&root));
        match () {
            () if part == root => Err(GitError::NoFolder { folder: shown(), url, commit }),
            () if !is_inside => Err(GitError::Outside { folder: shown(), url, commit }),
            () => Ok(Checkout { folder: root.join(inner), root, commit, url }),
        }
    }

    fn git<'w>(
        &self,
        doing: &'static str,
        words: impl IntoIterator<Item = &'w OsStr>,
    ) -> Result<Vec<u8>, GitError> {
        self.run(doing, &mut self.command(Some(&self.repository()), words))
    }

    fn git_plain<'w>(
        &self,
        doing: &'static str,
        words: impl IntoIterator<Item = &'w OsStr>,
    ) -> Result<Vec<u8>, GitError> {
        self.run(doing, &mut self.command(None, words))
    }

    fn command<'w>(
        &self,
        repository: Option<&Path>,
        words: impl IntoIterator<Item = &'w OsStr>,
    ) -> Command {
        let mut command = Command::new("git");
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "protocol.ext.allow=never",
            "submodule.recurse=false",
            "gc.auto=0",
            "maintenance.auto=false",
            "advice.detachedHead=false",
        ] {
            command.args(["-c", setting]);
        }
        if let Some(repository) = repository {
            let mut folder = std::ffi::OsString::from("--git-dir=");
            folder.push(repository);
            command.arg(folder);
        }
        for name in LOCAL {
            command.env_remove(name);
        }
        // Neither git nor ssh asks anybody: nobody may be there.
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        command.env("SSH_ASKPASS", "false").env("SSH_ASKPASS_REQUIRE", "force");
        command.args(words);
        command
    }

    fn run(&self, doing: &'static str, command: &mut Command) -> Result<Vec<u8>, GitError> {
        let url = self.url.clone();
        let said = |stderr: &[u8]| {
            let said = child::last_lines(stderr).replace(self.source.url(), &self.url);
            if said.is_empty() { "it did not say why".to_owned() } else { said }
        };
        match child::run(command, LIMITS, self.cancel) {
            Ok(ended) if ended.status.success() => Ok(ended.stdout),
            Ok(ended) => {
                let revision = self.source.revision().map(str::to_owned);
                Err(GitError::Git { doing, url, revision, said: said(&ended.stderr) })
            }
            Err(ChildError::Start(error)) => Err(GitError::NoGit(error)),
            Err(ChildError::TimedOut { stderr }) => {
                Err(GitError::TimedOut { doing, url, said: said(&stderr) })
            }
            Err(ChildError::Cancelled) => Err(GitError::Cancelled),
            Err(error @ (ChildError::TooMuch | ChildError::Wait(_))) => {
                Err(GitError::Git { doing, url, revision: None, said: error.to_string() })
            }
        }
    }
}

#[cfg(test)]
mod tests;
