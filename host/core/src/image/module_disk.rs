//! A disk with all modules of a kernel: what is at the top of its file system is what `/lib/modules/RELEASE` is to hold.
//!
//! Modules are unpacked in it, for whatever loads them in a guest; the file system packs them anyway.

use super::build::BuildError;
use super::module_index::{ModuleIndex, ModuleInfo, name_of};
use super::packages::{PackageError, unpack};
use super::squashfs::{Compression, TarWriter, pack};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Files of `/lib/modules/RELEASE` that are not made anew, but for which nothing knows them.
const KEPT: [&str; 3] = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];

/// A disk that is put together.
pub struct ModuleDisk {
    scratch: TempDir,
    tar: TarWriter,
    index: ModuleIndex,
}

impl fmt::Debug for ModuleDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModuleDisk").field("scratch", &self.scratch).finish_non_exhaustive()
    }
}

impl ModuleDisk {
    /// Put together in a folder, in which nothing is left.
    ///
    /// # Errors
    /// [`BuildError::Write`].
    pub fn new(folder: &Path) -> Result<Self, BuildError> {
        let wrong = |source| BuildError::Write { path: folder.to_owned(), source };
        let scratch = tempfile::Builder::new().prefix(".making-modules-").tempdir_in(folder);
        let scratch = scratch.map_err(wrong)?;
        let tar = TarWriter::create(&tar_in(&scratch)).map_err(wrong)?;
        Ok(Self { scratch, tar, index: ModuleIndex::default() })
    }

    /// Adds a file of `/lib/modules/RELEASE/`; what is neither a module nor said by the kernel's build is left out.
    ///
    /// # Errors
    /// [`BuildError`] of unpacking or writing it.
    pub fn add(&mut self, path: &str, content: Vec<u8>) -> Result<(), BuildError> {
        let is_below = Path::new(path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_below {
            return Ok(());
        }
        if let Some(name) = name_of(path) {
            let (path, content) = (unpacked_path(path), unpacked(content)?);
            self.index.add(&name, &path, ModuleInfo::of(&content));
            return self.write(&path, &content);
        }
        if !KEPT.contains(&path) {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&content);
        match path {
            "modules.order" => self.index.set_order(&text),
            "modules.builtin" => self.index.set_builtin(&text),
            _ => self.index.set_builtin_info(&content),
        }
        self.write(path, &content)
    }

    /// Adds what a tar file has below `lib/modules/RELEASE/`, or `usr/lib/modules/RELEASE/`.
    ///
    /// # Errors
    /// [`BuildError`] of reading, unpacking or writing it.
    pub fn add_tar(&mut self, tar: &Path, release: &str) -> Result<(), BuildError> {
        let wrong = |source| BuildError::Write { path: tar.to_owned(), source };
        let mut archive = tar::Archive::new(io::BufReader::new(File::open(tar).map_err(wrong)?));
        for entry in archive.entries().map_err(wrong)? {
            let mut entry = entry.map_err(wrong)?;
            let path = entry.path().map_err(wrong)?.to_string_lossy().into_owned();
            let path = path.trim_start_matches("./").trim_start_matches("usr/");
            let below = path.strip_prefix("lib/modules/").and_then(|path| path.split_once('/'));
            let Some((found, path)) = below else { continue };
            if found == release && entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(wrong)?;
                self.add(path, content)?;
            }
        }
        Ok(())
    }

    /// What is in it.
    pub(super) fn index(&self) -> &ModuleIndex {
        &self.index
    }

    /// Packs it.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn pack(mut self, to: &Path, cancel: &CancellationToken) -> Result<(), BuildError> {
        for (name, content) in self.index.files() {
            self.write(name, &content)?;
        }
        let path = tar_in(&self.scratch);
        let wrong = |source| BuildError::Write { path: path.clone(), source };
        self.tar.finish().map_err(wrong)?;
        pack(File::open(&path).map_err(wrong)?, to, Compression::Gzip, cancel)
    }

    fn write(&mut self, path: &str, content: &[u8]) -> Result<(), BuildError> {
        let written = self.tar.file(path, 0o644, content);
        written.map_err(|source| BuildError::Write { path: tar_in(&self.scratch), source })
    }
}

/// A module's content, as the kernel loads it without help.
pub(super) fn unpacked(content: Vec<u8>) -> Result<Vec<u8>, PackageError> {
    match content.starts_with(b"\x7fELF") {
        true => Ok(content),
        false => unpack(&content),
    }
}

/// A module's path when it is unpacked.
pub(super) fn unpacked_path(path: &str) -> String {
    let end = path.rfind(".ko").unwrap_or(path.len());
    format!("{}.ko", &path[..end])
}

fn tar_in(scratch: &TempDir) -> PathBuf {
    scratch.path().join("modules.tar")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_tar_file_gives_the_same_disk_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("kernel.tar");
        let mut writer = TarWriter::create(&tar).unwrap();
        for (path, content) in [
            ("usr/lib/modules/6.1/kernel/a/virtio-net.ko", "\x7fELF\0"),
            ("usr/lib/modules/6.1/kernel/a/notes", "left out"),
            ("usr/lib/modules/6.1/modules.order", "kernel/a/virtio-net.ko\n"),
            ("usr/lib/modules/6.1/modules.dep", "another"),
            ("usr/lib/modules/6.2/kernel/a/other.ko", "\x7fELF\0"),
            ("boot/config-6.1", "CONFIG_X=y"),
        ] {
            writer.file(path, 0o644, content.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        let made = |name: &str| {
            let (mut disk, to) =
                (ModuleDisk::new(folder.path()).unwrap(), folder.path().join(name));
            disk.add_tar(&tar, "6.1").unwrap();
            disk.pack(&to, &CancellationToken::new()).unwrap();
            to
        };
        let (first, second) = (made("first"), made("second"));
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(second).unwrap());
        let listed = Command::new("unsquashfs").args(["-lls", "-d", ""]).arg(first).output();
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        for path in ["/kernel/a/virtio-net.ko\n", "/modules.dep\n", "/modules.alias.bin\n"] {
            assert!(listed.contains(path), "{listed}");
        }
        for path in ["other.ko", "notes", "config"] {
            assert!(!listed.contains(path), "{listed}");
        }
        // Nothing else is left.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
