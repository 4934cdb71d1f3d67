//! The seal of a template: what its files were when they were right, and whether they still are.
//!
//! It has the digests of the small files, and what the memory file was when it was published: its digest is taken
//! afterwards. A memory file that has not been written to the disk for certain when the host goes down is not used again.

use super::key::FORMAT;
use super::ram::ram_digest;
use super::store::{RAM, RECORD, STATE, Template, TemplateRecord};
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

pub(super) const SEAL: &str = "seal.json";
const RAM_DIGEST: &str = "ram.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    record: Digest,
    state: Digest,
    files: Vec<FileSeal>,
    /// The boot of the host in which it was made.
    host_boot: String,
}

/// `ram.json`: the memory file's digest; it is on the disk for certain.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RamRecord {
    pages: Digest,
}

/// Seals what lies in a folder. `record` is the text of its record.
pub(super) fn seal(folder: &Path, record: &[u8]) -> io::Result<()> {
    let file = |name: &str| {
        Ok::<_, io::Error>(FileSeal::of(name, &fs::symlink_metadata(folder.join(name))?))
    };
    let seal = Seal {
        record: Digest::of(record),
        state: Digest::of_file(&folder.join(STATE))?,
        files: vec![file(RAM)?, file(STATE)?],
        host_boot: boot_id(),
    };
    fs::write(folder.join(SEAL), serde_json::to_vec(&seal)?)
}

impl Template {
    /// Takes the digest of the memory file, once, when that has been written to the disk; ends early when `go_on` says no.
    ///
    /// # Errors
    /// What reading or writing gives.
    pub(in crate::provision) fn digest_ram(&self, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        if self.known_pages().is_some() {
            return Ok(());
        }
        match ram_digest(&self.ram(), go_on)? {
            Some(pages) => self.keep_digest(pages),
            None => Ok(()),
        }
    }

    /// Compares the whole memory file with its digest, which is taken where it never was. Says what is wrong; nothing is
    /// when `go_on` says no.
    ///
    /// # Errors
    /// What reading gives.
    pub(in crate::provision) fn verify(
        &self,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<Option<String>> {
        let known = self.known_pages();
        let Some(pages) = ram_digest(&self.ram(), go_on)? else { return Ok(None) };
        match known {
            Some(known) => Ok((pages != known).then(|| format!("{RAM} has another content"))),
            None => {
                // On a disk that cannot be written to there is none the next time, either.
                let _ = self.keep_digest(pages);
                Ok(None)
            }
        }
    }

    /// The digest of the memory file, where it was taken.
    pub(in crate::provision) fn known_pages(&self) -> Option<Digest> {
        ram_record(self.folder()).map(|record| record.pages)
    }

    fn keep_digest(&self, pages: Digest) -> io::Result<()> {
        File::open(self.ram())?.sync_data()?;
        let fresh = self.folder().join(format!(".{RAM_DIGEST}-{}", Ulid::generate()));
        let kept = fs::write(&fresh, serde_json::to_vec(&RamRecord { pages })?)
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
    let record = record.map_err(|error| damaged(format!("{RECORD}: {error}")))?;
    for name in [RAM, STATE] {
        let Some(known) = seal.files.iter().find(|file| file.name == name) else {
            return Err(damaged(format!("{SEAL} has no {name}")));
        };
        let found = fs::symlink_metadata(folder.join(name)).map_err(unreadable(name))?;
        if let Some(difference) = known.difference(&found) {
            return Err(damaged(difference));
        }
    }
    let state = Digest::of_file(&folder.join(STATE)).map_err(unreadable(STATE))?;
    if state != seal.state {
        return Err(damaged(format!("{STATE} has another content")));
    }
    if seal.host_boot != boot_id() && ram_record(folder).is_none() {
        return Err(damaged("the host went down before it was on the disk".to_owned()));
    }
    Ok(record)
}

fn ram_record(folder: &Path) -> Option<RamRecord> {
    serde_json::from_slice(&fs::read(folder.join(RAM_DIGEST)).ok()?).ok()
}
