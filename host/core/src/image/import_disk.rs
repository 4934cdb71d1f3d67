//! What can be told of a disk that is to be imported: whether all of it is there, and what starts it.

use super::foreign::Kind;
use crate::machine::FirmwareKind;
use crate::machine::qcow2::sector;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: u64 = 512;

/// The primary volume descriptor of an ISO image (ECMA-119, 8.4): where it is, and in it the volume's size in blocks and the
/// size of a block.
const DESCRIPTOR: u64 = 16 * 2048;
const VOLUME_BLOCKS: u64 = DESCRIPTOR + 80;
const BLOCK_LEN: u64 = DESCRIPTOR + 128;

/// In the header of a GPT (UEFI 2.10, 5.3.2): the last block that partitions may use.
const LAST_USABLE: usize = 48;

/// The length that a file says it has, where that is more than it has: it was cut on its way.
///
/// # Errors
/// It cannot be read.
pub(super) fn cut_from(disk: &Path, kind: Kind) -> io::Result<Option<u64>> {
    let file = File::open(disk)?;
    let said = match kind {
        Kind::Iso => {
            let (mut blocks, mut len) = ([0; 4], [0; 2]);
            let is_there = is_read(&file, &mut blocks, VOLUME_BLOCKS)?;
            match is_there && is_read(&file, &mut len, BLOCK_LEN)? {
                true => u64::from(u32::from_le_bytes(blocks)) * u64::from(u16::from_le_bytes(len)),
                false => DESCRIPTOR + 2048,
            }
        }
        Kind::RawDisk => start(&file, kind)?.map_or(0, |(_, second)| {
            let last = second.get(LAST_USABLE..LAST_USABLE + 8).filter(|_| is_gpt(&second));
            let last = last.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
            last.map_or(0, |last| last.saturating_add(1).saturating_mul(SECTOR))
        }),
        _ => 0,
    };
    Ok((said > file.metadata()?.len()).then_some(said))
}

/// UEFI for a disk whose first sector has no code and that has a GPT (UEFI 2.10, 5.2); what can be started by both is by a BIOS,
/// which is quicker. What is compressed is not unpacked for that, and is by a BIOS.
pub(super) fn firmware_of(disk: &Path, kind: Kind) -> FirmwareKind {
    match File::open(disk).and_then(|file| start(&file, kind)) {
        Ok(Some((first, second)))
            if first.iter().take(440).all(|&byte| byte == 0) && is_gpt(&second) =>
        {
            FirmwareKind::Uefi
        }
        _ => FirmwareKind::Bios,
    }
}

fn is_gpt(second: &[u8]) -> bool {
    second.starts_with(b"EFI PART")
}

/// The first two sectors of a disk, if they can be looked into.
fn start(file: &File, kind: Kind) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    match kind {
        Kind::RawDisk => {
            let mut start = [0; 2 * SECTOR as usize];
            if !is_read(file, &mut start, 0)? {
                return Ok(None);
            }
            let (first, second) = start.split_at(SECTOR as usize);
            Ok(Some((first.to_vec(), second.to_vec())))
        }
        Kind::Qcow2 => {
            let (first, second) = (sector(file, 0)?, sector(file, 1)?);
            Ok(first.zip(second).map(|(first, second)| (first.to_vec(), second.to_vec())))
        }
        _ => Ok(None),
    }
}

/// Fills a buffer from there on; false where the file ends before.
fn is_read(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_disk_for_uefi_alone_is_told_whatever_its_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut disk = vec![0; 1 << 20];
        disk[510..520].copy_from_slice(b"\x55\xaaEFI PART");
        fs::write(path("uefi"), &disk).unwrap();
        disk[0] = 0xeb;
        fs::write(path("both"), &disk).unwrap();
        for (name, wanted) in [("uefi", FirmwareKind::Uefi), ("both", FirmwareKind::Bios)] {
            assert_eq!(firmware_of(&path(name), Kind::RawDisk), wanted);
            for options in [&["-c"][..], &[]] {
                let mut convert = std::process::Command::new("qemu-img");
                convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options);
                let made = convert.args([name, "disk"]).current_dir(&folder).status().unwrap();
                assert!(made.success());
                // Compressed, it is not looked into.
                let wanted = if options.is_empty() { wanted } else { FirmwareKind::Bios };
                assert_eq!(firmware_of(&path("disk"), Kind::Qcow2), wanted, "{name} {options:?}");
            }
        }
    }

    #[test]
    fn what_was_cut_says_how_long_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut iso = vec![0; 100 * 2048];
        iso[32769..32774].copy_from_slice(b"CD001");
        iso[32848..32852].copy_from_slice(&100_u32.to_le_bytes());
        iso[32896..32898].copy_from_slice(&2048_u16.to_le_bytes());
        let mut gpt = vec![0; 100 * 512];
        gpt[510..520].copy_from_slice(b"\x55\xaaEFI PART");
        gpt[560..568].copy_from_slice(&66_u64.to_le_bytes());
        for (content, kind, len) in [(&iso, Kind::Iso, 100 * 2048), (&gpt, Kind::RawDisk, 67 * 512)]
        {
            for (cut, wanted) in [(len - 1, Some(len as u64)), (len, None), (content.len(), None)] {
                fs::write(&path, &content[..cut]).unwrap();
                assert_eq!(cut_from(&path, kind).unwrap(), wanted, "{kind} {cut}");
            }
        }
        fs::write(&path, &iso[..32774]).unwrap();
        assert_eq!(cut_from(&path, Kind::Iso).unwrap(), Some(17 * 2048));
        // Nothing is said of what tells no length.
        fs::write(&path, b"x").unwrap();
        assert_eq!(cut_from(&path, Kind::RawDisk).unwrap(), None);
        fs::write(&path, vec![1; 4096]).unwrap();
        assert_eq!(cut_from(&path, Kind::RawDisk).unwrap(), None);
    }
}
