//! Roots made of Debian's packages: which ones, out of a lock or as they are now; installed by mmdebstrap(1), which needs no
//! root where the host has user namespaces; packed as squashfs.
//!
//! ```text
//! lock, or apt ─> pool ─┬─> a repository of just these ─> mmdebstrap ─> tar ─> mksquashfs ─> root.squashfs
//!                       └─> kernel package: vmlinuz, modules (a tar that mmdebstrap takes in) ─────^
//! ```
//! The same packages give the same bytes: times are those of the packages, or 1970.

use super::apt::{Apt, Wanted};
use super::build::{BuildError, BuildTerms};
use super::deb;
use super::lock::{Lock, LockPolicy, Moved};
use super::manifest::PackageRecord;
use super::mirror::Mirror;
use super::modules::ModuleSet;
use super::packages::{
    Fetched, PackageError, PackageSource, Stanza, download, fetched, keep_all, missing, resolve,
    run,
};
use super::recipe::Recipe;
use super::squashfs::{Compression, EPOCH, TarWriter, pack};
use crate::machine::on_path;
use nix::unistd::Uid;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// What is left out, but for the licences that have to go with the programs.
const LEFT_OUT: [&str; 6] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
];

/// Makes `/bin` and its like links before anything is unpacked.
const MERGED: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// The kernel's modules, in the folder in which a root is put together.
pub(super) const KERNEL_TAR: &str = "kernel.tar";

/// Where packages come from, and are kept.
pub(super) struct Supply<'a> {
    pub(super) source: &'a PackageSource,
    /// The cache folder, for apt's lists.
    pub(super) cache: &'a Path,
    pub(super) pool: &'a Path,
    /// The lock's file.
    pub(super) lock: &'a Path,
}

/// The packages of an image, in the pool.
pub(super) struct Packages {
    pub(super) kernel: Vec<Fetched>,
    pub(super) installed: Vec<Fetched>,
}

/// The kernel's package, unpacked.
pub(super) struct KernelParts {
    pub(super) bzimage: Vec<u8>,
    pub(super) config: Option<Vec<u8>>,
    pub(super) release: String,
    pub(super) modules: ModuleSet,
}

impl Supply<'_> {
    fn mirror(&self) -> Result<Option<&Mirror>, PackageError> {
        match self.source {
            PackageSource::Apt => Ok(None),
            PackageSource::Mirror(mirror) => Ok(Some(mirror)),
            PackageSource::None { host } => Err(PackageError::NoSource { host: host.clone() }),
        }
    }

    /// The packages of a recipe: those of its lock, or of now.
    pub(super) fn packages(
        &self,
        recipe: &Recipe,
        terms: &BuildTerms<'_>,
    ) -> Result<Packages, BuildError> {
        let policy = terms.lock;
        let known = match Lock::read(self.lock) {
            // Whatever is in the way is written over.
            Err(_) if policy == LockPolicy::Update => None,
            known => {
                known.map_err(|source| BuildError::Lock { path: self.lock.to_owned(), source })?
            }
        };
        let (known, other) = match known {
            Some(lock) if lock.is_of(recipe) => (Some(lock), None),
            other => (None, other),
        };
        let no_lock = |why: String| BuildError::Locked { path: self.lock.to_owned(), why };
        if policy != LockPolicy::Update {
            match known.as_ref().map(|lock| self.locked(recipe, lock, terms)) {
                Some(Ok(packages)) => return Ok(packages),
                Some(Err(_)) if terms.cancel.is_cancelled() => return Err(BuildError::Cancelled),
                Some(Err(error)) if policy == LockPolicy::Only => {
                    return Err(no_lock(crate::text::chain(&error)));
                }
                Some(Err(error)) => {
                    terms.note(&format!(
                        "its lock cannot be had any more: {}",
                        crate::text::chain(&error)
                    ));
                }
                None if policy == LockPolicy::Only && other.is_some() => {
                    return Err(no_lock("it is of another list of packages".to_owned()));
                }
                None if policy == LockPolicy::Only => {
                    return Err(no_lock("there is none".to_owned()));
                }
                None => {}
            }
        }
        let (packages, lock) = self.newest(recipe, terms)?;
        let before = known.or(other);
        if let Some(before) = &before {
            tell_moved(&before.moved(&lock), policy, terms);
        }
        if before.is_none() || policy == LockPolicy::Update {
            match lock.write(self.lock) {
                Err(source) if policy == LockPolicy::Update => {
                    return Err(BuildError::Lock { path: self.lock.to_owned(), source });
                }
                // What is made is good all the same.
                Err(error) => terms.note(&format!(
                    "its lock cannot be written, `{}`: {error}",
                    self.lock.display()
                )),
                Ok(()) => {}
            }
        }
        Ok(packages)
    }

    /// Those of a lock, out of the pool and, where they are missing there, off the mirror.
    fn locked(
        &self,
        recipe: &Recipe,
        lock: &Lock,
        terms: &BuildTerms<'_>,
    ) -> Result<Packages, PackageError> {
        let (step, cancel) = (&|what: &str| terms.step(what), terms.cancel);
        let stanzas: Vec<Stanza> = lock.all().map(stanza_of).collect();
        if recipe.suite.is_none() {
            let kept = self.source.fetch_exactly(&stanzas, self.pool, step, cancel)?;
            return Ok(split(kept, lock.kernel.len()));
        }
        let missing_ones = missing(&stanzas, self.pool);
        if !missing_ones.is_empty() {
            let apt = self.apt(recipe, false, cancel)?;
            match download(&missing_ones, self.pool, &apt, step, cancel) {
                // Lists that are too old name what is there no more, or lack what is.
                Err(_) if !cancel.is_cancelled() => {
                    let apt = self.apt(recipe, true, cancel)?;
                    download(&missing(&stanzas, self.pool), self.pool, &apt, step, cancel)?;
                }
                downloaded => downloaded?,
            }
        }
        let kept = stanzas.iter().map(|stanza| fetched(stanza, self.pool)).collect();
        Ok(split(kept, lock.kernel.len()))
    }

    /// Those of now.
    fn newest(
        &self,
        recipe: &Recipe,
        terms: &BuildTerms<'_>,
    ) -> Result<(Packages, Lock), BuildError> {
        if recipe.suite.is_none() {
            terms.step("fetches its packages");
            let step = |what: &str| terms.step(what);
            let installed = self.source.fetch(&recipe.packages, self.pool, &step, terms.cancel)?;
            let packages = Packages { kernel: Vec::new(), installed };
            let lock = Lock::new(recipe, Vec::new(), records(&packages.installed));
            return Ok((packages, lock));
        }
        terms.step("looks for its packages");
        let apt = self.apt(recipe, true, terms.cancel)?;
        let wanted: Vec<String> = recipe.kernel.package.clone().into_iter().collect();
        let mut stanzas = resolve(&wanted, |name| apt.show(name, terms.cancel))?;
        let of_kernel = stanzas.len();
        if recipe.root.is_none() {
            stanzas.extend(apt.plan(&recipe.packages, terms.cancel)?);
        }
        let step = |what: &str| terms.step(what);
        let kept = keep_all(&stanzas, self.pool, &apt, &step, terms.cancel)?;
        let packages = split(kept, of_kernel);
        let lock = Lock::new(recipe, records(&packages.kernel), records(&packages.installed));
        Ok((packages, lock))
    }

    fn apt(
        &self,
        recipe: &Recipe,
        fresh: bool,
        cancel: &CancellationToken,
    ) -> Result<Apt, PackageError> {
        Apt::of_suite(&Wanted::of(recipe), self.mirror()?, self.cache, fresh, cancel)
    }
}

fn records(of: &[Fetched]) -> Vec<PackageRecord> {
    of.iter().map(|package| package.record.clone()).collect()
}

fn stanza_of(record: &PackageRecord) -> Stanza {
    Stanza::new(record.name.clone(), record.version.clone(), record.sha256.clone())
}

/// The kernel's are the first.
fn split(mut kernel: Vec<Fetched>, of_kernel: usize) -> Packages {
    let installed = kernel.split_off(of_kernel.min(kernel.len()));
    Packages { kernel, installed }
}

fn tell_moved(moved: &[Moved], policy: LockPolicy, terms: &BuildTerms<'_>) {
    if moved.is_empty() {
        return;
    }
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    for Moved { name, from, to } in moved {
        terms.note(&format!("moved on: {name} {} -> {}", version(from), version(to)));
    }
    if policy != LockPolicy::Update {
        terms.note("the lock stays as it was; --update-lock writes what was used");
    }
}

/// Kernel and modules out of their packages; all modules go into a tar file in `scratch` as well, for the root.
pub(super) fn kernel_parts(
    kernel: &[Fetched],
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<KernelParts, BuildError> {
    let kernel_tar = scratch.join(KERNEL_TAR);
    let write = |source| BuildError::Write { path: kernel_tar.clone(), source };
    let mut parts = KernelParts {
        bzimage: Vec::new(),
        config: None,
        release: String::new(),
        modules: ModuleSet::default(),
    };
    let mut tar = TarWriter::create(&kernel_tar).map_err(write)?;
    let mut written = Ok(());
    let want = |path: &str| {
        let path = path.strip_prefix("usr/").unwrap_or(path);
        path.starts_with("boot/vmlinuz-")
            || path.starts_with("boot/config-")
            || path.starts_with("lib/modules/")
    };
    for package in kernel {
        deb::files(&package.path, cancel, want, |path, bytes| {
            let path = path.strip_prefix("usr/").unwrap_or(&path);
            let in_modules =
                path.strip_prefix("lib/modules/").and_then(|rest| rest.split_once('/'));
            let release = match in_modules {
                Some((release, "vmlinuz")) => Some(release),
                _ => path.strip_prefix("boot/vmlinuz-"),
            };
            if let Some(release) = release {
                (parts.release, parts.bzimage) = (release.to_owned(), bytes);
                return;
            }
            let target = match in_modules {
                Some(_) => format!("usr/{path}"),
                None => path.to_owned(),
            };
            if written.is_ok() {
                written = tar.file(&target, 0o644, &bytes);
            }
            if path.starts_with("boot/config-") {
                parts.config = Some(bytes);
            } else if let Some((_, module)) = in_modules {
                parts.modules.add(module, bytes);
            }
        })?;
    }
    written.and_then(|()| tar.finish()).map_err(write)?;
    match parts.bzimage.is_empty() {
        true => Err(BuildError::Missing { what: "boot/vmlinuz-*".to_owned() }),
        false => Ok(parts),
    }
}

/// Installs the packages and packs the root into `to`. `scratch` is [`scratch_for`]'s, with what [`kernel_parts`] left
/// there of the kernel of this release.
pub(super) fn make_root(
    recipe: &Recipe,
    packages: &[Fetched],
    release: &str,
    scratch: &Path,
    to: &Path,
    terms: &BuildTerms<'_>,
) -> Result<(), BuildError> {
    let wrong = |source| BuildError::Write { path: scratch.to_owned(), source };
    terms.step(&format!("unpacks and sets up {} packages", packages.len()));
    let [repository, kernel_tar, files_tar, root_tar] =
        ["repository", KERNEL_TAR, "files.tar", "root.tar"].map(|name| scratch.join(name));
    make_repository(&repository, packages, terms.cancel)?;
    files_of(recipe, &files_tar)?;

    let names: Vec<&str> = packages.iter().map(|package| &*package.record.name).collect();
    let mut mmdebstrap = mmdebstrap(terms.cancel)?;
    mmdebstrap.env("SOURCE_DATE_EPOCH", EPOCH).env("TMPDIR", scratch);
    mmdebstrap.args(["--variant=custom", "--format=tar", "--architectures=amd64"]);
    mmdebstrap.arg(format!("--include={}", names.join(",")));
    mmdebstrap.args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
    mmdebstrap.args([
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=APT::Sandbox::User \"root\"",
    ]);
    if Path::new(MERGED).is_dir() {
        mmdebstrap.arg(format!("--hook-dir={MERGED}"));
    }
    let hook = |line: String| format!("--customize-hook={line}");
    mmdebstrap.arg(hook(format!("tar-in {} /", kernel_tar.display())));
    let depmod = format!("command -v depmod >/dev/null || exit 0; exec depmod {release}");
    mmdebstrap.arg(hook(format!("chroot \"$1\" sh -c '{depmod}'")));
    mmdebstrap.arg(hook(format!("tar-in {} /", files_tar.display())));
    // What tells when and where it was made is in no image.
    mmdebstrap.arg(hook("rm -f \"$1\"/var/cache/ldconfig/aux-cache \"$1\"/var/log/*.log \"$1\"/var/log/apt/* \"$1\"/etc/*- \"$1\"/etc/apt/sources.list".to_owned()));
    mmdebstrap.arg(recipe.suite.as_deref().unwrap_or_default()).arg(&root_tar);
    mmdebstrap.arg(format!("deb [trusted=yes] copy:{} ./", repository.display()));
    run(&mut mmdebstrap, terms.cancel).map_err(|error| match error {
        // Its command line is long, and its last word is that it failed.
        PackageError::Failed { said, .. } => {
            PackageError::Failed { command: "mmdebstrap".to_owned(), said }
        }
        error => error,
    })?;

    terms.step("packs its root");
    let tar = File::open(&root_tar).map_err(wrong)?;
    pack(tar, to, Compression::Zstd, terms.cancel)
}

/// Where a root is put together. As root that is in the image's folder, where the next maker sweeps; else in the folder for
/// temporary files, since in a user namespace apt is another user, who may not enter our cache.
pub(super) fn scratch_for(image: &Path) -> Result<TempDir, BuildError> {
    let folder = match Uid::effective().is_root() {
        true => image.to_owned(),
        false => std::env::temp_dir(),
    };
    let made = tempfile::Builder::new().prefix("guestline-root-").tempdir_in(&folder);
    let open = |made: TempDir| {
        fs::set_permissions(made.path(), Permissions::from_mode(0o755)).map(|()| made)
    };
    made.and_then(open).map_err(|source| BuildError::Write { path: folder, source })
}

/// mmdebstrap(1). As root it has name spaces of its own (unshare(1)), as it makes them itself for others: what it mounts and
/// starts is gone with it, however it ends.
fn mmdebstrap(cancel: &CancellationToken) -> Result<Command, PackageError> {
    let program = "mmdebstrap";
    let path = on_path(OsStr::new(program)).ok_or_else(|| PackageError::NoProgram {
        program: program.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let apart = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        unshare
    };
    let can = Uid::effective().is_root() && run(apart().arg("true"), cancel).is_ok();
    Ok(match can {
        true => {
            let mut command = apart();
            command.arg(path);
            command
        }
        false => Command::new(path),
    })
}

/// A repository of just these packages, whose index is made of what they say themselves.
fn make_repository(
    folder: &Path,
    packages: &[Fetched],
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let wrong = |source| BuildError::Write { path: folder.to_owned(), source };
    fs::create_dir(folder).map_err(wrong)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755)).map_err(wrong)?;
    let mut index = String::new();
    for (number, Fetched { record, path }) in packages.iter().enumerate() {
        let name = format!("{number}.deb");
        let to = folder.join(&name);
        let size = fs::copy(path, &to).map_err(wrong)?;
        fs::set_permissions(&to, Permissions::from_mode(0o644)).map_err(wrong)?;
        let control = run(Command::new("dpkg-deb").arg("-f").arg(path), cancel)?;
        let control = String::from_utf8_lossy(&control);
        let sha256 = &record.sha256;
        index += &format!(
            "{}\nFilename: ./{name}\nSize: {size}\nSHA256: {sha256}\n\n",
            control.trim_end()
        );
    }
    let path = folder.join("Packages");
    fs::write(&path, index).map_err(wrong)?;
    fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(wrong)
}

/// The files and links of a recipe, as a tar file.
fn files_of(recipe: &Recipe, to: &Path) -> Result<(), BuildError> {
    let wrong = |source| BuildError::Write { path: to.to_owned(), source };
    let mut tar = TarWriter::create(to).map_err(wrong)?;
    for (path, file) in &recipe.files {
        tar.file(path, file.mode, &file.bytes()?).map_err(wrong)?;
    }
    for (path, target) in &recipe.links {
        tar.link(path, target).map_err(wrong)?;
    }
    tar.finish().map_err(wrong)
}

/// Where the lock of a recipe is: beside the user's manifest, or in the state folder.
pub(super) fn lock_path(recipe: &Recipe, state: &Path) -> PathBuf {
    let file = format!("{}.lock", recipe.reference());
    match &recipe.path {
        Some(manifest) => manifest.with_file_name(file),
        None => state.join("images").join(file),
    }
}
