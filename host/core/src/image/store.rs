//! Images in the cache folder: found, made when they are not there, listed, checked before use.
//!
//! ```text
//! CACHE/packages/                    pool of packages
//! CACHE/images/NAME/KEY/             one image: manifest.json, seal.json, kernel, initrd.cpio, lock,
//!                                    perhaps config, root.squashfs, modules.squashfs; or disk, perhaps seed
//! CACHE/images/.lock                 held while one is made
//! ```
//! KEY is made from the recipe and the agent, so a new agent never meets an old image.

use super::agent::Agent;
use super::build::{
    self, BuildError, BuildTerms, CONFIG, DISK, INITRD, KERNEL, MODULES, ROOT, SEED,
};
use super::catalogue::Catalogue;
use super::debian::{Supply, lock_path};
use super::import::{self, Busybox, Import, ImportError, ImportSpec};
use super::kconfig::Kconfig;
use super::kernels::Bootable;
use super::manifest::{DiskRecord, FileRecord, Manifest};
use super::packages::{PackageError, PackageSource, unpack_all};
use super::recipe::{Recipe, RecipeError};
use super::shelf::{MAKING, Shelf, exchange, sweep, verify};
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::folder_lock::FolderLock;
use crate::host::hint_of_io;
use crate::seal::FileSeal;
use crate::text::is_plain_name;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(super) const MANIFEST: &str = "manifest.json";
const SEAL: &str = "seal.json";

/// A whole image.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is made from.
    pub manifest: Manifest,
    /// Where it is kept.
    pub folder: PathBuf,
    /// Its kernel; none where it is a disk that is booted as it is.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM file system, likewise.
    pub initrd: Option<PathBuf>,
    /// The disk that is booted as it is, where it is one.
    pub disk: Option<ImageDisk>,
    /// Its root, where that is a disk.
    pub root: Option<PathBuf>,
    /// The disk with its kernel's modules, where the root has them not.
    pub modules: Option<PathBuf>,
    /// Its kernel's configuration.
    pub config: Option<PathBuf>,
    /// How long it took to make, when it was made just now.
    pub made_in: Option<Duration>,
    /// Held so that nobody prunes it, where it can be.
    _lock: Option<Arc<FolderLock>>,
    _kernel: Option<Bootable>,
}

/// A disk that is booted as it is.
#[derive(Debug, Clone)]
pub struct ImageDisk {
    /// The file.
    pub file: PathBuf,
    /// How it is held and booted.
    pub record: DiskRecord,
    /// What its cloud-init is told, on a disk of its own.
    pub seed: Option<PathBuf>,
}

/// There is no image to use.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// It cannot be made.
    #[error("image `{name}` cannot be made")]
    Build {
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// It was made, and is not what was made.
    #[error("image `{name}` is damaged: {what}")]
    Damaged {
        /// The image.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Its folder.
    #[error("cannot use `{path}`", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { name, .. } => {
                Some(format!("make it anew: guestline image build {name}"))
            }
            Self::Build { source, .. } => source.hint(),
            Self::Folder { source, .. } => hint_of_io(source).map(str::to_owned),
            Self::Recipe(_) => None,
        }
    }
}

/// An image in a list.
#[derive(Debug, Clone)]
pub struct ImageStatus {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its manifest, when it is made for the agent in use.
    pub manifest: Option<Manifest>,
}

/// What looks at an image before it is published: says what is wrong with it.
pub type ImageCheck<'a> = &'a dyn Fn(&Image) -> Result<(), String>;

/// The images of one user.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) shelf: Shelf,
    pub(super) catalogue: Catalogue,
    source: PackageSource,
}

impl Store {
    /// In the cache folder, with packages from `source`.
    pub fn new(dirs: &Dirs, source: PackageSource) -> Self {
        Self { shelf: Shelf::new(dirs), catalogue: Catalogue::new(dirs), source }
    }

    /// The manifests.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The image of a recipe, if it is made.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn find(&self, recipe: &Recipe, agent: &Agent) -> Result<Option<Image>, ImageError> {
        self.open(&recipe.name, &self.folder(recipe, agent), false)
    }

    /// As [`Self::find`], for who uses it.
    fn take(&self, recipe: &Recipe, agent: &Agent) -> Result<Option<Image>, ImageError> {
        self.open(&recipe.name, &self.folder(recipe, agent), true)
    }

    /// The image, made and checked first when it is not there.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn get(
        &self,
        recipe: &Recipe,
        agent: &Agent,
        terms: &BuildTerms<'_>,
        check: ImageCheck<'_>,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.take(recipe, agent)? {
            return Ok(image);
        }
        let lock = self.lock(terms.cancel, &|wait| terms.step(wait))?;
        // Another process may have made it meanwhile.
        match self.take(recipe, agent)? {
            Some(image) => Ok(image),
            None => self.make(recipe, agent, terms, check, lock),
        }
    }

    /// Makes the image anew.
    ///
    /// # Errors
    /// [`ImageError`]; an image that was there is still there then.
    pub fn build(
        &self,
        recipe: &Recipe,
        agent: &Agent,
        terms: &BuildTerms<'_>,
        check: ImageCheck<'_>,
    ) -> Result<Image, ImageError> {
        let lock = self.lock(terms.cancel, &|wait| terms.step(wait))?;
        self.make(recipe, agent, terms, check, lock)
    }

    /// Makes an image of what others made, and keeps that.
    ///
    /// # Errors
    /// [`ImportError`]; what was there is still there then.
    pub fn import(
        &self,
        spec: &ImportSpec,
        agent: &Agent,
        terms: &BuildTerms<'_>,
        check: ImageCheck<'_>,
    ) -> Result<Image, ImportError> {
        spec.check(&self.catalogue)?;
        let lock = self.lock(terms.cancel, &|wait| terms.step(wait))?;
        let busybox = spec.busybox.then(|| self.busybox(terms)).transpose()?;
        let import = Import::make(spec, &self.catalogue, busybox.as_ref(), terms)?;
        let check = if spec.unchecked { &|_: &Image| Ok(()) } else { check };
        let image = self.make(&import.recipe, agent, terms, check, lock)?;
        import.publish()?;
        Ok(image)
    }

    /// Forgets what was imported under a name; false when nothing was. It waits for who makes an image.
    ///
    /// # Errors
    /// [`ImageError::Folder`].
    pub fn forget(&self, name: &str) -> Result<bool, ImageError> {
        let folder = self.catalogue.imported(name);
        if !is_plain_name(name) || !folder.is_dir() {
            return Ok(false);
        }
        let _lock = self.lock(&CancellationToken::new(), &|_| ())?;
        let removed = import::remove(&folder);
        removed.map_err(|source| ImageError::Folder { path: folder, source })?;
        Ok(true)
    }

    /// The busybox that tiny has.
    fn busybox(&self, terms: &BuildTerms<'_>) -> Result<Busybox, ImportError> {
        let recipe = self.catalogue.get("tiny")?;
        let lock = lock_path(&recipe, &self.shelf.state);
        let made = build::busybox(&recipe, &self.supply(&lock), terms);
        let failed =
            |source| ImageError::Build { name: recipe.name.clone(), source: Box::new(source) };
        Ok(made.map_err(failed)?)
    }

    /// Where packages come from, with this lock.
    fn supply<'a>(&'a self, lock: &'a Path) -> Supply<'a> {
        Supply { source: &self.source, cache: &self.shelf.cache, pool: &self.shelf.pool, lock }
    }

    /// Unpacks packages below a folder that is there, each from the pool or first into it.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn unpack(
        &self,
        packages: &[&str],
        folder: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), PackageError> {
        let names: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
        for package in self.source.fetch(&names, &self.shelf.pool, &|_| (), cancel)? {
            unpack_all(&package, folder, cancel)?;
        }
        Ok(())
    }

    /// All images of the catalogue, and what is wrong with a manifest.
    pub fn list(&self, agent: Option<&Agent>) -> Vec<Result<ImageStatus, ImageError>> {
        let status = |name: String| {
            let recipe = self.catalogue.get(&name)?;
            let image = match agent {
                Some(agent) => self.find(&recipe, agent)?,
                None => None,
            };
            Ok(ImageStatus { recipe, manifest: image.map(|image| image.manifest) })
        };
        self.catalogue.names().into_iter().map(status).collect()
    }

    /// Reads all files of an image and says what is wrong; none when it is not made.
    pub fn verify(&self, recipe: &Recipe, agent: &Agent) -> Option<Result<(), String>> {
        let folder = self.folder(recipe, agent);
        let text = match fs::read(folder.join(MANIFEST)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(Err(format!("{MANIFEST}: {error}"))),
        };
        Some(match serde_json::from_slice::<Manifest>(&text) {
            Ok(manifest) => verify(&folder, &manifest),
            Err(error) => Err(format!("{MANIFEST}: {error}")),
        })
    }

    /// Where the image of a recipe is kept.
    pub fn folder(&self, recipe: &Recipe, agent: &Agent) -> PathBuf {
        self.shelf.folder(&recipe.name, &recipe.digest(), agent.digest())
    }

    pub(crate) fn cache_folder(&self) -> &Path {
        &self.shelf.cache
    }

    /// One maker at a time, of this and other processes: what lies half made belongs to the dead. For whom is waited `wait` is
    /// told.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn lock(
        &self,
        cancel: &CancellationToken,
        wait: &dyn Fn(&str),
    ) -> Result<Flock<File>, ImageError> {
        let trouble = |source| ImageError::Folder { path: self.shelf.images.clone(), source };
        let lock = self.shelf.wait_for_making(&|| !cancel.is_cancelled(), wait).map_err(trouble)?;
        lock.ok_or_else(|| trouble(io::ErrorKind::Interrupted.into()))
    }

    /// Makes it beside its place, has it checked, and moves it there whole. `_lock` is held meanwhile.
    fn make(
        &self,
        recipe: &Recipe,
        agent: &Agent,
        terms: &BuildTerms<'_>,
        check: ImageCheck<'_>,
        _lock: Flock<File>,
    ) -> Result<Image, ImageError> {
        let made = self.make_beside(recipe, agent, terms, check);
        if made.is_err()
            && let Some(parent) = self.folder(recipe, agent).parent()
        {
            // When there is no image of its name.
            let _ = fs::remove_dir(parent);
        }
        made
    }

    fn make_beside(
        &self,
        recipe: &Recipe,
        agent: &Agent,
        terms: &BuildTerms<'_>,
        check: ImageCheck<'_>,
    ) -> Result<Image, ImageError> {
        let started = Instant::now();
        let folder = self.folder(recipe, agent);
        let parent = folder.parent().unwrap_or(&self.shelf.images);
        let trouble = |source| ImageError::Folder { path: parent.to_owned(), source };
        let failed = |source: BuildError| ImageError::Build {
            name: recipe.name.clone(),
            source: Box::new(source),
        };
        fs::create_dir_all(parent).map_err(trouble)?;
        sweep(parent);
        sweep(&self.shelf.pool);
        let made = tempfile::Builder::new().prefix(MAKING).tempdir_in(parent).map_err(trouble)?;
        fs::create_dir_all(&self.shelf.pool).map_err(trouble)?;
        let lock = lock_path(recipe, &self.shelf.state);
        let supply = self.supply(&lock);
        let manifest = build::build(recipe, agent, &supply, made.path(), terms).map_err(failed)?;
        FolderLock::make(made.path()).map_err(trouble)?;
        terms.step("is looked at: does it boot?");
        if let Some(image) = self.open(&recipe.name, made.path(), true)? {
            check(&image).map_err(|why| failed(BuildError::Unfit { why }))?;
        }
        exchange(made.path(), &folder).map_err(trouble)?;
        // There is nothing to remove any more.
        let _ = made.keep();
        seal(&folder, &manifest).map_err(trouble)?;
        let image = self.open(&recipe.name, &folder, true)?;
        let image = image.ok_or_else(|| trouble(io::ErrorKind::NotFound.into()))?;
        Ok(Image { made_in: Some(started.elapsed()), ..image })
    }

    /// The image in a folder, if there is one and it is what was made; `is_use` is noted.
    pub(super) fn open(
        &self,
        name: &str,
        folder: &Path,
        is_use: bool,
    ) -> Result<Option<Image>, ImageError> {
        let damaged = |what: String| ImageError::Damaged { name: name.to_owned(), what };
        let text = match fs::read(folder.join(MANIFEST)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(ImageError::Folder { path: folder.to_owned(), source });
            }
        };
        let lock = match lock(folder) {
            Locked::Held(lock) => Some(Arc::new(lock)),
            Locked::Without => None,
            Locked::Gone => return Ok(None),
        };
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        check(folder, &manifest).map_err(damaged)?;
        let file = |name: &str| manifest.file(name).map(|_| folder.join(name));
        let kernel = match manifest.file(KERNEL) {
            None if manifest.disk.is_none() => {
                return Err(damaged(format!("{MANIFEST} names no {KERNEL}")));
            }
            None => None,
            Some(kernel) if is_use => {
                Some(self.shelf.kernels.bootable(&folder.join(KERNEL), &kernel.sha256))
            }
            Some(_) => Some(Bootable::plain(folder.join(KERNEL))),
        };
        let (initrd, root, modules) = (file(INITRD), file(ROOT), file(MODULES));
        let (config, seed) = (file(CONFIG), file(SEED));
        let disk = manifest.disk.clone();
        let disk = disk.map(|record| ImageDisk { file: folder.join(DISK), record, seed });
        if let Some(lock) = lock.as_ref().filter(|_| is_use) {
            lock.note_use();
        }
        Ok(Some(Image {
            manifest,
            folder: folder.to_owned(),
            kernel: kernel.as_ref().map(|kernel| kernel.path.clone()),
            initrd,
            disk,
            root,
            modules,
            config,
            made_in: None,
            _lock: lock,
            _kernel: kernel,
        }))
    }
}

/// What came of taking the lock of an image.
enum Locked {
    Held(FolderLock),
    /// There is none to be had, as on a disk that cannot be written to, or one of another user.
    Without,
    /// Somebody removes it.
    Gone,
}

fn lock(folder: &Path) -> Locked {
    let mut taken = FolderLock::shared(folder);
    // Older builds made none.
    if taken.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        && FolderLock::make(folder).is_ok()
    {
        taken = FolderLock::shared(folder);
    }
    match taken {
        Ok(Some(lock)) => Locked::Held(lock),
        Err(_) if folder.join(MANIFEST).exists() => Locked::Without,
        Ok(None) | Err(_) => Locked::Gone,
    }
}

/// Compares the files with the seal, which is quick; where that differs, with their digests.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<(), String> {
    let known = fs::read(folder.join(SEAL)).ok();
    let known: Option<Seal> = known.and_then(|text| serde_json::from_slice(&text).ok());
    if known.as_ref().is_some_and(|seal| seal.manifest != manifest.digest()) {
        return Err(format!("{MANIFEST} was written to"));
    }
    let seals = known.as_ref().map(|seal| seal.files.as_slice()).unwrap_or_default();
    let mut resealed = known.is_none();
    for FileRecord { name, size, sha256 } in &manifest.files {
        let path = folder.join(name);
        let found = fs::metadata(&path).map_err(|error| format!("{name}: {error}"))?;
        if found.len() != *size {
            return Err(format!("{name} has {} bytes, not {size}", found.len()));
        }
        if !seals.contains(&FileSeal::of(name, &found)) {
            let digest = Digest::of_file(&path).map_err(|error| format!("{name}: {error}"))?;
            if digest != *sha256 {
                return Err(format!("{name} has another content"));
            }
            resealed = true;
        }
    }
    if resealed {
        let _ = seal(folder, manifest);
    }
    Ok(())
}

/// What the files of an image were when they were right.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    manifest: Digest,
    files: Vec<FileSeal>,
}

/// Seals what lies in a folder.
pub(super) fn seal(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    let files = manifest
        .files
        .iter()
        .map(|FileRecord { name, .. }| Ok(FileSeal::of(name, &fs::metadata(folder.join(name))?)));
    let seal = Seal { manifest: manifest.digest(), files: files.collect::<io::Result<_>>()? };
    fs::write(folder.join(SEAL), serde_json::to_vec(&seal)?)
}

impl Image {
    /// Where a file of it is; its kernel as it was made, and not as QEMU takes it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The configuration of its kernel, where that is known.
    pub fn kconfig(&self) -> Option<Kconfig> {
        Kconfig::read(self.config.as_ref()?)
    }

    /// An initial RAM file system with nothing but this image's busybox: the floor that a boot is
    /// measured against.
    ///
    /// # Errors
    /// What reading the image's own gives, also when it has no busybox.
    pub fn bare_initrd(&self) -> io::Result<Vec<u8>> {
        let initrd = self.initrd.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        super::initramfs::only(&fs::read(initrd)?, "bin/busybox")
    }
}
