//! The guest kernel's paths, and the calls that end a guest.

use nix::sys::reboot::{RebootMode, reboot};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const CMDLINE: &str = "/proc/cmdline";
pub(crate) const RELEASE: &str = "/proc/sys/kernel/osrelease";
pub(crate) const MODULES: &str = "/lib/modules";
pub(crate) const VIRTIO_PORTS: &str = "/sys/class/virtio-ports";
pub(crate) const DEV: &str = "/dev";
pub(crate) const RESERVE_TTY: &str = "/dev/ttyS1";

/// What runs a line, unless an image says another.
pub(crate) const SHELL: &str = "/bin/sh";

/// What a command run by the init finds in its environment (DESIGN.md, Defaults).
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", SHELL),
    ("LANG", "C.UTF-8"),
    ("TZ", "UTC"),
];

/// The value of `name=value` on the kernel command line, the last one winning.
pub(crate) fn parameter(name: &str) -> Option<String> {
    let line = std::fs::read_to_string(CMDLINE).ok()?;
    let mut values = line.split_whitespace().filter_map(|word| word.split_once('='));
    values.rfind(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// `uname -r`.
pub(crate) fn release() -> String {
    std::fs::read_to_string(RELEASE).unwrap_or_default().trim().to_owned()
}

/// `CLOCK_REALTIME`, in microseconds since 1970.
pub(crate) fn clock_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Ends the machine; as process 1 there is nothing else to do.
pub(crate) fn end(mode: RebootMode) -> ! {
    nix::unistd::sync();
    let _ = reboot(mode);
    // The kernel refused (no such way of ending): its own panic ends the machine.
    std::process::exit(1)
}
