//! Cgroups (version 2) that hold commands with all that they start, so that all of it can be killed at once.
//!
//! ```text
//! parent ─ 0, 1, 2 …   leaves: one for a running command
//! free ── take ──> a command's ── give back ──> free, as soon as it is empty
//!                                               left, while a daemon lives in it; removed some time after
//! ```
//! Making and removing a cgroup costs more than a small command, so leaves are kept, with what is needed to look into them.

use crate::sys::spawn::send_signal;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::uio::pread;
use nix::unistd::{read, write};
use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where cgroups are mounted; the second where both versions are (systemd's hybrid set-up).
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const OWN_CGROUP: &str = "/proc/self/cgroup";
const NAME: &str = "guestline";

/// A leaf that is not empty when it is wanted so often has a daemon in it.
const STRIKES: u8 = 2;

/// At most so many are looked at before a new one is made.
const LOOKS: usize = 3;

/// At most so many numbers are tried for a new leaf: another agent's daemons may have the first ones.
const NUMBERS: usize = 1000;

/// Folders below each other that are searched for processes.
const DEPTH: usize = 16;

/// A kill by hand takes at most so many rounds.
const ROUNDS: usize = 100;

/// The cgroup below which those of commands go, if this kernel and system have any that we may make: in the root for an
/// init, else in the agent's own.
pub(crate) fn cgroup_parent(init: bool) -> Option<PathBuf> {
    let mount = MOUNTS.iter().map(Path::new).find(|mount| is_cgroup2(mount))?;
    let own = fs::read_to_string(OWN_CGROUP).ok();
    let own = own.as_deref().and_then(own_cgroup).filter(|_| !init).unwrap_or("");
    Some(mount.join(own).join(NAME))
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|about| about.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The path in `0::/path` (cgroups(7)), without its first slash.
fn own_cgroup(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    path.split('/').all(|part| part != "..").then_some(path)
}

/// All leaves that no command has.
#[derive(Debug)]
pub(super) struct Cgroups {
    parent: PathBuf,
    free: VecDeque<Leaf>,
    /// The next one, looked at when there was nothing else to do.
    ready: Option<Leaf>,
    left: VecDeque<u32>,
    next: u32,
}

/// A cgroup for one command at a time.
#[derive(Debug)]
pub(super) struct Leaf {
    number: u32,
    folder: OwnedFd,
    events: OwnedFd,
    strikes: u8,
    is_killed: bool,
}

impl Cgroups {
    /// With a first leaf, to know that it can be done.
    pub(super) fn new(parent: PathBuf) -> Option<Self> {
        // It may be there; what matters is whether a leaf can be made in it.
        let _ = fs::create_dir(&parent);
        if !is_cgroup2(&parent) {
            return None;
        }
        let numbers = fs::read_dir(&parent).ok()?.flatten();
        let left = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let mut cgroups = Self { parent, free: VecDeque::new(), ready: None, left, next: 0 };
        let leaf = cgroups.make()?;
        cgroups.free.push_back(leaf);
        Some(cgroups)
    }

    /// Looks for an empty leaf before a command needs one: that costs a read of a file that the kernel makes up.
    pub(super) fn prepare(&mut self) {
        if self.ready.is_none() {
            self.ready = self.look();
        }
    }

    /// An empty leaf, if there is any to be had.
    pub(super) fn take(&mut self) -> Option<Leaf> {
        self.ready.take().or_else(|| self.look())
    }

    fn look(&mut self) -> Option<Leaf> {
        for _ in 0..LOOKS {
            // The one that was left last: the kernel still has what it keeps for a cgroup with processes (`css_set`).
            let Some(mut leaf) = self.free.pop_back() else { break };
            if leaf.is_empty() {
                leaf.strikes = 0;
                return Some(leaf);
            }
            leaf.strikes = leaf.strikes.saturating_add(1);
            if leaf.strikes < STRIKES {
                self.free.push_front(leaf);
            } else {
                self.left.push_back(leaf.number);
            }
        }
        self.make()
    }

    /// Takes a leaf back whose command is gone. One that was killed is not used again: some kernels (seen with 6.18)
    /// kill whatever is cloned into it later, too.
    pub(super) fn give_back(&mut self, leaf: Leaf) {
        match leaf.is_killed {
            true => self.left.push_back(leaf.number),
            false => self.free.push_back(leaf),
        }
    }

    /// Takes a leaf back that the kernel puts no process into: a command has changed it.
    pub(super) fn discard(&mut self, leaf: &Leaf) {
        self.left.push_back(leaf.number);
    }

    fn make(&mut self) -> Option<Leaf> {
        self.sweep();
        for _ in 0..NUMBERS {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            let path = self.path(number);
            match fs::create_dir(&path) {
                Ok(()) => return Leaf::open(&path, number),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Removes up to two that were left, if they are empty by now.
    fn sweep(&mut self) {
        for _ in 0..self.left.len().min(2) {
            let Some(number) = self.left.pop_front() else { return };
            if remove(&self.path(number), DEPTH).is_err() {
                self.left.push_back(number);
            }
        }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.parent.join(number.to_string())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let free = self.free.drain(..).chain(self.ready.take()).map(|leaf| leaf.number);
        for number in free.chain(self.left.drain(..)).collect::<Vec<_>>() {
            let _ = remove(&self.path(number), DEPTH);
        }
        let _ = fs::remove_dir(&self.parent);
    }
}

/// Removes a cgroup with those that were made in it. The kernel refuses where a process is in one.
fn remove(path: &Path, depth: usize) -> std::io::Result<()> {
    if let Some(depth) = depth.checked_sub(1) {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path(), depth)?;
            }
        }
    }
    fs::remove_dir(path)
}

impl Leaf {
    fn open(path: &Path, number: u32) -> Option<Self> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        let folder = open(path, flags, Mode::empty()).ok()?;
        let flags = OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let events = openat(&folder, "cgroup.events", flags, Mode::empty()).ok()?;
        Some(Self { number, folder, events, strikes: 0, is_killed: false })
    }

    /// The folder, to clone a process into it.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    fn is_empty(&self) -> bool {
        let mut text = [0; 256];
        let len = pread(&self.events, &mut text, 0).unwrap_or(0);
        is_idle(text.get(..len).unwrap_or_default())
    }

    /// Kills every process in it, also in the cgroups below it.
    pub(super) fn kill(&mut self) {
        self.is_killed = true;
        // Linux 5.14.
        if !set(self.folder(), "cgroup.kill", b"1") {
            self.kill_by_hand();
        }
    }

    /// The same for older kernels: all is frozen (5.2), so that nothing is started while one after the other is killed.
    pub(super) fn kill_by_hand(&self) {
        set(self.folder(), "cgroup.freeze", b"1");
        kill_listed(self.folder(), DEPTH);
        set(self.folder(), "cgroup.freeze", b"0");
    }
}

/// Nothing lives in it, and what is started in it would run.
fn is_idle(events: &[u8]) -> bool {
    let mut lines = events.split(|byte| *byte == b'\n');
    let is_unpopulated = lines.clone().any(|line| line == b"populated 0");
    is_unpopulated && !lines.any(|line| line == b"frozen 1")
}

fn set(folder: BorrowedFd<'_>, file: &str, value: &[u8]) -> bool {
    let flags = OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    let file = openat(folder, file, flags, Mode::empty());
    file.is_ok_and(|file| write(&file, value).is_ok())
}

/// Kills what is in `cgroup.procs` until that names nobody new.
fn kill_listed(folder: BorrowedFd<'_>, depth: usize) {
    let mut killed = Vec::new();
    for _ in 0..ROUNDS {
        let pids = pids(folder);
        let fresh: Vec<i32> = pids.into_iter().filter(|pid| !killed.contains(pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            send_signal(pid, false, SIGKILL);
            killed.push(pid);
        }
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let flags = OFlag::O_CLOEXEC | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            if let Ok(below) = open(&entry.path(), flags, Mode::empty()) {
                kill_listed(below.as_fd(), depth);
            }
        }
    }
}

const SIGKILL: u8 = 9;

fn pids(folder: BorrowedFd<'_>) -> Vec<i32> {
    let flags = OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let Ok(file) = openat(folder, "cgroup.procs", flags, Mode::empty()) else { return Vec::new() };
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(len @ 1..) = read(&file, &mut piece) {
        text.extend_from_slice(piece.get(..len).unwrap_or_default());
    }
    String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_and_not_frozen_is_idle() {
        assert!(is_idle(b"populated 0\nfrozen 0\n"));
        assert!(is_idle(b"populated 0\n"));
        assert!(!is_idle(b"populated 1\nfrozen 0\n"));
        assert!(!is_idle(b"populated 0\nfrozen 1\n"));
        assert!(!is_idle(b""));
    }

    #[test]
    fn the_own_cgroup_is_that_of_version_2() {
        let text = "9:name=systemd:/x\n0::/system.slice/guestline.service\n";
        assert_eq!(own_cgroup(text), Some("system.slice/guestline.service"));
        assert_eq!(own_cgroup("0::/\n"), Some(""));
        assert_eq!(own_cgroup("0::/../other\n"), None);
        assert_eq!(own_cgroup("4:memory:/x\n"), None);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_not_used() {
        let folder = std::env::temp_dir().join(format!("no-cgroup-{}", std::process::id()));
        assert!(Cgroups::new(folder.clone()).is_none());
        let _ = fs::remove_dir(folder);
    }

    #[test]
    fn processes_are_read_from_the_file() {
        let folder = std::env::temp_dir().join(format!("procs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let list: String = (0..3000).map(|pid| format!("{}\n", pid + 100_000)).collect();
        fs::write(folder.join("cgroup.procs"), list).unwrap();
        let fd = open(&folder, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(pids(fd.as_fd()).len(), 3000);
        fs::remove_dir_all(folder).unwrap();
    }
}
