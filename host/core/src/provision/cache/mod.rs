//! The cache folder as a whole: what is in it, what goes when there is too much, whether it is right, and the way to another
//! host.
//!
//! ```text
//! templates (template/inventory) ─┐             ┌─> prune: what goes, and why
//! images, packages (image/shelf) ─┴─> entries ──┼─> verify: all of it is read
//!                                               └─> export ──> archive ──> import
//!                           an image by itself ────> single ──────┴───────> single
//! ```
//! Nothing that is in use, that another user owns or that a newer Guestline made is ever removed here.

mod archive;
mod export;
mod frame;
mod import;
mod prune;
mod single;
#[cfg(test)]
mod tests;
mod verify;

pub use archive::ArchiveError;
pub use export::{ExportError, Exported};
pub use import::{Arrival, Imported};
pub use prune::{PruneSpec, Pruned, Reason};
pub(super) use single::import_image;
pub use single::{HEAD_LEN, ImportError, export_image, is_archive};
pub use verify::{Finding, Verified};

use super::template::{TemplateRecord, TemplateStore};
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::image::{Drawer, Manifest, Shelf};
use crate::kept::{Condition, Kept, Removal};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// The cache of one user.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    templates: TemplateStore,
    images: Shelf,
    kernels: Drawer,
    modules: Drawer,
}

/// Something that is kept there.
#[derive(Debug)]
pub struct CacheEntry {
    /// What it is.
    pub content: Content,
    /// Its id; of an image its name and its key.
    pub id: String,
    /// How many bytes it takes on the disk.
    pub bytes: u64,
    /// When it was used last. An image is used when a template of it is.
    pub used: SystemTime,
    /// Somebody uses it now, or makes it.
    pub in_use: bool,
    /// As far as can be told without reading all of it.
    pub condition: Condition,
    kept: Kept,
}

/// What an entry is.
#[derive(Debug)]
pub enum Content {
    /// A template, and its record where that can be read.
    Template(Option<Box<TemplateRecord>>),
    /// An image, and its manifest where that can be read.
    Image(Option<Box<Manifest>>),
    /// The packages that images are made from.
    Packages {
        /// How many.
        count: usize,
    },
    /// A kernel, unpacked for QEMU.
    Kernel,
    /// Modules of a kernel of the user's, packed.
    Modules,
    /// What apt knows of a suite.
    Lists,
    /// Parts of files of images that are pulled.
    Downloads,
}

impl Content {
    /// In one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Template(_) => "template",
            Self::Image(_) => "image",
            Self::Packages { .. } => "packages",
            Self::Kernel => "kernel",
            Self::Modules => "modules",
            Self::Lists => "lists",
            Self::Downloads => "downloads",
        }
    }
}

impl Cache {
    /// In the cache folder.
    pub fn new(dirs: &Dirs) -> Self {
        let (templates, images) = (TemplateStore::new(dirs), Shelf::new(dirs));
        let (kernels, modules) = (Drawer::of_kernels(dirs), Drawer::of_modules(dirs));
        Self { folder: dirs.cache.clone(), templates, images, kernels, modules }
    }

    /// All that is there: templates, images, packages, kernels, modules, lists of packages.
    pub fn entries(&self) -> Vec<CacheEntry> {
        let mut used_by = HashMap::new();
        let mut entries = Vec::new();
        for (kept, record) in self.templates.kept() {
            if let Some(record) = &record {
                let used = used_by.entry(record.key.image.clone()).or_insert(kept.used);
                *used = kept.used.max(*used);
            }
            let id = match kept.condition {
                Condition::Newer if record.is_none() => format!("templates/{}", kept.name),
                _ => kept.name.clone(),
            };
            entries.push(CacheEntry::new(Content::Template(record.map(Box::new)), id, kept));
        }
        for (kept, manifest) in self.images.kept() {
            let parent = kept.folder.parent().and_then(|parent| parent.file_name());
            let id = format!("{}/{}", parent.unwrap_or_default().to_string_lossy(), kept.name);
            let used = manifest.as_ref().and_then(|manifest| used_by.get(&manifest.digest()));
            let used = used.map_or(kept.used, |used| kept.used.max(*used));
            let entry = CacheEntry::new(Content::Image(manifest.map(Box::new)), id, kept);
            entries.push(CacheEntry { used, ..entry });
        }
        if let Some((kept, count)) = self.images.kept_packages() {
            entries.push(CacheEntry::new(Content::Packages { count }, "-".to_owned(), kept));
        }
        for kept in self.kernels.kept() {
            entries.push(CacheEntry::new(Content::Kernel, kept.name.clone(), kept));
        }
        for kept in self.modules.kept() {
            entries.push(CacheEntry::new(Content::Modules, kept.name.clone(), kept));
        }
        for kept in self.images.kept_lists() {
            entries.push(CacheEntry::new(Content::Lists, kept.name.clone(), kept));
        }
        if let Some(kept) = self.images.kept_downloads() {
            entries.push(CacheEntry::new(Content::Downloads, "-".to_owned(), kept));
        }
        entries
    }

    /// Removes what was made under an image's name, or of that just what was made of one recipe, for whichever agent; waits
    /// for who makes an image as long as `go_on` says.
    pub fn remove_image(
        &self,
        name: &str,
        recipe: Option<&Digest>,
        go_on: &dyn Fn() -> bool,
    ) -> Vec<Removal> {
        let is_of = |manifest: &Option<Box<Manifest>>| match (recipe, manifest) {
            (None, _) => true,
            (Some(recipe), Some(manifest)) => manifest.recipe == *recipe,
            // Nobody can tell what it was made of.
            (Some(_), None) => false,
        };
        let is_its = |entry: &CacheEntry| match &entry.content {
            Content::Image(manifest) if is_of(manifest) => {
                entry.id.split_once('/').is_some_and(|(its, _)| its == name)
            }
            _ => false,
        };
        let entries = self.entries();
        let its = entries.iter().filter(|entry| is_its(entry));
        its.map(|entry| self.remove_waiting(entry, go_on)).collect()
    }

    fn remove(&self, entry: &CacheEntry) -> Removal {
        self.remove_waiting(entry, &|| false)
    }

    /// Waits for who makes an image as long as `go_on` says.
    fn remove_waiting(&self, entry: &CacheEntry, go_on: &dyn Fn() -> bool) -> Removal {
        if matches!(entry.condition, Condition::Newer | Condition::Foreign) {
            return Removal::InUse;
        }
        match entry.content {
            Content::Template(_) => self.templates.remove(&entry.kept),
            Content::Image(_) | Content::Packages { .. } | Content::Lists | Content::Downloads => {
                self.images.remove(&entry.kept, go_on)
            }
            Content::Kernel => self.kernels.remove(&entry.kept),
            Content::Modules => self.modules.remove(&entry.kept),
        }
        .into()
    }
}

impl CacheEntry {
    /// One that is nowhere, for tests of how entries are shown.
    #[doc(hidden)]
    pub fn example(
        content: Content,
        id: &str,
        bytes: u64,
        used: SystemTime,
        condition: Condition,
    ) -> Self {
        let (folder, name, in_use) = (PathBuf::new(), id.to_owned(), false);
        let kept = Kept { folder, name, bytes, used, in_use, condition };
        Self::new(content, id.to_owned(), kept)
    }

    /// The same, while somebody uses it.
    #[doc(hidden)]
    #[must_use]
    pub fn in_use(self) -> Self {
        Self { in_use: true, ..self }
    }

    fn new(content: Content, id: String, kept: Kept) -> Self {
        let (bytes, used, in_use) = (kept.bytes, kept.used, kept.in_use);
        let condition = kept.condition.clone();
        Self { content, id, bytes, used, in_use, condition, kept }
    }
}
