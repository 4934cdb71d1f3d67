//! What an image was made from: `manifest.json` beside its files.

use super::recipe::Ready;
use crate::digest::Digest;
use crate::machine::{DiskFormat, Drive, FirmwareKind};
use serde::{Deserialize, Serialize};

/// The format of the manifest and of the folder it lies in; another number is another image.
pub(super) const FORMAT: u32 = 4;

/// What an image was made from, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's number.
    pub format: u32,
    /// The image's name.
    pub name: String,
    /// Digest of the recipe's text.
    pub recipe: Digest,
    /// Digest of the agent in it.
    pub agent: Digest,
    /// The packages it was made from.
    pub packages: Vec<PackageRecord>,
    /// `uname -r` of its kernel; empty where a disk brings its own.
    pub kernel_release: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Default memory of a machine, MiB.
    pub memory_mib: u64,
    /// A line for its shell that is run in a machine that waits in a pool.
    pub warm_up: Option<String>,
    /// When a machine is ready.
    pub ready: Ready,
    /// What runs a line.
    pub shell: String,
    /// What tests may ask for.
    pub provides: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// Under which licences it may be passed on.
    pub licence: String,
    /// The disk among the files that is booted as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskRecord>,
    /// The files beside the manifest.
    pub files: Vec<FileRecord>,
}

/// How a disk is held and booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// How the file holds it.
    pub format: DiskFormat,
    /// What starts its boot loader.
    pub firmware: FirmwareKind,
    /// What it is put into.
    pub drive: Drive,
}

/// A package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageRecord {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Digest of the `.deb`.
    pub sha256: Digest,
}

/// A file, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name in the image's folder.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// Digest of its content.
    pub sha256: Digest,
}

impl Manifest {
    /// The image's digest: the same for the same content, whenever and wherever it was made.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_json())
    }

    /// As it lies beside the files.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// The record of a file.
    pub fn file(&self, name: &str) -> Option<&FileRecord> {
        self.files.iter().find(|file| file.name == name)
    }
}
