//! A kernel of the user's, as it is named: a file, or the tree that it was built in.

use super::kernel::{self, MAX_KERNEL_LEN};
use super::module_tree::{ModuleTree, TreeError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where a build leaves the kernel, best first (Linux `arch/x86/Makefile`).
const KERNELS: [&str; 3] = ["arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage", "vmlinux"];

/// A kernel, and what lies beside it.
#[derive(Debug, Clone)]
pub struct OwnKernel {
    /// The file that is booted. Where a folder has none it is the folder, which is told when it is looked at.
    pub kernel: PathBuf,
    /// The tree that it was built in.
    pub build: Option<PathBuf>,
    /// The kernel with its symbols, for a debugger.
    pub vmlinux: Option<PathBuf>,
}

impl OwnKernel {
    /// Looks at what the path is.
    ///
    /// # Errors
    /// What looking gives, also that nothing is there.
    pub fn at(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        if !fs::metadata(&path)?.is_dir() {
            let is_vmlinux = path.file_name().is_some_and(|name| name == "vmlinux");
            let vmlinux = is_vmlinux.then(|| path.clone());
            return Ok(Self { kernel: path, build: None, vmlinux });
        }
        let there = |name: &&str| path.join(name).is_file();
        let kernel = KERNELS.iter().find(|name| there(name)).map(|name| path.join(name));
        let vmlinux = Some(path.join("vmlinux")).filter(|path| path.is_file());
        Ok(Self { kernel: kernel.unwrap_or_else(|| path.clone()), build: Some(path), vmlinux })
    }

    /// `uname -r` of it, where that can be told.
    pub fn release(&self) -> Option<String> {
        let told =
            |build: &PathBuf| fs::read_to_string(build.join("include/config/kernel.release"));
        if let Some(Ok(release)) = self.build.as_ref().map(told) {
            return Some(release.trim().to_owned()).filter(|release| !release.is_empty());
        }
        let found = fs::metadata(&self.kernel).ok()?;
        let is_one = found.is_file() && found.len() <= MAX_KERNEL_LEN;
        kernel::release(&fs::read(&self.kernel).ok().filter(|_| is_one)?)
    }

    /// The file with its configuration: of its tree, or beside it as distributions leave it (`config-RELEASE`).
    pub fn config(&self) -> Option<PathBuf> {
        let beside = || {
            let name = self.kernel.file_name()?.to_str()?;
            let release = ["vmlinuz-", "vmlinux-", "bzImage-"]
                .iter()
                .find_map(|begin| name.strip_prefix(begin))?;
            Some(self.kernel.with_file_name(format!("config-{release}")))
        };
        let path = match &self.build {
            Some(build) => build.join(".config"),
            None => beside()?,
        };
        path.is_file().then_some(path)
    }

    /// Its modules: those of `modules`, where that is given, else those that were built with it.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn modules(&self, modules: Option<&Path>) -> Result<Option<ModuleTree>, TreeError> {
        let unknown = || TreeError::NoRelease { kernel: self.kernel.clone() };
        match (modules, &self.build) {
            (Some(folder), _) => {
                let release = self.release().ok_or_else(unknown)?;
                ModuleTree::installed(&std::path::absolute(folder).unwrap_or_default(), &release)
                    .map(Some)
            }
            (None, Some(build)) if self.kernel != *build => {
                ModuleTree::built(build, &self.release().ok_or_else(unknown)?)
            }
            (None, _) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_told_by_what_was_built_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let tree = || OwnKernel::at(folder.path()).unwrap();
        assert_eq!(tree().kernel, folder.path());
        assert!(tree().modules(None).unwrap().is_none());
        fs::write(folder.path().join("vmlinux"), "v").unwrap();
        assert_eq!(tree().kernel, folder.path().join("vmlinux"));
        fs::create_dir_all(folder.path().join("arch/x86/boot")).unwrap();
        fs::create_dir_all(folder.path().join("include/config")).unwrap();
        fs::write(folder.path().join(KERNELS[0]), "b").unwrap();
        fs::write(folder.path().join("include/config/kernel.release"), "6.9.0-me\n").unwrap();
        assert_eq!(tree().kernel, folder.path().join(KERNELS[0]));
        assert_eq!(tree().release().as_deref(), Some("6.9.0-me"));
        assert_eq!(tree().vmlinux, Some(folder.path().join("vmlinux")));
        assert!(OwnKernel::at(&folder.path().join("none")).is_err());
        for name in [".config", "vmlinuz-6.1", "config-6.1", "vmlinuz-6.2"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(tree().config(), Some(folder.path().join(".config")));
        let beside = |name| OwnKernel::at(&folder.path().join(name)).unwrap().config();
        assert_eq!(beside("vmlinuz-6.1"), Some(folder.path().join("config-6.1")));
        assert_eq!((beside("vmlinuz-6.2"), beside("vmlinux")), (None, None));
    }
}
