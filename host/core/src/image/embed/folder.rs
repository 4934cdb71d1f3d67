//! A root in a folder of this host.

use super::root::{Node, Root};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A folder that is a root.
#[derive(Debug)]
pub struct FolderRoot {
    folder: PathBuf,
}

impl FolderRoot {
    /// The root that a folder is.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}

impl Root for FolderRoot {
    fn look(&mut self, path: &Path) -> io::Result<Option<Node>> {
        let path = self.at(path);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let kind = found.file_type();
        Ok(Some(match () {
            () if kind.is_dir() => Node::Folder,
            () if kind.is_file() => Node::File { mode: found.mode() & 0o7777, len: found.len() },
            () if kind.is_symlink() => Node::Link { target: fs::read_link(&path)? },
            () => Node::Other,
        }))
    }

    fn read(&mut self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        // A link or a pipe that took the file's place meanwhile is not opened.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(self.at(path))?;
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok(content)
    }

    fn list(&mut self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(self.at(path))?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let path = self.at(path);
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        // Whatever the mask of this process is.
        fs::set_permissions(&path, Permissions::from_mode(0o755))
    }

    fn write(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = self.at(path);
        let folder = path.parent().unwrap_or(&self.folder);
        let mut file = tempfile::Builder::new().prefix(".guestline-").tempfile_in(folder)?;
        file.write_all(content)?;
        if let Ok(before) = fs::symlink_metadata(&path) {
            // A file of others that gets a line more stays theirs.
            std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()))?;
        }
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }

    fn make_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, self.at(path))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let path = self.at(path);
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir(path),
            false => fs::remove_file(path),
        }
    }
}
