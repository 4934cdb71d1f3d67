//! Process 1 of a JeOS: mounts, modules, the root, then serving; or, beside another init that takes this place, serving as its
//! companion. Every way out of process 1 powers the machine off.
//!
//! ```text
//! guestline.modules=A,B   loaded in this order, each after what it needs; what the initramfs has not, out of the root
//! guestline.root=…        where the root is (crate::root)
//! guestline.modules_disk=… where all modules are (crate::root)
//! guestline.shell=PATH    what runs a line, instead of /bin/sh
//! guestline.init=PATH     the init that takes over; the agent lives on beside it, and answers before that is up
//! ```

use crate::args::{Role, ServeConfig, Source};
use crate::modules::NotLoaded;
use crate::sys::system::Interface;
use crate::{args, linux, modules, root, serve, sys};
use guestline_files::describe;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::RebootMode;
use nix::unistd::pipe2;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Source, target, type, flags, options. A folder that is missing is made.
type Mount = (&'static str, &'static str, &'static str, MsFlags, &'static str);

/// What finding the root takes.
#[rustfmt::skip]
const FIRST: &[Mount] = &[
    ("proc",     "/proc",          "proc",     NOTHING, ""),
    ("sysfs",    "/sys",           "sysfs",    NOTHING, ""),
    ("devtmpfs", "/dev",           "devtmpfs", MsFlags::MS_NOSUID, "mode=0755"),
];

/// What is mounted in the root.
#[rustfmt::skip]
const THEN: &[Mount] = &[
    ("devpts",   "/dev/pts",       "devpts",   MsFlags::MS_NOSUID, "mode=0620,gid=5"),
    ("tmpfs",    "/dev/shm",       "tmpfs",    SHARED,  "mode=1777"),
    ("tmpfs",    "/run",           "tmpfs",    SHARED,  "mode=0755"),
    ("tmpfs",    "/tmp",           "tmpfs",    SHARED,  "mode=1777"),
    ("cgroup2",  "/sys/fs/cgroup", "cgroup2",  NOTHING, ""),
];

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const SHARED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Names of the kernel parameters.
const MODULES_PARAMETER: &str = "guestline.modules";
const INIT_PARAMETER: &str = "guestline.init";

/// Another init waits at most so long, milliseconds, for the agent to have answered its host. Each would take the CPU from the
/// other, and what an init begins takes seconds.
const HEAD_START: u8 = 250;

pub(crate) fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("guestline-agent: {panic}");
        linux::end(RebootMode::RB_POWER_OFF)
    }));
    let mut troubles = mount_all(FIRST);
    let _ = std::env::set_current_dir("/");
    let names = linux::parameter(MODULES_PARAMETER).unwrap_or_default();
    let mut not_loaded = modules::load(names.split(',').filter(|name| !name.is_empty()));
    if let Err(why) = root::switch() {
        troubles.extend(not_loaded.iter().map(NotLoaded::trouble));
        eprintln!("guestline-agent: {why}; {}", troubles.join(", "));
        linux::end(RebootMode::RB_POWER_OFF);
    }
    troubles.extend(root::mount_modules().err());
    // The initramfs has what carries link and root; what a machine has besides is driven by what lies in the root.
    let later: Vec<String> = not_loaded
        .extract_if(.., |module| module.is_absent && root::is_elsewhere())
        .map(|module| module.name)
        .collect();
    not_loaded.extend(modules::load(later.iter().map(String::as_str)));
    troubles.extend(not_loaded.iter().map(NotLoaded::trouble));
    troubles.extend(mount_all(THEN));
    // Neither is there on every kernel, and no link needs them.
    let _ = Interface::named("lo").and_then(|loopback| loopback.set_up(true));
    if let Ok(name) = fs::read_to_string("/etc/hostname") {
        let _ = nix::unistd::sethostname(name.trim());
    }
    let (role, head_start) = match linux::parameter(INIT_PARAMETER) {
        Some(init) => hand_over(&init),
        None => (Role::Init, None),
    };
    let source = args::configured().unwrap_or_else(|error| {
        troubles.push(error);
        Source::Auto
    });
    let config = ServeConfig { source, role, troubles };
    if let Err(error) = serve::run(&config, head_start) {
        eprintln!("guestline-agent: {error}");
    }
    match role {
        Role::Init => linux::end(RebootMode::RB_POWER_OFF),
        Role::Companion | Role::Service => std::process::exit(1),
    }
}

/// Gives process 1 to another init; comes back in the process that lives on beside it, with what ends its head start when it
/// is closed.
fn hand_over(init: &str) -> (Role, Option<OwnedFd>) {
    let (waits, ends) = pipe2(OFlag::O_CLOEXEC).map_or((None, None), |(r, w)| (Some(r), Some(w)));
    match sys::fork_apart() {
        Ok(true) => (Role::Companion, ends),
        Ok(false) => {
            drop(ends);
            if let Some(waits) = waits {
                // Nothing is written to it; it is closed (pipe(7)).
                let _ = poll(
                    &mut [PollFd::new(waits.as_fd(), PollFlags::POLLIN)],
                    PollTimeout::from(HEAD_START),
                );
            }
            let error = Command::new(init).env_clear().exec();
            eprintln!("guestline-agent: cannot run {init}: {error}");
            linux::end(RebootMode::RB_POWER_OFF)
        }
        Err(error) => {
            eprintln!("guestline-agent: cannot live on beside {init}: {}", describe(error));
            (Role::Init, None)
        }
    }
}

/// Mounts them; what went wrong is told in words.
fn mount_all(mounts: &[Mount]) -> Vec<String> {
    let mut troubles = Vec::new();
    for (source, target, kind, flags, options) in mounts {
        let _ = fs::create_dir_all(target);
        let mounted = mount(Some(*source), *target, Some(*kind), *flags, Some(*options));
        // EBUSY: the kernel or the image had it mounted already.
        if let Err(error) = mounted
            && error != nix::errno::Errno::EBUSY
        {
            troubles.push(format!("file system {kind} on {target} ({})", describe(error)));
        }
    }
    troubles
}
