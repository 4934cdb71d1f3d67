//! Published images into the store.
//!
//! ```text
//! signature, index ─> serial (not older than one seen before) ─> manifest, recipe ─> files, what is missing ─> receive
//! ```
//! Everything but the signature is named by its digest, all the way down from what a trusted key has signed.

use super::download::{Download, FetchError, read_named};
use super::index::{Index, IndexError, Offer};
use super::keys::PublicKey;
use super::receive::{Expected, Placing, ReceiveError, Received};
use super::source::Source;
use crate::digest::Digest;
use crate::dirs::write_whole;
use crate::host::{free_mib, hint_of_io};
use crate::image::manifest::{FORMAT, FileRecord};
use crate::image::store::Store;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::PathBuf;
use strsim::levenshtein as distance;
use tokio_util::sync::CancellationToken;

/// A manifest or a recipe is no longer.
const MAX_TEXT: u64 = 4 << 20;

/// Beside what comes in, so much room has to stay on the disk.
const ROOM_MIB: u64 = 16;

/// Where parts of files lie, in the cache folder.
pub(crate) const DOWNLOADS: &str = "downloads";

/// How images are pulled.
pub struct PullTerms<'a> {
    /// Ends early when this is.
    pub cancel: &'a CancellationToken,
    /// Takes an index that is older than one seen before.
    pub allow_older: bool,
    /// Is told what is done.
    pub tell: &'a dyn Fn(&str),
}

/// What a source has, signed by a trusted key.
#[derive(Debug)]
pub struct Offers {
    source: Source,
    /// The key that has signed it.
    pub key: PublicKey,
    /// When it was published, seconds since 1970.
    pub serial: u64,
    /// The images, by name.
    pub images: Vec<Offer>,
}

/// What came of a pull.
#[derive(Debug)]
pub struct Pulled {
    /// The image.
    pub received: Received,
    /// How many bytes came, of how many it has.
    pub fetched: u64,
}

/// An image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The index is older than one seen before.
    #[error(
        "the index of `{source_name}` is older than one that was there before: serial {found}, and {seen} was seen"
    )]
    Older {
        /// Where.
        source_name: String,
        /// The serial.
        found: u64,
        /// The one seen before.
        seen: u64,
    },
    /// No such image.
    #[error("`{source_name}` has no image called `{name}`; there is: {}", known.join(", "))]
    Unknown {
        /// Where.
        source_name: String,
        /// The name.
        name: String,
        /// The names there are, those first that are nearest to it.
        known: Vec<String>,
    },
    /// Another version of Guestline made it.
    #[error("image `{name}` has format {theirs}, and this Guestline uses {FORMAT}")]
    Format {
        /// The image.
        name: String,
        /// Its format.
        theirs: u32,
    },
    /// A file of it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is no room.
    #[error("the disk of `{folder}` has {free_mib} MiB free, and {wanted_mib} MiB are wanted", folder = folder.display())]
    NoRoom {
        /// The cache folder.
        folder: PathBuf,
        /// What is there.
        free_mib: u64,
        /// What is wanted.
        wanted_mib: u64,
    },
    /// It is not taken.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// What is remembered of the source.
    #[error("cannot use `{path}`", path = path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PullError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let words = match self {
            Self::Index(IndexError::OtherKey { .. }) => {
                "ask who publishes there for the key, another way than from there; then --key KEY"
            }
            Self::Older { .. } => {
                "an old copy is served, or somebody put it back; --allow-older takes it all the same"
            }
            Self::Format { theirs, .. } => match *theirs > FORMAT {
                true => "install the Guestline that made it, or a newer one",
                false => "ask who publishes it to build it anew, with a newer Guestline",
            },
            Self::Fetch(FetchError::Missing { .. }) => {
                "perhaps something else was published just now: try again"
            }
            Self::Fetch(FetchError::Cut { .. }) => {
                "what has come is kept: try again, and it goes on from there"
            }
            Self::Fetch(FetchError::Digest { .. } | FetchError::TooLong { .. }) => {
                "what is served is not what was published: try again, or tell who publishes it"
            }
            Self::Fetch(FetchError::Write { source, .. }) => {
                return hint_of_io(source).map(str::to_owned);
            }
            Self::Fetch(FetchError::NoCurl(_)) => "install it: apt-get install curl",
            Self::NoRoom { .. } => "make room: `guestline cache prune --limit SIZE`",
            Self::Receive(error) => return error.hint(),
            _ => return None,
        };
        Some(words.to_owned())
    }
}

/// What is remembered of a source.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    source: String,
    key: String,
    serial: u64,
}

impl Store {
    /// What a source has, if one of the keys has signed it.
    ///
    /// # Errors
    /// [`PullError`].
    pub fn offers(
        &self,
        source: &Source,
        keys: &[PublicKey],
        terms: &PullTerms<'_>,
    ) -> Result<Offers, PullError> {
        (terms.tell)("fetches the index");
        let signed = Index::fetch(source, keys, terms.cancel)?;
        let serial = signed.index.serial;
        self.note_serial(source, &signed.key, serial, terms.allow_older)?;
        let (source, images) = (source.clone(), signed.index.images);
        Ok(Offers { source, key: signed.key, serial, images })
    }

    /// Brings an image into the store.
    ///
    /// # Errors
    /// [`PullError`]; nothing of the image is there then, but parts of files that the next pull goes on from.
    pub fn pull(
        &self,
        offers: &Offers,
        name: &str,
        placing: Placing<'_>,
        terms: &PullTerms<'_>,
    ) -> Result<Pulled, PullError> {
        let source = &offers.source;
        let offer = offers.find(name)?;
        if offer.image_format != FORMAT {
            let (name, theirs) = (name.to_owned(), offer.image_format);
            return Err(PullError::Format { name, theirs });
        }
        let wrong = |why: String| ReceiveError::Wrong { name: name.to_owned(), why };
        let manifest = read_named(source, &offer.manifest.sha256, MAX_TEXT, terms.cancel)?;
        let recipe = read_named(source, &offer.recipe.sha256, MAX_TEXT, terms.cancel)?;
        let manifest = Self::manifest_of(&manifest).map_err(wrong)?;
        if manifest.name != offer.name || manifest.files != offer.files {
            return Err(wrong("its manifest is not of what the index says".to_owned()).into());
        }
        let recipe = String::from_utf8(recipe).map_err(|error| wrong(error.to_string()))?;
        let expected = Expected::new(self, manifest, &recipe, placing)?;
        if let Some(received) = expected.there()? {
            return Ok(Pulled { received, fetched: 0 });
        }
        let (downloads, fetched) = self.fetch(source, offer, terms)?;
        (terms.tell)("takes it in");
        let lock = self.lock(terms.cancel, terms.tell).map_err(ReceiveError::from)?;
        // Another process may have pulled it meanwhile.
        if let Some(received) = expected.there()? {
            return Ok(Pulled { received, fetched });
        }
        let adopted = expected.begin(&lock)?;
        for (file, coming) in expected.theirs().files.iter().zip(downloads) {
            let to = adopted.file(file);
            match coming {
                Coming::Fetched(download) => download.put(&to)?,
                Coming::Here(path) => {
                    let copied = fs::copy(&path, &to).map(drop);
                    copied.map_err(|source| FetchError::Write { path: to, source })?;
                }
            }
        }
        let received = expected.finish(adopted)?;
        // Where it was the last one.
        let _ = fs::remove_dir(self.shelf.cache.join(DOWNLOADS));
        Ok(Pulled { received, fetched })
    }

    /// Brings what this host does not have of the files, and tells how many bytes that were.
    fn fetch(
        &self,
        source: &Source,
        offer: &Offer,
        terms: &PullTerms<'_>,
    ) -> Result<(Vec<Coming>, u64), PullError> {
        let folder = self.shelf.cache.join(DOWNLOADS);
        let here = |file: &FileRecord| {
            let path = self.shelf.holding(file)?;
            let same = Digest::of_file(&path).is_ok_and(|digest| digest == file.sha256);
            same.then_some(path)
        };
        let here: Vec<Option<PathBuf>> = offer.files.iter().map(here).collect();
        self.check_room(offer)?;
        let missing = || offer.files.iter().zip(&here).filter(|(_, here)| here.is_none());
        let total: u64 = missing().map(|(file, _)| file.size).sum();
        let (mut files, mut before, mut fetched) = (Vec::new(), 0, 0);
        for (file, here) in offer.files.iter().zip(&here) {
            if let Some(path) = here {
                files.push(Coming::Here(path.clone()));
                continue;
            }
            let mut download = Download::begin(&folder, &file.sha256, terms.cancel)?;
            let tell = |have: u64| {
                let mb = |bytes: u64| bytes as f64 / 1e6;
                (terms.tell)(&format!("{:.1} of {:.1} MB", mb(before + have), mb(total)));
            };
            fetched += download.run(source, file, terms.cancel, &tell)?;
            before += file.size;
            files.push(Coming::Fetched(download));
        }
        Ok((files, fetched))
    }

    /// Nothing is begun that does not fit; what has come of it before is there already.
    fn check_room(&self, offer: &Offer) -> Result<(), PullError> {
        let folder = self.shelf.cache.clone();
        let came = |file: &FileRecord| {
            let part = folder.join(DOWNLOADS).join(format!("{}.part", file.sha256));
            fs::metadata(part).map_or(0, |found| found.len())
        };
        let wanted: u64 = offer.files.iter().map(|f| f.size.saturating_sub(came(f))).sum();
        let wanted_mib = (wanted >> 20) + ROOM_MIB;
        let made = fs::create_dir_all(&folder);
        made.map_err(|source| FetchError::Write { path: folder.clone(), source })?;
        match free_mib(&folder) {
            Ok(free_mib) if free_mib < wanted_mib => {
                Err(PullError::NoRoom { folder, free_mib, wanted_mib })
            }
            _ => Ok(()),
        }
    }

    /// Remembers the newest serial of a source and a key, and refuses older ones.
    fn note_serial(
        &self,
        source: &Source,
        key: &PublicKey,
        serial: u64,
        allow_older: bool,
    ) -> Result<(), PullError> {
        let (source_name, key) = (source.to_string(), key.to_string());
        let name = Digest::of(format!("{key}\n{source_name}\n").as_bytes());
        let folder = self.shelf.state.join("sources");
        let path = folder.join(format!("{}.json", name.short()));
        let trouble = |source| PullError::Memory { path: path.clone(), source };
        let seen = match fs::read(&path) {
            Ok(text) => {
                let seen = serde_json::from_slice::<Seen>(&text);
                Some(seen.map_err(|error| trouble(error.into()))?.serial)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(trouble(error)),
        };
        match seen {
            Some(seen) if seen == serial => return Ok(()),
            Some(seen) if seen > serial && !allow_older => {
                return Err(PullError::Older { source_name, found: serial, seen });
            }
            _ => {}
        }
        let seen = Seen { source: source_name, key, serial };
        let text = serde_json::to_vec(&seen).map_err(|error| trouble(error.into()))?;
        fs::create_dir_all(&folder).map_err(trouble)?;
        write_whole(&folder, &format!("{}.json", name.short()), &text).map_err(trouble)
    }
}

/// Where a file of an image comes from.
enum Coming {
    Fetched(Download),
    /// Another image of this host has the same.
    Here(PathBuf),
}

impl Offers {
    /// The image of a name.
    ///
    /// # Errors
    /// [`PullError::Unknown`].
    pub fn find(&self, name: &str) -> Result<&Offer, PullError> {
        self.images.iter().find(|offer| offer.name == name).ok_or_else(|| {
            let mut known: Vec<String> = self.images.iter().map(|o| o.name.clone()).collect();
            known.sort_by_key(|known| distance(known, name));
            let (source_name, name) = (self.source.to_string(), name.to_owned());
            PullError::Unknown { source_name, name, known }
        })
    }
}
