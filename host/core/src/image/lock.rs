//! What packages an image was made from, exactly, so that it can be made from the same again: `NAME.lock` beside the user's
//! manifest, or in the state folder for one that the program carries.

use super::apt::Wanted;
use super::manifest::PackageRecord;
use super::recipe::Recipe;
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

/// The format of the file.
const FORMAT: u32 = 1;

const HEAD: &str =
    "# Written by guestline: `guestline image build NAME --update-lock` changes it.\n\n";

/// The packages of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lock {
    format: u32,
    /// Debian's suite.
    suite: String,
    /// Digest of what was asked for: another list of packages has another lock.
    wanted: Digest,
    /// What the kernel is in, which is unpacked and not installed.
    pub(super) kernel: Vec<PackageRecord>,
    /// All that is installed, by name.
    #[serde(rename = "package")]
    pub(super) packages: Vec<PackageRecord>,
}

/// What to do with a lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LockPolicy {
    /// Build from it; where that cannot be, from what there is now, and say so. The file stays as it is.
    #[default]
    Prefer,
    /// Build from it, or not at all.
    Only,
    /// Build from what there is now, and write that into it.
    Update,
}

/// A package that is not what the lock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// The version in the lock; none when it was not there.
    pub from: Option<String>,
    /// The version now; none when it is not there any more.
    pub to: Option<String>,
}

impl Lock {
    pub(super) fn new(
        recipe: &Recipe,
        kernel: Vec<PackageRecord>,
        packages: Vec<PackageRecord>,
    ) -> Self {
        let suite = recipe.suite.clone().unwrap_or_default();
        Self { format: FORMAT, suite, wanted: wanted(recipe), kernel, packages }
    }

    /// The lock of a file; none when there is no file.
    ///
    /// # Errors
    /// What reading it gives, or what is wrong with it.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let lock: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        match lock.format {
            FORMAT => Ok(Some(lock)),
            format => {
                Err(wrong(format!("its format is {format}, and this Guestline knows {FORMAT}")))
            }
        }
    }

    /// Writes it, whole.
    ///
    /// # Errors
    /// What writing gives.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let folder = crate::dirs::folder_of(path);
        fs::create_dir_all(folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        crate::dirs::write_whole(folder, &name, format!("{HEAD}{text}").as_bytes())
    }

    /// Is it of what this recipe asks for?
    pub(super) fn is_of(&self, recipe: &Recipe) -> bool {
        self.wanted == wanted(recipe)
    }

    /// All packages, the kernel first.
    pub(super) fn all(&self) -> impl Iterator<Item = &PackageRecord> {
        self.kernel.iter().chain(&self.packages)
    }

    /// What is different in another one.
    pub(super) fn moved(&self, to: &Self) -> Vec<Moved> {
        let find = |lock: &Self, name: &str| {
            lock.all().find(|package| package.name == name).map(|package| package.version.clone())
        };
        let names: std::collections::BTreeSet<&str> =
            self.all().chain(to.all()).map(|package| &*package.name).collect();
        names
            .into_iter()
            .map(|name| Moved { name: name.to_owned(), from: find(self, name), to: find(to, name) })
            .filter(|moved| moved.from != moved.to)
            .collect()
    }
}

fn wanted(recipe: &Recipe) -> Digest {
    let mut names = recipe.packages.clone();
    names.sort();
    // The suite's name alone, where nothing else of it is wanted.
    let suite = Wanted::of(recipe).word();
    let kernel = recipe.kernel.package.clone().unwrap_or_default();
    Digest::of(format!("{suite}\n{kernel}\n{}\n", names.join("\n")).as_bytes())
}
