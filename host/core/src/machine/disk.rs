//! Disks of a machine: each a chain of files, the one that is written to on top of those that many machines read.
//!
//! ```text
//! image's file (raw, qcow2) <── template's overlay <── this machine's overlay (no name, gone with its processes)
//! ```
//! An overlay names no file that it lies upon: QEMU is told the whole chain, and follows nothing that a file says.

use super::DiskBus;
use super::qcow2;
use crate::host::open_path;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk. Its serial number is `disk` and its place among the machine's disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// What it is connected to.
    pub bus: DiskBus,
    /// The guest cannot write to it, and its files are as they are.
    pub read_only: bool,
    /// What is written to it stays in the last of its files, which is this machine's own: nothing is put upon that.
    pub is_own: bool,
    /// What it holds, from the base to what is written to. A disk without any is all zeros.
    pub files: Vec<DiskFile>,
}

/// A file of a disk.
#[derive(Debug, Clone)]
pub struct DiskFile {
    path: PathBuf,
    format: DiskFormat,
    /// The file that the path leads to by its descriptor.
    _file: Option<Arc<File>>,
}

/// How a file holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's own (QEMU `docs/interop/qcow2.txt`).
    Qcow2,
}

impl PartialEq for DiskFile {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.format) == (&other.path, other.format)
    }
}

impl Eq for DiskFile {}

impl DiskFile {
    /// A file by its name.
    pub fn at(path: PathBuf, format: DiskFormat) -> Self {
        Self { path, format, _file: None }
    }

    /// An overlay that is open, by its descriptor: its name may change, or it may have none. It is there as long as this
    /// is, for any process of the user (proc_pid_fd(5)).
    pub fn open(file: File) -> Self {
        Self::open_as(file, DiskFormat::Qcow2)
    }

    /// As [`DiskFile::open`], of any format.
    pub fn open_as(file: File, format: DiskFormat) -> Self {
        Self { path: open_path(&file), format, _file: Some(Arc::new(file)) }
    }

    /// Makes an overlay, for a disk of so many bytes.
    ///
    /// # Errors
    /// What making and writing it gives; that there is one, too.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        qcow2::write_empty(&file, size)?;
        Ok(Self::open(file))
    }

    /// Makes an overlay without a name in a folder, for a disk of so many bytes.
    ///
    /// # Errors
    /// What making and writing it gives.
    pub fn unnamed(folder: &Path, size: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        qcow2::write_empty(&file, size)?;
        Ok(Self::open(file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk {
    /// A disk of zeros.
    pub fn empty(size: u64) -> Self {
        Self { size, bus: DiskBus::Virtio, read_only: false, is_own: false, files: Vec::new() }
    }

    /// This, connected to a bus.
    pub fn on(self, bus: DiskBus) -> Self {
        Self { bus, ..self }
    }

    /// A raw file that many machines read.
    ///
    /// # Errors
    /// What asking for its size gives.
    pub fn shared(path: &Path) -> io::Result<Self> {
        let size = std::fs::metadata(path)?.len();
        let file = DiskFile::at(path.to_owned(), DiskFormat::Raw);
        Ok(Self { size, bus: DiskBus::Virtio, read_only: true, is_own: false, files: vec![file] })
    }

    /// A file that this machine alone reads and, unless it is `read_only`, writes to.
    pub fn given(file: DiskFile, size: u64, read_only: bool) -> Self {
        Self { size, bus: DiskBus::Virtio, read_only, is_own: true, files: vec![file] }
    }

    /// A disk whose base is a file that many machines read, and that was looked at when it came.
    ///
    /// # Errors
    /// What asking for its size gives.
    pub fn of_file(path: &Path, format: DiskFormat, read_only: bool) -> io::Result<Self> {
        /// Devices have sectors of this.
        const SECTOR: u64 = 512;
        let file = File::open(path)?;
        let size = match format {
            DiskFormat::Raw => file.metadata()?.len(),
            DiskFormat::Qcow2 => qcow2::size(&file)?,
        };
        let size = size.next_multiple_of(SECTOR);
        let file = DiskFile::at(path.to_owned(), format);
        Ok(Self { size, bus: DiskBus::Virtio, read_only, is_own: false, files: vec![file] })
    }

    /// What of it the guest can see.
    pub(super) fn without_files(&self) -> Self {
        Self { files: Vec::new(), ..*self }
    }

    /// The node that the device has (QEMU `qapi/block-core.json`, `BlockdevOptions`).
    pub(super) fn node(&self, name: &str) -> Value {
        let mut below = Value::Null;
        for (number, DiskFile { path, format, .. }) in self.files.iter().enumerate() {
            let is_written = !self.read_only && number + 1 == self.files.len();
            let mut file = json!({ "driver": "file", "filename": path, "read-only": !is_written });
            if is_written {
                // Nothing of it outlives the host's memory for certain, and what is deleted gives its room back.
                file["cache"] = json!({ "direct": false, "no-flush": true });
                file["discard"] = json!("unmap");
            }
            below = match format {
                DiskFormat::Raw => {
                    json!({ "driver": "raw", "read-only": !is_written, "file": file })
                }
                DiskFormat::Qcow2 => json!({
                    "driver": "qcow2", "read-only": !is_written, "file": file, "backing": below,
                    "discard": if is_written { "unmap" } else { "ignore" },
                }),
            };
        }
        if self.files.is_empty() {
            below = json!({ "driver": "null-co", "size": self.size, "read-zeroes": true });
        }
        below["node-name"] = json!(name);
        below
    }
}
