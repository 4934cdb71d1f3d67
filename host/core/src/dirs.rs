//! Where Guestline keeps things: XDG folders, or all below `GUESTLINE_HOME`.

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The one variable that moves everything.
pub const HOME_VARIABLE: &str = "GUESTLINE_HOME";

/// The folders of one user on this host. They may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Can be made again: images, packages, answers of probes.
    pub cache: PathBuf,
    /// Worth keeping: runs and their evidence.
    pub state: PathBuf,
    /// What the user wrote: `guestline.toml`.
    pub config: PathBuf,
    /// Gone with the process: machines' work folders. Short, since socket paths end at 108 bytes
    /// (unix(7)).
    pub runtime: PathBuf,
}

/// No folder can be told from the environment.
#[derive(Debug, thiserror::Error)]
#[error("neither GUESTLINE_HOME nor HOME is set to an absolute path")]
pub struct NoHome;

impl Dirs {
    /// From the environment of this process.
    ///
    /// # Errors
    /// [`NoHome`].
    pub fn from_env() -> Result<Self, NoHome> {
        Self::from(|name| env::var_os(name), Uid::current().as_raw())
    }

    /// All below one folder.
    pub fn below(home: &Path) -> Self {
        let [cache, state, config, runtime] =
            ["cache", "state", "config", "run"].map(|name| home.join(name));
        Self { cache, state, config, runtime }
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Self, NoHome> {
        // Relative paths are to be ignored (XDG Base Directory Specification).
        let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(home) = path(HOME_VARIABLE) {
            return Ok(Self::below(&home));
        }
        let home = path("HOME");
        let xdg = |name: &str, default: &str| {
            let base = path(name).or_else(|| Some(home.as_ref()?.join(default))).ok_or(NoHome)?;
            Ok(base.join("guestline"))
        };
        Ok(Self {
            cache: xdg("XDG_CACHE_HOME", ".cache")?,
            state: xdg("XDG_STATE_HOME", ".local/state")?,
            config: xdg("XDG_CONFIG_HOME", ".config")?,
            runtime: path("XDG_RUNTIME_DIR")
                .filter(|path| path.is_dir())
                .map(|path| path.join("guestline"))
                .unwrap_or_else(|| PathBuf::from(format!("/tmp/guestline-{uid}"))),
        })
    }
}

/// The folder that a file is in: the working folder for a name alone.
pub fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Writes a file that is there whole, or as it was.
pub(crate) fn write_whole(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, content)?;
    file.persist(folder.join(name))?;
    Ok(())
}

/// Waits until nobody else has a folder's own lock (flock(2)), which is held for a moment by whoever has it.
pub(crate) fn lock_folder(folder: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(folder)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Makes a folder that only its owner may enter (mode 0700), or checks that it is one.
///
/// # Errors
/// What making it gives, and `PermissionDenied` for a folder of somebody else, or a link.
pub fn make_private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = path.symlink_metadata()?;
            if found.is_dir() && found.uid() == Uid::current().as_raw() && found.mode() & 0o077 == 0
            {
                return Ok(());
            }
            let message = format!("`{}` is not a folder of ours with mode 0700", path.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(set: &[(&str, &str)]) -> Result<Dirs, NoHome> {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name);
        Dirs::from(|name| find(name).map(|(_, value)| OsString::from(*value)), 7)
    }

    #[test]
    fn one_variable_moves_everything() {
        let dirs = dirs(&[("GUESTLINE_HOME", "/g"), ("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]);
        let dirs = dirs.unwrap();
        assert_eq!(dirs.cache, Path::new("/g/cache"));
        assert_eq!(dirs.runtime, Path::new("/g/run"));
    }

    #[test]
    fn xdg_folders_otherwise_and_relative_ones_are_ignored() {
        let dirs = dirs(&[("HOME", "/h"), ("XDG_STATE_HOME", "rel"), ("XDG_CACHE_HOME", "/c")]);
        let dirs = dirs.unwrap();
        assert_eq!(dirs.cache, Path::new("/c/guestline"));
        assert_eq!(dirs.state, Path::new("/h/.local/state/guestline"));
        assert_eq!(dirs.runtime, Path::new("/tmp/guestline-7"));
        assert!(super::tests::dirs(&[]).is_err());
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        make_private(&path).unwrap();
        make_private(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        let open = parent.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        assert_eq!(make_private(&open).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
