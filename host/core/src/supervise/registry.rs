//! Which machines are up, and what became of those that are not.
//!
//! ```text
//! RUNTIME/RUN/machine.json    whose this run's folder is; gone with the folder
//! RUNTIME/RUN/ctl.sock        answers as long as the supervisor lives
//! RUNTIME/RUN/link.sock       sessions with the guest
//! STATE/machines/NAME.json    the last word on a machine
//! ```
//! A name is up when a folder that claims it has a supervisor that answers; a claim is made under the lock of the
//! runtime folder, so two supervisors cannot hold one name.

use super::control::{Ended, How};
use super::name::MachineName;
use crate::dirs::{Dirs, lock_folder, make_private, write_whole};
use crate::local_socket::{connect, listen};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// In the folder of a supervisor.
pub(super) const CONTROL_SOCKET: &str = "ctl.sock";
pub(super) const LINK_SOCKET: &str = "link.sock";
const CLAIM: &str = "machine.json";

/// Version of the files.
const VERSION: u32 = 1;

/// A name could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It is up.
    #[error("`{name}` is up already")]
    Up {
        /// The name.
        name: MachineName,
    },
    /// The folder.
    #[error("cannot make a machine's files in `{folder}`", folder = folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Claim {
    version: u32,
    name: MachineName,
    pid: u32,
}

/// The sockets of a supervisor.
pub(super) struct Sockets {
    pub(super) control: UnixListener,
    pub(super) link: UnixListener,
}

/// The folders of the machines that are up, by name.
pub fn list(dirs: &Dirs) -> Vec<(MachineName, PathBuf)> {
    let folders = fs::read_dir(&dirs.runtime).into_iter().flatten().flatten();
    let mut up: Vec<_> = folders
        .filter_map(|entry| {
            let folder = entry.path();
            let claim = fs::read(folder.join(CLAIM)).ok()?;
            let claim: Claim = serde_json::from_slice(&claim).ok()?;
            // What a supervisor left that was killed is swept by the next machine.
            (claim.version == VERSION && connect(&folder, CONTROL_SOCKET).is_ok())
                .then_some((claim.name, folder))
        })
        .collect();
    up.sort();
    up
}

/// The folder of a machine that is up.
pub fn find(dirs: &Dirs, name: &MachineName) -> Option<PathBuf> {
    list(dirs).into_iter().find_map(|(up, folder)| (up == *name).then_some(folder))
}

/// Takes a name for the supervisor whose folder this is, and listens.
pub(super) fn claim(
    dirs: &Dirs,
    folder: &Path,
    name: &MachineName,
) -> Result<Sockets, RegistryError> {
    let wrong = |source: io::Error| RegistryError::Folder { folder: folder.to_owned(), source };
    let control = listen(folder, CONTROL_SOCKET).map_err(wrong)?;
    let link = listen(folder, LINK_SOCKET).map_err(wrong)?;
    let _turn = lock_folder(&dirs.runtime).map_err(wrong)?;
    if find(dirs, name).is_some() {
        return Err(RegistryError::Up { name: name.clone() });
    }
    let claim = Claim { version: VERSION, name: name.clone(), pid: std::process::id() };
    write_whole(folder, CLAIM, &serde_json::to_vec(&claim).unwrap_or_default()).map_err(wrong)?;
    Ok(Sockets { control, link })
}

/// Gives the name back.
pub(super) fn release(folder: &Path) {
    let _ = fs::remove_file(folder.join(CLAIM));
}

/// What became of a machine; none when it was never up, or for so long that nobody knows.
pub fn last_word(dirs: &Dirs, name: &MachineName) -> Option<Ended> {
    let text = fs::read(dirs.state.join("machines").join(format!("{name}.json"))).ok()?;
    let word: Ended = serde_json::from_slice(&text).ok()?;
    (word.version == VERSION).then_some(word)
}

/// Keeps the last word on a machine, also the one that it runs: should no other follow, its supervisor was killed.
pub(super) fn keep_word(dirs: &Dirs, name: &MachineName, word: &Ended) -> io::Result<()> {
    let folder = dirs.state.join("machines");
    make_private(&folder)?;
    write_whole(&folder, &format!("{name}.json"), &serde_json::to_vec(word)?)
}

/// The word on a machine from now on.
pub(super) fn word(how: How, why: String) -> Ended {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ended { version: VERSION, at_us: u64::try_from(since.as_micros()).unwrap_or(0), how, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(home: &Path) -> Dirs {
        let dirs = Dirs::below(home);
        fs::create_dir_all(&dirs.runtime).unwrap();
        dirs
    }

    #[test]
    fn a_name_is_taken_once_and_free_when_its_supervisor_is_gone() {
        let home = tempfile::tempdir().unwrap();
        // A path of a socket that is too long by itself.
        let home = home.path().join("x".repeat(120));
        let dirs = dirs(&home);
        let name: MachineName = "web".parse().unwrap();
        let folders = ["1", "2"].map(|name| dirs.runtime.join(name));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
        }
        let sockets = claim(&dirs, &folders[0], &name).unwrap();
        assert_eq!(list(&dirs), [(name.clone(), folders[0].clone())]);
        let again = claim(&dirs, &folders[1], &name);
        assert!(matches!(again, Err(RegistryError::Up { .. })));
        let other: MachineName = "db".parse().unwrap();
        fs::remove_file(folders[1].join(CONTROL_SOCKET)).unwrap();
        fs::remove_file(folders[1].join(LINK_SOCKET)).unwrap();
        claim(&dirs, &folders[1], &other).unwrap();
        // Its supervisor is killed: nobody answers.
        drop(sockets);
        assert_eq!(find(&dirs, &name), None);
    }

    #[test]
    fn the_last_word_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let dirs = dirs(home.path());
        let name: MachineName = "web".parse().unwrap();
        assert_eq!(last_word(&dirs, &name), None);
        let ended = word(How::PoweredOff, "it powered itself off".to_owned());
        keep_word(&dirs, &name, &ended).unwrap();
        assert_eq!(last_word(&dirs, &name), Some(ended));
    }
}
