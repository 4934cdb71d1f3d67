//! What starts a machine from its first disk, where QEMU is given no kernel: SeaBIOS, which comes with QEMU, or OVMF, whose
//! variables each machine has a copy of.

use crate::digest::Digest;
use crate::host::open_path;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What starts a boot loader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// What starts a machine in the place of what does so by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareChoice {
    /// Of these.
    Kind(FirmwareKind),
    /// A file with all of it, and its digest.
    File(PathBuf, Digest),
}

/// What a disk is put into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drive {
    /// A disk on the virtio bus.
    #[default]
    Disk,
    /// A CD drive, which nothing writes to.
    Cdrom,
}

/// How a machine starts from its first disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// What that disk is put into.
    pub drive: Drive,
    /// OVMF's files; SeaBIOS without.
    pub uefi: Option<Uefi>,
}

/// OVMF for one machine.
#[derive(Debug, Clone)]
pub struct Uefi {
    pub(super) code: PathBuf,
    /// Of code and variables as they come: the machine sees what is in both.
    pub(super) digest: Digest,
    pub(super) vars: PathBuf,
    /// The file that the path leads to by its descriptor.
    _vars: Option<Arc<File>>,
}

impl Firmware {
    /// What of it the guest can see.
    pub(super) fn without_files(&self) -> Self {
        let uefi = self.uefi.as_ref().map(|uefi| Uefi {
            code: uefi.digest.as_str().into(),
            vars: PathBuf::new(),
            _vars: None,
            ..uefi.clone()
        });
        Self { drive: self.drive, uefi }
    }
}

impl PartialEq for Uefi {
    fn eq(&self, other: &Self) -> bool {
        (&self.code, &self.digest, &self.vars) == (&other.code, &other.digest, &other.vars)
    }
}

impl Eq for Uefi {}

/// There is no OVMF on this host.
#[derive(Debug, thiserror::Error)]
pub enum UefiError {
    /// It is not where distributions have it.
    #[error("this host has no OVMF, which starts UEFI disks")]
    Missing,
    /// It cannot be read, or its variables not be copied.
    #[error("cannot use OVMF at `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UefiError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, Self::Missing).then_some("install the package ovmf")
    }
}

/// Code and variables as Debian, Fedora, Arch and openSUSE have them; without Secure Boot, whose keys no disk of a test has.
const PLACES: [(&str, &str); 6] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// Where OVMF is on this host.
pub fn find_ovmf() -> Option<(PathBuf, PathBuf)> {
    let mut places = PLACES.iter().map(|(code, vars)| (PathBuf::from(code), PathBuf::from(vars)));
    places.find(|(code, vars)| code.is_file() && vars.is_file())
}

impl Uefi {
    /// With variables that are as they come, in a file without a name in a folder.
    ///
    /// # Errors
    /// [`UefiError`].
    pub fn new(folder: &Path) -> Result<Self, UefiError> {
        let (code, vars) = find_ovmf().ok_or(UefiError::Missing)?;
        Self::at(code, &vars, folder)
    }

    fn at(code: PathBuf, vars: &Path, folder: &Path) -> Result<Self, UefiError> {
        let read = |path: &Path, source| UefiError::Read { path: path.to_owned(), source };
        let of_code = Digest::of_file(&code).map_err(|source| read(&code, source))?;
        let copy = || {
            let (bytes, mut copy) = (fs::read(vars)?, tempfile::tempfile_in(folder)?);
            copy.write_all(&bytes)?;
            Ok((Digest::of(&bytes), copy))
        };
        let (of_vars, copy) = copy().map_err(|source| read(vars, source))?;
        let digest = Digest::of(format!("{of_code}\n{of_vars}\n").as_bytes());
        Ok(Self { code, digest, vars: open_path(&copy), _vars: Some(Arc::new(copy)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_code_or_other_variables_are_another_firmware() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |code: &str, vars: &str| {
            let [code_at, vars_at] = ["code", "vars"].map(|name| folder.path().join(name));
            fs::write(&code_at, code).unwrap();
            fs::write(&vars_at, vars).unwrap();
            let uefi = Uefi::at(code_at, &vars_at, folder.path()).unwrap();
            assert_eq!(fs::read_to_string(&uefi.vars).unwrap(), vars);
            uefi.digest
        };
        let digests = [digest("a", "b"), digest("a", "c"), digest("d", "b")];
        assert_eq!(digests[0], digest("a", "b"));
        assert!(digests[0] != digests[1] && digests[0] != digests[2]);
    }
}
