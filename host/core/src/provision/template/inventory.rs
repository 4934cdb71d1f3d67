//! What there is of templates, whoever made it and however whole it is, and the way out of the cache.

use super::key::{FORMAT, TemplateId};
use super::sealed::{Unfit, check};
use super::store::{DROPPED, Found, MAKING, RECORD, TemplateRecord, TemplateStore};
use crate::folder_lock::{FolderLock, LOCK, is_in_use};
use crate::kept::{Condition, Kept, Removal, folders};
use std::fs;
use std::io;
use std::path::Path;
use ulid::Ulid;

impl TemplateStore {
    /// All that is there, with the record where that can be read.
    pub(in crate::provision) fn kept(&self) -> Vec<(Kept, Option<TemplateRecord>)> {
        let ours = folders(&self.folder).into_iter().map(|folder| {
            let kept = Kept::look(folder, condition);
            let record = fs::read(kept.folder.join(RECORD)).ok();
            (kept, record.and_then(|text| serde_json::from_slice(&text).ok()))
        });
        // A newer Guestline keeps its templates in a folder of another number.
        let newer = self.folder.parent().map(folders).unwrap_or_default().into_iter();
        let newer = newer.filter_map(|folder| {
            let number = folder.file_name()?.to_str()?.parse::<u32>().ok()?;
            (number > FORMAT).then(|| (Kept::look(folder, |_| Condition::Newer), None))
        });
        ours.chain(newer).collect()
    }

    /// The template in one of these folders, checked; that is no use of it.
    pub(in crate::provision) fn inspect(&self, kept: &Kept) -> Found {
        self.open_folder(kept.folder.clone(), false)
    }

    /// Is there one of this id, in whatever condition?
    pub fn has(&self, id: &TemplateId) -> bool {
        self.folder.join(id.as_str()).symlink_metadata().is_ok()
    }

    /// Takes a template out of use, also when somebody uses it: he keeps what he has open.
    ///
    /// # Errors
    /// What removing it gives.
    pub(in crate::provision) fn discard(&self, kept: &Kept) -> io::Result<()> {
        self.discard_folder(&kept.folder)
    }

    pub(super) fn discard_folder(&self, folder: &Path) -> io::Result<()> {
        let gone = self.folder.join(format!("{DROPPED}{}", Ulid::generate()));
        fs::rename(folder, &gone)?;
        fs::remove_dir_all(&gone)
    }

    /// Removes what is there, unless somebody uses it; false then.
    ///
    /// # Errors
    /// What removing it gives.
    pub(in crate::provision) fn remove(&self, kept: &Kept) -> io::Result<bool> {
        if kept.name.starts_with(DROPPED) {
            return fs::remove_dir_all(&kept.folder).map(|()| true);
        }
        if kept.name.starts_with(MAKING) {
            FolderLock::make(&kept.folder)?;
        }
        self.remove_folder(&kept.folder)
    }

    /// Removes the template of an id; one that is not there is gone.
    pub fn remove_id(&self, id: &TemplateId) -> Removal {
        match self.has(id) {
            true => self.remove_folder(&self.folder.join(id.as_str())).into(),
            false => Removal::Removed,
        }
    }

    /// False when somebody uses it.
    fn remove_folder(&self, folder: &Path) -> io::Result<bool> {
        let _lock = match FolderLock::exclusive(folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Ok(false),
            // Nobody can use it without.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        self.discard_folder(folder).map(|()| true)
    }
}

fn condition(folder: &Path) -> Condition {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(DROPPED) {
        return Condition::LeftOver;
    }
    if name.starts_with(MAKING) {
        return if is_in_use(folder) { Condition::Making } else { Condition::LeftOver };
    }
    if !folder.join(LOCK).is_file() {
        return Condition::Damaged(format!("{LOCK} is missing"));
    }
    match check(folder) {
        Ok(record) if record.key.id().as_str() != name => {
            Condition::Damaged(format!("{RECORD} is another template's"))
        }
        Ok(_) => Condition::Ready,
        Err(Unfit::Damaged(why)) => Condition::Damaged(why),
        Err(Unfit::Newer) => Condition::Newer,
        Err(Unfit::Foreign) => Condition::Foreign,
    }
}
