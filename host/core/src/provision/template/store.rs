//! Templates in the cache folder: made beside their place, published whole, sealed, checked at each use.
//!
//! ```text
//! CACHE/templates/1/ID/            template.json, seal.json, state, ram, console.log, lock; later ram.json
//! CACHE/templates/1/.making-ID/    being made; its lock is held by the maker
//! CACHE/templates/1/.dropped-…     on its way out
//! ```
//! `lock` is held (flock(2)) exclusively by who makes or prunes a template and shared by who uses it; it moves with its
//! folder, so whoever has got a lock looks whether it is still that of the folder.
//!
//! The seal has the digests of the small files, and what the memory file was when it was published: its digest is taken
//! afterwards. A memory file that has not been written to
//! the disk for certain when the host goes down is not used again.

use super::key::{FORMAT, TemplateId, TemplateKey};
use super::ram::ram_digest;
use crate::digest::Digest;
use crate::dirs::{Dirs, make_private};
use crate::seal::FileSeal;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use ulid::Ulid;

const RECORD: &str = "template.json";
const SEAL: &str = "seal.json";
const STATE: &str = "state";
const RAM: &str = "ram";
const RAM_DIGEST: &str = "ram.json";
const LOCK: &str = "lock";
const MAKING: &str = ".making-";
const DROPPED: &str = ".dropped-";

/// The templates of one user.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    folder: PathBuf,
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
}

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

/// A template that is whole. It is not removed while this is there.
#[derive(Debug)]
pub struct Template {
    folder: PathBuf,
    /// What it is.
    pub record: TemplateRecord,
    _lock: Flock<File>,
}

/// What became of the wish to remove a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// A machine was restored from it and is still there, or it is being made.
    InUse,
    /// There was none.
    Absent,
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
    lock: Option<Flock<File>>,
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

    /// Is there one of this id? It is not checked.
    pub fn has(&self, id: &TemplateId) -> bool {
        self.folder.join(id.as_str()).join(SEAL).is_file()
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
        let folder = self.folder.join(id.as_str());
        let lock = match lock(&folder, FlockArg::LockSharedNonblock) {
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
                // Who was used last goes last; a disk that cannot be written to keeps all.
                let _ = lock.set_modified(SystemTime::now());
                Found::Ready(Box::new(Template { folder, record, _lock: lock }))
            }
            Err(Unfit::Damaged(why)) => Found::Damaged(why),
            Err(Unfit::Foreign(why)) => Found::Foreign(why),
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
        File::options().create(true).append(true).mode(0o600).open(folder.join(LOCK))?;
        let Some(lock) = lock(&folder, FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        let making = Making { home: self.folder.join(id.as_str()), folder, lock: Some(lock) };
        // What a maker left who died.
        for name in [RECORD, SEAL, STATE, RAM] {
            match fs::remove_file(making.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.sweep();
        Ok(Some(making))
    }

    /// Takes a template out of use. Whoever has it keeps what he has open.
    pub(in crate::provision) fn drop_id(&self, id: &TemplateId) {
        let gone = self.folder.join(format!("{DROPPED}{}", Ulid::generate()));
        if fs::rename(self.folder.join(id.as_str()), &gone).is_ok() {
            let _ = fs::remove_dir_all(&gone);
        }
    }

    /// Removes a template that nobody uses.
    ///
    /// # Errors
    /// What removing it gives; it is not used any more then.
    pub fn remove(&self, id: &TemplateId) -> io::Result<Removal> {
        let folder = self.folder.join(id.as_str());
        let locked = match lock(&folder, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removal::Absent),
            Err(error) => return Err(error),
        };
        if locked.is_none() {
            return Ok(Removal::InUse);
        }
        let gone = self.folder.join(format!("{DROPPED}{}", Ulid::generate()));
        fs::rename(&folder, &gone)?;
        fs::remove_dir_all(&gone)?;
        Ok(Removal::Removed)
    }

    /// Removes what the dead left behind.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let folder = entry.path();
            let is_dead = name.starts_with(DROPPED)
                || name.starts_with(MAKING)
                    && matches!(lock(&folder, FlockArg::LockExclusiveNonblock), Ok(Some(_)));
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
        let seal = Seal {
            record: Digest::of(&record_text),
            state: Digest::of_file(&self.state())?,
            files: vec![
                FileSeal::of(RAM, &fs::symlink_metadata(self.ram())?),
                FileSeal::of(STATE, &fs::symlink_metadata(self.state())?),
            ],
            host_boot: host_boot(),
        };
        fs::write(self.folder.join(SEAL), serde_json::to_vec(&seal)?)?;
        fs::rename(&self.folder, &self.home)?;
        let Some(lock) = self.lock.take() else { return Ok(None) };
        // Whoever gets it in between prunes it, which is as if it had not been made.
        match lock.relock(FlockArg::LockSharedNonblock) {
            Ok(()) => Ok(Some(Template { folder: self.home.clone(), record, _lock: lock })),
            Err(_) => Ok(None),
        }
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

    /// Takes the digest of the memory file, once, when that has been written to the disk; ends early when `go_on` says no.
    ///
    /// # Errors
    /// What reading or writing gives.
    pub(in crate::provision) fn digest_ram(&self, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        let path = self.folder.join(RAM_DIGEST);
        if path.exists() {
            return Ok(());
        }
        let Some(pages) = ram_digest(&self.ram(), go_on)? else { return Ok(()) };
        File::open(self.ram())?.sync_data()?;
        let fresh = self.folder.join(format!(".{RAM_DIGEST}-{}", Ulid::generate()));
        fs::write(&fresh, serde_json::to_vec(&RamRecord { pages })?)?;
        fs::rename(fresh, path)
    }
}

/// Takes the lock of a folder; none while others have it, or when the folder is gone meanwhile.
fn lock(folder: &Path, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    let path = folder.join(LOCK);
    let open = |write: bool| OpenOptions::new().read(true).write(write).open(&path);
    let file = open(true).or_else(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => open(false),
        _ => Err(error),
    })?;
    let Ok(lock) = Flock::lock(file, how) else { return Ok(None) };
    let (ours, there) = (lock.metadata()?, fs::metadata(&path));
    Ok(there.is_ok_and(|there| there.ino() == ours.ino()).then_some(lock))
}

/// Why a template must not be used; as in [`Found`].
enum Unfit {
    Damaged(String),
    Foreign(String),
}

/// Is what lies there what was published?
fn check(folder: &Path) -> Result<TemplateRecord, Unfit> {
    let damaged = |what: String| Unfit::Damaged(what);
    let unreadable = |name: &str| {
        let name = name.to_owned();
        move |error: io::Error| damaged(format!("{name}: {error}"))
    };
    let found = fs::symlink_metadata(folder).map_err(unreadable("its folder"))?;
    if found.uid() != Uid::effective().as_raw() {
        return Err(Unfit::Foreign("belongs to another user".to_owned()));
    }
    let text = fs::read(folder.join(RECORD)).map_err(unreadable(RECORD))?;
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let format = format.and_then(|record| record["key"]["format"].as_u64());
    if format.is_some_and(|format| format > u64::from(FORMAT)) {
        return Err(Unfit::Foreign("was made by a newer Guestline".to_owned()));
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
    if seal.host_boot != host_boot() && ram_record(folder).is_none() {
        return Err(damaged("the host went down before it was on the disk".to_owned()));
    }
    Ok(record)
}

fn ram_record(folder: &Path) -> Option<RamRecord> {
    serde_json::from_slice(&fs::read(folder.join(RAM_DIGEST)).ok()?).ok()
}

/// Another with each boot of the host (random(4)).
fn host_boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
