//! Images of what is there already: a root with a kernel of Debian's beside it, or a disk that is booted as it is.

use super::agent::Agent;
use super::build::{BuildError, BuildTerms, DISK, MODULES, Made, ROOT, SEED, root_on_disk};
use super::debian::{KERNEL_TAR, Packages, Supply, kernel_parts, scratch_for};
use super::foreign::{Kind, Rootfs};
use super::module_disk::ModuleDisk;
use super::recipe::{DiskRecipe, Recipe, RootRecipe};
use crate::digest::Digest;
use crate::sparse;
use std::fs;
use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// A root that is there already: an initramfs that finds it, and the modules of the kernel on a disk of their own.
pub(super) fn root(
    recipe: &Recipe,
    root: &RootRecipe,
    agent: &Agent,
    supply: &Supply<'_>,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Made, BuildError> {
    match root.file.is_dir() {
        true => pack_folder(&root.file, folder, terms)?,
        false => take_over(&root.file, &root.sha256, &folder.join(ROOT), terms.cancel)?,
    }
    let Packages { kernel, .. } = supply.packages(recipe, terms)?;
    terms.step("unpacks its kernel");
    let scratch = scratch_for(folder)?;
    let parts = kernel_parts(&kernel, scratch.path(), terms.cancel)?;
    let mut disk = ModuleDisk::new(scratch.path())?;
    disk.add_tar(&scratch.path().join(KERNEL_TAR), &parts.release)?;
    disk.pack(&folder.join(MODULES), terms.cancel)?;
    let packages = kernel.into_iter().map(|package| package.record).collect();
    root_on_disk(recipe, agent, parts, packages)
}

/// A disk that is booted as it is, with its seed.
pub(super) fn disk(
    disk: &DiskRecipe,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Made, BuildError> {
    take_over(&disk.file, &disk.sha256, &folder.join(DISK), terms.cancel)?;
    if let Some(seed) = &disk.seed {
        take_over(&seed.file, &seed.sha256, &folder.join(SEED), terms.cancel)?;
    }
    let (release, cmdline) = (String::new(), String::new());
    Ok(Made { packages: Vec::new(), release, kernel: None, cmdline })
}

/// Packs a root that is a folder.
fn pack_folder(from: &Path, folder: &Path, terms: &BuildTerms<'_>) -> Result<(), BuildError> {
    terms.step("packs its root");
    let given =
        |source| BuildError::Given { path: from.to_owned(), source: io::Error::other(source) };
    let rootfs = Rootfs::read(from, Kind::Folder, None, folder, terms.cancel).map_err(given)?;
    rootfs.pack(&folder.join(ROOT), terms.cancel)
}

/// Puts a file into the image.
fn take_over(
    from: &Path,
    sha256: &Digest,
    to: &Path,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let named = from;
    let given = |source| BuildError::Given { path: named.to_owned(), source };
    if from.as_os_str().is_empty() {
        return Err(BuildError::NotHere);
    }
    // What a link leads to is taken over, and not the link.
    let from = &fs::canonicalize(from).map_err(given)?;
    // A copy: what is damaged in the cache is whole where it is kept.
    match sparse::copy(from, to, cancel).map_err(given)? == *sha256 {
        true => Ok(()),
        false => Err(given(io::Error::new(
            io::ErrorKind::InvalidData,
            "its content is not what the manifest says: another SHA-256",
        ))),
    }
}
