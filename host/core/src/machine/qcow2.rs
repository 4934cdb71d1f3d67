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

/// A qcow2 file of somebody else cannot be a machine's disk, or not safely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUsable {
    /// It is something else, or an older version.
    #[error("it is no qcow2 file of version 2 or 3")]
    NoQcow2,
    /// A file ends before what its header tells of.
    #[error("it is cut, or damaged: {what} lies beyond its end")]
    Cut {
        /// What.
        what: &'static str,
    },
    /// A number in it is none that can be.
    #[error("it is damaged: {what}")]
    Damaged {
        /// Which.
        what: &'static str,
    },
    /// QEMU has found it damaged.
    #[error("it is marked as corrupt")]
    Corrupt,
    /// It is a layer upon another file.
    #[error("it lies upon another file, `{}`", crate::text::one_line(name, 200))]
    Backing {
        /// As it is written there.
        name: String,
    },
    /// What it holds is in another file.
    #[error("its content is in another file")]
    DataFile,
    /// What it holds needs a key.
    #[error("it is encrypted")]
    Encrypted,
    /// It is of a later time.
    #[error("it has features that are not known")]
    Features,
}

impl NotUsable {
    /// What mends it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Backing { .. } | Self::DataFile => {
                "`qemu-img convert -O qcow2 IN WHOLE` makes one file of it"
            }
            Self::Encrypted => "`qemu-img convert` with its secret makes one that is not",
            Self::Corrupt => "`qemu-img check -r all` mends what can be mended",
            Self::NoQcow2 => {
                "`qemu-img info` tells what it is, `qemu-img convert -O qcow2 IN OUT` makes one"
            }
            Self::Cut { .. } => "fetch it once more, and compare its checksum",
            Self::Damaged { .. } => {
                "`qemu-img check` tells more; fetch it once more, and compare its checksum"
            }
            Self::Features => "`qemu-img convert -O qcow2 IN OUT` makes one without them",
        })
    }
}

/// Bits of the features that a reader has to know: it is corrupt, it has a data file, it may be compressed in another way,
/// its second tables are extended.
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | 1 << 3 | 1 << 4;

/// The header of version 2.
const OLD_HEADER_LEN: usize = 72;

/// A longer first table is none that QEMU takes, in bytes (QEMU `block/qcow2.h`).
const MAX_TABLE: u64 = 32 << 20;

/// Of a first table's entry, where the second table is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Of a second table's entry: what it leads to is compressed.
const COMPRESSED: u64 = 1 << 62;

/// Looks at a file of somebody else: the size of its disk, in bytes.
///
/// # Errors
/// What reading gives.
pub(crate) fn inspect(file: &File) -> io::Result<Result<u64, NotUsable>> {
    let len = file.metadata()?.len();
    let mut header = vec![0; HEADER_LEN as usize];
    let wanted = header.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    file.read_exact_at(&mut header[..wanted], 0)?;
    let short = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    };
    let long = |at: usize| u64::from(short(at)) << 32 | u64::from(short(at + 4));
    let version = short(4);
    if short(0) != MAGIC || !(2..=3).contains(&version) || wanted < OLD_HEADER_LEN {
        return Ok(Err(NotUsable::NoQcow2));
    }
    let features = if version == 2 { 0 } else { long(72) };
    if long(8) != 0 {
        let mut name = vec![0; usize::try_from(short(16).min(1023)).unwrap_or(0)];
        // The name is for people; that there is one is enough.
        let _ = file.read_exact_at(&mut name, long(8));
        let name = String::from_utf8_lossy(&name).into_owned();
        return Ok(Err(NotUsable::Backing { name }));
    }
    let no = match () {
        () if features & DATA_FILE != 0 => Some(NotUsable::DataFile),
        () if features & CORRUPT != 0 => Some(NotUsable::Corrupt),
        () if features & !KNOWN != 0 => Some(NotUsable::Features),
        () if short(32) != 0 => Some(NotUsable::Encrypted),
        () => None,
    };
    if let Some(no) = no {
        return Ok(Err(no));
    }
    let (bits, size) = (short(20), long(24));
    if !(9..=21).contains(&bits) {
        return Ok(Err(NotUsable::Damaged { what: "its clusters have no size that can be" }));
    }
    if size == 0 || size > 1 << 60 {
        return Ok(Err(NotUsable::Damaged { what: "its disk has no size that can be" }));
    }
    let cluster = 1_u64 << bits;
    let table = |at: u64, bytes: u64, what| match at.checked_add(bytes) {
        _ if at == 0 || !at.is_multiple_of(cluster) || bytes > MAX_TABLE => {
            Err(NotUsable::Damaged { what: "a table in it is where none can be" })
        }
        Some(end) if end <= len => Ok(()),
        _ => Err(NotUsable::Cut { what }),
    };
    let (first, first_len) = (long(40), u64::from(short(36)) * 8);
    let entry_len = if features & 1 << 4 == 0 { 8 } else { 16 };
    let needed = size.div_ceil(cluster * (cluster / entry_len)) * 8;
    if first_len < needed {
        return Ok(Err(NotUsable::Damaged { what: "its first table is too short for its disk" }));
    }
    let counts = u64::from(short(56)) * cluster;
    let tables = table(first, first_len, "its first table")
        .and_then(|()| table(long(48), counts.max(1), "its table of reference counts"));
    if let Err(no) = tables {
        return Ok(Err(no));
    }
    let mut entries = vec![0; usize::try_from(needed).unwrap_or(0)];
    file.read_exact_at(&mut entries, first)?;
    let mut seen = std::collections::HashSet::new();
    for entry in entries.chunks_exact(8) {
        let at = u64::from_be_bytes(entry.try_into().unwrap_or_default()) & OFFSET;
        if !at.is_multiple_of(cluster) {
            return Ok(Err(NotUsable::Damaged { what: "a table in it is where none can be" }));
        }
        // The file may end in the midst of its last cluster.
        if at >= len {
            return Ok(Err(NotUsable::Cut { what: "a second table" }));
        }
        // Each is its own, so all together they are no more than the file.
        if at != 0 && !seen.insert(at) {
            return Ok(Err(NotUsable::Damaged { what: "two tables in it are one" }));
        }
        if at != 0
            && let Err(no) = second_table(file, at, cluster, entry_len, len)?
        {
            return Ok(Err(no));
        }
    }
    Ok(Ok(size))
}

/// The size of the disk that a whole file holds, bytes (offset 24).
///
/// # Errors
/// What reading gives.
pub(crate) fn size(file: &File) -> io::Result<u64> {
    let mut size = [0; 8];
    file.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}

/// A sector of the disk that a whole file holds (512 bytes); none where that is compressed.
///
/// # Errors
/// What reading gives.
pub(crate) fn sector(file: &File, number: u64) -> io::Result<Option<[u8; 512]>> {
    /// Of an entry of a second table: it reads as zeros.
    const ZEROS: u64 = 1;
    let long = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).map(|()| u64::from_be_bytes(bytes))
    };
    let is_extended = long(0)? & 0xffff_ffff > 2 && long(72)? & 1 << 4 != 0;
    let cluster = 1_u64 << (long(16)? & 0xffff_ffff).min(21);
    let entry_len = if is_extended { 16 } else { 8 };
    let (entries, at) = (cluster / entry_len, number.saturating_mul(512));
    let second = long(long(40)? + at / cluster / entries * 8)? & OFFSET;
    let mut content = [0; 512];
    if second == 0 {
        return Ok(Some(content));
    }
    let place = second + at / cluster % entries * entry_len;
    let entry = long(place)?;
    let is_there = match is_extended {
        // The lower half of the bitmap tells which parts of a cluster are there (QEMU `docs/interop/qcow2.txt`, "Extended L2
        // Entries").
        true => long(place + 8)? >> (at % cluster / (cluster / 32).max(512)) & 1 == 1,
        false => entry & ZEROS == 0,
    };
    match entry {
        _ if entry & COMPRESSED != 0 => return Ok(None),
        _ if entry & OFFSET == 0 || !is_there => {}
        // The file may end in the midst of its last cluster.
        _ => drop(file.read_at(&mut content, (entry & OFFSET) + at % cluster)?),
    }
    Ok(Some(content))
}

/// Whether all that a second table leads to is where it can be, in a file of so many bytes (QEMU `docs/interop/qcow2.rst`, "L2
/// table entry").
fn second_table(
    file: &File,
    table: u64,
    cluster: u64,
    entry_len: u64,
    len: u64,
) -> io::Result<Result<(), NotUsable>> {
    const SECTOR: u64 = 512;
    // Of what is compressed the upper bits tell how many sectors it goes on for behind that which it begins in.
    let offset_bits = 62 - (cluster.trailing_zeros() - 8);
    let mut entries = vec![0; usize::try_from(cluster).unwrap_or(0)];
    let read = file.read_at(&mut entries, table)?;
    let entries = entries.get(..read).unwrap_or_default();
    for entry in entries.chunks_exact(usize::try_from(entry_len).unwrap_or(8)) {
        let entry = entry.get(..8).and_then(|entry| entry.try_into().ok());
        let entry = u64::from_be_bytes(entry.unwrap_or_default());
        let last = if entry & COMPRESSED != 0 {
            let at = entry & ((1 << offset_bits) - 1);
            let more = (entry & (COMPRESSED - 1)) >> offset_bits;
            // Something of it is in its last sector, in the midst of which the file may end.
            at.max((at & !(SECTOR - 1)) + more * SECTOR)
        } else if (entry & OFFSET).is_multiple_of(cluster) {
            entry & OFFSET
        } else {
            let what = "a piece of its disk is where none can be";
            return Ok(Err(NotUsable::Damaged { what }));
        };
        if last >= len {
            return Ok(Err(NotUsable::Cut { what: "a piece of its disk" }));
        }
    }
    Ok(Ok(()))
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
    fn a_sector_is_what_qemu_wrote_there() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        let mut content = vec![0; 3 << 20];
        content[512..520].copy_from_slice(b"EFI PART");
        content[2 << 20..][..4].copy_from_slice(b"last");
        std::fs::write(&raw, content).unwrap();
        for options in [
            "compat=1.1",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=2M",
            "compat=1.1,extended_l2=on",
        ] {
            let args = ["convert", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "disk"];
            let made = Command::new("qemu-img").args(args).current_dir(&folder).output().unwrap();
            assert!(made.status.success(), "{made:?}");
            let file = File::open(folder.path().join("disk")).unwrap();
            let read = |number| sector(&file, number).unwrap().unwrap();
            assert_eq!(read(0), [0; 512], "{options}");
            assert!(read(1).starts_with(b"EFI PART\0"), "{options}");
            assert!(read(4096).starts_with(b"last\0"), "{options}");
            assert_eq!(read(5000), [0; 512], "{options}");
        }
        let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "disk"];
        assert!(
            Command::new("qemu-img").args(args).current_dir(&folder).status().unwrap().success()
        );
        let file = File::open(folder.path().join("disk")).unwrap();
        assert_eq!(sector(&file, 1).unwrap(), None);
        assert_eq!(sector(empty(1 << 30).as_file(), 1).unwrap(), Some([0; 512]));
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

    #[test]
    fn what_others_made_is_looked_at() {
        let inspected = |file: &File| inspect(file).unwrap();
        for options in ["compat=1.1", "compat=0.10", "compat=1.1,extended_l2=on"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            let make = |args: &[&str]| {
                let made = Command::new("qemu-img").args(args).current_dir(&folder).output();
                assert!(made.unwrap().status.success(), "{args:?}");
                File::options().read(true).write(true).open(&path).unwrap()
            };
            let file = make(&["create", "-f", "qcow2", "-o", options, "disk", "1G"]);
            assert_eq!(inspected(&file), Ok(1 << 30), "{options}");
            let len = file.metadata().unwrap().len();
            file.set_len(len - 1).unwrap();
            // The last table that an empty file has.
            assert!(matches!(
                inspected(&file),
                Err(NotUsable::Cut { .. } | NotUsable::Damaged { .. })
            ));
        }
        let changed = |at: u64, bytes: &[u8]| {
            let file = empty(1 << 30);
            file.as_file().write_all_at(bytes, at).unwrap();
            inspected(file.as_file()).unwrap_err()
        };
        assert_eq!(changed(0, b"x"), NotUsable::NoQcow2);
        assert_eq!(changed(7, &[4]), NotUsable::NoQcow2);
        assert_eq!(changed(79, &[2]), NotUsable::Corrupt);
        assert_eq!(changed(79, &[4]), NotUsable::DataFile);
        assert_eq!(changed(78, &[1]), NotUsable::Features);
        assert_eq!(changed(35, &[1]), NotUsable::Encrypted);
        assert!(matches!(changed(14, &[1]), NotUsable::Backing { .. }));
        assert!(matches!(changed(23, &[5]), NotUsable::Damaged { .. }));
        assert!(matches!(changed(24, &[0xff]), NotUsable::Damaged { .. }));
        assert!(matches!(changed(36, &[0xff; 4]), NotUsable::Damaged { .. }));
        assert!(matches!(changed(40, &[0xff; 8]), NotUsable::Damaged { .. }));
        assert!(matches!(changed(40, &[0, 0, 1]), NotUsable::Cut { .. }));
        assert!(matches!(changed(3 * CLUSTER, &[0x80, 0, 1]), NotUsable::Cut { .. }));
        assert!(matches!(changed(3 * CLUSTER + 6, &[2]), NotUsable::Damaged { .. }));
        let short = tempfile::tempfile().unwrap();
        assert_eq!(inspected(&short), Err(NotUsable::NoQcow2));
    }

    #[test]
    fn each_that_cannot_be_used_has_a_way_out() {
        for (no, wanted) in [
            (NotUsable::NoQcow2, "qemu-img info"),
            (NotUsable::Cut { what: "x" }, "fetch it once more"),
            (NotUsable::Damaged { what: "x" }, "qemu-img check"),
            (NotUsable::Corrupt, "qemu-img check -r"),
            (NotUsable::Backing { name: "x".to_owned() }, "qemu-img convert"),
            (NotUsable::Encrypted, "qemu-img convert"),
            (NotUsable::Features, "qemu-img convert"),
        ] {
            assert!(no.hint().unwrap_or_default().contains(wanted), "{no}");
        }
    }

    #[test]
    fn a_compressed_disk_that_was_cut_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        // Half of each byte is chance, so that it can be compressed, and not to nothing.
        let mut number = 1_u32;
        let chance = |_| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (number >> 28) as u8
        };
        let content: Vec<u8> = (0..4 << 20).map(chance).collect();
        std::fs::write(folder.path().join("raw"), &content).unwrap();
        for options in [
            "cluster_size=64k",
            "cluster_size=512",
            "cluster_size=2M",
            "compat=0.10",
            "compression_type=zstd",
            "extended_l2=on",
        ] {
            let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "disk"];
            let made = Command::new("qemu-img").args(args).current_dir(&folder).output().unwrap();
            assert!(made.status.success(), "{made:?}");
            let file = File::options().read(true).write(true).open(&path).unwrap();
            assert_eq!(inspect(&file).unwrap(), Ok(4 << 20), "{options}");
            let len = file.metadata().unwrap().len();
            for cut in [len - 300_000, len / 3 * 2] {
                file.set_len(cut).unwrap();
                let found = inspect(&file).unwrap();
                assert!(matches!(found, Err(NotUsable::Cut { .. })), "{options}: {found:?}");
            }
        }
    }

    #[test]
    fn a_piece_lies_where_a_cluster_begins() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("raw"), vec![1; 1 << 20]).unwrap();
        let args = ["convert", "-f", "raw", "-O", "qcow2", "raw", "disk"];
        let made = Command::new("qemu-img").args(args).current_dir(&folder).status().unwrap();
        assert!(made.success());
        let path = folder.path().join("disk");
        let file = File::options().read(true).write(true).open(path).unwrap();
        let long = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_be_bytes(bytes)
        };
        let second = long(long(40)) & OFFSET;
        let entry = long(second) + 512;
        file.write_all_at(&entry.to_be_bytes(), second).unwrap();
        let what = "a piece of its disk is where none can be";
        assert_eq!(inspect(&file).unwrap(), Err(NotUsable::Damaged { what }));
    }
}
