//! An image of another host, on its way into the store: checked, made fit for this host, and put there whole.
//!
//! ```text
//! manifest, recipe ─> Expected (under which name, is it there?) ─> its files beside their place ─> fit ─> check ─> store
//! ```
//! Fit: its agent is this host's, exchanged in the initramfs where it was another, and then it is booted once before anybody gets it;
//! its recipe is known here, so that it is found by its name.

use super::MAX_FILE;
use crate::digest::Digest;
use crate::image::adopt::Adopted;
use crate::image::agent::Agent;
use crate::image::build::INITRD;
use crate::image::initramfs::Tree;
use crate::image::manifest::{FileRecord, Manifest};
use crate::image::recipe::Recipe;
use crate::image::store::{ImageCheck, ImageError, MANIFEST, Store};
use crate::text;
use nix::fcntl::Flock;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

/// An initramfs is no longer: its agent is exchanged in memory, and a guest unpacks it into its own.
const MAX_INITRD: u64 = 512 << 20;

/// What an image of another host is to be here.
#[derive(Clone, Copy)]
pub struct Placing<'a> {
    /// The agent that is to be in it.
    pub agent: &'a Agent,
    /// Its name, when it is to be another.
    pub name: Option<&'a str>,
    /// Does it take the place of one that was made of other packages?
    pub replace: bool,
    /// Looks at one whose agent was exchanged.
    pub check: ImageCheck<'a>,
}

/// What became of an image of another host.
#[derive(Debug)]
pub struct Received {
    /// Its name here.
    pub name: String,
    /// As it is here.
    pub manifest: Manifest,
    /// It was here before.
    pub was_there: bool,
    /// The agent in it was another, and is this host's now.
    pub agent_exchanged: bool,
    /// Its manifest came with it, and goes before the one that the program carries, if that has one.
    pub brought_recipe: bool,
}

/// An image of another host is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// What came is not right.
    #[error("image `{name}` cannot be taken: {why}")]
    Wrong {
        /// Its name there.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The user has a manifest of that name.
    #[error("the name `{name}` is taken: your own manifest `{path}` is another", path = path.display())]
    Taken {
        /// The name.
        name: String,
        /// The manifest.
        path: PathBuf,
    },
    /// One of that name and recipe is made of other packages.
    #[error("image `{name}` is here already, made of other packages")]
    OtherThere {
        /// The name.
        name: String,
    },
    /// Its agent is another, and cannot be exchanged.
    #[error("image `{name}` has another agent in it ({theirs}), which cannot be exchanged: {why}")]
    Agent {
        /// Its name.
        name: String,
        /// The beginning of its agent's digest.
        theirs: String,
        /// Why.
        why: String,
    },
    /// With this host's agent it does not do.
    #[error("image `{name}`, with this host's agent in it, does not do: {why}")]
    Unfit {
        /// Its name.
        name: String,
        /// What it does not.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The store's folder.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ReceiveError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => Some("--as NAME gives it another name".to_owned()),
            Self::OtherThere { .. } => {
                Some("--replace takes it instead, --as NAME beside it".to_owned())
            }
            Self::Agent { .. } => {
                Some("--agent FILE names an agent: the very one fits without exchange".to_owned())
            }
            _ => None,
        }
    }
}

/// An image of another host that is to come in.
pub(crate) struct Expected<'a> {
    store: &'a Store,
    placing: Placing<'a>,
    /// As it was made there.
    theirs: Manifest,
    /// As it will be, but for what the exchange of its agent changes.
    ours: Manifest,
    recipe: Recipe,
    brings_recipe: bool,
}

impl<'a> Expected<'a> {
    /// Looks at what its host says of it.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub(crate) fn new(
        store: &'a Store,
        theirs: Manifest,
        recipe: &str,
        placing: Placing<'a>,
    ) -> Result<Self, ReceiveError> {
        let name = text::one_line(&theirs.name, 60);
        let wrong = |why: String| ReceiveError::Wrong { name: name.clone(), why };
        Adopted::check(&theirs).map_err(wrong)?;
        if theirs.files.iter().any(|file| file.size > MAX_FILE) {
            return Err(wrong("its files are too long".to_owned()));
        }
        if let Some(FileRecord { size, .. }) =
            theirs.file(INITRD).filter(|file| file.size > MAX_INITRD)
        {
            let (len, most) = (size >> 20, MAX_INITRD >> 20);
            return Err(wrong(format!("its {INITRD} has {len} MiB, and {most} MiB is the most")));
        }
        if Digest::of(recipe.as_bytes()) != theirs.recipe {
            return Err(wrong("its manifest is of another recipe".to_owned()));
        }
        let recipe = Recipe::parse(recipe);
        let mut recipe =
            recipe.map_err(|why| wrong(format!("this Guestline cannot read its recipe: {why}")))?;
        if recipe.name != theirs.name {
            return Err(wrong("its recipe has another name".to_owned()));
        }
        if let Some(name) = placing.name {
            recipe = recipe.renamed(name).map_err(wrong)?;
        }
        let catalogue = &store.catalogue;
        let known = catalogue.get(&recipe.name).ok().map(|known| known.digest());
        let brings_recipe = known != Some(recipe.digest());
        if let Some(path) = catalogue.own(&recipe.name).filter(|_| brings_recipe) {
            return Err(ReceiveError::Taken { name: recipe.name, path });
        }
        let ours = Manifest {
            name: recipe.name.clone(),
            recipe: recipe.digest(),
            agent: placing.agent.digest().clone(),
            ..theirs.clone()
        };
        Ok(Self { store, placing, theirs, ours, recipe, brings_recipe })
    }

    /// Its manifest as it was made there.
    pub(crate) fn theirs(&self) -> &Manifest {
        &self.theirs
    }

    /// It is here as it would be, so that nothing has to come.
    ///
    /// # Errors
    /// [`ReceiveError::OtherThere`].
    pub(crate) fn there(&self) -> Result<Option<Received>, ReceiveError> {
        let found =
            self.store.open(&self.ours.name, &self.store.shelf.folder_of(&self.ours), false);
        // What is damaged is replaced.
        let Some(image) = found.ok().flatten() else { return Ok(None) };
        // The initramfs is made of packages, recipe and agent.
        let rest = |manifest: &Manifest| {
            let mut rest = manifest.clone();
            if self.exchanges_agent() {
                rest.files.retain(|file| file.name != INITRD);
            }
            rest
        };
        match rest(&image.manifest) == rest(&self.ours) {
            true => {
                self.keep_recipe()?;
                Ok(Some(self.received(image.manifest, true)))
            }
            false if self.placing.replace => Ok(None),
            false => Err(ReceiveError::OtherThere { name: self.ours.name.clone() }),
        }
    }

    /// Begins to take it; the lock is held until it is in.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub(crate) fn begin(&self, lock: &Flock<File>) -> Result<Adopted, ReceiveError> {
        let shelf = &self.store.shelf;
        let begun = Adopted::begin(shelf, &self.ours, lock);
        begun.map_err(|source| ReceiveError::Write { path: shelf.images.clone(), source })
    }

    /// All its files have come: makes it fit, and puts it into the store.
    ///
    /// # Errors
    /// [`ReceiveError`]; it is not found by its name then, unless it was before.
    pub(crate) fn finish(mut self, adopted: Adopted) -> Result<Received, ReceiveError> {
        let path = adopted.folder().to_owned();
        let write = |source| ReceiveError::Write { path: path.clone(), source };
        let name = self.ours.name.clone();
        if self.exchanges_agent() {
            self.exchange_agent(&adopted)?;
        }
        let complete = adopted.complete(&self.ours).map_err(write)?;
        complete.map_err(|why| ReceiveError::Wrong { name: name.clone(), why })?;
        if self.exchanges_agent() {
            let image = self.store.open(&name, adopted.folder(), true)?;
            let image = image.ok_or_else(|| write(io::ErrorKind::NotFound.into()))?;
            let checked = (self.placing.check)(&image);
            checked.map_err(|why| ReceiveError::Unfit { name: name.clone(), why })?;
        }
        adopted.put(&self.ours).map_err(write)?;
        // Last: it goes before the manifest that the program carries, and is not to be there without its image.
        self.keep_recipe()?;
        Ok(self.received(self.ours.clone(), false))
    }

    fn exchanges_agent(&self) -> bool {
        // What is in a disk is not ours to change.
        self.theirs.disk.is_none() && self.theirs.agent != *self.placing.agent.digest()
    }

    /// Puts this host's agent into the initramfs: what comes is what this host would have made of the same packages.
    fn exchange_agent(&mut self, adopted: &Adopted) -> Result<(), ReceiveError> {
        let agent = |why: String| ReceiveError::Agent {
            name: self.theirs.name.clone(),
            theirs: self.theirs.agent.short().to_owned(),
            why,
        };
        let path = adopted.folder().join(INITRD);
        let write = |source| ReceiveError::Write { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(write)?;
        let same = self.theirs.file(INITRD).is_some_and(|file| file.sha256 == Digest::of(&bytes));
        if !same {
            let (name, why) = (self.theirs.name.clone(), format!("{INITRD} has another content"));
            return Err(ReceiveError::Wrong { name, why });
        }
        let mut tree = Tree::from_cpio(&bytes).map_err(|error| agent(error.to_string()))?;
        let init = tree.content("init").map(Digest::of);
        if init.as_ref() != Some(&self.theirs.agent) {
            return Err(agent("it is not the initramfs's init".to_owned()));
        }
        tree.file("init", 0o755, self.placing.agent.bytes());
        let bytes = tree.to_cpio().map_err(|error| agent(error.to_string()))?;
        fs::write(&path, &bytes).map_err(write)?;
        if let Some(file) = self.ours.files.iter_mut().find(|file| file.name == INITRD) {
            (file.size, file.sha256) = (bytes.len() as u64, Digest::of(&bytes));
        }
        Ok(())
    }

    fn keep_recipe(&self) -> Result<(), ReceiveError> {
        if !self.brings_recipe {
            return Ok(());
        }
        let catalogue = &self.store.catalogue;
        let path = catalogue.received(&self.recipe.name);
        let kept = catalogue.keep(&self.recipe.name, self.recipe.whole_text().unwrap_or_default());
        kept.map_err(|source| ReceiveError::Write { path, source })
    }

    fn received(&self, manifest: Manifest, was_there: bool) -> Received {
        Received {
            name: manifest.name.clone(),
            manifest,
            was_there,
            agent_exchanged: !was_there && self.exchanges_agent(),
            brought_recipe: self.brings_recipe,
        }
    }
}

impl Store {
    /// The manifest of an image in text, as it lies beside its files.
    pub(crate) fn manifest_of(text: &[u8]) -> Result<Manifest, String> {
        let format = serde_json::from_slice::<serde_json::Value>(text).ok();
        let format = format.and_then(|manifest| manifest["format"].as_u64());
        let ours = u64::from(crate::image::manifest::FORMAT);
        match format {
            Some(format) if format != ours => {
                let word = if format > ours { "newer" } else { "older" };
                Err(format!(
                    "a {word} Guestline made it: its format is {format}, and this one's is {ours}"
                ))
            }
            _ => serde_json::from_slice(text).map_err(|error| format!("{MANIFEST}: {error}")),
        }
    }
}
