//! An image that was made on another host: brought beside its place, checked against its manifest, moved there whole.

use super::manifest::{FORMAT, FileRecord, Manifest};
use super::shelf::{MAKING, Shelf, exchange, strange_file, verify};
use super::store::{MANIFEST, seal};
use crate::folder_lock::FolderLock;
use crate::text::is_plain_name;
use nix::fcntl::Flock;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// An image on its way in; what is there of it is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Adopted {
    making: tempfile::TempDir,
    place: PathBuf,
}

impl Adopted {
    /// Says what is wrong with the manifest of another host, before a path is made of it.
    pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
        if manifest.format != FORMAT {
            return Err(format!("its manifest has format {}, not {FORMAT}", manifest.format));
        }
        if !is_plain_name(&manifest.name) {
            return Err("that is no name of an image".to_owned());
        }
        match strange_file(manifest) {
            Some(file) => Err(format!("wrong files, `{}`", crate::text::one_line(file, 60))),
            None => Ok(()),
        }
    }

    /// Begins one whose manifest was checked. `_lock` is [`Shelf::wait_for_making`]'s, held until all is done.
    ///
    /// # Errors
    /// What making its folder gives.
    pub(crate) fn begin(
        shelf: &Shelf,
        manifest: &Manifest,
        _lock: &Flock<File>,
    ) -> io::Result<Self> {
        let place = shelf.folder_of(manifest);
        let parent = place.parent().unwrap_or(&place);
        fs::create_dir_all(parent)?;
        let making = tempfile::Builder::new().prefix(MAKING).tempdir_in(parent)?;
        Ok(Self { making, place })
    }

    /// Where one of its files goes.
    pub(crate) fn file(&self, file: &FileRecord) -> PathBuf {
        self.making.path().join(&file.name)
    }

    /// Where all of it is.
    pub(super) fn folder(&self) -> &Path {
        self.making.path()
    }

    /// Writes its manifest beside its files, and looks at them.
    ///
    /// # Errors
    /// In words, what is wrong with its files; what writing gives.
    pub(super) fn complete(&self, manifest: &Manifest) -> io::Result<Result<(), String>> {
        fs::write(self.making.path().join(MANIFEST), manifest.to_json())?;
        FolderLock::make(self.making.path())?;
        Ok(verify(self.making.path(), manifest))
    }

    /// Puts what is complete into its place; what was there goes.
    ///
    /// # Errors
    /// What moving it gives.
    pub(super) fn put(self, manifest: &Manifest) -> io::Result<()> {
        exchange(self.making.path(), &self.place)?;
        // There is nothing to remove any more.
        let _ = self.making.keep();
        seal(&self.place, manifest)
    }

    /// Completes it and puts it into its place.
    ///
    /// # Errors
    /// In words, what is wrong with its files; what writing gives.
    pub(crate) fn publish(self, manifest: &Manifest) -> io::Result<Result<(), String>> {
        match self.complete(manifest)? {
            Ok(()) => self.put(manifest).map(Ok),
            wrong => Ok(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        assert!(is_plain_name("tiny") && is_plain_name("debian-12") && is_plain_name("x.y"));
        for wrong in ["", ".", "..", ".x", "a/b", "/", "A", "a b", "\u{1b}[1m", &"x".repeat(65)] {
            assert!(!is_plain_name(wrong), "{wrong}");
        }
    }
}
