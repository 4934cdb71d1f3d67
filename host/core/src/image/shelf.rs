//! What there is of images and packages in the cache folder, however whole it is, and the way out.

use super::build::{DISK, FILES, INITRD, KERNEL};
use super::kernels::Kernels;
use super::manifest::{FORMAT, FileRecord, Manifest};
use super::share::DOWNLOADS;
use super::store::{MANIFEST, check};
use crate::digest::Digest;
use crate::dirs::Dirs;
use crate::folder_lock::{FolderLock, try_lock};
use crate::kept::{Condition, Kept, folders, is_ours};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Begins the names of folders in which something is being made, or was when its maker died.
pub(super) const MAKING: &str = ".making-";

/// Where apt keeps what it knows of suites, in the cache folder.
pub(super) const LISTS: &str = "apt";

/// Held by who makes an image, or takes one away.
const LOCK: &str = ".lock";

/// Between two looks whether another process has done making an image.
const LOOK: Duration = Duration::from_millis(20);

/// Who asks whether an image is being made has the lock for a moment; so often is it tried.
const TRIES: u32 = 10;

/// The folders of images and packages.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(super) images: PathBuf,
    pub(super) pool: PathBuf,
    /// The cache folder.
    pub(super) cache: PathBuf,
    pub(super) state: PathBuf,
    pub(super) kernels: Kernels,
}

impl Shelf {
    pub(crate) fn new(dirs: &Dirs) -> Self {
        let (images, pool) = (dirs.cache.join("images"), dirs.cache.join("packages"));
        let (cache, state) = (dirs.cache.clone(), dirs.state.clone());
        Self { images, pool, cache, state, kernels: Kernels::new(dirs) }
    }

    /// Where an image is kept.
    pub(crate) fn folder(&self, name: &str, recipe: &Digest, agent: &Digest) -> PathBuf {
        let key = format!("{FORMAT}\n{recipe}\n{agent}\n");
        self.images.join(name).join(Digest::of(key.as_bytes()).short())
    }

    /// A file with this content, of an image that is there.
    pub(super) fn holding(&self, file: &FileRecord) -> Option<PathBuf> {
        let all = self.kept().into_iter();
        let mut ready = all.filter(|(kept, _)| kept.condition == Condition::Ready);
        ready.find_map(|(kept, manifest)| {
            let has = manifest?.files.into_iter().find(|has| has.sha256 == file.sha256)?;
            Some(kept.folder.join(has.name))
        })
    }

    /// Where the image of a manifest is kept.
    pub(crate) fn folder_of(&self, manifest: &Manifest) -> PathBuf {
        self.folder(&manifest.name, &manifest.recipe, &manifest.agent)
    }

    /// One maker at a time, of this and other processes: what lies half made then belongs to the dead. None while another
    /// has it.
    fn lock_for_making(&self) -> io::Result<Option<Flock<File>>> {
        fs::create_dir_all(&self.images)?;
        locked(File::create(self.images.join(LOCK))?)
    }

    /// Waits until no other process makes an image; none when `go_on` says no before. Where there is one, `wait` is told once
    /// for whom is waited.
    ///
    /// # Errors
    /// What making the folder or its lock gives.
    pub(crate) fn wait_for_making(
        &self,
        go_on: &dyn Fn() -> bool,
        wait: &dyn Fn(&str),
    ) -> io::Result<Option<Flock<File>>> {
        let mut is_told = false;
        loop {
            let lock = self.lock_for_making()?;
            if lock.is_some() || !go_on() {
                return Ok(lock);
            }
            if !std::mem::replace(&mut is_told, true) {
                wait(&match holder(&self.images.join(LOCK)) {
                    Some(pid) => format!("waits for process {pid}, which makes an image"),
                    None => "waits for another process, which makes an image".to_owned(),
                });
            }
            // Looked after as often as a person would not notice.
            std::thread::sleep(LOOK);
        }
    }

    /// Is an image being made?
    fn is_making(&self) -> bool {
        // For reading only, so that asking changes nothing.
        match File::open(self.images.join(LOCK)) {
            Ok(file) => !matches!(locked(file), Ok(Some(_))),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// All images, with the manifest where that can be read.
    pub(crate) fn kept(&self) -> Vec<(Kept, Option<Manifest>)> {
        let making = self.is_making();
        let names = folders(&self.images).into_iter();
        let all = names.flat_map(|folder| folders(&folder)).map(|folder| {
            let mut kept = Kept::look(folder, |folder| condition(folder, making));
            if kept.name.starts_with(MAKING) {
                kept.in_use = making;
            }
            let manifest = fs::read(kept.folder.join(MANIFEST)).ok();
            (kept, manifest.and_then(|text| serde_json::from_slice(&text).ok()))
        });
        all.collect()
    }

    /// The packages, when there are any, and how many.
    pub(crate) fn kept_packages(&self) -> Option<(Kept, usize)> {
        let packages = self.packages();
        if folders(&self.pool).is_empty() && packages.is_empty() {
            return None;
        }
        let mut kept = Kept::look(self.pool.clone(), |_| Condition::Ready);
        kept.in_use = self.is_making();
        Some((kept, packages.len()))
    }

    /// What apt knows of suites.
    pub(crate) fn kept_lists(&self) -> Vec<Kept> {
        let in_use = self.is_making();
        let look = |folder| Kept { in_use, ..Kept::look(folder, |_| Condition::Ready) };
        folders(&self.cache.join(LISTS)).into_iter().map(look).collect()
    }

    /// Parts of files of images that are pulled, when there are any.
    pub(crate) fn kept_downloads(&self) -> Option<Kept> {
        let folder = self.cache.join(DOWNLOADS);
        let mut files = fs::read_dir(&folder).ok()?.flatten().peekable();
        files.peek()?;
        let busy = |entry: fs::DirEntry| match File::open(entry.path()) {
            Ok(file) => !matches!(locked(file), Ok(Some(_))),
            Err(_) => false,
        };
        let in_use = files.any(busy);
        Some(Kept { in_use, ..Kept::look(folder, |_| Condition::Ready) })
    }

    fn packages(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.pool).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect()
    }

    /// Removes an image or the pool, unless somebody uses it, or makes an image and goes on with that for as long as
    /// `go_on` says; false then.
    ///
    /// # Errors
    /// What removing it gives.
    pub(crate) fn remove(&self, kept: &Kept, go_on: &dyn Fn() -> bool) -> io::Result<bool> {
        let folder = &kept.folder;
        let Some(_making) = self.wait_for_making(go_on, &|_| ())? else { return Ok(false) };
        let is_list = folder.parent() == Some(&*self.cache.join(LISTS));
        let is_download = *folder == self.cache.join(DOWNLOADS);
        if is_download && self.kept_downloads().is_some_and(|kept| kept.in_use) {
            return Ok(false);
        }
        if *folder == self.pool || is_list || is_download || kept.name.starts_with(MAKING) {
            return fs::remove_dir_all(folder).map(|()| true);
        }
        let _lock = match FolderLock::exclusive(folder) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Ok(false),
            // Who uses it gives it one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let parent = folder.parent().unwrap_or(&self.images);
        // Swept by the next maker, should this be the end of us.
        let gone = parent.join(format!("{MAKING}gone"));
        fs::rename(folder, &gone)?;
        fs::remove_dir_all(&gone)?;
        // When it was the last of its name.
        let _ = fs::remove_dir(parent);
        Ok(true)
    }

    /// Compares all packages with their digests; what is damaged is removed and named.
    ///
    /// # Errors
    /// What reading or removing them gives.
    pub(crate) fn verify_packages(&self, go_on: &dyn Fn() -> bool) -> io::Result<Vec<String>> {
        let mut damaged = Vec::new();
        if self.is_making() || !is_ours(&self.pool) {
            return Ok(damaged);
        }
        for path in self.packages() {
            if !go_on() {
                break;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            // Kept as NAME_DIGITS.deb.
            let Some((_, digits)) = name.rsplit_once('_') else { continue };
            if Digest::of_file(&path)?.short() != digits {
                damaged.push(format!("{name}.deb"));
                fs::remove_file(&path)?;
            }
        }
        damaged.sort();
        Ok(damaged)
    }
}

/// Compares all files of an image with their digests. Says what is wrong.
pub(crate) fn verify(folder: &Path, manifest: &Manifest) -> Result<(), String> {
    for FileRecord { name, sha256, .. } in &manifest.files {
        let digest = Digest::of_file(&folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
        if digest != *sha256 {
            return Err(format!("{name} has another content"));
        }
    }
    check(folder, manifest)
}

/// Moves a folder that was made to its place, on the same disk; what was there goes. One of the two is there at any time, and
/// what cannot be removed of the old one has the new one's former name, so that the next maker sweeps it.
///
/// # Errors
/// What moving gives; all is where it was then.
pub(super) fn exchange(new: &Path, place: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, new, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {
            let _ = fs::remove_dir_all(new);
            Ok(())
        }
        Err(Errno::ENOENT) => fs::rename(new, place),
        // A file system that cannot (renameat2(2)).
        Err(Errno::EINVAL | Errno::ENOSYS) => in_two_steps(new, place),
        Err(errno) => Err(errno.into()),
    }
}

/// As [`exchange`] does where the file system cannot: for a moment there is neither.
fn in_two_steps(new: &Path, place: &Path) -> io::Result<()> {
    let old = place.with_file_name(format!("{MAKING}old"));
    // Left by one who died here.
    let _ = fs::remove_dir_all(&old);
    fs::rename(place, &old)?;
    if let Err(error) = fs::rename(new, place) {
        fs::rename(&old, place)?;
        return Err(error);
    }
    let _ = fs::remove_dir_all(&old);
    Ok(())
}

/// Who has locked a file, as far as the kernel tells (proc_locks(5)): it names files by device and inode, and some file
/// systems give stat(2) another device, so that several may fit; then nobody is named.
fn holder(file: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(file).ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let mut holders =
        locks.lines().filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "FLOCK", _, _, pid, place, ..] if place.ends_with(&inode) => pid.parse().ok(),
            _ => None,
        });
    let holder = holders.next()?;
    holders.all(|other| other == holder).then_some(holder)
}

/// Removes what makers that died left. The lock is held, so no living one is met.
pub(super) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(MAKING) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn locked(file: File) -> io::Result<Option<Flock<File>>> {
    try_lock(file, FlockArg::LockExclusiveNonblock, TRIES)
}

fn condition(folder: &Path, making: bool) -> Condition {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(MAKING) {
        return if making { Condition::Making } else { Condition::LeftOver };
    }
    let damaged = |why: String| Condition::Damaged(why);
    let text = match fs::read(folder.join(MANIFEST)) {
        Ok(text) => text,
        Err(error) => return damaged(format!("{MANIFEST}: {error}")),
    };
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let format = format.and_then(|manifest| manifest["format"].as_u64());
    if format.is_some_and(|format| format > u64::from(FORMAT)) {
        return Condition::Newer;
    }
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => return damaged(format!("{MANIFEST}: {error}")),
    };
    if let Some(file) = strange_file(&manifest) {
        return damaged(format!("{MANIFEST} names `{file}`"));
    }
    match check(folder, &manifest) {
        Ok(()) => Condition::Ready,
        Err(why) => damaged(why),
    }
}

/// A file that no image has, or one that is missing.
pub(super) fn strange_file(manifest: &Manifest) -> Option<&str> {
    let strange = manifest.files.iter().map(|file| &*file.name).find(|name| !FILES.contains(name));
    let needed: &[&str] = if manifest.disk.is_some() { &[DISK] } else { &[INITRD, KERNEL] };
    let missing = || needed.iter().copied().find(|name| manifest.file(name).is_none());
    let mut names: Vec<&str> = manifest.files.iter().map(|file| &*file.name).collect();
    names.sort_unstable();
    let is_twice = names.windows(2).any(|pair| pair.first() == pair.last());
    strange.or_else(missing).or(is_twice.then_some("twice the same"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn who_makes_an_image_is_told_once_to_who_waits() {
        let home = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(&Dirs::below(home.path()));
        let (said, looks) = (RefCell::new(Vec::new()), Cell::new(0));
        let wait = |go_on: &dyn Fn() -> bool| {
            shelf.wait_for_making(go_on, &|whom| said.borrow_mut().push(whom.to_owned())).unwrap()
        };
        let lock = Cell::new(wait(&|| true));
        assert!(said.borrow().is_empty());
        // At the third look nobody makes one any more.
        let go_on = || {
            looks.set(looks.get() + 1);
            if looks.get() == 3 {
                drop(lock.take());
            }
            true
        };
        assert!(wait(&go_on).is_some());
        let whom = format!("waits for process {}, which makes an image", std::process::id());
        assert_eq!(*said.borrow(), [whom]);
    }

    #[test]
    fn what_was_made_takes_the_place_of_what_was_there_or_nothing_moves() {
        for put in [exchange, in_two_steps] {
            let parent = tempfile::tempdir().unwrap();
            let [new, place] = ["new", "place"].map(|name| parent.path().join(name));
            // Of one who died.
            let left = parent.path().join(".making-old");
            fs::create_dir_all(left.join("of")).unwrap();
            fs::create_dir(&place).unwrap();
            fs::write(place.join("old"), "").unwrap();
            assert_eq!(put(&new, &place).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(place.join("old").exists());
            fs::create_dir(&new).unwrap();
            fs::write(new.join("new"), "").unwrap();
            put(&new, &place).unwrap();
            assert!(place.join("new").exists() && !place.join("old").exists() && !new.exists());
        }
        let parent = tempfile::tempdir().unwrap();
        let [new, place] = ["new", "place"].map(|name| parent.path().join(name));
        fs::create_dir(&new).unwrap();
        exchange(&new, &place).unwrap();
        assert!(place.exists() && !new.exists());
    }
}
