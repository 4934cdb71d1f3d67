//! How much a stream may take of this side's disk: its sender decides what comes, not how much.

use super::WriteOptions;
use super::place::Place;
use core::fmt;
use nix::sys::statvfs::fstatvfs;

/// So much may be written between two looks at what is free, bytes.
const STEP: u64 = 16 * 1024 * 1024;

/// What an item takes beside its content, bytes; no file system takes much more for a small one.
const ITEM: u64 = 4096;

/// Of a small file system, one part in so many stays free at most.
const SMALLEST_PART: u64 = 20;

/// What a stream went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`WriteOptions::max_items`].
    Items(u64),
    /// [`WriteOptions::max_bytes`].
    Bytes(u64),
    /// So many bytes were to stay free, by [`WriteOptions::keep_free`].
    Free(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Items(most) => write!(f, "more than {most} items"),
            Self::Bytes(most) => write!(f, "more than {most} bytes"),
            Self::Free(least) => {
                write!(f, "the file system has only {least} bytes free, which are kept")
            }
        }
    }
}

/// What has come so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    items: u64,
    bytes: u64,
    /// May be written before what is free is looked at again, bytes.
    allowed: u64,
    exceeded: Option<Limit>,
}

impl Ledger {
    pub(super) fn exceeded(&self) -> Option<Limit> {
        self.exceeded
    }

    /// An item more.
    pub(super) fn item(&mut self, options: &WriteOptions, place: &Place) -> Result<(), Limit> {
        self.items = self.items.saturating_add(1);
        match options.max_items {
            Some(most) if self.items > most => self.refuse(Limit::Items(most)),
            _ => self.take(ITEM, options, place),
        }
    }

    /// So much content more, bytes.
    pub(super) fn content(
        &mut self,
        len: u64,
        options: &WriteOptions,
        place: &Place,
    ) -> Result<(), Limit> {
        self.bytes = self.bytes.saturating_add(len);
        match options.max_bytes {
            Some(most) if self.bytes > most => self.refuse(Limit::Bytes(most)),
            _ => self.take(len, options, place),
        }
    }

    fn take(&mut self, len: u64, options: &WriteOptions, place: &Place) -> Result<(), Limit> {
        let Some(keep @ 1..) = options.keep_free else { return Ok(()) };
        if self.allowed < len {
            // Where nothing can be known of the file system, writing to it tells.
            let disk = place.disk().and_then(|folder| fstatvfs(&*folder).ok());
            let Some(disk) = disk else { return Ok(()) };
            let unit = disk.fragment_size();
            let part = disk.blocks().saturating_mul(unit).checked_div(SMALLEST_PART);
            let keep = part.map_or(keep, |part| keep.min(part));
            let free = disk.blocks_available().saturating_mul(unit);
            self.allowed = free.saturating_sub(keep).min(STEP.max(len));
            if self.allowed < len {
                return self.refuse(Limit::Free(keep));
            }
        }
        self.allowed = self.allowed.saturating_sub(len);
        Ok(())
    }

    fn refuse(&mut self, limit: Limit) -> Result<(), Limit> {
        self.exceeded = Some(limit);
        Err(limit)
    }
}
