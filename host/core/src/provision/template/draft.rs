//! A template that is not on the disk yet. Its memory and state are in the host's memory (memfd_create(2)): a boot does not pay for the
//! page faults of a file that is mapped from a disk, and the next machine goes on from it while it is being written.
//! What its disks hold lies where it is to be published.

use super::ram::{PAGE, copy_ram, make_ram};
use super::store::{Making, Template};
use crate::host::open_path;
use crate::machine::{DiskFile, MachineSpec};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// What a machine is saved to. It takes the host's memory as long as it is there.
#[derive(Debug)]
pub(in crate::provision) struct Draft {
    ram: File,
    state: File,
    disks: Vec<DiskFile>,
}

impl Draft {
    /// For a machine that boots.
    ///
    /// # Errors
    /// What making files in memory gives.
    pub(in crate::provision) fn new(spec: &MachineSpec, making: &Making) -> io::Result<Self> {
        let mut draft = Self::in_memory(spec.memory_mib)?;
        for (number, disk) in spec.writable_disks().enumerate() {
            draft.disks.push(DiskFile::create(&making.disk(number), disk.size)?);
        }
        Ok(draft)
    }

    fn in_memory(memory_mib: u64) -> io::Result<Self> {
        let (ram, state) = (file("guestline-ram")?, file("guestline-state")?);
        ram.set_len(memory_mib.saturating_mul(1024 * 1024))?;
        Ok(Self { ram, state, disks: Vec::new() })
    }

    /// For a machine that goes on from a template.
    ///
    /// # Errors
    /// As [`Self::new`], and what reading the template gives.
    pub(in crate::provision) fn above(template: &Template, making: &Making) -> io::Result<Self> {
        let mut draft = Self::in_memory(template.record.memory_mib)?;
        copy_ram(&File::open(template.ram())?, &draft.ram)?;
        for (number, disk) in template.disks().iter().enumerate() {
            let from = File::open(disk.path())?;
            let to = make_ram(&making.disk(number), from.metadata()?.len())?;
            copy_ram(&from, &to)?;
            draft.disks.push(DiskFile::open(to));
        }
        Ok(draft)
    }

    /// The memory file, for any process of the user; there as long as this is.
    pub(in crate::provision) fn ram(&self) -> PathBuf {
        open_path(&self.ram)
    }

    /// The state file, likewise.
    pub(in crate::provision) fn state(&self) -> PathBuf {
        open_path(&self.state)
    }

    /// What its disks hold.
    pub(in crate::provision) fn disks(&self) -> Vec<DiskFile> {
        self.disks.clone()
    }

    /// What it takes of the host's memory, MiB.
    pub(in crate::provision) fn size_mib(&self) -> u64 {
        // In blocks of 512 bytes (stat(2)).
        let blocks =
            [&self.ram, &self.state].map(|file| file.metadata().map_or(0, |file| file.blocks()));
        blocks.iter().sum::<u64>().div_ceil(2048)
    }

    /// Writes it where it is to be published.
    ///
    /// # Errors
    /// What writing gives.
    pub(in crate::provision) fn write(&self, making: &Making) -> io::Result<()> {
        copy_ram(&self.ram, &make_ram(&making.ram(), self.ram.metadata()?.len())?)?;
        let mut state = File::options().write(true).create_new(true).open(making.state())?;
        io::copy(&mut File::open(self.state())?, &mut state)?;
        for number in 0..self.disks.len() {
            let disk = File::options().write(true).open(making.disk(number))?;
            // In whole pages, as memory: so it is copied and its digest is taken.
            disk.set_len(disk.metadata()?.len().next_multiple_of(PAGE as u64))?;
        }
        Ok(())
    }

    /// Has a process that maps the memory for itself not written to it? What it has not touched it sees as it is now, also
    /// what was written here since it was mapped: its pages are those of the file (proc_pid_smaps(5), `Anonymous`).
    pub(in crate::provision) fn is_untouched_by(&self, pid: u32) -> bool {
        let (Ok(inode), Ok(maps)) =
            (self.ram.metadata(), fs::read_to_string(format!("/proc/{pid}/smaps")))
        else {
            return false;
        };
        anonymous_kib(&maps, inode.ino()) == Some(0)
    }
}

fn file(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

/// How much of a file's mappings is not the file any more, KiB; none when it is not mapped.
fn anonymous_kib(maps: &str, inode: u64) -> Option<u64> {
    let (mut total, mut is_its) = (None, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // "address permissions offset device inode path"
            is_its = words.nth(3).and_then(|word| word.parse().ok()) == Some(inode);
            if is_its {
                total.get_or_insert(0);
            }
        } else if is_its && first == "Anonymous:" {
            let kib: u64 = words.next()?.parse().ok()?;
            total = total.map(|total| total + kib);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_to_a_process_is_found() {
        let maps = "7f00-7f10 rw-p 00000000 00:01 77    /memfd:guestline-ram (deleted)\n\
                    Size: 64 kB\nAnonymous: 0 kB\n\
                    7f10-7f20 rw-p 00010000 00:01 77    /memfd:guestline-ram (deleted)\n\
                    Anonymous:             8 kB\nVmFlags: rd wr\n\
                    7f20-7f30 rw-p 00000000 00:00 0 \n\
                    Anonymous:            12 kB\n";
        assert_eq!(anonymous_kib(maps, 77), Some(8));
        assert_eq!(anonymous_kib(&maps.replace(" 8 kB", " 0 kB"), 77), Some(0));
        assert_eq!(anonymous_kib(maps, 78), None);
        assert_eq!(anonymous_kib(&maps.replace(" 8 kB", ""), 77), None);
    }

    #[test]
    fn nobody_maps_what_was_just_made() {
        let draft = Draft::in_memory(1).unwrap();
        assert_eq!(fs::metadata(draft.ram()).unwrap().len(), 1 << 20);
        assert_eq!(draft.size_mib(), 0);
        fs::write(draft.state(), vec![1; 1 << 20]).unwrap();
        assert_eq!(draft.size_mib(), 1);
        assert!(!draft.is_untouched_by(std::process::id()));
        assert!(!draft.is_untouched_by(u32::MAX));
    }
}
