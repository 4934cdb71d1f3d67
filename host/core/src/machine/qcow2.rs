//! Headers of qcow2 files (QEMU `docs/interop/qcow2.txt`, version 3; all numbers have the greatest byte first).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER_LEN: u32 = 104;

/// The file may be used though its reference counts are not right; of all features that a reader has to know, the one that
/// leads to no other file.
const DIRTY: u64 = 1;

/// Writes an empty file's content: of a disk of so many bytes, with nothing below it.
///
/// # Errors
/// What writing gives.
pub(super) fn write_empty(file: &File, size: u64) -> io::Result<()> {
    // An entry of the first table leads to a cluster of entries of eight bytes, each of which is a cluster's.
    let entries = size.div_ceil(CLUSTER * CLUSTER / 8).max(1);
    let table_clusters = (entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + table_clusters;
    // Reference counts have two bytes, and one block of them is to do.
    let (Ok(entries), true) = (u32::try_from(entries), clusters <= CLUSTER / 2) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no disk can be as large"));
    };
    let mut header = Vec::new();
    let mut long = |number: u64| header.extend(number.to_be_bytes());
    long(u64::from(MAGIC) << 32 | u64::from(VERSION));
    long(0); // what it lies upon
    long(u64::from(CLUSTER_BITS));
    long(size);
    long(u64::from(entries)); // no encryption, and the first table's length
    long(3 * CLUSTER); // where that is
    long(CLUSTER); // where the table of reference counts is
    long(1 << 32); // its clusters, and no snapshots
    long(0); // where those are
    for _features in 0..3 {
        long(0);
    }
    long(4 << 32 | u64::from(HEADER_LEN)); // sixteen bits a count
    long(0); // no extensions
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&counts, 2 * CLUSTER)?;
    file.set_len(clusters * CLUSTER)
}

/// What is wrong with a file that is to be an overlay; an overlay as we make them leads to no other file.
///
/// # Errors
/// What reading gives.
pub(crate) fn check_overlay(file: &File) -> io::Result<Result<(), &'static str>> {
    let mut header = [0; HEADER_LEN as usize];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err("it is cut")),
        read => read?,
    }
    let long = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    Ok(if long(0) != u64::from(MAGIC) << 32 | u64::from(VERSION) {
        Err("it is no qcow2 file of version 3")
    } else if long(8) != 0 {
        Err("it lies upon another file")
    } else if long(72) & !DIRTY != 0 {
        Err("it has features that no file of ours has")
    } else {
        Ok(())
    })
}

/// What is wrong with a file that others made.
#[derive(Debug, thiserror::Error)]
pub enum QcowError {
    /// It leads to other files, or has what QEMU or we do not take.
    #[error("as a qcow2 file it {0}")]
    Wrong(&'static str),
    /// It is damaged.
    #[error("as a qcow2 file it is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

/// The size of the disk in a file that others made, in bytes, when it stands alone and its tables lie within it.
///
/// # Errors
/// [`QcowError`].
pub(crate) fn inspect(file: &File) -> Result<u64, QcowError> {
    const CORRUPT: u64 = 2;
    const EXTERNAL_DATA: u64 = 4;
    /// Entries of the second tables are twice as long.
    const EXTENDED: u64 = 16;
    /// Where a cluster lies, in an entry of either table; and that it is compressed, in one of the second.
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    const COMPRESSED: u64 = 1 << 62;
    /// More entries of the first table are of a disk that nobody has.
    const MAX_ENTRIES: u64 = 4 << 20;
    let len = file.metadata()?.len();
    let mut header = [0; 112];
    let read = file.read_at(&mut header, 0)?;
    let long = |at: usize| {
        let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    let version = long(0) & u64::from(u32::MAX);
    if read < 72 || long(0) >> 32 != u64::from(MAGIC) {
        return Err(QcowError::Damaged("it has no header"));
    }
    if version != 2 && version != u64::from(VERSION) {
        return Err(QcowError::Wrong("is of another version than 2 and 3"));
    }
    let features = if version == 2 { 0 } else { long(72) };
    if long(8) != 0 {
        return Err(QcowError::Wrong(
            "lies upon another file: `qemu-img convert -O qcow2` makes one of both",
        ));
    }
    if long(32) >> 32 != 0 {
        return Err(QcowError::Wrong("is encrypted"));
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(QcowError::Wrong(
            "has its data in another file: `qemu-img convert -O qcow2` makes one of both",
        ));
    }
    if features & CORRUPT != 0 {
        return Err(QcowError::Damaged("QEMU marked it so; `qemu-img check -r all` may mend it"));
    }
    let (cluster_bits, size) = (long(16) & u64::from(u32::MAX), long(24));
    if !(9..=21).contains(&cluster_bits) {
        return Err(QcowError::Damaged("its clusters have no size that can be"));
    }
    let cluster = 1u64 << cluster_bits;
    let entries = long(32) & u64::from(u32::MAX);
    let words = if features & EXTENDED == 0 { 1 } else { 2 };
    let needed = size.div_ceil(cluster).div_ceil(cluster / 8 / words);
    if entries < needed || entries > MAX_ENTRIES {
        return Err(QcowError::Damaged("its first table has not the length of its disk"));
    }
    let is_within = |at: u64, bytes: u64| {
        at.is_multiple_of(cluster)
            && at >= cluster
            && at.checked_add(bytes).is_some_and(|end| end <= len)
    };
    if entries > 0 && !is_within(long(40), entries * 8) {
        return Err(QcowError::Damaged("its first table lies outside of the file"));
    }
    if !is_within(long(48), 8) {
        return Err(QcowError::Damaged("its reference counts lie outside of the file"));
    }
    let read_table = |at: u64, count: u64| -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; usize::try_from(count * 8).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, at)?;
        let entry = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap_or_default());
        Ok(bytes.chunks_exact(8).map(entry).collect())
    };
    for first in read_table(long(40), entries)? {
        let at = first & OFFSET;
        if at == 0 {
            continue;
        }
        if !is_within(at, cluster) {
            return Err(QcowError::Damaged("a table lies outside of the file"));
        }
        for second in read_table(at, cluster / 8)?.into_iter().step_by(usize::from(words == 2) + 1)
        {
            let data = second & OFFSET;
            // The last cluster of a file may be cut where the disk ends.
            if second & COMPRESSED == 0 && data != 0 && (!data.is_multiple_of(512) || data >= len) {
                return Err(QcowError::Damaged("data lies outside of the file"));
            }
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    fn empty(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_empty(file.as_file(), size).unwrap();
        file
    }

    #[test]
    fn qemu_takes_what_is_made_here() {
        for size in [512, 1 << 20, 1 << 29, (1 << 29) + 512, 5 << 40] {
            let file = empty(size);
            let checked = Command::new("qemu-img").arg("check").arg(file.path()).output().unwrap();
            assert!(checked.status.success(), "{size}: {checked:?}");
            let info = Command::new("qemu-img")
                .args(["info", "--output=json"])
                .arg(file.path())
                .output()
                .unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["format"], "qcow2");
            assert_eq!(check_overlay(file.as_file()).unwrap(), Ok(()));
        }
        let file = tempfile::tempfile().unwrap();
        assert!(write_empty(&file, u64::MAX).is_err());
    }

    #[test]
    fn what_leads_elsewhere_is_no_overlay_of_ours() {
        let changed = |at: u64, byte: u8| {
            let file = empty(1 << 20);
            file.as_file().write_all_at(&[byte], at).unwrap();
            check_overlay(file.as_file()).unwrap()
        };
        assert_eq!(changed(79, 1), Ok(()));
        assert_eq!(changed(7, 2), Err("it is no qcow2 file of version 3"));
        assert_eq!(changed(14, 2), Err("it lies upon another file"));
        assert_eq!(changed(79, 4), Err("it has features that no file of ours has"));
        let mut short = tempfile::tempfile().unwrap();
        short.write_all(b"QFI").unwrap();
        assert_eq!(check_overlay(&short).unwrap(), Err("it is cut"));
    }
}
