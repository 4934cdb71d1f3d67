//! Memory files: their pages that hold something as a stream, its digest, and copies without zeros.
//!
//! The stream is the file's length, and of each page that is not all zero its number and its content; numbers have eight
//! bytes, the least first. So it, and its digest, are the same however the file is stored.

use crate::digest::{Digest, Hasher};
use crate::sparse::next_data;
use nix::fcntl::posix_fallocate;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// So much is looked at, and copied, as a whole.
pub(super) const PAGE: usize = 4096;

const ZEROS: [u8; PAGE] = [0; PAGE];

/// So much is read at a time.
const READ: usize = 256 * 1024;

/// The digest of a memory file's stream. `go_on` is asked now and then; when it says no, there is none.
pub(super) fn ram_digest(path: &Path, go_on: &dyn Fn() -> bool) -> io::Result<Option<Digest>> {
    Ok(survey_ram(path, go_on)?.map(|(digest, _)| digest))
}

/// As [`ram_digest`], with the length of the stream.
pub(in crate::provision) fn survey_ram(
    path: &Path,
    go_on: &dyn Fn() -> bool,
) -> io::Result<Option<(Digest, u64)>> {
    let (mut hasher, mut len) = (Hasher::default(), 0);
    let whole = stream_ram(path, go_on, &mut |piece| {
        hasher.update(piece);
        len += piece.len() as u64;
        Ok(())
    })?;
    Ok(whole.then(|| (hasher.finish(), len)))
}

/// Gives the stream of a memory file, piece by piece. False when `go_on` said no.
pub(in crate::provision) fn stream_ram(
    path: &Path,
    go_on: &dyn Fn() -> bool,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    let file = File::open(path)?;
    take(&file.metadata()?.len().to_le_bytes())?;
    each_run(&file, go_on, &mut |at, run| {
        for (number, page) in (at / PAGE as u64..).zip(run.chunks(PAGE)) {
            take(&number.to_le_bytes())?;
            take(page)?;
        }
        Ok(())
    })
}

/// Makes a memory file of zeros.
pub(super) fn make_ram(path: &Path, len: u64) -> io::Result<File> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(len)?;
    // There a page is allocated when it is first seen through a mapping, and on a full disk that kills QEMU (SIGBUS, mmap(2)).
    if fstatfs(&file)?.filesystem_type() == TMPFS_MAGIC {
        posix_fallocate(&file, 0, loff(len)?)?;
    }
    Ok(file)
}

/// Copies a memory file to where nothing but zeros is.
pub(super) fn copy_ram(from: &File, to: &File) -> io::Result<()> {
    each_run(from, &|| true, &mut |at, run| to.write_all_at(run, at)).map(drop)
}

/// Gives all pages that are not all zero, those side by side together, and where they are. False when `go_on` said no.
fn each_run(
    file: &File,
    go_on: &dyn Fn() -> bool,
    take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let (mut buffer, mut at) = (vec![0; READ], 0);
    while at < len {
        // Holes are zeros.
        let Some(data) = next_data(file, at)? else { break };
        at = data / PAGE as u64 * PAGE as u64;
        if !go_on() {
            return Ok(false);
        }
        let wanted = usize::try_from(len - at).unwrap_or(READ).min(READ);
        let Some(piece) = buffer.get_mut(..wanted) else { break };
        file.read_exact_at(piece, at)?;
        let mut start = 0;
        while start < wanted {
            let rest = piece.get(start..).unwrap_or_default();
            let is_zero = |page: &[u8]| ZEROS.starts_with(page);
            let zeros = rest.chunks(PAGE).take_while(|page| is_zero(page)).count() * PAGE;
            let rest = rest.get(zeros..).unwrap_or_default();
            let pages = rest.chunks(PAGE).take_while(|page| !is_zero(page)).count();
            let run = rest.get(..pages * PAGE).unwrap_or(rest);
            if !run.is_empty() {
                take(at + (start + zeros) as u64, run)?;
            }
            start += zeros + run.len();
        }
        at += wanted as u64;
    }
    Ok(true)
}

/// What a stream is not.
#[derive(Debug)]
pub(in crate::provision) enum BadStream {
    /// No stream of that memory, for this reason.
    Wrong(&'static str),
    /// It cannot be read.
    Read(io::Error),
    /// The memory file cannot be written.
    Write(io::Error),
}

/// Makes a memory file, of so many bytes, from a stream, and tells the stream's digest.
pub(in crate::provision) fn write_ram(
    mut from: impl Read,
    lens: RangeInclusive<u64>,
    to: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<Digest, BadStream> {
    let (mut hasher, mut word, mut page) = (Hasher::default(), [0; 8], vec![0; PAGE]);
    from.read_exact(&mut word).map_err(BadStream::Read)?;
    hasher.update(&word);
    let len = u64::from_le_bytes(word);
    if !lens.contains(&len) || !len.is_multiple_of(PAGE as u64) {
        return Err(BadStream::Wrong("it is another machine's"));
    }
    let to = make_ram(to, len).map_err(BadStream::Write)?;
    let mut next = 0;
    while read_word(&mut from, &mut word).map_err(BadStream::Read)? {
        from.read_exact(&mut page).map_err(BadStream::Read)?;
        let number = u64::from_le_bytes(word);
        if number < next || number >= len / PAGE as u64 {
            return Err(BadStream::Wrong("its pages are out of order"));
        }
        if page.iter().all(|&byte| byte == 0) {
            return Err(BadStream::Wrong("it has a page of zeros"));
        }
        hasher.update(&word);
        hasher.update(&page);
        to.write_all_at(&page, number * PAGE as u64).map_err(BadStream::Write)?;
        next = number + 1;
        if next.is_multiple_of(64) && !go_on() {
            return Err(BadStream::Read(io::ErrorKind::Interrupted.into()));
        }
    }
    Ok(hasher.finish())
}

/// False at the end.
fn read_word(from: &mut impl Read, word: &mut [u8; 8]) -> io::Result<bool> {
    let mut first = [0];
    loop {
        match from.read(&mut first) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    word[0] = first[0];
    from.read_exact(&mut word[1..])?;
    Ok(true)
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
        let file = File::options().read(true).write(true).create_new(true).open(&sparse).unwrap();
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
        let to = File::create(&copy).unwrap();
        to.set_len(4 * 1024 * 1024).unwrap();
        copy_ram(&file, &to).unwrap();
        assert_eq!(digest(&copy), digest(&sparse));
        assert!(copy.metadata().unwrap().blocks() < 100);
    }

    #[test]
    fn a_stream_makes_the_same_memory_and_a_wrong_one_none() {
        let folder = tempfile::tempdir().unwrap();
        let [path, copy] = ["ram", "copy"].map(|name| folder.path().join(name));
        let file = File::create(&path).unwrap();
        let len = 64 << 20;
        file.set_len(len).unwrap();
        file.write_all_at(&[1], 5 * 4096).unwrap();
        file.write_all_at(&[2], len - 1).unwrap();
        let mut stream = Vec::new();
        let take = &mut |piece: &[u8]| {
            stream.extend(piece);
            Ok(())
        };
        assert!(stream_ram(&path, &|| true, take).unwrap());
        let (digest, length) = survey_ram(&path, &|| true).unwrap().unwrap();
        assert_eq!((length, stream.len()), (8 + 2 * 4104, 8 + 2 * 4104));
        let written = write_ram(&stream[..], len..=len, &copy, &|| true).unwrap();
        assert_eq!(
            (&written, ram_digest(&copy, &|| true).unwrap().as_ref()),
            (&digest, Some(&digest))
        );
        assert_eq!(Digest::of(&stream), digest);
        let wrong = |stream: Vec<u8>, len: u64| {
            fs::remove_file(&copy).unwrap();
            fs::write(&copy, "").unwrap();
            fs::remove_file(&copy).unwrap();
            let error = write_ram(&stream[..], len..=len, &copy, &|| true).unwrap_err();
            fs::write(&copy, "").unwrap();
            format!("{error:?}")
        };
        assert!(wrong(stream[..stream.len() - 1].to_vec(), len).contains("UnexpectedEof"));
        assert!(wrong(stream[..3].to_vec(), len).contains("UnexpectedEof"));
        assert!(wrong(stream.clone(), len - 4096).contains("another machine's"));
        let twice = [&stream[..], &stream[8..]].concat();
        assert!(wrong(twice, len).contains("out of order"));
        let beyond = [&stream[..8], &(len / 4096).to_le_bytes(), &[1; 4096]].concat();
        assert!(wrong(beyond, len).contains("out of order"));
        let zeros = [&stream[..8], &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 4096]].concat();
        assert!(wrong(zeros, len).contains("a page of zeros"));
    }
}
