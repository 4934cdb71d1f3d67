//! Images into a folder that any web server can hold.
//!
//! ```text
//! DIR/files/SHA256          kernels, initramfses, roots, manifests, recipes, bills of materials, and the index
//! DIR/index.json            the index, for people and for minisign(1)
//! DIR/minisign.pub          the key, for people to copy
//! DIR/index.json.minisig    signs the index and names it: when this changes, all has been published
//! ```
//! What the last index named stays until the next publishing, for those who read by it just now.

use super::index::{Index, IndexError, Offer, Signed, place_of};
use super::keys::{KeyError, SigningKey};
use super::source::Source;
use super::{FILES, INDEX, PUBLIC_KEY, SIGNATURE};
use crate::digest::Digest;
use crate::dirs::lock_folder;
use crate::host::hint_of_io;
use crate::image::manifest::FileRecord;
use crate::image::recipe::Recipe;
use crate::image::sbom;
use crate::image::store::{Image, MANIFEST};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// An image that is to be published.
pub struct Shared {
    /// As it was made.
    pub image: Image,
    /// What it is made of.
    pub recipe: Recipe,
}

/// What came of publishing.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// Names of images that were not there, or another of their name.
    pub new: Vec<String>,
    /// Names of images that were there as they are.
    pub unchanged: Vec<String>,
    /// Names of images that are not there any more.
    pub removed: Vec<String>,
    /// How many files were written.
    pub files: usize,
}

/// Nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The folder.
    #[error("cannot publish at `{path}`", path = path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What lies there already is not ours, or not right.
    #[error("what `{folder}` has cannot be added to", folder = folder.display())]
    There {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<IndexError>,
    },
    /// An image has no manifest that could go with it.
    #[error("image `{name}` has no manifest of its own to go with it")]
    NoManifest {
        /// The image.
        name: String,
    },
    /// An image is not what was made.
    #[error("image `{name}` is damaged: {why}")]
    Damaged {
        /// The image.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// What is to be removed is not there.
    #[error("no image called `{name}` is published there; there is: {}", known.join(", "))]
    NotThere {
        /// The image.
        name: String,
        /// What is.
        known: Vec<String>,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl PublishError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::There { source, .. } => Some(match **source {
                IndexError::OtherKey { .. } => {
                    "sign with that key (--key FILE), or publish into another folder".to_owned()
                }
                _ => "publish into another folder, or empty this one".to_owned(),
            }),
            Self::NoManifest { name } => {
                let (base, more) = name.split_once('+').unwrap_or((name, ""));
                let packages = more.split(',').map(|package| format!("\"{package}\""));
                Some(format!(
                    "write one: name = \"…\", summary = \"…\", extends = \"{base}\", packages = [{}]",
                    packages.collect::<Vec<_>>().join(", ")
                ))
            }
            Self::Damaged { name, .. } => {
                Some(format!("make it anew: guestline image build {name}"))
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room there, or publish into another folder".to_owned())
            }
            Self::Write { source, .. } => hint_of_io(source).map(str::to_owned),
            Self::NotThere { .. } => Some("--remove takes one of those".to_owned()),
            Self::Key(KeyError::File { source, .. }) => hint_of_io(source).map(str::to_owned),
            Self::Key(_) => Some("--key names another key file".to_owned()),
            Self::Cancelled => None,
        }
    }
}

/// Publishes images, beside those that the folder has; `now` is seconds since 1970. What is there stays as it is when
/// something is wrong.
///
/// # Errors
/// [`PublishError`].
pub fn publish(
    folder: &Path,
    images: &[Shared],
    remove: &[String],
    key: &SigningKey,
    now: u64,
    cancel: &CancellationToken,
) -> Result<Published, PublishError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| PublishError::Write { path, source }
    };
    for Shared { recipe, .. } in images {
        if recipe.whole_text().is_none() {
            return Err(PublishError::NoManifest { name: recipe.reference() });
        }
    }
    let files = folder.join(FILES);
    fs::create_dir_all(&files).map_err(wrong(&files))?;
    let _lock = lock_folder(folder).map_err(wrong(folder))?;
    let before = published(folder, key, cancel)?;
    let mut offers = before.as_ref().map(|signed| signed.index.images.clone()).unwrap_or_default();
    for name in remove {
        let Some(at) = offers.iter().position(|offer| offer.name == *name) else {
            let known = offers.into_iter().map(|offer| offer.name).collect();
            return Err(PublishError::NotThere { name: name.clone(), known });
        };
        offers.remove(at);
    }
    let mut done =
        Published { new: Vec::new(), unchanged: Vec::new(), removed: remove.to_vec(), files: 0 };
    let writer = Writer { folder, cancel, written: RefCell::default() };
    for shared in images {
        let offer = writer.image(shared, &mut done.files)?;
        let name = offer.name.clone();
        match offers.iter().position(|known| known.name == name) {
            Some(at) if offers.get(at) == Some(&offer) => {
                done.unchanged.push(name);
                continue;
            }
            Some(at) => drop(std::mem::replace(&mut offers[at], offer)),
            None => offers.push(offer),
        }
        done.new.push(name);
    }
    offers.sort_by(|a, b| a.name.cmp(&b.name));
    if before.as_ref().is_some_and(|signed| signed.index.images == offers) {
        writer.written.take();
        return Ok(done);
    }
    let serial = before.as_ref().map_or(now, |signed| now.max(signed.index.serial + 1));
    let index = Index::new(serial, offers);
    let text = index.to_json();
    let signature = key.sign(&text)?;
    writer.bytes(&place_of(&Digest::of(&text)), &text)?;
    let last = [
        (INDEX, &text[..]),
        (PUBLIC_KEY, key.public().to_text().as_bytes()),
        // From this one on it is published.
        (SIGNATURE, signature.as_bytes()),
    ]
    .map(|(name, bytes)| writer.new_bytes(&folder.join(name), bytes));
    // All are written before one of them is at its place: the disk may be full.
    for (new, name) in last
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .zip([INDEX, PUBLIC_KEY, SIGNATURE])
    {
        writer.put(new, &folder.join(name))?;
    }
    writer.written.take();
    if let Some(before) = &before {
        tidy(&files, &index, &text, before);
    }
    Ok(done)
}

/// The index that a folder has, if that is of this key.
fn published(
    folder: &Path,
    key: &SigningKey,
    cancel: &CancellationToken,
) -> Result<Option<Signed>, PublishError> {
    let source = Source::Folder(folder.to_owned());
    match Index::fetch(&source, std::slice::from_ref(key.public()), cancel) {
        Ok(signed) => Ok(Some(signed)),
        Err(IndexError::None { .. }) => Ok(None),
        Err(error) => {
            Err(PublishError::There { folder: folder.to_owned(), source: Box::new(error) })
        }
    }
}

/// Removes what neither this index nor the one before names.
fn tidy(files: &Path, index: &Index, text: &[u8], before: &Signed) {
    let offers = index.images.iter().chain(&before.index.images);
    let mut named: BTreeSet<Digest> =
        offers.flat_map(Offer::all_files).map(|file| file.sha256.clone()).collect();
    named.extend([Digest::of(text), Digest::of(&before.text)]);
    for entry in fs::read_dir(files).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let left_over = name.starts_with(NEW);
        if left_over || Digest::parse(&name).is_some_and(|digest| !named.contains(&digest)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Begins the names of files that are being written.
const NEW: &str = ".new-";

/// Writes into the folder, each file whole.
struct Writer<'a> {
    folder: &'a Path,
    cancel: &'a CancellationToken,
    /// What was not there before, and is named by nothing until all is published.
    written: RefCell<Vec<PathBuf>>,
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        for path in self.written.take() {
            let _ = fs::remove_file(path);
        }
    }
}

impl Writer<'_> {
    /// All that belongs to an image; `written` counts.
    fn image(&self, shared: &Shared, written: &mut usize) -> Result<Offer, PublishError> {
        let Shared { image, recipe } = shared;
        let manifest = &image.manifest;
        for file in &manifest.files {
            *written += usize::from(self.copy(&manifest.name, &image.file(&file.name), file)?);
        }
        let bill = sbom::cyclonedx(manifest, recipe);
        let recipe_text = recipe.whole_text().unwrap_or_default();
        let mut small = |name: &str, bytes: &[u8]| {
            let (size, sha256) = (bytes.len() as u64, Digest::of(bytes));
            let place = place_of(&sha256);
            if Digest::of_file(&self.folder.join(&place)).ok().as_ref() != Some(&sha256) {
                self.bytes(&place, bytes)?;
                *written += 1;
            }
            Ok::<_, PublishError>(FileRecord { name: name.to_owned(), size, sha256 })
        };
        let beside = [
            small(MANIFEST, &manifest.to_json())?,
            small(&format!("{}.toml", manifest.name), recipe_text.as_bytes())?,
            small(&format!("{}.cdx.json", manifest.name), &bill)?,
        ];
        Ok(Offer::new(manifest, &recipe.summary, beside))
    }

    /// Copies a file unless it is there; true when it was not.
    fn copy(&self, name: &str, from: &Path, record: &FileRecord) -> Result<bool, PublishError> {
        if self.cancel.is_cancelled() {
            return Err(PublishError::Cancelled);
        }
        let to = self.folder.join(place_of(&record.sha256));
        if Digest::of_file(&to).is_ok_and(|digest| digest == record.sha256) {
            return Ok(false);
        }
        let damaged = |why: String| PublishError::Damaged { name: name.to_owned(), why };
        let mut file = File::open(from).map_err(|e| damaged(format!("{}: {e}", record.name)))?;
        let found = self.write(&to, |new| {
            io::copy(&mut file, new)?;
            Digest::of_file(new.path())
        });
        match found? {
            (digest, new) if digest == record.sha256 => self.put(new, &to).map(|()| true),
            _ => Err(damaged(format!("{} has another content", record.name))),
        }
    }

    fn bytes(&self, place: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let to = self.folder.join(place);
        self.put(self.new_bytes(&to, bytes)?, &to)
    }

    fn new_bytes(&self, to: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, PublishError> {
        self.write(to, |new| new.write_all(bytes)).map(|((), new)| new)
    }

    /// A new file beside its place, which is there when [`Self::put`] was called.
    fn write<T>(
        &self,
        to: &Path,
        content: impl FnOnce(&mut tempfile::NamedTempFile) -> io::Result<T>,
    ) -> Result<(T, tempfile::NamedTempFile), PublishError> {
        let folder = to.parent().unwrap_or(self.folder);
        let written = (|| {
            let mut new = tempfile::Builder::new().prefix(NEW).tempfile_in(folder)?;
            let value = content(&mut new)?;
            // A web server is another user.
            new.as_file().set_permissions(Permissions::from_mode(0o644))?;
            new.as_file().sync_data()?;
            Ok((value, new))
        })();
        written.map_err(|source| PublishError::Write { path: to.to_owned(), source })
    }

    fn put(&self, new: tempfile::NamedTempFile, to: &Path) -> Result<(), PublishError> {
        let was_there = to.exists();
        let put = new.persist(to).map(drop).map_err(|error| error.error);
        if put.is_ok() && !was_there {
            self.written.borrow_mut().push(to.to_owned());
        }
        put.map_err(|source| PublishError::Write { path: to.to_owned(), source })
    }
}
