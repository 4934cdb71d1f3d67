//! The digest of a memory file. Only pages that hold something count, so that it is the same however the file is stored.

use crate::digest::{Digest, Hasher};
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const PAGE: usize = 4096;

/// So much is read at a time.
const READ: usize = 256 * 1024;

/// The digest of a memory file: of the number and content of each page that is not all zero. `go_on` is asked now and
/// then; when it says no, there is none.
pub(super) fn ram_digest(path: &Path, go_on: &dyn Fn() -> bool) -> io::Result<Option<Digest>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; READ]);
    hasher.update(&len.to_le_bytes());
    let mut at = 0;
    while at < len {
        // Holes are zeros (lseek(2), SEEK_DATA).
        at = match seek(&file, at, Whence::SeekData)? {
            Some(data) => data / PAGE as u64 * PAGE as u64,
            None => break,
        };
        if !go_on() {
            return Ok(None);
        }
        let wanted = usize::try_from(len - at).unwrap_or(READ).min(READ);
        let Some(piece) = buffer.get_mut(..wanted) else { break };
        file.read_exact_at(piece, at)?;
        for (number, page) in (at / PAGE as u64..).zip(piece.chunks(PAGE)) {
            if page.iter().any(|&byte| byte != 0) {
                hasher.update(&number.to_le_bytes());
                hasher.update(page);
            }
        }
        at += wanted as u64;
    }
    Ok(Some(hasher.finish()))
}

/// Copies a memory file, without its holes.
pub(in crate::provision) fn copy_ram(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let len = from.metadata()?.len();
    let to = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    to.set_len(len)?;
    let mut at = 0;
    while let Some(data) = seek(&from, at, Whence::SeekData)? {
        let end = seek(&from, data, Whence::SeekHole)?.unwrap_or(len);
        let (mut read, mut written) = (loff(data)?, loff(data)?);
        while (read as u64) < end {
            let wanted = usize::try_from(end - read as u64).unwrap_or(usize::MAX);
            let (from_at, to_at) = (Some(&mut read), Some(&mut written));
            if copy_file_range(&from, from_at, &to, to_at, wanted)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    Ok(())
}

/// Where the next data or hole is (lseek(2)); none behind the last.
fn seek(file: &File, at: u64, what: Whence) -> io::Result<Option<u64>> {
    match lseek64(file, loff(at)?, what) {
        Ok(found) => Ok(Some(found as u64)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn loff(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_are_zeros_and_everything_else_counts() {
        let folder = tempfile::tempdir().unwrap();
        let [dense, sparse] = ["dense", "sparse"].map(|name| folder.path().join(name));
        let digest = |path: &Path| ram_digest(path, &|| true).unwrap().unwrap();
        let mut content = vec![0; 3 * 1024 * 1024];
        content[2 * 1024 * 1024 + 5] = 7;
        fs::write(&dense, &content).unwrap();
        let file = File::create(&sparse).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.write_all_at(&[7], 2 * 1024 * 1024 + 5).unwrap();
        let whole = digest(&dense);
        assert_eq!(digest(&sparse), whole);
        // The same byte on another page, another byte, another length.
        content.swap(2 * 1024 * 1024 + 5, 5);
        fs::write(&dense, &content).unwrap();
        assert_ne!(digest(&dense), whole);
        file.write_all_at(&[8], 2 * 1024 * 1024 + 5).unwrap();
        assert_ne!(digest(&sparse), whole);
        file.write_all_at(&[7], 2 * 1024 * 1024 + 5).unwrap();
        assert_eq!(digest(&sparse), whole);
        file.set_len(4 * 1024 * 1024).unwrap();
        assert_ne!(digest(&sparse), whole);
        assert_eq!(ram_digest(&sparse, &|| false).unwrap(), None);
        let copy = folder.path().join("copy");
        copy_ram(&sparse, &copy).unwrap();
        assert_eq!(digest(&copy), digest(&sparse));
        assert!(copy.metadata().unwrap().blocks() < 100);
        assert!(copy_ram(&sparse, &copy).is_err());
    }
}
