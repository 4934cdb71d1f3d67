//! What the guest is: its kernel's own texts, for the host to read. Those that are missing are left out.
//!
//! The boot id is not read: its first reading draws it, and all machines restored from one snapshot would share it.

use super::read_start;
use guestline_protocol::fact::MAX_FACT_LEN;
use guestline_protocol::{ByteBuf, FactsResponse, MAX_FRAME_LEN};
use nix::sys::utsname::uname;
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// All facts together, bytes: one message holds them, with their names.
const MAX_TOTAL: usize = MAX_FRAME_LEN - 4096;

/// The bytes of a sector, wherever the kernel counts in them (Linux Documentation/ABI/stable/sysfs-block).
const SECTOR: u64 = 512;

/// Texts that are given as they are, by path, in order of worth: if all are too much, the last are cut.
const FILES: &[&str] = &[
    "/proc/version",
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/uptime",
    "/proc/sys/kernel/tainted",
    ONLINE,
    "/proc/modules",
];

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Gathers what there is to know.
pub(crate) fn gather() -> FactsResponse {
    let mut facts = Facts::default();
    if let Ok(names) = uname() {
        facts.add("kernel.release", names.release().as_bytes().to_vec());
        facts.add("kernel.version", names.version().as_bytes().to_vec());
        facts.add("machine", names.machine().as_bytes().to_vec());
        facts.add("hostname", names.nodename().as_bytes().to_vec());
    }
    facts.gather(Path::new("/"));
    FactsResponse { facts: facts.list }
}

#[derive(Default)]
struct Facts {
    list: Vec<(String, ByteBuf)>,
    total: usize,
}

impl Facts {
    fn add(&mut self, name: &str, mut text: Vec<u8>) {
        text.truncate(MAX_FACT_LEN.min(MAX_TOTAL.saturating_sub(self.total)));
        self.total = self.total.saturating_add(text.len());
        self.list.push((name.to_owned(), ByteBuf::from(text)));
    }

    /// Adds what is found below `root`, which is `/` but in tests.
    fn gather(&mut self, root: &Path) {
        let read = |path: &str| read_start(&below(root, path), MAX_FACT_LEN).ok();
        let release = "/etc/os-release";
        let cpus = read(ONLINE).and_then(|text| count(&String::from_utf8_lossy(&text)));
        let named = [
            (release, read(release).or_else(|| read("/usr/lib/os-release"))),
            ("/proc/cpuinfo", read("/proc/cpuinfo").map(first_block)),
            ("cpus", cpus.map(|count| count.to_string().into_bytes())),
            ("init", init(root)),
            ("disks", disks(root)),
            ("nics", nics(root)),
        ];
        for (name, text) in named {
            if let Some(text) = text {
                self.add(name, text);
            }
        }
        for path in FILES {
            if let Some(text) = read(path) {
                self.add(path, text);
            }
        }
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Up to the first empty line.
fn first_block(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(at) = text.windows(2).position(|two| two == b"\n\n") {
        text.truncate(at.saturating_add(1));
    }
    text
}

/// How many numbers are in a list such as `0-3,5`.
fn count(list: &str) -> Option<u32> {
    let mut total = 0_u32;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        total = total.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(total)
}

/// Process 1: its program's name, or what it calls itself where that is not for us to see.
fn init(root: &Path) -> Option<Vec<u8>> {
    if let Ok(program) = fs::read_link(below(root, "proc/1/exe"))
        && let Some(name) = program.file_name()
    {
        let name = name.as_bytes();
        return Some(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec());
    }
    let name = read_start(&below(root, "proc/1/comm"), MAX_FACT_LEN).ok()?;
    Some(name.trim_ascii_end().to_vec())
}

/// A line for each block device: name, bytes, 1 if read-only or else 0.
fn disks(root: &Path) -> Option<Vec<u8>> {
    table(&below(root, "sys/block"), |name, folder| {
        let sectors: u64 = value(folder, "size")?.parse().ok()?;
        if name.starts_with("ram") || (name.starts_with("loop") && sectors == 0) {
            return None;
        }
        let read_only = value(folder, "ro").unwrap_or_default() == "1";
        Some(format!("{} {}", sectors.saturating_mul(SECTOR), u8::from(read_only)))
    })
}

/// A line for each network interface: name, MAC, state, driver. What it has not is `-`.
fn nics(root: &Path) -> Option<Vec<u8>> {
    table(&below(root, "sys/class/net"), |_, folder| {
        // A file in here is a setting of the bonding driver.
        if !folder.is_dir() {
            return None;
        }
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let driver = fs::read_link(folder.join("device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let (mac, state) = (value(folder, "address"), value(folder, "operstate"));
        Some(format!("{} {} {}", or_none(mac), or_none(state), or_none(driver)))
    })
}

/// A line for each entry of a folder, by name; none when there is no folder.
fn table(folder: &Path, line: impl Fn(&str, &Path) -> Option<String>) -> Option<Vec<u8>> {
    let mut names: Vec<_> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let path = folder.join(&name);
        let name = name.to_string_lossy();
        if let Some(line) = line(&name, &path) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} {line}");
        }
    }
    Some(text.into_bytes())
}

/// The first line of an attribute, unless it is empty.
fn value(folder: &Path, name: &str) -> Option<String> {
    let text = read_start(&folder.join(name), 256).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, path: &str, text: &str) {
        let path = below(root, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn gathered(root: &Path) -> Facts {
        let mut facts = Facts::default();
        facts.gather(root);
        facts
    }

    fn fact(facts: &[(String, ByteBuf)], name: &str) -> Option<String> {
        let mut found = facts.iter().filter(|(found, _)| found == name);
        let text = found.next().map(|(_, text)| String::from_utf8_lossy(text).into_owned());
        assert!(found.next().is_none(), "{name} is there twice");
        text
    }

    #[test]
    fn a_guest_is_described() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "/usr/lib/os-release", "ID=alpine\n");
        write(root, "/proc/cpuinfo", "processor : 0\nflags : a\n\nprocessor : 1\n");
        write(root, "/sys/devices/system/cpu/online", "0-3,5\n");
        write(root, "/proc/cmdline", "console=ttyS0\n");
        write(root, "/proc/sys/kernel/random/boot_id", "never");
        fs::create_dir(root.join("proc/1")).unwrap();
        symlink("/usr/lib/systemd/systemd (deleted)", root.join("proc/1/exe")).unwrap();
        for (disk, size, ro) in [("vdb", 8, 1), ("vda", 2048, 0), ("ram0", 8, 0), ("loop0", 0, 0)] {
            write(root, &format!("/sys/block/{disk}/size"), &format!("{size}\n"));
            write(root, &format!("/sys/block/{disk}/ro"), &format!("{ro}\n"));
        }
        write(root, "/sys/class/net/eth0/address", "52:54:00:12:34:56\n");
        write(root, "/sys/class/net/eth0/operstate", "up\n");
        fs::create_dir(root.join("sys/class/net/eth0/device")).unwrap();
        symlink("../../drivers/virtio_net", root.join("sys/class/net/eth0/device/driver")).unwrap();
        write(root, "/sys/class/net/tun0/address", "\n");
        write(root, "/sys/class/net/bonding_masters", "bond0\n");

        let facts = gathered(root).list;
        let fact = |name| fact(&facts, name);
        assert_eq!(fact("/etc/os-release").unwrap(), "ID=alpine\n");
        assert_eq!(fact("/proc/cpuinfo").unwrap(), "processor : 0\nflags : a\n");
        assert_eq!(fact("cpus").unwrap(), "5");
        assert_eq!(fact("/sys/devices/system/cpu/online").unwrap(), "0-3,5\n");
        assert_eq!(fact("/proc/cmdline").unwrap(), "console=ttyS0\n");
        assert_eq!(fact("init").unwrap(), "systemd");
        assert_eq!(fact("disks").unwrap(), "vda 1048576 0\nvdb 4096 1\n");
        let expected = "eth0 52:54:00:12:34:56 up virtio_net\ntun0 - - -\n";
        assert_eq!(fact("nics").unwrap(), expected);
        assert_eq!(fact("/proc/modules"), None);
        assert!(!facts.iter().any(|(_, text)| text.windows(5).any(|part| part == b"never")));
    }

    #[test]
    fn an_empty_guest_has_no_facts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(gathered(root.path()).list, []);
    }

    #[test]
    fn facts_are_cut_to_fit_a_message() {
        let root = tempfile::tempdir().unwrap();
        let long = "x".repeat(MAX_FACT_LEN + 1);
        let all = ["/etc/os-release", "/proc/cpuinfo", "/proc/version", "/proc/cmdline"];
        for path in all.iter().chain(&["/proc/modules"]) {
            write(root.path(), path, &long);
        }
        let facts = gathered(root.path());
        assert_eq!(fact(&facts.list, "/etc/os-release").unwrap().len(), MAX_FACT_LEN);
        assert_eq!(facts.total, MAX_TOTAL);
        let response = guestline_protocol::Reply::Facts(FactsResponse { facts: facts.list });
        assert!(guestline_protocol::encode(&response).len() <= MAX_FRAME_LEN);
    }

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(count("0\n"), Some(1));
        assert_eq!(count("0-7,16-23"), Some(16));
        for wrong in ["", "7-0", "a", "0-4294967295", "0,"] {
            assert_eq!(count(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = gather().facts;
        for name in ["kernel.release", "kernel.version", "machine", "hostname", "/proc/version"] {
            assert!(!fact(&facts, name).unwrap().is_empty(), "{name}");
        }
        assert!(!facts.iter().any(|(name, _)| name.contains("boot_id")));
    }
}
