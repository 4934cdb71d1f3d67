//! Templates in the cache folder: made beside their place, published whole, sealed, checked at each use.
//!
//! ```text
//! CACHE/templates/1/ID/            template.json, seal.json, state, ram, disk0 …, lock; later ram.json
//! CACHE/templates/1/.making-ID/    being made; its lock is held by the maker
//! CACHE/templates/1/.dropped-…     on its way out
//! ```
//! `lock` is held (flock(2)) exclusively by who makes or prunes a template and shared by who uses it; it moves with its
//! folder ([`crate::folder_lock`]).

use super::key::{FORMAT, TemplateId, TemplateKey};
use super::sealed::{Unfit, check, seal};
use crate::dirs::{Dirs, make_private};
use crate::folder_lock::{FolderLock, LOCK};
use crate::machine::{DiskFile, DiskFormat};
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(super) const RECORD: &str = "template.json";
pub(super) const STATE: &str = "state";
pub(super) const RAM: &str = "ram";

/// The name of what a disk holds that can be written to.
pub(super) fn disk_name(number: usize) -> String {
    format!("disk{number}")
}

pub(super) const MAKING: &str = ".making-";
pub(super) const DROPPED: &str = ".dropped-";

/// The templates of one user.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    pub(super) folder: PathBuf,
}

/// What is known of a template: `template.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// What it was made of.
    pub key: TemplateKey,
    /// Name of its image.
    pub image: String,
    /// `uname -r` of the image's kernel.
    pub kernel_release: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// So many of its disks can be written to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disks: usize,
    /// Version of Guestline that made it.
    pub guestline: String,
    /// When it was made, microseconds since 1970.
    pub made_us: u64,
    /// From the start of QEMU to the agent's answer, and with its layer's lines, microseconds.
    pub ready_us: u64,
    /// From then until it was quiet, microseconds.
    pub quiet_us: u64,
    /// It did come to rest.
    pub quiet: bool,
    /// Its agent was reached over a terminal line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty_link: bool,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A template that is whole. It is not removed while this is there.
#[derive(Debug)]
pub struct Template {
    folder: PathBuf,
    /// What it is.
    pub record: TemplateRecord,
    _lock: FolderLock,
}

/// What is there for a key.
#[derive(Debug)]
pub(in crate::provision) enum Found {
    Ready(Box<Template>),
    Absent,
    /// It must not be used, for this reason.
    Damaged(String),
    /// It is another's, for this reason: neither to be used nor to be removed.
    Foreign(String),
}

/// A template that is being made; what is there of it is removed when this is dropped.
#[derive(Debug)]
pub(in crate::provision) struct Making {
    folder: PathBuf,
    home: PathBuf,
    lock: Option<FolderLock>,
}

impl TemplateStore {
    /// In the cache folder.
    pub fn new(dirs: &Dirs) -> Self {
        Self { folder: dirs.cache.join("templates").join(FORMAT.to_string()) }
    }

    /// Where the templates are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The template of a key, checked.
    pub(in crate::provision) fn open(&self, key: &TemplateKey) -> Found {
        match self.open_id(&key.id()) {
            Found::Ready(template) if template.record.key != *key => {
                Found::Damaged(format!("{RECORD} is another template's"))
            }
            found => found,
        }
    }

    /// The template of an id, checked.
    pub(in crate::provision) fn open_id(&self, id: &TemplateId) -> Found {
        self.open_folder(self.folder.join(id.as_str()), true)
    }

    /// The template in a folder, checked; `is_use` is noted.
    pub(super) fn open_folder(&self, folder: PathBuf, is_use: bool) -> Found {
        let lock = match FolderLock::shared(&folder) {
            Ok(Some(lock)) => lock,
            // Somebody removes it, or has not done publishing it.
            Ok(None) => return Found::Absent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match folder.exists() {
                    true => Found::Damaged(format!("{LOCK} is missing")),
                    false => Found::Absent,
                };
            }
            Err(error) => {
                return Found::Foreign(format!("cannot use `{}`: {error}", folder.display()));
            }
        };
        match check(&folder) {
            Ok(record) => {
                if is_use {
                    // What was used last goes last.
                    lock.note_use();
                }
                Found::Ready(Box::new(Template { folder, record, _lock: lock }))
            }
            Err(Unfit::Damaged(why)) => Found::Damaged(why),
            Err(unfit @ (Unfit::Newer | Unfit::Foreign)) => {
                let why = match unfit {
                    Unfit::Newer => "was made by a newer Guestline",
                    _ => "belongs to another user",
                };
                Found::Foreign(format!("`{}` {why}", folder.display()))
            }
        }
    }

    /// Begins to make a template; none while somebody else does.
    ///
    /// # Errors
    /// What making its folder gives.
    pub(in crate::provision) fn begin(&self, key: &TemplateKey) -> io::Result<Option<Making>> {
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent)?;
        }
        make_private(&self.folder)?;
        let id = key.id();
        let folder = self.folder.join(format!("{MAKING}{id}"));
        make_private(&folder)?;
        FolderLock::make(&folder)?;
        let Some(lock) = FolderLock::exclusive(&folder)? else { return Ok(None) };
        let making = Making { home: self.folder.join(id.as_str()), folder, lock: Some(lock) };
        // What a maker left who died.
        for left in fs::read_dir(&making.folder)? {
            let left = left?;
            if left.file_name() != LOCK {
                fs::remove_file(left.path())?;
            }
        }
        self.sweep();
        Ok(Some(making))
    }

    /// Takes a template out of use. Whoever has it keeps what he has open.
    pub(in crate::provision) fn drop_id(&self, id: &TemplateId) {
        // Where it cannot be removed, the next use finds it again.
        let _ = self.discard_folder(&self.folder.join(id.as_str()));
    }

    /// Removes what the dead left behind.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let folder = entry.path();
            let is_dead = name.starts_with(DROPPED)
                || name.starts_with(MAKING)
                    && matches!(FolderLock::exclusive(&folder), Ok(Some(_)));
            if is_dead {
                let _ = fs::remove_dir_all(folder);
            }
        }
    }
}

impl Making {
    /// Where the memory file is to be.
    pub(in crate::provision) fn ram(&self) -> PathBuf {
        self.folder.join(RAM)
    }

    /// Where the state file is to be.
    pub(in crate::provision) fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Where what a disk holds is to be.
    pub(in crate::provision) fn disk(&self, number: usize) -> PathBuf {
        self.folder.join(disk_name(number))
    }

    /// The folder.
    pub(in crate::provision) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Seals what was made and puts it in its place, where nothing is.
    ///
    /// # Errors
    /// What writing gives; nothing is left then.
    pub(in crate::provision) fn publish(
        mut self,
        record: TemplateRecord,
        opens_read_only: bool,
    ) -> io::Result<Option<Template>> {
        let record_text = serde_json::to_vec_pretty(&record)?;
        fs::write(self.folder.join(RECORD), &record_text)?;
        // An older QEMU opens it for writing, though it does not write.
        let ram_mode = if opens_read_only { 0o400 } else { 0o600 };
        fs::set_permissions(self.ram(), Permissions::from_mode(ram_mode))?;
        fs::set_permissions(self.state(), Permissions::from_mode(0o400))?;
        for number in 0..record.disks {
            fs::set_permissions(self.disk(number), Permissions::from_mode(0o400))?;
        }
        seal(&self.folder, &record_text, record.disks)?;
        fs::rename(&self.folder, &self.home)?;
        let Some(lock) = self.lock.take() else { return Ok(None) };
        // Whoever gets it in between prunes it, which is as if it had not been made.
        Ok(lock.share().map(|lock| Template { folder: self.home.clone(), record, _lock: lock }))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Removed before its lock is given back; once published there is nothing.
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Template {
    /// Its id.
    pub fn id(&self) -> TemplateId {
        self.record.key.id()
    }

    /// The memory file.
    pub fn ram(&self) -> PathBuf {
        self.folder.join(RAM)
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// What its disks hold that can be written to.
    pub fn disks(&self) -> Vec<DiskFile> {
        let path = |number| self.folder.join(disk_name(number));
        (0..self.record.disks).map(|number| DiskFile::at(path(number), DiskFormat::Qcow2)).collect()
    }

    /// Which of all that were ever made under its id it is, as long as nobody writes to it: identity and last change of its
    /// memory file (stat(2)).
    pub(in crate::provision) fn instance(&self) -> String {
        match fs::symlink_metadata(self.ram()) {
            Ok(found) => format!("{}-{}.{}", found.ino(), found.ctime(), found.ctime_nsec()),
            Err(_) => String::new(),
        }
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}
