//! Everything is read: templates, images and packages are compared with the digests of when they were made.

use super::{Cache, CacheEntry, Content};
use crate::image::{Manifest, verify_drawn, verify_image};
use crate::kept::{Condition, Removal};
use crate::provision::template::Found;
use std::io;

/// Something that is not right.
#[derive(Debug)]
pub struct Finding {
    /// Its kind, and its id or name.
    pub what: String,
    /// What is wrong with it, or why that cannot be told.
    pub why: String,
    /// What became of it; nothing when it cannot be told whether it is damaged.
    pub removal: Option<Removal>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Verified {
    /// So many are right: templates and images.
    pub right: usize,
    /// What is left alone: being made, another user's, a newer Guestline's.
    pub left_alone: usize,
    /// What is not right.
    pub findings: Vec<Finding>,
}

impl Cache {
    /// Reads everything and drops what is damaged; each finding is also given to `tell` when it is made. Ends early when
    /// `go_on` says no.
    pub fn verify(&self, go_on: &dyn Fn() -> bool, tell: &mut dyn FnMut(&Finding)) -> Verified {
        let mut verified = Verified::default();
        for entry in self.entries() {
            if !go_on() {
                break;
            }
            let finding = match (&entry.content, &entry.condition) {
                (_, Condition::Newer | Condition::Foreign | Condition::Making) => {
                    verified.left_alone += 1;
                    continue;
                }
                (_, Condition::LeftOver) => continue,
                (Content::Packages { .. }, _) => {
                    for finding in self.verify_packages(go_on) {
                        tell(&finding);
                        verified.findings.push(finding);
                    }
                    continue;
                }
                (Content::Lists | Content::Downloads, _) => continue,
                (Content::Kernel | Content::Modules, condition) => {
                    self.verify_drawn(&entry, condition)
                }
                (Content::Template(_), _) => self.verify_template(&entry, go_on),
                (Content::Image(manifest), condition) => {
                    self.verify_image(&entry, manifest.as_deref(), condition)
                }
            };
            match finding {
                Some(finding) => {
                    tell(&finding);
                    verified.findings.push(finding);
                }
                None => verified.right += 1,
            }
        }
        verified
    }

    fn verify_template(&self, entry: &CacheEntry, go_on: &dyn Fn() -> bool) -> Option<Finding> {
        let what = format!("template {}", entry.id);
        let why = match self.templates.inspect(&entry.kept) {
            Found::Ready(template) => match template.verify(go_on) {
                Ok(why) => why?,
                Err(error) => {
                    let why = format!("cannot be read: {error}");
                    return Some(Finding { what, why, removal: None });
                }
            },
            Found::Damaged(why) => why,
            // It went meanwhile.
            Found::Absent | Found::Foreign(_) => return None,
        };
        // Whoever uses it keeps what he has open; nobody else is to begin with it.
        let removal = self.templates.discard(&entry.kept).map(|()| true).into();
        Some(Finding { what, why, removal: Some(removal) })
    }

    fn verify_image(
        &self,
        entry: &CacheEntry,
        manifest: Option<&Manifest>,
        condition: &Condition,
    ) -> Option<Finding> {
        let why = match (condition, manifest) {
            (Condition::Damaged(why), _) => why.clone(),
            (_, Some(manifest)) => verify_image(&entry.kept.folder, manifest).err()?,
            (_, None) => return None,
        };
        if !entry.kept.folder.exists() {
            // It went meanwhile.
            return None;
        }
        let removal = if entry.in_use { Removal::InUse } else { self.remove(entry) };
        Some(Finding { what: format!("image {}", entry.id), why, removal: Some(removal) })
    }

    fn verify_drawn(&self, entry: &CacheEntry, condition: &Condition) -> Option<Finding> {
        let why = match condition {
            Condition::Damaged(why) => why.clone(),
            _ => verify_drawn(&entry.kept).err()?,
        };
        let removal = if entry.in_use { Removal::InUse } else { self.remove(entry) };
        let what = format!("{} {}", entry.content.kind(), entry.id);
        Some(Finding { what, why, removal: Some(removal) })
    }

    fn verify_packages(&self, go_on: &dyn Fn() -> bool) -> Vec<Finding> {
        let verified: io::Result<Vec<String>> = self.images.verify_packages(go_on);
        match verified {
            Ok(damaged) => damaged
                .into_iter()
                .map(|name| Finding {
                    what: format!("package {name}"),
                    why: "has another content".to_owned(),
                    removal: Some(Removal::Removed),
                })
                .collect(),
            Err(error) => {
                let why = format!("cannot be read or removed: {error}");
                vec![Finding { what: "packages".to_owned(), why, removal: None }]
            }
        }
    }
}
