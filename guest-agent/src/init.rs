//! Process 1 of a JeOS: mounts, modules, then serving. Every way out powers the machine off.

use crate::args::{ServeConfig, Source};
use crate::sys::system::Interface;
use crate::{args, linux, modules, serve};
use guestline_files::describe;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::RebootMode;
use std::fs;

/// Source, target, type, flags, options. A folder that is missing is made.
#[rustfmt::skip]
const MOUNTS: &[(&str, &str, &str, MsFlags, &str)] = &[
    ("proc",     "/proc",          "proc",     NOTHING, ""),
    ("sysfs",    "/sys",           "sysfs",    NOTHING, ""),
    ("devtmpfs", "/dev",           "devtmpfs", MsFlags::MS_NOSUID, "mode=0755"),
    ("devpts",   "/dev/pts",       "devpts",   MsFlags::MS_NOSUID, "mode=0620,gid=5"),
    ("tmpfs",    "/dev/shm",       "tmpfs",    SHARED,  "mode=1777"),
    ("tmpfs",    "/run",           "tmpfs",    SHARED,  "mode=0755"),
    ("tmpfs",    "/tmp",           "tmpfs",    SHARED,  "mode=1777"),
    ("cgroup2",  "/sys/fs/cgroup", "cgroup2",  NOTHING, ""),
];

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const SHARED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Name of the kernel parameter that lists the modules to load, in order, separated by commas.
const MODULES_PARAMETER: &str = "guestline.modules";

pub(crate) fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("guestline-agent: {panic}");
        linux::end(RebootMode::RB_POWER_OFF)
    }));
    let mut troubles = Vec::new();
    for (source, target, kind, flags, options) in MOUNTS {
        let _ = fs::create_dir_all(target);
        let mounted = mount(Some(*source), *target, Some(*kind), *flags, Some(*options));
        // EBUSY: the kernel or the image had it mounted already.
        if let Err(error) = mounted
            && error != nix::errno::Errno::EBUSY
        {
            troubles.push(format!("file system {kind} on {target} ({})", describe(error)));
        }
    }
    let _ = std::env::set_current_dir("/");
    // Neither is there on every kernel, and no link needs them.
    let _ = Interface::named("lo").and_then(|loopback| loopback.set_up(true));
    if let Ok(name) = fs::read_to_string("/etc/hostname") {
        let _ = nix::unistd::sethostname(name.trim());
    }
    if let Some(names) = linux::parameter(MODULES_PARAMETER) {
        troubles.extend(modules::load(names.split(',').filter(|name| !name.is_empty())));
    }
    let source = args::configured().unwrap_or_else(|error| {
        troubles.push(error);
        Source::Auto
    });
    let config = ServeConfig { source, init: true, troubles };
    if let Err(error) = serve::run(&config) {
        eprintln!("guestline-agent: {error}");
    }
    linux::end(RebootMode::RB_POWER_OFF)
}
