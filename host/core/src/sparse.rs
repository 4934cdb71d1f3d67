//! Files with holes (lseek(2), `SEEK_DATA` and `SEEK_HOLE`).

use crate::digest::{Digest, Hasher};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Copied in pieces of this.
const PIECE: usize = 1 << 20;

/// Copies a file, whose holes and whose pages of zeros stay holes; `to` is a new one, and gone when this fails. Tells the
/// digest of its content.
///
/// # Errors
/// What reading and writing gives; `Interrupted` when it is cancelled.
pub(crate) fn copy(from: &Path, to: &Path, cancel: &CancellationToken) -> io::Result<Digest> {
    let mut source = File::open(from)?;
    let target = File::options().read(true).write(true).create_new(true).open(to)?;
    let copied = copy_content(&mut source, &target, cancel);
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

fn copy_content(
    source: &mut File,
    target: &File,
    cancel: &CancellationToken,
) -> io::Result<Digest> {
    const PAGE: usize = 4096;
    let len = source.seek(SeekFrom::End(0))?;
    target.set_len(len)?;
    let (mut hasher, mut at) = (Hasher::default(), 0);
    let mut piece = vec![0; PIECE];
    let zeros = vec![0; PIECE];
    while at < len {
        if cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        let data = next_data(source, at)?.unwrap_or(len).min(len);
        while at < data {
            let count = usize::try_from(data - at).unwrap_or(PIECE).min(PIECE);
            hasher.update(zeros.get(..count).unwrap_or_default());
            at += count as u64;
        }
        if at == len {
            break;
        }
        source.seek(SeekFrom::Start(at))?;
        let count = source.read(&mut piece)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it became shorter while it was read",
            ));
        }
        let bytes = piece.get(..count).unwrap_or_default();
        hasher.update(bytes);
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                target.write_all_at(page, at + (number * PAGE) as u64)?;
            }
        }
        at += count as u64;
    }
    Ok(hasher.finish())
}

/// Where the next data begins; none when only a hole follows. A file system that knows no holes has data everywhere.
///
/// # Errors
/// What lseek(2) gives.
pub(crate) fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(at).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_content_and_no_more_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        let file = File::create(&from).unwrap();
        file.set_len(50_000_000).unwrap();
        file.write_all_at(b"here", 20_000_000).unwrap();
        file.write_all_at(&[0; 500_000], 30_000_000).unwrap();
        let digest = copy(&from, &to, &CancellationToken::new()).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        assert_eq!(digest, Digest::of_file(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() < 100);
        // What is there stays.
        assert!(copy(&from, &to, &CancellationToken::new()).is_err());
        assert!(to.exists());
        fs::remove_file(&to).unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert!(copy(&from, &to, &cancel).is_err());
        assert!(!to.exists());
    }
}
