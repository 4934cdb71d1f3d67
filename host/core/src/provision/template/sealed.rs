//! The seal of a template: what its files were when they were right, and whether they still are.
//!
//! It has the digests of the small files, and what the memory file and the disks were when they were published: their
//! digests are taken afterwards. What has not been written to the disk for certain when the host goes down is not used again.

use super::key::FORMAT;
use super::ram::ram_digest;
use super::store::{RAM, RECORD, STATE, Template, TemplateRecord, disk_name};
use crate::digest::Digest;
use crate::host::boot_id;
use crate::seal::FileSeal;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use ulid::Ulid;

const SEAL: &str = "seal.json";
const RAM_DIGEST: &str = "ram.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    record: Digest,
    state: Digest,
    files: Vec<FileSeal>,
    /// The boot of the host in which it was made.
    host_boot: String,
}

/// `ram.json`: digests of the memory file, and of what the disks hold; they are on the disk for certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::provision) struct PageDigests {
    /// Of the memory file.
    pub(in crate::provision) pages: Digest,
    /// Of each disk's file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::provision) disks: Vec<Digest>,
}

impl PageDigests {
    /// The file that is another one there.
    pub(in crate::provision) fn difference(&self, there: &Self) -> Option<String> {
        let mut disks = self.disks.iter().zip(&there.disks);
        match disks.position(|(ours, theirs)| ours != theirs) {
            _ if self.pages != there.pages => Some(RAM.to_owned()),
            Some(number) => Some(disk_name(number)),
            None => (self.disks.len() != there.disks.len()).then(|| "ram.json".to_owned()),
        }
    }
}

/// Seals what lies in a folder. `record` is the text of its record, and so many disks have a file.
pub(super) fn seal(folder: &Path, record: &[u8], disks: usize) -> io::Result<()> {
    let file = |name: &str| {
        Ok::<_, io::Error>(FileSeal::of(name, &fs::symlink_metadata(folder.join(name))?))
    };
    let mut files = vec![file(RAM)?, file(STATE)?];
    for number in 0..disks {
        files.push(file(&disk_name(number))?);
    }
    let seal = Seal {
        record: Digest::of(record),
        state: Digest::of_file(&folder.join(STATE))?,
        files,
        host_boot: boot_id(),
    };
    fs::write(folder.join(SEAL), serde_json::to_vec(&seal)?)
}

impl Template {
    /// Takes the digests of the memory file and the disks, once, when those have been written to the disk; ends early when
    /// `go_on` says no.
    ///
    /// # Errors
    /// What reading or writing gives.
    pub(in crate::provision) fn digest_pages(&self, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        if self.known_pages().is_some() {
            return Ok(());
        }
        match self.survey(go_on)? {
            Some(digests) => self.keep_digests(&digests),
            None => Ok(()),
        }
    }

    /// Compares the whole memory file and the disks with their digests, which are taken where they never were. Says what is wrong; nothing is
    /// when `go_on` says no.
    ///
    /// # Errors
    /// What reading gives.
    pub(in crate::provision) fn verify(
        &self,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<Option<String>> {
        let known = self.known_pages();
        let Some(digests) = self.survey(go_on)? else { return Ok(None) };
        match known {
            Some(known) => {
                Ok(known.difference(&digests).map(|name| format!("{name} has another content")))
            }
            None => {
                // On a disk that cannot be written to there is none the next time, either.
                let _ = self.keep_digests(&digests);
                Ok(None)
            }
        }
    }

    /// The digests of the memory file and the disks, where they were taken.
    pub(in crate::provision) fn known_pages(&self) -> Option<PageDigests> {
        page_digests(self.folder())
    }

    /// The digests as they are now; none when `go_on` says no.
    fn survey(&self, go_on: &dyn Fn() -> bool) -> io::Result<Option<PageDigests>> {
        let Some(pages) = ram_digest(&self.ram(), go_on)? else { return Ok(None) };
        let mut disks = Vec::new();
        for disk in self.disks() {
            let Some(digest) = ram_digest(disk.path(), go_on)? else { return Ok(None) };
            disks.push(digest);
        }
        Ok(Some(PageDigests { pages, disks }))
    }

    fn keep_digests(&self, digests: &PageDigests) -> io::Result<()> {
        File::open(self.ram())?.sync_data()?;
        for disk in self.disks() {
            File::open(disk.path())?.sync_data()?;
        }
        let fresh = self.folder().join(format!(".{RAM_DIGEST}-{}", Ulid::generate()));
        let kept = fs::write(&fresh, serde_json::to_vec(digests)?)
            .and_then(|()| fs::rename(&fresh, self.folder().join(RAM_DIGEST)));
        if kept.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        kept
    }
}

/// Why a template must not be used.
pub(super) enum Unfit {
    Damaged(String),
    /// A newer Guestline made it.
    Newer,
    /// Another user owns it.
    Foreign,
}

/// Is what lies there what was published?
pub(super) fn check(folder: &Path) -> Result<TemplateRecord, Unfit> {
    let damaged = |what: String| Unfit::Damaged(what);
    let unreadable = |name: &str| {
        let name = name.to_owned();
        move |error: io::Error| damaged(format!("{name}: {error}"))
    };
    let found = fs::symlink_metadata(folder).map_err(unreadable("its folder"))?;
    if found.uid() != Uid::effective().as_raw() {
        return Err(Unfit::Foreign);
    }
    let text = fs::read(folder.join(RECORD)).map_err(unreadable(RECORD))?;
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let format = format.and_then(|record| record["key"]["format"].as_u64());
    if format.is_some_and(|format| format > u64::from(FORMAT)) {
        return Err(Unfit::Newer);
    }
    let seal = fs::read(folder.join(SEAL)).map_err(unreadable(SEAL))?;
    let seal: Seal =
        serde_json::from_slice(&seal).map_err(|error| damaged(format!("{SEAL}: {error}")))?;
    if Digest::of(&text) != seal.record {
        return Err(damaged(format!("{RECORD} was written to")));
    }
    let record = serde_json::from_slice(&text);
    let record: TemplateRecord = record.map_err(|error| damaged(format!("{RECORD}: {error}")))?;
    let disks = (0..record.disks).map(disk_name);
    for name in [RAM, STATE].map(str::to_owned).into_iter().chain(disks) {
        let Some(known) = seal.files.iter().find(|file| file.name == name) else {
            return Err(damaged(format!("{SEAL} has no {name}")));
        };
        let found = fs::symlink_metadata(folder.join(&name)).map_err(unreadable(&name))?;
        if let Some(difference) = known.difference(&found) {
            return Err(damaged(difference));
        }
    }
    let state = Digest::of_file(&folder.join(STATE)).map_err(unreadable(STATE))?;
    if state != seal.state {
        return Err(damaged(format!("{STATE} has another content")));
    }
    if seal.host_boot != boot_id() && page_digests(folder).is_none() {
        return Err(damaged("the host went down before it was on the disk".to_owned()));
    }
    Ok(record)
}

fn page_digests(folder: &Path) -> Option<PageDigests> {
    serde_json::from_slice(&fs::read(folder.join(RAM_DIGEST)).ok()?).ok()
}
