//! Kernels as QEMU boots them: the `vmlinux` out of a `bzImage`, unpacked once, however many images have that kernel.
//!
//! ```text
//! CACHE/kernels/1/DIGEST/   vmlinux (sparse); DIGEST is the bzImage's
//! ```
//! Where none can be kept, the guest unpacks its kernel by itself.

use super::drawer::{Drawer, Drawn};
use super::kernel;
use crate::digest::Digest;
use crate::dirs::Dirs;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const VMLINUX: &str = "vmlinux";
const PAGE: usize = 4096;

/// The kernels of one user.
#[derive(Debug, Clone)]
pub(crate) struct Kernels(Drawer);

/// A kernel file that QEMU can boot. It is not removed while this is there, if it is ours.
#[derive(Debug, Clone)]
pub(crate) struct Bootable {
    pub(crate) path: PathBuf,
    _drawn: Option<Drawn>,
}

impl Bootable {
    /// A file as it is.
    pub(crate) fn plain(path: PathBuf) -> Self {
        Self { path, _drawn: None }
    }
}

impl Kernels {
    pub(crate) fn new(dirs: &Dirs) -> Self {
        Self(Drawer::of_kernels(dirs))
    }

    /// What QEMU is to boot for a kernel with this digest, whose content is `read`; none when that is what it is.
    pub(crate) fn unpacked(
        &self,
        digest: &Digest,
        read: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Option<Bootable> {
        let drawn = self.0.get(digest.short(), |folder| {
            let vmlinux = kernel::vmlinux(&read()?).ok_or(io::ErrorKind::Unsupported)?;
            write_sparse(&folder.join(VMLINUX), &vmlinux)
        });
        let drawn = drawn.ok()?;
        Some(Bootable { path: drawn.folder().join(VMLINUX), _drawn: Some(drawn) })
    }

    /// As [`Self::unpacked`], or the kernel file itself.
    pub(crate) fn bootable(&self, path: &Path, digest: &Digest) -> Bootable {
        let unpacked = self.unpacked(digest, || fs::read(path));
        unpacked.unwrap_or_else(|| Bootable::plain(path.to_owned()))
    }
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
        assert!(kernels.0.kept().is_empty());
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
