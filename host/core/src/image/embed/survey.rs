//! What system a root holds: its name, what starts its services, for what its programs are, its kernels' modules.

use super::inittab::Dialect;
use super::root::Node;
use super::tree::{EmbedError, Tree};
use super::units::AGENT_PATH;
use crate::image::Kind;
use crate::image::elf::foreign_machine;
use crate::text;
use std::fmt;
use std::path::PathBuf;

/// So much of a file tells what it is.
const HEAD: u64 = 4096;

/// A root has no more kernels that are looked at.
pub(crate) const MAX_KERNELS: usize = 64;

/// The drivers that are looked for.
const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_console"];

/// What the kernel starts in a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boots {
    /// `/sbin/init`, as of a disk.
    Disk,
    /// `/init`, as of an initial RAM file system.
    Initramfs,
}

impl Boots {
    /// What a kernel starts in a root that is in something of this kind.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Cpio => Self::Initramfs,
            _ => Self::Disk,
        }
    }
}

/// What starts services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitSystem {
    /// systemd.
    Systemd,
    /// OpenRC, under whatever init.
    OpenRc,
    /// sysvinit or busybox, by their inittab.
    Inittab(Dialect),
    /// There is no init; the kernel would look for one here.
    None {
        /// Where.
        path: &'static str,
    },
    /// Something else.
    Unknown {
        /// Where it is.
        path: PathBuf,
    },
}

/// Does a kernel of the root have a driver?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Driver {
    /// It is built in, or there are no kernels to look at.
    NoModule,
    /// All kernels have it, and at least one as a module.
    Module,
    /// A kernel has it not.
    Missing,
}

/// A kernel of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its release.
    pub(crate) release: String,
    /// Of [`DRIVERS`].
    drivers: [Driver; DRIVERS.len()],
}

/// What a root holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// As it calls itself (os-release(5)).
    pub name: Option<String>,
    /// What starts services.
    pub init: InitSystem,
    pub(crate) kernels: Vec<Kernel>,
    /// A program that is for another machine than ours, and for which.
    pub(crate) foreign: Option<String>,
    pub(crate) has_shell: bool,
}

impl fmt::Display for InitSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Systemd => "systemd",
            Self::OpenRc => "OpenRC",
            Self::Inittab(Dialect::Sysv) => "sysvinit",
            Self::Inittab(Dialect::Busybox) => "busybox init",
            Self::None { .. } => "no init",
            Self::Unknown { path } => return write!(f, "init /{}", path.display()),
        })
    }
}

impl fmt::Display for System {
    /// "Debian GNU/Linux 12 (bookworm), systemd".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("a system without a name");
        write!(f, "{}, {}", text::one_line(name, 80), self.init)
    }
}

impl Kernel {
    /// By its `modules.dep` and `modules.builtin`.
    fn of(release: String, modules: &str, builtin: &str) -> Self {
        let is_in = |list: &str, name: &str| {
            list.lines().any(|line| {
                let path = line.split(':').next().unwrap_or_default();
                let file = path.rsplit('/').next().unwrap_or_default();
                file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == name)
            })
        };
        let drivers = DRIVERS.map(|name| match () {
            () if is_in(builtin, name) => Driver::NoModule,
            () if is_in(modules, name) => Driver::Module,
            () => Driver::Missing,
        });
        Self { release, drivers }
    }

    /// Has it a driver, of those that are looked for?
    pub(crate) fn driver(&self, name: &str) -> Driver {
        let known = DRIVERS.iter().zip(self.drivers).find(|(known, _)| **known == name);
        known.map_or(Driver::Missing, |(_, driver)| driver)
    }
}

impl System {
    /// Looks at a root.
    ///
    /// # Errors
    /// [`EmbedError`]; [`EmbedError::NoSystem`] where there is none.
    pub(crate) fn of(tree: &mut Tree<'_>, boots: Boots) -> Result<Self, EmbedError> {
        let (name, init) = (name(tree)?, init(tree, boots)?);
        let has_shell = tree.has_file("/bin/sh")?;
        if name.is_none() && !has_shell && matches!(init, InitSystem::None { .. }) {
            return Err(EmbedError::NoSystem);
        }
        let mut foreign = None;
        for program in ["/bin/sh", "/sbin/init", "/init", "/usr/bin/env"] {
            if let Some(head) = tree.begin(program, HEAD)?
                && head.starts_with(b"\x7fELF")
            {
                foreign = foreign_machine(&head);
                break;
            }
        }
        Ok(Self { name, init, kernels: kernels(tree)?, foreign, has_shell })
    }

    /// Has every kernel of the root a driver?
    pub(crate) fn driver(&self, name: &str) -> Driver {
        let all = self.kernels.iter().map(|kernel| kernel.driver(name));
        all.max().unwrap_or(Driver::NoModule)
    }
}

fn name(tree: &mut Tree<'_>) -> Result<Option<String>, EmbedError> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        let Some(bytes) = tree.begin(path, HEAD)? else { continue };
        let content = String::from_utf8_lossy(&bytes);
        let value = |key: &str| {
            let line = content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches(['"', '\'']).to_owned())
        };
        let name = value("PRETTY_NAME").or_else(|| value("NAME")).or_else(|| value("ID"));
        return Ok(Some(name.unwrap_or_else(|| "a Linux without a name".to_owned())));
    }
    Ok(None)
}

fn init(tree: &mut Tree<'_>, boots: Boots) -> Result<InitSystem, EmbedError> {
    let (mut first, mut is_script) = ("/sbin/init", false);
    if boots == Boots::Initramfs {
        let begin = tree.begin("/init", HEAD)?;
        match begin {
            None => return Ok(InitSystem::None { path: "/init" }),
            // A script goes on to the real one.
            Some(begin) if begin.starts_with(b"#!") => is_script = true,
            Some(_) => first = "/init",
        }
    }
    let Some(place) = tree.found(first)? else {
        return Ok(match is_script {
            // It goes on in another root: nothing would start what is put here.
            true => InitSystem::Unknown { path: "init".into() },
            false => InitSystem::None { path: "/sbin/init" },
        });
    };
    if !matches!(place.node, Some(Node::File { .. })) {
        return Ok(InitSystem::Unknown { path: place.path });
    }
    let agent = tree.found(AGENT_PATH)?;
    if agent.is_some_and(|agent| agent.path == place.path) {
        return Ok(InitSystem::None {
            path: if first == "/init" { "/init" } else { "/sbin/init" },
        });
    }
    let program = place.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (openrc, inittab) = (tree.has_file("/sbin/openrc")?, tree.has_file("/etc/inittab")?);
    Ok(match program {
        "systemd" => InitSystem::Systemd,
        "openrc-init" => InitSystem::OpenRc,
        _ if openrc && tree.has_file("/sbin/openrc-run")? => InitSystem::OpenRc,
        "busybox" => InitSystem::Inittab(Dialect::Busybox),
        _ if program.starts_with("busybox") => InitSystem::Inittab(Dialect::Busybox),
        _ if inittab => InitSystem::Inittab(Dialect::Sysv),
        _ => InitSystem::Unknown { path: place.path },
    })
}

fn kernels(tree: &mut Tree<'_>) -> Result<Vec<Kernel>, EmbedError> {
    let mut kernels = Vec::new();
    for release in tree.names("/lib/modules")?.into_iter().take(MAX_KERNELS) {
        let folder = format!("/lib/modules/{release}");
        let mut read = |name: &str| -> Result<Option<String>, EmbedError> {
            let bytes = tree.read(&format!("{folder}/{name}"))?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        // A folder without it is what a kernel that was removed has left.
        if let Some(modules) = read("modules.dep")? {
            let builtin = read("modules.builtin")?.unwrap_or_default();
            kernels.push(Kernel::of(release, &modules, &builtin));
        }
    }
    Ok(kernels)
}
