//! Images in the cache folder: found, made when they are not there, listed, checked before use.
//!
//! ```text
//! CACHE/packages/                    pool of packages
//! CACHE/images/NAME/KEY/             one image: manifest.json, seal.json, kernel, initrd.cpio, lock
//! CACHE/images/.lock                 held while one is made
//! ```
//! KEY is made from the recipe and the agent, so a new agent never meets an old image.

use super::agent::Agent;
use super::build::{self, BuildError, INITRD, KERNEL};
use super::manifest::{FileRecord, Manifest};
use super::packages::{PackageError, PackageSource, unpack_all};
use super::recipe::{Recipe, RecipeError};
use super::shelf::{MAKING, Shelf, sweep};
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::folder_lock::FolderLock;
use crate::seal::FileSeal;
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

/// Between two looks whether another process has done making an image.
const LOOK: Duration = Duration::from_millis(20);

/// A whole image.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is made from.
    pub manifest: Manifest,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial RAM file system.
    pub initrd: PathBuf,
    /// How long it took to make, when it was made just now.
    pub made_in: Option<Duration>,
    /// Held so that nobody prunes it, where it can be.
    _lock: Option<Arc<FolderLock>>,
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
            Self::Build { source, .. } => match &**source {
                BuildError::Packages(error) => error.hint(),
                _ => None,
            },
            _ => None,
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

/// The images of one user.
#[derive(Debug, Clone)]
pub struct Store {
    shelf: Shelf,
    source: PackageSource,
    cancel: CancellationToken,
}

impl Store {
    /// In the cache folder, with packages from `source`. Making an image ends early when `cancel` is.
    pub fn new(dirs: &Dirs, source: PackageSource, cancel: CancellationToken) -> Self {
        Self { shelf: Shelf::new(dirs), source, cancel }
    }

    /// The image, made first when it is not there; `making` is called before that.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn get(
        &self,
        name: &str,
        agent: &Agent,
        making: impl FnOnce(),
    ) -> Result<Image, ImageError> {
        let recipe = Recipe::named(name)?;
        let folder = self.folder(&recipe, agent);
        if let Some(image) = open(&recipe.name, &folder)? {
            return Ok(image);
        }
        making();
        let lock = self.lock()?;
        // Another process may have made it meanwhile.
        match open(&recipe.name, &folder)? {
            Some(image) => Ok(image),
            None => self.make(&recipe, agent, &folder, lock),
        }
    }

    /// Makes the image anew, from the packages of now.
    ///
    /// # Errors
    /// [`ImageError`]; an image that was there is still there then.
    pub fn build(&self, name: &str, agent: &Agent) -> Result<Image, ImageError> {
        let recipe = Recipe::named(name)?;
        let lock = self.lock()?;
        self.make(&recipe, agent, &self.folder(&recipe, agent), lock)
    }

    /// Unpacks packages below a folder that is there, each from the pool or first into it.
    ///
    /// # Errors
    /// [`PackageError`].
    pub fn unpack(&self, packages: &[&str], folder: &Path) -> Result<(), PackageError> {
        let names: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
        for package in self.source.fetch(&names, &self.shelf.pool, &self.cancel)? {
            unpack_all(&package, folder, &self.cancel)?;
        }
        Ok(())
    }

    /// All images of the catalogue.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn list(&self, agent: Option<&Agent>) -> Result<Vec<ImageStatus>, ImageError> {
        Recipe::names()
            .map(|name| {
                let recipe = Recipe::named(name)?;
                let image = match agent {
                    Some(agent) => open(name, &self.folder(&recipe, agent))?,
                    None => None,
                };
                Ok(ImageStatus { recipe, manifest: image.map(|image| image.manifest) })
            })
            .collect()
    }

    fn folder(&self, recipe: &Recipe, agent: &Agent) -> PathBuf {
        self.shelf.folder(&recipe.name, &recipe.digest(), agent.digest())
    }

    /// One maker at a time, of this and other processes: what lies half made belongs to the dead.
    fn lock(&self) -> Result<Flock<File>, ImageError> {
        let trouble = |source| ImageError::Folder { path: self.shelf.images.clone(), source };
        loop {
            match self.shelf.lock_for_making().map_err(trouble)? {
                Some(lock) => return Ok(lock),
                // Another process makes an image; it is looked after as often as a person would not notice.
                None if !self.cancel.is_cancelled() => std::thread::sleep(LOOK),
                None => return Err(trouble(io::ErrorKind::Interrupted.into())),
            }
        }
    }

    /// Makes it beside its place and moves it there whole. `_lock` is held meanwhile.
    fn make(
        &self,
        recipe: &Recipe,
        agent: &Agent,
        folder: &Path,
        _lock: Flock<File>,
    ) -> Result<Image, ImageError> {
        let started = Instant::now();
        let parent = folder.parent().unwrap_or(&self.shelf.images);
        let trouble = |source| ImageError::Folder { path: parent.to_owned(), source };
        fs::create_dir_all(parent).map_err(trouble)?;
        sweep(parent);
        sweep(&self.shelf.pool);
        let made = tempfile::Builder::new().prefix(MAKING).tempdir_in(parent).map_err(trouble)?;
        let pool = &self.shelf.pool;
        let built = build::build(recipe, agent, &self.source, pool, made.path(), &self.cancel);
        let manifest = built.map_err(|source| ImageError::Build {
            name: recipe.name.clone(),
            source: Box::new(source),
        })?;
        FolderLock::make(made.path()).map_err(trouble)?;
        let old = parent.join(format!("{MAKING}old"));
        match fs::rename(folder, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(trouble(error)),
            _ => {}
        }
        fs::rename(made.keep(), folder).map_err(trouble)?;
        let _ = fs::remove_dir_all(&old);
        seal(folder, &manifest).map_err(trouble)?;
        let image = open(&recipe.name, folder)?;
        let image = image.ok_or_else(|| trouble(io::ErrorKind::NotFound.into()))?;
        Ok(Image { made_in: Some(started.elapsed()), ..image })
    }
}

/// The image in a folder, if there is one and it is what was made.
fn open(name: &str, folder: &Path) -> Result<Option<Image>, ImageError> {
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
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    check(folder, &manifest).map_err(damaged)?;
    let (kernel, initrd) = (folder.join(KERNEL), folder.join(INITRD));
    if let Some(lock) = &lock {
        lock.note_use();
    }
    Ok(Some(Image { manifest, kernel, initrd, made_in: None, _lock: lock }))
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
    /// An initial RAM file system with nothing but this image's busybox: the floor that a boot is
    /// measured against.
    ///
    /// # Errors
    /// What reading the image's own gives, also when it has no busybox.
    pub fn bare_initrd(&self) -> io::Result<Vec<u8>> {
        super::initramfs::only(&fs::read(&self.initrd)?, "bin/busybox")
    }
}
