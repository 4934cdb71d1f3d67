//! Work folders: private, one for each machine, gone with it.
//!
//! ```text
//! RUNTIME/RUN/lock        held (flock(2)) by the process that owns the run
//! RUNTIME/RUN/1, 2, …     one for each machine
//! ```
//! A process that is killed cannot clean up. So a guard, a small shell that holds the other end of a pipe,
//! removes the run's folder when the pipe closes; should that be killed too, the next process finds
//! the lock free and sweeps.

use crate::dirs::{Dirs, lock_folder, make_private};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tracing::info;
use ulid::Ulid;

/// The guard: waits for its standard input to end, deaf to signals of the terminal, then removes.
const GUARD: &str = "trap '' HUP INT TERM QUIT; read -r _; exec rm -rf -- \"$1\"";

/// Marks the folder of a run that is to be kept.
const KEEP: &str = "keep";

/// The folder of one run, removed when the last of its users is gone.
#[derive(Debug, Clone)]
pub struct WorkRoot(Arc<Root>);

#[derive(Debug)]
struct Root {
    path: PathBuf,
    keep: bool,
    next: AtomicU32,
    _lock: Flock<File>,
    guard: Option<Child>,
}

/// The folder of one machine, removed when dropped.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    root: Arc<Root>,
}

impl WorkRoot {
    /// Makes the folder of a run, and sweeps those of runs whose process is gone. With `keep`, nothing
    /// of this run is removed.
    ///
    /// # Errors
    /// What making it gives.
    pub fn create(dirs: &Dirs, keep: bool) -> io::Result<Self> {
        make_private(&dirs.runtime)?;
        // One process at a time makes and sweeps: a folder without a lock belongs to the dead.
        let _turn = lock_folder(&dirs.runtime)?;
        let swept = sweep(&dirs.runtime);
        if swept > 0 {
            info!(swept, "removed work folders of runs that had died");
        }
        // Short: the path of a socket ends at 108 bytes.
        let name = Ulid::generate().to_string().to_lowercase();
        let path = dirs.runtime.join(&name[name.len() - 10..]);
        make_private(&path)?;
        let guard = match keep {
            true => {
                File::create(path.join(KEEP))?;
                None
            }
            false => Some(guard(&path)?),
        };
        let lock = lock(&path)?;
        let root = Root { path, keep, next: AtomicU32::new(1), _lock: lock, guard };
        Ok(Self(Arc::new(root)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The folder of all runs of this user.
    pub(super) fn runtime(&self) -> &Path {
        self.0.path.parent().unwrap_or(&self.0.path)
    }

    /// A folder for the next machine.
    pub(super) fn machine_folder(&self) -> io::Result<WorkFolder> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.0.path.join(number.to_string());
        make_private(&path)?;
        Ok(WorkFolder { path, root: self.0.clone() })
    }
}

impl WorkFolder {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if !self.root.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
        if let Some(guard) = &mut self.guard {
            // Its input ends here; it finds nothing left and is gone.
            guard.stdin.take();
            let _ = guard.wait();
        }
    }
}

fn lock(folder: &Path) -> io::Result<Flock<File>> {
    let file = File::create(folder.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

fn guard(folder: &Path) -> io::Result<Child> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARD, "guestline-guard"]).arg(folder).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

/// Removes the folders of runs whose lock nobody holds, and counts them.
fn sweep(runtime: &Path) -> usize {
    let folders = fs::read_dir(runtime).into_iter().flatten().flatten().map(|entry| entry.path());
    folders
        .filter(|folder| {
            // A run that is kept has its mark.
            let dead = !folder.join(KEEP).exists()
                && File::create(folder.join("lock"))
                    .is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
            dead && fs::remove_dir_all(folder).is_ok()
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn folders_are_private_and_gone_with_their_owner() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let root = WorkRoot::create(&dirs, false).unwrap();
        let folder = root.machine_folder().unwrap();
        let mode = folder.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(root);
        assert_eq!(names(&dirs.runtime), 1);
        drop(folder);
        assert_eq!(names(&dirs.runtime), 0);
    }

    #[test]
    fn what_the_dead_left_is_swept_and_what_the_living_have_is_not() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let living = WorkRoot::create(&dirs, false).unwrap();
        let dead = dirs.runtime.join("dead");
        fs::create_dir_all(dead.join("1")).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        let another = WorkRoot::create(&dirs, false).unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists() && another.path().exists());
    }

    #[test]
    fn what_is_kept_stays() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let root = WorkRoot::create(&dirs, true).unwrap();
        let path = root.machine_folder().unwrap().path().to_owned();
        drop(root);
        drop(WorkRoot::create(&dirs, false).unwrap());
        assert!(path.exists());
    }
}
