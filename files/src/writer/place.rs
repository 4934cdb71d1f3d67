//! Where items go: the way from the target down to the folder that the stream is in.

use super::Target;
use super::making::Meta;
use crate::levels::{FOLDER, Levels, open_folder};
use crate::trouble::Tally;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::mkdir;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A folder, and the name of something in it.
pub(super) type Named = (Arc<OwnedFd>, CString);

/// The target, and where below it the stream is.
#[derive(Debug)]
pub(super) struct Place {
    /// Where the root item goes; none if it can but be the folder that the levels begin with.
    root: Option<Named>,
    /// That folder was there before, for others too: it stays as it is.
    keeps_root: bool,
    /// None before there is a root folder.
    levels: Levels,
    /// One for each of the levels.
    entered: Vec<Entered>,
}

/// A folder on the way.
#[derive(Debug)]
struct Entered {
    name: Vec<u8>,
    /// What it gets when the stream leaves it.
    meta: Option<Meta>,
}

impl Place {
    pub(super) fn open(target: &Target) -> Result<Self, Errno> {
        let (levels, entered) = (Levels::default(), Vec::new());
        let mut place = Self { root: None, keeps_root: false, levels, entered };
        match target {
            Target::Into(path) => {
                match mkdir(path.as_path(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) => {}
                    Err(Errno::EEXIST) => place.keeps_root = true,
                    Err(errno) => return Err(errno),
                }
                place.enter(open_start(path)?, b"", None);
            }
            Target::At(path) => match (path.file_name(), path.parent()) {
                (Some(name), Some(above)) => {
                    let above = match above.as_os_str().is_empty() {
                        true => Path::new("."),
                        false => above,
                    };
                    place.root = Some((Arc::new(open_start(above)?), c_name(name.as_bytes())?));
                }
                // It ends with `..`, or is `/`: a folder that cannot be replaced.
                _ => place.enter(open_start(path)?, b"", None),
            },
        }
        Ok(place)
    }

    /// May the root item be anything but a folder?
    pub(super) fn takes_any_root(&self) -> bool {
        self.root.is_some()
    }

    /// A folder on the file system that is written to.
    pub(super) fn disk(&self) -> Option<Arc<OwnedFd>> {
        self.levels.lowest().ok().or_else(|| self.root.as_ref().map(|(above, _)| above.clone()))
    }

    /// Leaves the folders that are not on the way to this item.
    pub(super) fn leave_for(&mut self, parts: &[&[u8]], tally: &mut Tally) {
        let above = parts.split_last().map_or(parts, |(_, above)| above);
        let entered = self.entered.iter().skip(1).zip(above);
        let common = entered.take_while(|(entered, part)| entered.name == **part).count();
        while self.entered.len() > common.saturating_add(1) {
            self.leave(tally);
        }
    }

    /// Leaves all folders.
    pub(super) fn leave_all(&mut self, tally: &mut Tally) {
        while !self.entered.is_empty() {
            self.leave(tally);
        }
    }

    /// The place of an item, after [`Self::leave_for`] it.
    ///
    /// # Errors
    /// What is above it is no real folder.
    pub(super) fn of(&mut self, parts: &[&[u8]]) -> Result<Named, Errno> {
        let Some((name, above)) = parts.split_last() else {
            return self.root.clone().ok_or(Errno::EISDIR);
        };
        let name = c_name(name)?;
        let known = self.entered.len().saturating_sub(1);
        for part in above.get(known..).unwrap_or_default() {
            let folder = open_folder(self.levels.lowest()?.as_fd(), &c_name(part)?)?;
            self.enter(folder, part, None);
        }
        Ok((self.levels.lowest()?, name))
    }

    /// The place of something that may be anywhere in the tree.
    ///
    /// # Errors
    /// What is above it is no real folder.
    pub(super) fn find(&self, parts: &[&[u8]]) -> Result<Named, Errno> {
        let (name, above) = parts.split_last().ok_or(Errno::EPERM)?;
        let mut folder = self.levels.topmost()?;
        for part in above {
            folder = Arc::new(open_folder(folder.as_fd(), &c_name(part)?)?);
        }
        Ok((folder, c_name(name)?))
    }

    /// Makes a folder, after [`Self::leave_for`] it, and enters it.
    ///
    /// # Errors
    /// It cannot be made, or something else has its name.
    pub(super) fn make_folder(&mut self, parts: &[&[u8]], meta: Meta) -> Result<(), Errno> {
        if let ([], Some(root)) = (parts, self.entered.first_mut()) {
            root.meta = (!self.keeps_root).then_some(meta);
            return Ok(());
        }
        let (above, name) = self.of(parts)?;
        // Nobody else's until it is all there, and then what the stream says.
        match mkdirat(&above, name.as_c_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let folder = open_folder(above.as_fd(), &name)?;
        self.enter(folder, parts.last().copied().unwrap_or_default(), Some(meta));
        Ok(())
    }

    fn enter(&mut self, folder: OwnedFd, name: &[u8], meta: Option<Meta>) {
        self.levels.push(folder);
        self.entered.push(Entered { name: name.to_vec(), meta });
    }

    fn leave(&mut self, tally: &mut Tally) {
        let folder = self.levels.lowest();
        // First the way up, which the folder's mode may bar.
        self.levels.pop();
        let meta = self.entered.last_mut().and_then(|entered| entered.meta.take());
        if let Some(Err(errno)) = meta.map(|meta| meta.apply(&*folder?)) {
            let names: Vec<&[u8]> =
                self.entered.iter().skip(1).map(|entered| &*entered.name).collect();
            tally.refused(&names.join(&b'/'), errno);
        }
        self.entered.pop();
    }
}

/// Opens a folder that was asked for, through whatever links.
fn open_start(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = FOLDER.difference(OFlag::O_NOFOLLOW);
    match open(path, flags, Mode::empty()) {
        Err(Errno::EACCES) => open(path, flags.union(OFlag::O_PATH), Mode::empty()),
        result => result,
    }
}

fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}
