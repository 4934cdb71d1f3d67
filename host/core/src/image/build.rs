//! Making an image: packages into a kernel and an initramfs.

use super::agent::Agent;
use super::deb::{self, DebError};
use super::initramfs::Tree;
use super::kernel;
use super::manifest::{FORMAT, FileRecord, Manifest};
use super::modules::{ModuleError, ModuleSet};
use super::packages::{PackageError, PackageSource, run};
use super::recipe::Recipe;
use crate::digest::Digest;
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

/// Names of an image's files in its folder.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd.cpio";

/// Makes the image in `folder`, which exists and is empty.
pub(super) fn build(
    recipe: &Recipe,
    agent: &Agent,
    source: &PackageSource,
    pool: &Path,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<Manifest, BuildError> {
    let packages = source.fetch(&recipe.packages, pool, cancel)?;
    let mut content = Content::default();
    for package in &packages {
        let want = |path: &str| content_wants(recipe, path);
        let mut found = Vec::new();
        deb::files(&package.path, cancel, want, |path, bytes| found.push((path, bytes)))?;
        for (path, bytes) in found {
            content.add(recipe, &path, bytes);
        }
    }
    let Content { kernel, release, mut modules, busybox } = content;
    let missing = |what: &str| BuildError::Missing { what: what.to_owned() };
    let bzimage = kernel.ok_or_else(|| missing("boot/vmlinuz-*"))?;
    let busybox = busybox.ok_or_else(|| missing(&recipe.busybox.program))?;
    let load = modules.closure(&recipe.kernel.load)?;
    let all: Vec<String> =
        recipe.kernel.load.iter().chain(&recipe.kernel.modules).cloned().collect();
    let all = modules.closure(&all)?;

    let mut tree = Tree::default();
    for path in ["dev", "proc", "root", "run", "sys", "tmp", "var/log", "mnt"] {
        tree.folder(path);
    }
    tree.char_device("dev/console", 5, 1);
    tree.char_device("dev/null", 1, 3);
    tree.file("init", 0o755, agent.bytes());
    tree.file("bin/busybox", 0o755, busybox.clone());
    for applet in applets(&busybox, folder)? {
        tree.link(&applet, "/bin/busybox");
    }
    let place = format!("lib/modules/{release}");
    for name in &all {
        if let Some((path, bytes)) = modules.file(name) {
            tree.file(&format!("{place}/{path}"), 0o644, bytes);
        }
    }
    tree.file(&format!("{place}/modules.dep"), 0o644, modules.dep(&all));
    for (path, text) in &recipe.files {
        tree.file(path, 0o644, text.as_bytes());
    }

    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let written = fs::write(&path, bytes);
        written.map_err(|source| BuildError::Write { path, source })?;
        let (size, sha256) = (bytes.len() as u64, Digest::of(bytes));
        Ok::<_, BuildError>(FileRecord { name: name.to_owned(), size, sha256 })
    };
    let archive =
        tree.to_cpio().map_err(|source| BuildError::Write { path: folder.join(INITRD), source })?;
    // Where its compression is unknown here, the guest unpacks the kernel by itself.
    let kernel = kernel::vmlinux(&bzimage).unwrap_or(bzimage);
    let files = vec![write(INITRD, &archive)?, write(KERNEL, &kernel)?];
    let manifest = Manifest {
        format: FORMAT,
        name: recipe.name.clone(),
        recipe: recipe.digest(),
        agent: agent.digest().clone(),
        packages: packages.into_iter().map(|package| package.record).collect(),
        kernel_release: release,
        cmdline: format!("{} guestline.modules={}", recipe.kernel.cmdline, load.join(",")),
        memory_mib: recipe.memory_mib,
        warm_up: recipe.warm_up.clone(),
        files,
    };
    write(super::store::MANIFEST, &manifest.to_json())?;
    Ok(manifest)
}

/// What the packages have of what an image needs.
#[derive(Default)]
struct Content {
    kernel: Option<Vec<u8>>,
    release: String,
    modules: ModuleSet,
    busybox: Option<Vec<u8>>,
}

/// Newer Debian keeps all below `usr/`; older has `lib/` and `bin/`.
fn below_root(path: &str) -> &str {
    path.strip_prefix("usr/").unwrap_or(path)
}

fn content_wants(recipe: &Recipe, path: &str) -> bool {
    let path = below_root(path);
    path.starts_with("boot/vmlinuz-")
        || path == below_root(&recipe.busybox.program)
        || path.starts_with("lib/modules/")
            && (path.contains(".ko") || path.ends_with("/modules.builtin"))
}

impl Content {
    fn add(&mut self, recipe: &Recipe, path: &str, bytes: Vec<u8>) {
        let path = below_root(path);
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            self.release = release.to_owned();
            self.kernel = Some(bytes);
        } else if path == below_root(&recipe.busybox.program) {
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
