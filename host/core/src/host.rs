//! What this host is and has.

use nix::sys::statvfs::statvfs;
use std::path::Path;

/// Another with each boot of the host (random(4)).
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// What an ordinary user may still write to the disk of a folder, MiB (statvfs(3)).
///
/// # Errors
/// The folder is not there, or cannot be asked.
pub fn free_mib(folder: &Path) -> std::io::Result<u64> {
    let found = statvfs(folder)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()) >> 20)
}
