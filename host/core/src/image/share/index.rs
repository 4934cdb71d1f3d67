//! The signed list of what a folder has.

use super::download::{FetchError, read_named, read_small};
use super::keys::{PublicKey, Signature};
use super::source::Source;
use super::{FILES, MAX_FILE, MAX_INDEX, SIGNATURE};
use crate::digest::Digest;
use crate::image::manifest::{FileRecord, Manifest};
use crate::text::is_plain_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tokio_util::sync::CancellationToken;

/// The format's number.
const FORMAT: u32 = 1;

/// A longer signature is none.
const MAX_SIGNATURE: u64 = 4096;

/// What a folder has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) format: u32,
    /// Grows with each publishing: seconds since 1970, or one more than before.
    pub(super) serial: u64,
    /// Version of Guestline that wrote it.
    pub(super) guestline: String,
    /// By name.
    pub(super) images: Vec<Offer>,
}

/// A published image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Its name.
    pub name: String,
    /// One line for lists.
    pub summary: String,
    /// Its digest, which is also that of its manifest.
    pub digest: Digest,
    /// The format of its manifest.
    pub image_format: u32,
    /// `uname -r` of its kernel.
    pub kernel: String,
    /// Digest of the agent in it.
    pub agent: Digest,
    /// All files together, in bytes.
    pub size: u64,
    /// What tests may ask for.
    pub provides: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// Under which licences it may be passed on.
    pub licence: String,
    /// What it boots from.
    pub files: Vec<FileRecord>,
    /// What it was made from, as the builder wrote it down.
    pub manifest: FileRecord,
    /// What it is made of, as a person wrote it down, standing alone.
    pub recipe: FileRecord,
    /// Its bill of materials.
    pub sbom: FileRecord,
}

/// An index is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It cannot be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is none.
    #[error("`{source_name}` has no published images: there is no {SIGNATURE}")]
    None {
        /// Where.
        source_name: String,
    },
    /// The signature is none.
    #[error("the signature of the index of `{source_name}` is none: {why}")]
    NoSignature {
        /// Where.
        source_name: String,
        /// Why.
        why: String,
    },
    /// It is signed by nobody who is trusted.
    #[error(
        "the index of `{source_name}` is signed by the key {by}, which is not among those that you trust: {}",
        known.join(", ")
    )]
    OtherKey {
        /// Where.
        source_name: String,
        /// The key's id.
        by: String,
        /// Ids of the trusted keys.
        known: Vec<String>,
    },
    /// It was changed after it was signed.
    #[error("the index of `{source_name}` is not what the key {by} signed")]
    Forged {
        /// Where.
        source_name: String,
        /// The key's id.
        by: String,
    },
    /// A newer Guestline wrote it.
    #[error("the index of `{source_name}` has format {format}, and this Guestline reads {FORMAT}")]
    Newer {
        /// Where.
        source_name: String,
        /// Its format.
        format: u64,
    },
    /// It is signed, and wrong all the same.
    #[error("the index of `{source_name}` is wrong: {why}")]
    Wrong {
        /// Where.
        source_name: String,
        /// What.
        why: String,
    },
}

/// An index that a trusted key has signed.
pub(super) struct Signed {
    pub(super) index: Index,
    /// As it was signed.
    pub(super) text: Vec<u8>,
    /// Which one has.
    pub(super) key: PublicKey,
}

impl Index {
    pub(super) fn new(serial: u64, images: Vec<Offer>) -> Self {
        let guestline = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, serial, guestline, images }
    }

    /// Fetches the index of a source, if one of the keys has signed it. The signature comes first, and names the index by
    /// its digest: whenever another is published meanwhile, the two belong together.
    pub(super) fn fetch(
        source: &Source,
        keys: &[PublicKey],
        cancel: &CancellationToken,
    ) -> Result<Signed, IndexError> {
        let source_name = || source.to_string();
        let text = read_small(source, SIGNATURE, MAX_SIGNATURE, cancel).map_err(|e| match e {
            FetchError::Missing { .. } => IndexError::None { source_name: source_name() },
            error => error.into(),
        })?;
        let signature = Signature::parse(&text)
            .map_err(|why| IndexError::NoSignature { source_name: source_name(), why })?;
        let by = signature.key_id();
        let mut of_its_id = keys.iter().filter(|key| key.id() == by).peekable();
        if of_its_id.peek().is_none() {
            let known = keys.iter().map(PublicKey::id).collect();
            return Err(IndexError::OtherKey { source_name: source_name(), by, known });
        }
        let text = read_named(source, &signature.names, MAX_INDEX, cancel)?;
        let Some(key) = of_its_id.find(|key| signature.is_by(key, &text)) else {
            return Err(IndexError::Forged { source_name: source_name(), by });
        };
        let index = Self::parse(&text, &source_name())?;
        Ok(Signed { index, text, key: key.clone() })
    }

    fn parse(text: &[u8], source_name: &str) -> Result<Self, IndexError> {
        let source_name = || source_name.to_owned();
        let wrong = |why: String| IndexError::Wrong { source_name: source_name(), why };
        let value = serde_json::from_slice::<serde_json::Value>(text);
        let format = value.map_err(|error| wrong(error.to_string()))?["format"].as_u64();
        if let Some(format) = format.filter(|format| *format > u64::from(FORMAT)) {
            return Err(IndexError::Newer { source_name: source_name(), format });
        }
        let index = serde_json::from_slice::<Self>(text);
        let index = index.map_err(|error| wrong(error.to_string()))?;
        match index.trouble() {
            None => Ok(index),
            Some(why) => Err(wrong(why)),
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// What cannot be right.
    fn trouble(&self) -> Option<String> {
        let mut names = BTreeSet::new();
        self.images.iter().find_map(|offer| {
            let name = crate::text::one_line(&offer.name, 60);
            if !is_plain_name(&offer.name) {
                return Some(format!("`{name}` is no name of an image"));
            }
            if !names.insert(&offer.name) {
                return Some(format!("it has `{name}` twice"));
            }
            let long = offer.all_files().any(|file| file.size > MAX_FILE);
            long.then(|| format!("a file of `{name}` is too long"))
        })
    }
}

impl Offer {
    /// Of a manifest, with what goes beside it.
    pub(super) fn new(manifest: &Manifest, summary: &str, beside: [FileRecord; 3]) -> Self {
        let [manifest_file, recipe, sbom] = beside;
        Self {
            name: manifest.name.clone(),
            summary: summary.to_owned(),
            digest: manifest.digest(),
            image_format: manifest.format,
            kernel: manifest.kernel_release.clone(),
            agent: manifest.agent.clone(),
            size: manifest.files.iter().map(|file| file.size).sum(),
            provides: manifest.provides.clone(),
            owner: manifest.owner.clone(),
            licence: manifest.licence.clone(),
            files: manifest.files.clone(),
            manifest: manifest_file,
            recipe,
            sbom,
        }
    }

    /// Everything that belongs to it.
    pub(super) fn all_files(&self) -> impl Iterator<Item = &FileRecord> {
        self.files.iter().chain([&self.manifest, &self.recipe, &self.sbom])
    }
}

/// Where a file of this digest is, below the folder.
pub(super) fn place_of(digest: &Digest) -> String {
    format!("{FILES}/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_signed_may_still_be_wrong() {
        let file = FileRecord { name: "x".to_owned(), size: 1, sha256: Digest::of(b"x") };
        let offer = Offer {
            name: "tiny".to_owned(),
            summary: String::new(),
            digest: Digest::of(b""),
            image_format: 3,
            kernel: String::new(),
            agent: Digest::of(b""),
            size: 1,
            provides: Vec::new(),
            owner: String::new(),
            licence: String::new(),
            files: vec![file.clone()],
            manifest: file.clone(),
            recipe: file.clone(),
            sbom: file.clone(),
        };
        let said = |index: &Index| match Index::parse(&index.to_json(), "here") {
            Ok(same) => {
                assert_eq!(same, *index);
                "right".to_owned()
            }
            Err(error) => error.to_string(),
        };
        let with = |change: &dyn Fn(&mut Offer)| {
            let mut other = offer.clone();
            change(&mut other);
            Index::new(1, vec![offer.clone(), other])
        };
        let newer = Index { format: 2, ..Index::new(1, Vec::new()) };
        let all = [
            said(&with(&|other| other.name = "other".to_owned())),
            said(&with(&|_| ())),
            said(&with(&|other| other.name = "../x\u{1b}".to_owned())),
            said(&with(&|other| {
                other.name = "long".to_owned();
                other.sbom.size = u64::MAX;
            })),
            said(&newer),
            Index::parse(b"{}", "here").unwrap_err().to_string(),
            Index::parse(b"{", "here").unwrap_err().to_string(),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }
}
