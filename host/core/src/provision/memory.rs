//! How much memory the host has for machines: asked before, not found out after.

use std::path::Path;

/// What QEMU needs beside the guest's memory: translated code, devices, its own.
pub(super) const OVERHEAD_MIB: u64 = 96;

/// Left to the host whatever is asked.
pub(super) const RESERVE_MIB: u64 = 128;

/// A machine does not fit this host.
#[derive(Debug, thiserror::Error)]
#[error("{asked} asked, {free} free on this host", asked = size(*asked_mib), free = size(*free_mib))]
pub struct MemoryError {
    /// What was asked.
    pub asked_mib: u64,
    /// What a machine could have at most.
    pub free_mib: u64,
}

/// "64 GiB", "1.5 GiB", "300 MiB".
fn size(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        _ if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        _ => format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024),
    }
}

/// What can be used without swapping: `MemAvailable` (proc_meminfo(5)), and no more than the limits of
/// our control groups leave (cgroups(7)).
pub fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    // A kernel that does not tell gets the benefit of the doubt: QEMU will find out.
    let host = kib.map_or(u64::MAX, |kib| kib / 1024);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(cgroup_mib).fold(host, u64::min)
}

/// What a line of `/proc/self/cgroup` leaves, itself and all above it. Page cache that can be dropped is
/// no use of memory.
fn cgroup_mib(line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, limit, used, cache) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        _ if controllers.split(',').any(|name| name == "memory") => (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file ",
        ),
        _ => return None,
    };
    let folder = Path::new(root).join(path.trim_start_matches('/'));
    let left =
        folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(|folder| {
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
            let stat = read("memory.stat").unwrap_or_default();
            let cached =
                stat.lines().find_map(|line| line.strip_prefix(cache)?.parse::<u64>().ok());
            let used = number(used)?.saturating_sub(cached.unwrap_or(0));
            Some(number(limit)?.saturating_sub(used) >> 20)
        });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_does_not_fit_is_told_in_sizes() {
        let error = MemoryError { asked_mib: 65536, free_mib: 904 };
        assert_eq!(error.to_string(), "64 GiB asked, 904 MiB free on this host");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([size(300), size(1024), size(1536)], ["300 MiB", "1 GiB", "1.5 GiB"]);
        assert!(available_mib() > 0);
    }
}
