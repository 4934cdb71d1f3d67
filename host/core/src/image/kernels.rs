//! Kernels as QEMU boots them: the `vmlinux` out of a `bzImage`, unpacked once, however many images have that kernel.
//!
//! ```text
//! CACHE/kernels/1/DIGEST/   vmlinux (sparse), seal.json, lock; DIGEST is the bzImage's
//! ```
//! Where none can be kept, the guest unpacks its kernel by itself.

use super::kernel;
use crate::digest::Digest;
use crate::dirs::{Dirs, make_private};
use crate::folder_lock::FolderLock;
use crate::kept::{Condition, Kept, folders};
use crate::seal::FileSeal;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VMLINUX: &str = "vmlinux";
const SEAL: &str = "seal.json";
const MAKING: &str = ".making-";
const PAGE: usize = 4096;

/// The kernels of one user.
#[derive(Debug, Clone)]
pub(crate) struct Kernels {
    folder: PathBuf,
}

/// A kernel file that QEMU can boot. It is not removed while this is there, if it is ours.
#[derive(Debug, Clone)]
pub(crate) struct Bootable {
    pub(crate) path: PathBuf,
    _lock: Option<Arc<FolderLock>>,
}

impl Bootable {
    /// A file as it is.
    pub(crate) fn plain(path: PathBuf) -> Self {
        Self { path, _lock: None }
    }
}

impl Kernels {
    pub(crate) fn new(dirs: &Dirs) -> Self {
        Self { folder: dirs.cache.join("kernels/1") }
    }

    /// What QEMU is to boot for a kernel with this digest, whose content is `read`; none when that is what it is.
    pub(crate) fn unpacked(
        &self,
        digest: &Digest,
        read: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Option<Bootable> {
        let folder = self.folder.join(digest.short());
        open(&folder).or_else(|| {
            self.unpack(&read().ok()?, &folder).ok()?;
            open(&folder)
        })
    }

    /// As [`Self::unpacked`], or the kernel file itself.
    pub(crate) fn bootable(&self, path: &Path, digest: &Digest) -> Bootable {
        let unpacked = self.unpacked(digest, || fs::read(path));
        unpacked.unwrap_or_else(|| Bootable::plain(path.to_owned()))
    }

    fn unpack(&self, bzimage: &[u8], folder: &Path) -> io::Result<()> {
        let vmlinux = kernel::vmlinux(bzimage).ok_or(io::ErrorKind::Unsupported)?;
        fs::create_dir_all(self.folder.parent().unwrap_or(&self.folder))?;
        make_private(&self.folder)?;
        self.sweep();
        let making = tempfile::Builder::new().prefix(MAKING).tempdir_in(&self.folder)?;
        write_sparse(&making.path().join(VMLINUX), &vmlinux)?;
        FolderLock::make(making.path())?;
        let found = fs::symlink_metadata(making.path().join(VMLINUX))?;
        let seal = Seal { file: FileSeal::of(VMLINUX, &found), sha256: Digest::of(&vmlinux) };
        fs::write(making.path().join(SEAL), serde_json::to_vec(&seal)?)?;
        // What is there is damaged, or somebody else's who was quicker.
        if open(folder).is_none() {
            let _ = fs::remove_dir_all(folder);
            fs::rename(making.path(), folder)?;
            let _ = making.keep();
        }
        Ok(())
    }

    /// Removes what the dead left behind: a maker takes a second.
    fn sweep(&self) {
        for left in folders(&self.folder) {
            let is_making =
                left.file_name().is_some_and(|name| name.to_string_lossy().starts_with(MAKING));
            let age = fs::metadata(&left).and_then(|found| found.modified()).ok();
            let is_old =
                age.and_then(|age| age.elapsed().ok()).is_some_and(|age| age.as_secs() > 60);
            if is_making && is_old {
                let _ = fs::remove_dir_all(left);
            }
        }
    }

    /// All that is there.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let condition = |folder: &Path| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            match is_whole(folder) {
                _ if name.starts_with(MAKING) => Condition::Making,
                true => Condition::Ready,
                false => Condition::Damaged(format!("{VMLINUX} is not what was unpacked")),
            }
        };
        folders(&self.folder).into_iter().map(|folder| Kept::look(folder, condition)).collect()
    }

    /// Removes a kernel, unless somebody uses it; false then.
    ///
    /// # Errors
    /// What removing it gives.
    pub(crate) fn remove(&self, kept: &Kept) -> io::Result<bool> {
        let _lock = match FolderLock::exclusive(&kept.folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        fs::remove_dir_all(&kept.folder).map(|()| true)
    }
}

fn open(folder: &Path) -> Option<Bootable> {
    let lock = match FolderLock::shared(folder) {
        Ok(Some(lock)) => lock,
        _ => return None,
    };
    if !is_whole(folder) {
        return None;
    }
    lock.note_use();
    Some(Bootable { path: folder.join(VMLINUX), _lock: Some(Arc::new(lock)) })
}

fn is_whole(folder: &Path) -> bool {
    let found = fs::symlink_metadata(folder.join(VMLINUX));
    let known = seal(folder).zip(found.ok());
    known.is_some_and(|(known, found)| known.file.difference(&found).is_none())
}

/// Reads all of it. Says what is wrong.
///
/// # Errors
/// In words.
pub(crate) fn verify(kept: &Kept) -> Result<(), String> {
    let found =
        Digest::of_file(&kept.folder.join(VMLINUX)).map_err(|e| format!("{VMLINUX}: {e}"))?;
    match seal(&kept.folder).is_some_and(|seal| seal.sha256 == found) {
        true => Ok(()),
        false => Err(format!("{VMLINUX} has another content")),
    }
}

fn seal(folder: &Path) -> Option<Seal> {
    serde_json::from_slice(&fs::read(folder.join(SEAL)).ok()?).ok()
}

/// What the file was when it was unpacked.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    file: FileSeal,
    sha256: Digest,
}

/// Writes what is not zero; a kernel's unpacked image is four tenths zeros.
fn write_sparse(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o400).open(path)?;
    file.set_len(bytes.len() as u64)?;
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, (number * PAGE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_packed_kernel_is_booted_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let kernels = Kernels::new(&Dirs::below(home.path()));
        let path = home.path().join("bzImage");
        fs::write(&path, "none").unwrap();
        assert_eq!(kernels.bootable(&path, &Digest::of(b"none")).path, path);
        assert!(kernels.kept().is_empty());
    }

    #[test]
    fn zeros_take_no_room() {
        use std::os::unix::fs::MetadataExt;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        write_sparse(&path, &bytes).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert!(fs::metadata(&path).unwrap().blocks() < 100);
    }
}
