//! Modules of the user's kernel, packed for machines of any image, and kept for as long as the files they are from stay the
//! same.
//!
//! ```text
//! ModuleTree ─┬─> early.cpio         what carries link and root: comes behind the image's initramfs
//!             └─> modules.squashfs   all of them, on a disk; without squashfs and virtio_blk all are in early.cpio
//! ```

use super::build::BuildError;
use super::drawer::{Drawer, Drawn};
use super::elf::section;
use super::initramfs::Tree;
use super::module_disk::{ModuleDisk, unpacked, unpacked_path};
use super::module_index::{ModuleIndex, ModuleInfo, name_of, underscored};
use super::module_tree::{ModuleTree, TreeError};
use super::packages::run;
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::machine::on_path;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_util::sync::CancellationToken;

/// Another number is packed anew.
const FORMAT: u32 = 1;

const EARLY: &str = "early.cpio";
const DISK: &str = "modules.squashfs";
const ABOUT: &str = "about.json";

/// What any image may want before its root is there: link, disks, network cards, the root's file systems.
const CARRIERS: [&str; 6] =
    ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "squashfs", "overlay"];

/// What a disk with modules takes.
const OF_DISK: [&str; 2] = ["virtio_blk", "squashfs"];

/// Packed modules, in files that are there as long as this is.
#[derive(Debug, Clone)]
pub struct OwnModules {
    /// What comes behind an image's initial RAM file system.
    pub early: (Digest, PathBuf),
    /// A disk with all of them.
    pub disk: Option<(Digest, PathBuf)>,
    /// What is in [`Self::early`]: what the agent is to load, if it is wanted.
    pub names: Vec<String>,
    /// What is there, as a module or built in, and which of it is a module.
    pub about: ModulesAbout,
    /// Held so that nobody prunes it, where it is ours to hold.
    _drawn: Option<Drawn>,
}

/// What is known of modules that were packed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModulesAbout {
    /// `uname -r` of their kernel.
    pub release: String,
    /// What is in the initial RAM file system.
    pub early: Vec<String>,
    /// All modules.
    pub modules: Vec<String>,
}

/// Modules cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// They cannot be had.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Something went wrong with them.
    #[error("cannot pack the modules of kernel {release}")]
    Build {
        /// `uname -r`.
        release: String,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// The cache.
    #[error("cannot keep packed modules in the cache folder")]
    Cache(#[from] io::Error),
}

impl OwnModules {
    /// Of files that an executor knows by their digests.
    pub fn of_files(
        early: (Digest, PathBuf),
        disk: Option<(Digest, PathBuf)>,
        names: Vec<String>,
    ) -> Self {
        Self { early, disk, names, about: ModulesAbout::default(), _drawn: None }
    }

    /// Packs them, or finds them packed. `load` are modules that the image wants loaded; `begin` is called before anything is
    /// packed that takes its time. It blocks.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn pack(
        dirs: &Dirs,
        tree: &ModuleTree,
        load: &[String],
        begin: &dyn Fn(usize),
        cancel: &CancellationToken,
    ) -> Result<Self, PackError> {
        let mut wanted: Vec<String> =
            load.iter().map(String::as_str).chain(CARRIERS).map(underscored).collect();
        wanted.sort();
        wanted.dedup();
        let key = format!("{FORMAT}\n{}\n{}", wanted.join(","), tree.print()?);
        let drawn = Drawer::of_modules(dirs).get(Digest::of(key.as_bytes()).short(), |folder| {
            begin(tree.files.len());
            pack(tree, &wanted, folder, cancel)
        })?;
        let about = fs::read(drawn.folder().join(ABOUT))?;
        let about: ModulesAbout = serde_json::from_slice(&about).map_err(io::Error::from)?;
        let file = |name: &str| {
            drawn.digest(name).map(|digest| (digest.clone(), drawn.folder().join(name)))
        };
        let early = file(EARLY).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { early, disk: file(DISK), names: about.early.clone(), about, _drawn: Some(drawn) })
    }
}

/// Packs them into a folder.
fn pack(
    tree: &ModuleTree,
    wanted: &[String],
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<(), PackError> {
    let failed = |source: BuildError| PackError::Build {
        release: tree.release.clone(),
        source: Box::new(source),
    };
    let mut disk = ModuleDisk::new(folder).map_err(failed)?;
    let reader = Reader { tree, folder, strip: on_path(OsStr::new("strip")), cancel };
    for (path, file) in &tree.files {
        if cancel.is_cancelled() {
            return Err(failed(BuildError::Cancelled));
        }
        let content = reader.read(path, file)?;
        if name_of(path).is_some() {
            check_release(tree, file, &content)?;
        }
        disk.add(path, content).map_err(failed)?;
    }
    let index = disk.index().clone();
    let has_disk = OF_DISK.iter().all(|name| index.has(name));
    let early = match has_disk {
        true => index.closure(wanted),
        false => index.names(),
    };
    let place = format!("lib/modules/{}", tree.release);
    let mut archive = Tree::default();
    for (path, file) in &tree.files {
        if name_of(path).is_some_and(|name| early.contains(&name)) {
            let to = format!("{place}/{}", unpacked_path(path));
            archive.file(&to, 0o644, reader.read(path, file)?);
        }
    }
    write_early(archive, &index.only(&early), &place, &folder.join(EARLY))?;
    match has_disk {
        true => disk.pack(&folder.join(DISK), cancel).map_err(failed)?,
        false => drop(disk),
    }
    let about = ModulesAbout { release: tree.release.clone(), early, modules: index.names() };
    fs::write(folder.join(ABOUT), serde_json::to_vec(&about).map_err(io::Error::from)?)?;
    Ok(())
}

fn write_early(mut tree: Tree, index: &ModuleIndex, place: &str, to: &Path) -> io::Result<()> {
    tree.folder(place);
    for (name, content) in index.files() {
        tree.file(&format!("{place}/{name}"), 0o644, content);
    }
    // In an image it may be a link, which a folder would take the place of.
    tree.without_folder("lib");
    fs::write(to, tree.to_cpio()?)
}

fn check_release(tree: &ModuleTree, file: &Path, content: &[u8]) -> Result<(), TreeError> {
    let info = ModuleInfo::of(content);
    match info.release() {
        Some(found) if found != tree.release => Err(TreeError::OtherRelease {
            folder: file.to_owned(),
            found: found.to_owned(),
            release: tree.release.clone(),
        }),
        _ => Ok(()),
    }
}

/// Reads files of a tree; modules come unpacked and without what only a debugger wants, which is nine tenths of them.
struct Reader<'a> {
    tree: &'a ModuleTree,
    folder: &'a Path,
    strip: Option<PathBuf>,
    cancel: &'a CancellationToken,
}

impl Reader<'_> {
    fn read(&self, path: &str, file: &Path) -> Result<Vec<u8>, PackError> {
        let content =
            fs::read(file).map_err(|source| TreeError::Read { path: file.to_owned(), source })?;
        if name_of(path).is_none() {
            return Ok(content);
        }
        let failed = |source: BuildError| PackError::Build {
            release: self.tree.release.clone(),
            source: Box::new(source),
        };
        let content = unpacked(content).map_err(|error| failed(error.into()))?;
        let Some(strip) = &self.strip else { return Ok(content) };
        let is_signed = content.ends_with(b"~Module signature appended~\n");
        if is_signed || section(&content, ".debug_info").is_none() {
            return Ok(content);
        }
        let [from, to] = ["with.ko", "without.ko"].map(|name| self.folder.join(name));
        fs::write(&from, content)?;
        let mut command = Command::new(strip);
        command.arg("--strip-debug").arg("-o").arg(&to).arg(&from);
        run(&mut command, self.cancel).map_err(|error| failed(error.into()))?;
        let stripped = fs::read(&to)?;
        fs::remove_file(from)?;
        fs::remove_file(to)?;
        Ok(stripped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folder: &Path, builtin: &str) -> ModuleTree {
        let place = folder.join("6.1");
        fs::create_dir_all(place.join("kernel")).unwrap();
        for name in ["virtio_blk", "virtio_console", "squashfs", "other"] {
            if !builtin.contains(name) {
                fs::write(place.join(format!("kernel/{name}.ko")), "\x7fELF").unwrap();
            }
        }
        fs::write(place.join("modules.builtin"), builtin).unwrap();
        ModuleTree::installed(folder, "6.1").unwrap()
    }

    fn packed(folder: &Path, tree: &ModuleTree, times: &std::cell::Cell<u32>) -> OwnModules {
        let begin = |_| times.set(times.get() + 1);
        let cancel = CancellationToken::new();
        OwnModules::pack(&Dirs::below(folder), tree, &["other-one".to_owned()], &begin, &cancel)
            .unwrap()
    }

    #[test]
    fn what_carries_link_and_root_comes_early_and_all_is_on_a_disk() {
        let (home, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = tree(source.path(), "kernel/fs/squashfs.ko\n");
        let times = std::cell::Cell::new(0);
        let modules = packed(home.path(), &tree, &times);
        assert_eq!(modules.names, ["virtio_blk", "virtio_console"]);
        assert!(modules.disk.is_some() && modules.about.modules.contains(&"other".to_owned()));
        // What has not changed is not packed again.
        assert_eq!(packed(home.path(), &tree, &times).early, modules.early);
        assert_eq!(times.get(), 1);
        fs::write(source.path().join("6.1/kernel/other.ko"), "\x7fELF another").unwrap();
        assert_ne!(packed(home.path(), &tree, &times).disk, modules.disk);
        assert_eq!(times.get(), 2);
        // Nothing of the making is left.
        let left = fs::read_dir(modules.early.1.parent().unwrap()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [ABOUT, EARLY, "lock", DISK, "seal.json"]);
    }

    #[test]
    fn without_squashfs_all_modules_come_early() {
        let (home, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = tree(source.path(), "");
        fs::remove_file(source.path().join("6.1/kernel/squashfs.ko")).unwrap();
        let tree = ModuleTree::installed(source.path(), &tree.release).unwrap();
        let modules = packed(home.path(), &tree, &std::cell::Cell::new(0));
        assert_eq!(modules.names, ["other", "virtio_blk", "virtio_console"]);
        assert!(modules.disk.is_none());
    }
}
