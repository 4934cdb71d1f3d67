//! Templates with a name: what a machine is and the lines that are run in it before it is saved. The name stands for this
//! description, not for one saved machine: that is found by its key, and made anew when image, agent or QEMU are others.
//!
//! `STATE/templates/NAME.json`

use super::devices::{DiskWanted, NicWanted};
use super::template::TemplateId;
use crate::dirs::Dirs;
use crate::text::is_plain_name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The format of the file.
const FORMAT: u32 = 1;

/// The name of a template: `[a-z0-9][a-z0-9._-]*`, at most 64 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct TemplateName(String);

/// A text that names no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a template's name has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit"
)]
pub struct NotATemplateName;

impl TemplateName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = NotATemplateName;

    fn from_str(text: &str) -> Result<Self, NotATemplateName> {
        match is_plain_name(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(NotATemplateName),
        }
    }
}

impl TryFrom<String> for TemplateName {
    type Error = NotATemplateName;

    fn try_from(text: String) -> Result<Self, NotATemplateName> {
        text.parse()
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedTemplate {
    /// The format's number.
    format: u32,
    /// The image.
    pub image: String,
    /// Memory in MiB; the image's default when none is given.
    pub memory_mib: Option<u64>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskWanted>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicWanted>,
    /// The lines that are run, each layer upon the one before.
    pub layers: Vec<Vec<String>>,
    /// The template that was made of it last.
    pub last: Option<TemplateId>,
}

impl NamedTemplate {
    /// Of an image, with the defaults of everything else.
    pub fn new(image: String) -> Self {
        Self {
            format: FORMAT,
            image,
            memory_mib: None,
            cpus: 1,
            disks: Vec::new(),
            nics: Vec::new(),
            layers: Vec::new(),
            last: None,
        }
    }

    /// Is it the same machine, whatever was made of it last?
    pub fn is_same(&self, other: &Self) -> bool {
        *self == Self { last: self.last.clone(), ..other.clone() }
    }
}

/// A named template cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NamedTemplateError {
    /// There is none of this name.
    #[error("there is no template `{name}`")]
    Missing {
        /// As asked.
        name: TemplateName,
    },
    /// Its file cannot be used.
    #[error("cannot use `{path}`", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its file says something else.
    #[error("`{path}` describes no template", path = path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It is of a newer Guestline.
    #[error("`{path}` was written by a newer Guestline (format {format}, this one knows {FORMAT})", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
}

/// The named templates of one user.
#[derive(Debug, Clone)]
pub struct NamedTemplates {
    folder: PathBuf,
}

impl NamedTemplates {
    /// In the state folder.
    pub fn new(dirs: &Dirs) -> Self {
        Self { folder: dirs.state.join("templates") }
    }

    fn path(&self, name: &TemplateName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// [`NamedTemplateError`].
    pub fn get(&self, name: &TemplateName) -> Result<NamedTemplate, NamedTemplateError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(text) => read(&path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NamedTemplateError::Missing { name: name.clone() })
            }
            Err(source) => Err(NamedTemplateError::File { path, source }),
        }
    }

    /// Gives a name its meaning, whatever it had before.
    ///
    /// # Errors
    /// [`NamedTemplateError::File`].
    pub fn put(
        &self,
        name: &TemplateName,
        template: &NamedTemplate,
    ) -> Result<(), NamedTemplateError> {
        let path = self.path(name);
        let fresh = self.folder.join(format!(".{name}-{}", ulid::Ulid::generate()));
        let write = || {
            fs::create_dir_all(&self.folder)?;
            fs::write(&fresh, serde_json::to_vec_pretty(template)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&fresh);
            NamedTemplateError::File { path: path.clone(), source }
        })
    }

    /// Forgets a name.
    ///
    /// # Errors
    /// [`NamedTemplateError`].
    pub fn remove(&self, name: &TemplateName) -> Result<(), NamedTemplateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NamedTemplateError::Missing { name: name.clone() })
            }
            Err(source) => Err(NamedTemplateError::File { path, source }),
        }
    }

    /// All names.
    pub fn names(&self) -> Vec<TemplateName> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            entry.file_name().to_str()?.strip_suffix(".json")?.parse::<TemplateName>().ok()
        });
        let mut names: Vec<TemplateName> = names.collect();
        names.sort();
        names
    }
}

fn read(path: &Path, text: &[u8]) -> Result<NamedTemplate, NamedTemplateError> {
    let path = path.to_owned();
    let format = serde_json::from_slice::<serde_json::Value>(text).ok();
    let format = format.and_then(|value| value["format"].as_u64());
    if let Some(format) = format.filter(|format| *format > u64::from(FORMAT)) {
        return Err(NamedTemplateError::Newer { path, format });
    }
    serde_json::from_slice(text).map_err(|source| NamedTemplateError::Strange { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        let longest = "x".repeat(64);
        for name in ["web", "0", "a-b.c_d", "x-", &longest] {
            assert!(name.parse::<TemplateName>().is_ok(), "{name}");
        }
        let too_long = "x".repeat(65);
        for wrong in ["", "-x", ".x", "_x", "Web", "a b", "a/b", "..", "é", &too_long] {
            assert!(wrong.parse::<TemplateName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_one_meaning_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let all = NamedTemplates { folder: home.path().join("templates") };
        let [web, db] = ["web", "db"].map(|name| name.parse::<TemplateName>().unwrap());
        assert!(all.names().is_empty());
        let error = all.get(&web).unwrap_err();
        assert_eq!(error.to_string(), "there is no template `web`");
        assert!(matches!(all.remove(&web), Err(NamedTemplateError::Missing { .. })));
        let layers = vec![vec!["true".to_owned()]];
        let template = NamedTemplate {
            memory_mib: Some(300),
            cpus: 2,
            layers,
            ..NamedTemplate::new("tiny".to_owned())
        };
        all.put(&web, &template).unwrap();
        all.put(&db, &NamedTemplate::new("tiny".to_owned())).unwrap();
        assert_eq!(all.get(&web).unwrap(), template);
        all.put(&web, &NamedTemplate { cpus: 3, ..template }).unwrap();
        assert_eq!(all.get(&web).unwrap().cpus, 3);
        assert_eq!(all.names(), [db, web.clone()]);
        let path = all.path(&web);
        fs::write(&path, r#"{"format": 2}"#).unwrap();
        assert!(matches!(all.get(&web), Err(NamedTemplateError::Newer { format: 2, .. })));
        fs::write(&path, r#"{"format": 1}"#).unwrap();
        assert!(matches!(all.get(&web), Err(NamedTemplateError::Strange { .. })));
        all.remove(&web).unwrap();
        assert_eq!(fs::read_dir(home.path().join("templates")).unwrap().count(), 1);
    }
}
