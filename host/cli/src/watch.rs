//! `guestline run --watch`: the same command again whenever what it runs has changed.
//!
//! Each run is a process of its own: it reads all anew, and an interrupt ends it as it ends any other.

use crate::args::RunArgs;
use crate::context::Context;
use crate::error::CommandError;
use crate::signals;
use crate::suites;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often files are looked at; what has changed is left in peace for as long before it is run.
const LOOK: Duration = Duration::from_millis(300);

/// More files are not looked at.
const MAX_FILES: usize = 50_000;

/// What tells that a file is another one: when it was changed, to the nanosecond, and how long it is.
type Mark = (i64, i64, u64, u64);

/// Runs the command line without `--watch`, and again after each change, until it is interrupted.
pub(crate) fn again_and_again(args: &RunArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cancel = CancellationToken::new();
    let interrupted = {
        let _context = runtime.enter();
        signals::listen(cancel.clone(), args.options.bisect)?
    };
    let words: Vec<OsString> =
        std::env::args_os().skip(1).filter(|word| word != "--watch").collect();
    let program = std::env::current_exe()?;
    runtime.block_on(async {
        loop {
            let before = look(&watched(args, &context, &cancel));
            let mut command = tokio::process::Command::from(Command::new(&program));
            // In a group of its own, so that an interrupt reaches it once, from here.
            let mut child = command.args(&words).process_group(0).kill_on_drop(true).spawn()?;
            let status = tokio::select! {
                status = child.wait() => status?,
                () = cancel.cancelled() => {
                    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                    if let Some(pid) = pid {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
                    }
                    child.wait().await?
                }
            };
            if interrupted.get().is_some() {
                return Ok(interrupted.status());
            }
            if status.signal().is_some() {
                return Err(CommandError::new(format!("the run ended by itself: {status}")));
            }
            eprintln!("waiting for a change");
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = cancel.cancelled() => return Ok(interrupted.status()),
                }
                let paths = watched(args, &context, &cancel);
                let now = look(&paths);
                if now == before {
                    continue;
                }
                // An editor may be in the midst of it.
                tokio::time::sleep(LOOK).await;
                if look(&paths) == now {
                    break;
                }
            }
        }
    })
}

/// Folders and files that a run turns on. A suite that cannot be read is looked at where it is named.
fn watched(args: &RunArgs, context: &Context, cancel: &CancellationToken) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = args.select.environment.clone();
    match suites::select(&args.select, context, cancel) {
        Ok(selected) => {
            for suite in selected.found.suites.iter().filter(|suite| suite.origin.is_none()) {
                paths.push(suite.root.clone());
                paths.extend(suite.libs.values().map(|lib| lib.root.clone()));
            }
        }
        Err(_) if args.select.references.is_empty() => paths.push(".".into()),
        Err(_) => paths.extend(args.select.references.iter().map(PathBuf::from)),
    }
    for words in &args.select.matrix {
        let values = words.split_once('=').map_or("", |(_, values)| values);
        paths.extend(values.split(',').map(PathBuf::from).filter(|path| path.is_file()));
    }
    paths
}

fn look(paths: &[PathBuf]) -> BTreeMap<PathBuf, Mark> {
    let mut marks = BTreeMap::new();
    for path in paths {
        add(path, &mut marks);
    }
    marks
}

fn add(path: &Path, marks: &mut BTreeMap<PathBuf, Mark>) {
    let Ok(found) = path.metadata() else { return };
    if marks.len() >= MAX_FILES {
        return;
    }
    if !found.is_dir() {
        let mark = (found.mtime(), found.mtime_nsec(), found.len(), found.ino());
        marks.insert(path.to_owned(), mark);
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let is_link_to_folder =
            entry.file_type().is_ok_and(|kind| kind.is_symlink()) && entry.path().is_dir();
        if !is_hidden && !is_link_to_folder && entry.file_name() != "__pycache__" {
            add(&entry.path(), marks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_and_hidden_files_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().to_owned()];
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/x"), "1").unwrap();
        let before = look(&paths);
        assert_eq!(before.len(), 1);
        fs::write(folder.path().join(".x.swp"), "1").unwrap();
        assert_eq!(look(&paths), before);
        fs::write(folder.path().join("sub/x"), "12").unwrap();
        assert_ne!(look(&paths), before);
        let changed = look(&paths);
        fs::write(folder.path().join("sub/y"), "").unwrap();
        assert_ne!(look(&paths), changed);
    }
}
