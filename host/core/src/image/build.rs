//! Making an image: packages into a kernel and an initramfs, and a root on a disk where the recipe has a suite.

use super::agent::Agent;
use super::deb::{self, DebError};
use super::debian::{KernelParts, Packages, Supply, kernel_parts, make_root, scratch_for};
use super::given;
use super::import::Busybox;
use super::initramfs::Tree;
use super::lock::LockPolicy;
use super::manifest::{DiskRecord, FORMAT, FileRecord, Manifest, PackageRecord};
use super::modules::{ModuleError, ModuleSet};
use super::packages::{PackageError, run};
use super::recipe::Recipe;
use crate::digest::Digest;
use crate::host::hint_of_io;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_util::sync::CancellationToken;

/// An image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its packages.
    #[error(transparent)]
    Packages(#[from] PackageError),
    /// A package cannot be unpacked.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// A module cannot be had.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The packages lack a file.
    #[error("no package has `{what}`")]
    Missing {
        /// The file.
        what: String,
    },
    /// The lock's file.
    #[error("cannot use the lock `{path}`", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is to be made from its lock alone, and cannot be.
    #[error("it cannot be made from its lock `{path}`: {why}", path = path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It was made, and does not do: it does not boot, say.
    #[error("it was made, and does not do: {why}")]
    Unfit {
        /// What it does not.
        why: String,
    },
    /// A root, a disk or a file that it is to be made of.
    #[error("cannot take over `{path}`", path = path.display())]
    Given {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it is made of is on the host that it came from.
    #[error(
        "its root, its disk or a file of it is on another host: it came from there, and is not here any more"
    )]
    NotHere,
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
    /// The image's folder.
    #[error("cannot write the image at `{path}`", path = path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// What mends it, where that is known.
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Packages(error) => return error.hint(),
            Self::Deb(DebError::NoProgram(_)) => "install it: apt-get install dpkg",
            Self::Deb(DebError::Unpack { source, .. }) | Self::Write { source, .. } => {
                return hint_of_io(source).map(str::to_owned);
            }
            Self::Missing { .. } => "add the package that has it to `packages` of its manifest",
            Self::Lock { .. } | Self::Locked { .. } => {
                "--update-lock makes it from the packages of now, and writes the lock"
            }
            Self::Given { source, .. } => {
                return hint_of_io(source)
                    .or(Some("take it in again: guestline image import --replace"))
                    .map(str::to_owned);
            }
            Self::NotHere => "take it in again: guestline image pull, or image import",
            Self::Module(_) | Self::Unfit { .. } | Self::Cancelled => return None,
        };
        Some(hint.to_owned())
    }
}

/// Names of an image's files in its folder.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd.cpio";
pub(super) const ROOT: &str = "root.squashfs";
/// The kernel's configuration, where its package has it.
pub(super) const CONFIG: &str = "config";
/// The content of `/lib/modules/RELEASE`, where the root has it not.
pub(super) const MODULES: &str = "modules.squashfs";

/// A disk that is booted as it is.
pub(super) const DISK: &str = "disk";
/// What its cloud-init is told, on a disk of its own.
pub(super) const SEED: &str = "seed";

/// All files that an image may have.
pub(super) const FILES: [&str; 7] = [INITRD, KERNEL, CONFIG, ROOT, MODULES, DISK, SEED];

/// The serial number of the disk that an image's root is.
const ROOT_SERIAL: &str = "root";

/// How an image is to be made.
pub struct BuildTerms<'a> {
    /// What is done with its lock.
    pub lock: LockPolicy,
    /// Ends early when this is.
    pub cancel: &'a CancellationToken,
    /// Is told what is done, and what should be known.
    pub tell: &'a dyn Fn(BuildNews<'_>),
}

/// What is told while an image is made.
#[derive(Debug, Clone, Copy)]
pub enum BuildNews<'a> {
    /// This is done now, as in "the image …".
    Step(&'a str),
    /// This should be known.
    Note(&'a str),
}

impl BuildTerms<'_> {
    pub(super) fn step(&self, what: &str) {
        (self.tell)(BuildNews::Step(what));
    }

    pub(super) fn note(&self, what: &str) {
        (self.tell)(BuildNews::Note(what));
    }
}

/// Makes the image in `folder`, which exists and is empty.
pub(super) fn build(
    recipe: &Recipe,
    agent: &Agent,
    supply: &Supply<'_>,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Manifest, BuildError> {
    let made = match (&recipe.busybox, &recipe.root, &recipe.disk) {
        (Some(busybox), ..) => in_memory(recipe, &busybox.program, agent, supply, folder, terms)?,
        (_, Some(root), _) => given::root(recipe, root, agent, supply, folder, terms)?,
        (.., Some(disk)) => given::disk(disk, folder, terms)?,
        (None, None, None) => on_disk(recipe, agent, supply, folder, terms)?,
    };
    let Made { packages, release, kernel, cmdline } = made;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| BuildError::Write { path, source })
    };
    if let Some(KernelMade { bzimage, config, initrd }) = kernel {
        let initrd = initrd.to_cpio();
        let initrd =
            initrd.map_err(|source| BuildError::Write { path: folder.join(INITRD), source })?;
        write(INITRD, &initrd)?;
        write(KERNEL, &bzimage)?;
        if let Some(config) = &config {
            write(CONFIG, config)?;
        }
    }
    let record = |name: &str| {
        let path = folder.join(name);
        let found =
            fs::metadata(&path).and_then(|found| Ok((found.len(), Digest::of_file(&path)?)));
        let (size, sha256) = found.map_err(|source| BuildError::Write { path, source })?;
        Ok::<_, BuildError>(FileRecord { name: name.to_owned(), size, sha256 })
    };
    let there = FILES.into_iter().filter(|name| folder.join(name).exists());
    let files = there.map(record).collect::<Result<_, _>>()?;
    let disk = recipe.disk.as_ref().map(|disk| DiskRecord {
        format: disk.format,
        firmware: disk.firmware,
        drive: disk.drive,
    });
    let manifest = Manifest {
        format: FORMAT,
        name: recipe.name.clone(),
        recipe: recipe.digest(),
        agent: agent.digest().clone(),
        packages,
        kernel_release: release,
        cmdline: cmdline + &recipe.shell_parameter(),
        memory_mib: recipe.memory_mib,
        warm_up: recipe.warm_up.clone(),
        ready: recipe.ready.clone(),
        shell: recipe.shell.clone(),
        provides: recipe.provides.clone(),
        owner: recipe.owner.clone(),
        licence: recipe.licence.clone(),
        disk,
        files,
    };
    write(super::store::MANIFEST, &manifest.to_json())?;
    Ok(manifest)
}

/// The parts of an image, but for those that are in its folder already.
pub(super) struct Made {
    pub(super) packages: Vec<PackageRecord>,
    pub(super) release: String,
    pub(super) kernel: Option<KernelMade>,
    pub(super) cmdline: String,
}

/// A kernel, and what it starts with.
pub(super) struct KernelMade {
    pub(super) bzimage: Vec<u8>,
    pub(super) config: Option<Vec<u8>>,
    pub(super) initrd: Tree,
}

/// All in the initramfs: busybox, modules, files.
fn in_memory(
    recipe: &Recipe,
    busybox: &str,
    agent: &Agent,
    supply: &Supply<'_>,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Made, BuildError> {
    let cancel = terms.cancel;
    let packages = supply.packages(recipe, terms)?.installed;
    let mut content = Content::default();
    for package in &packages {
        let want = |path: &str| content_wants(busybox, path);
        let mut found = Vec::new();
        deb::files(&package.path, cancel, want, |path, bytes| found.push((path, bytes)))?;
        for (path, bytes) in found {
            content.add(busybox, &path, bytes);
        }
    }
    let Content { kernel, config, release, mut modules, busybox: program } = content;
    let missing = |what: &str| BuildError::Missing { what: what.to_owned() };
    let bzimage = kernel.ok_or_else(|| missing("boot/vmlinuz-*"))?;
    let program = program.ok_or_else(|| missing(busybox))?;
    let load = modules.closure(&recipe.kernel.load)?;
    let all: Vec<String> =
        recipe.kernel.load.iter().chain(&recipe.kernel.modules).cloned().collect();
    let all = modules.closure(&all)?;

    let mut tree = first_tree(agent);
    for path in ["root", "tmp", "var/log", "mnt"] {
        tree.folder(path);
    }
    tree.file("bin/busybox", 0o755, program.clone());
    for applet in applets(&program, folder)? {
        tree.link(&applet, "/bin/busybox");
    }
    add_modules(&mut tree, &mut modules, &all, &release);
    for (path, file) in &recipe.files {
        tree.file(path, file.mode, file.bytes()?);
    }
    for (path, target) in &recipe.links {
        tree.link(path, target);
    }
    let packages = packages.into_iter().map(|package| package.record).collect();
    let cmdline = format!("{} guestline.modules={}", recipe.kernel.cmdline, load.join(","));
    let kernel = Some(KernelMade { bzimage, config, initrd: tree });
    Ok(Made { packages, release, kernel, cmdline })
}

/// The busybox of a recipe that has one.
pub(super) fn busybox(
    recipe: &Recipe,
    supply: &Supply<'_>,
    terms: &BuildTerms<'_>,
) -> Result<Busybox, BuildError> {
    let place = recipe.busybox.as_ref().map(|busybox| &*busybox.program).unwrap_or_default();
    let wrong = |source| BuildError::Write { path: supply.pool.to_owned(), source };
    std::fs::create_dir_all(supply.pool).map_err(wrong)?;
    let scratch = tempfile::tempdir_in(supply.pool).map_err(wrong)?;
    let mut program = None;
    for package in supply.packages(recipe, terms)?.installed {
        let want = |path: &str| below_root(path) == below_root(place);
        deb::files(&package.path, terms.cancel, want, |_, bytes| program = Some(bytes))?;
    }
    let program = program.ok_or_else(|| BuildError::Missing { what: place.to_owned() })?;
    let applets = applets(&program, scratch.path())?;
    Ok(Busybox { program, applets })
}

/// A root on a disk, and an initramfs that finds it.
fn on_disk(
    recipe: &Recipe,
    agent: &Agent,
    supply: &Supply<'_>,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Made, BuildError> {
    let Packages { kernel, installed } = supply.packages(recipe, terms)?;
    terms.step("unpacks its kernel");
    let scratch = scratch_for(folder)?;
    let parts = kernel_parts(&kernel, scratch.path(), terms.cancel)?;
    let packages = kernel.iter().chain(&installed).map(|package| package.record.clone());
    let made = root_on_disk(recipe, agent, parts, packages.collect())?;
    make_root(recipe, &installed, &made.release, scratch.path(), &folder.join(ROOT), terms)?;
    Ok(made)
}

/// The initramfs that finds a root on a disk, with the kernel and the command line for that.
pub(super) fn root_on_disk(
    recipe: &Recipe,
    agent: &Agent,
    parts: KernelParts,
    packages: Vec<PackageRecord>,
) -> Result<Made, BuildError> {
    let KernelParts { bzimage, config, release, mut modules } = parts;
    let load = modules.closure(&recipe.kernel.load)?;
    let mut tree = first_tree(agent);
    add_modules(&mut tree, &mut modules, &load, &release);
    let mut cmdline = format!(
        "{} guestline.modules={} guestline.root=squashfs:{ROOT_SERIAL}",
        recipe.kernel.cmdline,
        load.join(",")
    );
    if let Some(init) = &recipe.init {
        cmdline += &format!(" guestline.init={init}");
    }
    let kernel = Some(KernelMade { bzimage, config, initrd: tree });
    Ok(Made { packages, release, kernel, cmdline })
}

/// What every initramfs has.
fn first_tree(agent: &Agent) -> Tree {
    let mut tree = Tree::default();
    for path in ["dev", "proc", "run", "sys"] {
        tree.folder(path);
    }
    tree.char_device("dev/console", 5, 1);
    tree.char_device("dev/null", 1, 3);
    tree.file("init", 0o755, agent.bytes());
    tree
}

fn add_modules(tree: &mut Tree, modules: &mut ModuleSet, names: &[String], release: &str) {
    let place = format!("lib/modules/{release}");
    for name in names {
        if let Some((path, bytes)) = modules.file(name) {
            tree.file(&format!("{place}/{path}"), 0o644, bytes);
        }
    }
    tree.file(&format!("{place}/modules.dep"), 0o644, modules.dep(names));
}

/// What the packages have of what an image needs.
#[derive(Default)]
struct Content {
    kernel: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    release: String,
    modules: ModuleSet,
    busybox: Option<Vec<u8>>,
}

/// Newer Debian keeps all below `usr/`; older has `lib/` and `bin/`.
fn below_root(path: &str) -> &str {
    path.strip_prefix("usr/").unwrap_or(path)
}

fn content_wants(busybox: &str, path: &str) -> bool {
    let path = below_root(path);
    path.starts_with("boot/vmlinuz-")
        || path.starts_with("boot/config-")
        || path == below_root(busybox)
        || path.starts_with("lib/modules/")
            && (path.contains(".ko") || path.ends_with("/modules.builtin"))
}

impl Content {
    fn add(&mut self, busybox: &str, path: &str, bytes: Vec<u8>) {
        let path = below_root(path);
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            self.release = release.to_owned();
            self.kernel = Some(bytes);
        } else if path.starts_with("boot/config-") {
            self.config = Some(bytes);
        } else if path == below_root(busybox) {
            self.busybox = Some(bytes);
        } else if let Some((_, path)) =
            path.strip_prefix("lib/modules/").and_then(|rest| rest.split_once('/'))
        {
            self.modules.add(path, bytes);
        }
    }
}

/// Paths of the links that make busybox's applets commands. The program, which is static and made
/// for this CPU, tells them itself (`--list-full`).
fn applets(busybox: &[u8], folder: &Path) -> Result<Vec<String>, BuildError> {
    let path = folder.join("busybox");
    let write = |source| BuildError::Write { path: path.clone(), source };
    fs::write(&path, busybox).map_err(write)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(write)?;
    let listed = run(Command::new(&path).arg("--list-full"), &CancellationToken::new());
    fs::remove_file(&path).map_err(write)?;
    let text = String::from_utf8_lossy(&listed?).into_owned();
    let applets = text.lines().map(str::trim).filter(|path| !path.is_empty());
    // The agent is the init, and busybox is itself.
    let ours = ["sbin/init", "bin/busybox", "linuxrc"];
    Ok(applets.filter(|path| !ours.contains(path)).map(str::to_owned).collect())
}
