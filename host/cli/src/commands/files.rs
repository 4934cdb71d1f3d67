//! `guestline push` and `guestline pull`: files, as cp(1) would.

use crate::args::{PullArgs, PushArgs};
use crate::error::CommandError;
use crate::machines::{self, Attached, Failure};
use crate::terminal::Progress;
use guestline::guest::{FilesError, PullOptions, PushOptions, Transferred};
use guestline::text;
use guestline_harness::lab::copy::{name_in, place};
use guestline_protocol::{FileKind, TreeCounts};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Something could not be copied.
const INCOMPLETE: u8 = 1;

/// A transfer that takes longer shows how it gets on.
const LONG: Duration = Duration::from_millis(500);

pub(crate) fn push(args: &PushArgs) -> Result<u8, CommandError> {
    let (from, to) = split(&args.paths)?;
    let to = guest_path(to);
    machines::run_to_clean_up(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let guest = &attached.guest;
        let is_folder = guest.stat(&to, true).await.is_ok_and(|info| info.kind == FileKind::Folder);
        let into = is_folder || to.ends_with(b"/");
        if !into && from.len() > 1 {
            return Err(no_folder(&format!("`{}` in {}", text::escape(&to), args.name)));
        }
        if into && !is_folder {
            let made = guest.make_folder(&to, 0o755, true).await;
            if let Err(error) = made {
                return Err(attached.up.explain(error).await);
            }
        }
        let mut all = Transferred::default();
        for from in from {
            let spool;
            let (from, name) = match from.as_bytes() {
                b"-" if into => {
                    let to = text::escape(&to);
                    return Err(Failure::new(format!(
                        "`{to}` is a folder, and standard input has no name"
                    )));
                }
                b"-" => {
                    spool = spooled().await?;
                    (spool.path(), None)
                }
                bytes => (Path::new(from), into.then(|| name_in(bytes))),
            };
            let (to, contents) = place(&to, name);
            let options = PushOptions { into: contents, owners: args.owners };
            add(&mut all, watched(&attached, guest.push(from, &to, options)).await?);
        }
        Ok(report(&args.name, &all))
    })
}

pub(crate) fn pull(args: &PullArgs) -> Result<u8, CommandError> {
    let (from, to) = split(&args.paths)?;
    machines::run_to_clean_up(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let guest = &attached.guest;
        let to_stdout = to.as_bytes() == b"-";
        let into = !to_stdout && (Path::new(to).is_dir() || to.as_bytes().ends_with(b"/"));
        if !to_stdout && !into && from.len() > 1 {
            return Err(no_folder(&format!("`{}`", Path::new(to).display())));
        }
        if into {
            std::fs::create_dir_all(to)?;
        }
        let options = PullOptions {
            into: false,
            follow: false,
            owners: args.owners,
            nodes: args.owners,
            special_bits: args.owners,
            max_bytes: Some(args.max_bytes),
            max_entries: Some(args.max_entries),
            keep_free: Some(args.keep_free),
        };
        let mut all = Transferred::default();
        for from in from {
            let from = guest_path(from);
            if !to_stdout {
                let (to, contents) = place(to.as_bytes(), into.then(|| name_in(&from)));
                let options = PullOptions { into: contents, ..options };
                let to = Path::new(OsStr::from_bytes(&to));
                add(&mut all, watched(&attached, guest.pull(&from, to, options)).await?);
                continue;
            }
            // Whole and checked before the first byte is written.
            let folder = tempfile::tempdir()?;
            let file = folder.path().join("pulled");
            let options = PullOptions { follow: true, ..options };
            let done = watched(&attached, guest.pull(&from, &file, options)).await?;
            if !file.symlink_metadata()?.is_file() {
                let from = text::escape(&from);
                return Err(Failure::new(format!("`{from}` in {} is no file", args.name)));
            }
            let copied = tokio::task::spawn_blocking(move || {
                io::copy(&mut std::fs::File::open(file)?, &mut io::stdout().lock())
            });
            match copied.await? {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
                _ => add(&mut all, done),
            }
        }
        Ok(report(&args.name, &all))
    })
}

/// Several things go into a folder only.
fn no_folder(to: &str) -> Failure {
    Failure::new(format!("{to} is no folder")).hint("end it with / to have it made")
}

fn split(paths: &[OsString]) -> Result<(&[OsString], &OsStr), CommandError> {
    if paths.iter().any(|path| path.is_empty()) {
        return Err(
            CommandError::new("a path is empty").hint("`/` is the guest's root, `.` this folder")
        );
    }
    match paths.split_last() {
        Some((to, from)) if !from.is_empty() => Ok((from, to)),
        _ => Err(CommandError::new("what to copy, and where to, are wanted")),
    }
}

/// A path in a guest, from its `/`.
fn guest_path(path: &OsStr) -> Vec<u8> {
    let path = path.as_bytes();
    match path.first() {
        Some(b'/') => path.to_vec(),
        _ => [b"/", path].concat(),
    }
}

/// Standard input as a file: a transfer says first how long a file is.
async fn spooled() -> Result<tempfile::NamedTempFile, Failure> {
    let spooling = tokio::task::spawn_blocking(|| {
        use std::os::unix::fs::PermissionsExt;
        let mut file = tempfile::NamedTempFile::new()?;
        io::copy(&mut io::stdin().lock(), &mut file)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        Ok::<_, io::Error>(file)
    });
    Ok(spooling.await??)
}

/// Waits for a transfer, and shows on a terminal how it gets on.
async fn watched(
    attached: &Attached,
    transfer: impl Future<Output = Result<Transferred, FilesError>>,
) -> Result<Transferred, Failure> {
    let (began, before) = (Instant::now(), attached.passed.bytes());
    let mut progress = Progress::new();
    let mut transfer = std::pin::pin!(transfer);
    let done = loop {
        tokio::select! {
            done = &mut transfer => break done,
            () = tokio::time::sleep(LONG) => {
                let bytes = attached.passed.bytes().saturating_sub(before) as f64;
                let rate = bytes / began.elapsed().as_secs_f64();
                progress.show(&format!("{:.1} MB  {:.1} MB/s", bytes / 1e6, rate / 1e6));
            }
        }
    };
    progress.clear();
    match done {
        Ok(done) => Ok(done),
        Err(FilesError::Link(error)) => Err(attached.up.explain(error).await),
        Err(error) => {
            let hint = match &error {
                FilesError::TooLong { .. } => Some("--max-bytes SIZE allows more"),
                FilesError::TooMany { .. } => Some("--max-entries N allows more"),
                FilesError::NoRoom { .. } => Some("--keep-free SIZE leaves less free"),
                _ => None,
            };
            let failure = Failure::from(error);
            Err(match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
    }
}

fn add(all: &mut Transferred, more: Transferred) {
    let (a, b) = (&all.counts, &more.counts);
    all.counts = TreeCounts {
        items: a.items + b.items,
        troubles: a.troubles + b.troubles,
        bytes: a.bytes + b.bytes,
    };
    all.troubles.extend(more.troubles);
}

fn report(name: &guestline::supervise::MachineName, all: &Transferred) -> u8 {
    for trouble in &all.troubles {
        let path = text::one_line(&String::from_utf8_lossy(&trouble.path), 300);
        let at = if path.is_empty() { String::new() } else { format!("{path}: ") };
        eprintln!("guestline: {name}: {at}{}", trouble.error);
    }
    let told = u64::try_from(all.troubles.len()).unwrap_or(u64::MAX);
    if all.counts.troubles > told {
        eprintln!("guestline: {name}: and {} more", all.counts.troubles - told);
    }
    if all.counts.troubles == 0 && told == 0 { 0 } else { INCOMPLETE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_guest_begin_at_its_root() {
        assert_eq!(guest_path(OsStr::new("etc/hosts")), b"/etc/hosts");
        assert_eq!(guest_path(OsStr::new("/etc")), b"/etc");
    }
}
