//! Modules on this host: as `make modules_install` leaves them, or in the tree that they were built in (Linux
//! `Documentation/kbuild/modules.rst`).

use super::module_index::name_of;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What says of a tree how its modules and what is built in stand to each other.
const TOLD: [&str; 3] = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];

/// Folders in `/lib/modules/RELEASE` that lead elsewhere, to sources.
const SOURCES: [&str; 2] = ["build", "source"];

/// The modules of a kernel.
#[derive(Debug)]
pub struct ModuleTree {
    /// `uname -r` of the kernel that they are for.
    pub release: String,
    /// Where they are.
    pub folder: PathBuf,
    /// Path below `/lib/modules/RELEASE/`, and file.
    pub(super) files: Vec<(String, PathBuf)>,
}

/// Modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// What they are to be for cannot be told.
    #[error("`{kernel}` does not say which release it is, and modules are of one", kernel = kernel.display())]
    NoRelease {
        /// The kernel.
        kernel: PathBuf,
    },
    /// They are for another kernel.
    #[error("`{folder}` has modules for kernel {found}, and the kernel is {release}", folder = folder.display())]
    OtherRelease {
        /// The folder.
        folder: PathBuf,
        /// What it has.
        found: String,
        /// What is wanted.
        release: String,
    },
    /// There are none.
    #[error("`{folder}` has no modules of kernel {release}", folder = folder.display())]
    None {
        /// The folder.
        folder: PathBuf,
        /// What is wanted.
        release: String,
    },
    /// A tree names one that was not built.
    #[error("`{folder}` names the module `{name}` and has it not", folder = folder.display())]
    NotBuilt {
        /// The tree.
        folder: PathBuf,
        /// The module.
        name: String,
    },
    /// They cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TreeError {
    /// What mends it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::OtherRelease { .. } | Self::None { .. } => Some(
                "--modules wants DIR/lib/modules/RELEASE, as `make INSTALL_MOD_PATH=DIR modules_install` makes it",
            ),
            Self::NotBuilt { .. } => Some("`make modules` builds it"),
            Self::NoRelease { .. } | Self::Read { .. } => None,
        }
    }
}

impl ModuleTree {
    /// Modules that were installed: below `DIR/lib/modules/RELEASE`, `DIR/RELEASE`, or in DIR itself.
    pub(super) fn installed(folder: &Path, release: &str) -> Result<Self, TreeError> {
        let unreadable = |path: &Path, source| TreeError::Read { path: path.to_owned(), source };
        fs::read_dir(folder).map_err(|source| unreadable(folder, source))?;
        let places = ["lib/modules", "usr/lib/modules", ""].map(|place| folder.join(place));
        let place = places.iter().map(|place| place.join(release)).find(|place| place.is_dir());
        let place = match place {
            Some(place) => place,
            None if ["modules.dep", "modules.order", "kernel"]
                .iter()
                .any(|name| folder.join(name).exists()) =>
            {
                folder.to_owned()
            }
            None => {
                let others = places.iter().take(2).flat_map(|place| crate::kept::folders(place));
                let names = others.filter_map(|other| other.file_name().map(ToOwned::to_owned));
                let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
                let (folder, release) = (folder.to_owned(), release.to_owned());
                return Err(match names.is_empty() {
                    true => TreeError::None { folder, release },
                    false => TreeError::OtherRelease { folder, found: names.join(", "), release },
                });
            }
        };
        let mut files = Vec::new();
        collect(&place, "", &mut files).map_err(|source| unreadable(&place, source))?;
        files.sort();
        // Other folders have one of these names, too.
        if !files.iter().any(|(name, _)| name_of(name).is_some()) {
            let (folder, release) = (folder.to_owned(), release.to_owned());
            return Err(TreeError::None { folder, release });
        }
        Ok(Self { release: release.to_owned(), folder: place, files })
    }

    /// Modules of a build tree; none where the kernel takes none, or none were built.
    pub(super) fn built(folder: &Path, release: &str) -> Result<Option<Self>, TreeError> {
        let order = folder.join("modules.order");
        let text = match fs::read_to_string(&order) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TreeError::Read { path: order, source }),
        };
        let mut files = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            // Since 6.2 it names objects, before that where modules are installed.
            let line = line.trim();
            let line = line.strip_prefix("kernel/").unwrap_or(line);
            let stem = line.strip_suffix(".ko").or_else(|| line.strip_suffix(".o")).unwrap_or(line);
            let file = folder.join(format!("{stem}.ko"));
            if !file.is_file() {
                return Err(TreeError::NotBuilt {
                    folder: folder.to_owned(),
                    name: stem.to_owned(),
                });
            }
            files.push((format!("kernel/{stem}.ko"), file));
        }
        let told = TOLD.iter().map(|name| ((*name).to_owned(), folder.join(name)));
        files.extend(told.filter(|(_, file)| file.is_file()));
        Ok(Some(Self { release: release.to_owned(), folder: folder.to_owned(), files }))
    }

    /// What changes when a file of it does, without reading any.
    ///
    /// # Errors
    /// [`TreeError::Read`].
    pub(super) fn print(&self) -> Result<String, TreeError> {
        let mut text = format!("{}\n{}\n", self.release, self.folder.display());
        for (path, file) in &self.files {
            let found = fs::metadata(file);
            let found = found.map_err(|source| TreeError::Read { path: file.clone(), source })?;
            let (mtime, nanos, inode) = (found.mtime(), found.mtime_nsec(), found.ino());
            text += &format!("{path}\t{}\t{mtime}.{nanos}\t{inode}\n", found.len());
        }
        Ok(text)
    }
}

/// The modules below a folder, and what is told of them. Links to files are followed, links to folders are not.
fn collect(folder: &Path, below: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            if !SOURCES.contains(&&*path) {
                collect(&entry.path(), &path, files)?;
            }
        } else if name_of(&name).is_some() || TOLD.contains(&&*path) {
            files.push((path, entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    fn paths(tree: &ModuleTree) -> Vec<&str> {
        tree.files.iter().map(|(path, _)| path.as_str()).collect()
    }

    #[test]
    fn installed_modules_are_found_wherever_the_folder_begins() {
        let home = tempfile::tempdir().unwrap();
        let files = ["kernel/a/x.ko.xz", "kernel/a/x.txt", "modules.order", "build/y.ko"];
        write(&home.path().join("lib/modules/6.1"), &files);
        for start in ["", "lib/modules", "lib/modules/6.1"] {
            let tree = ModuleTree::installed(&home.path().join(start), "6.1").unwrap();
            assert_eq!(paths(&tree), ["kernel/a/x.ko.xz", "modules.order"], "{start}");
        }
        let other = ModuleTree::installed(home.path(), "6.2").unwrap_err();
        assert!(other.to_string().ends_with("has modules for kernel 6.1, and the kernel is 6.2"));
        let none = ModuleTree::installed(&home.path().join("lib/modules/6.1/kernel/a"), "6.1");
        assert!(matches!(none, Err(TreeError::None { .. })));
        let tree = ModuleTree::installed(home.path(), "6.1").unwrap();
        let before = tree.print().unwrap();
        assert_eq!(before, tree.print().unwrap());
        fs::write(home.path().join("lib/modules/6.1/kernel/a/x.ko.xz"), "other").unwrap();
        assert_ne!(before, tree.print().unwrap());
    }

    #[test]
    fn a_build_tree_names_its_modules_in_two_ways() {
        let home = tempfile::tempdir().unwrap();
        let built = || ModuleTree::built(home.path(), "6.9");
        assert!(built().unwrap().is_none());
        write(home.path(), &["drivers/a.ko", "fs/b/b.ko", "modules.builtin"]);
        for order in ["kernel/drivers/a.ko\nkernel/fs/b/b.ko\n", "drivers/a.o\nfs/b/b.o\n"] {
            fs::write(home.path().join("modules.order"), order).unwrap();
            let tree = built().unwrap().unwrap();
            let wanted =
                ["kernel/drivers/a.ko", "kernel/fs/b/b.ko", "modules.order", "modules.builtin"];
            assert_eq!(paths(&tree), wanted);
        }
        fs::remove_file(home.path().join("fs/b/b.ko")).unwrap();
        let error = built().unwrap_err().to_string();
        assert!(error.ends_with("names the module `fs/b/b` and has it not"), "{error}");
    }
}
