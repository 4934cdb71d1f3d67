//! The files that a manifest puts into an image: text that it says, or what lies beside it.
//!
//! ```text
//! "etc/motd" = "hello\n"
//! "usr/bin/probe" = { content = "#!/bin/sh\n…", mode = "0755" }
//! "usr/bin/tool"  = { file = "build/tool", mode = "0755" }      ─> sha256 when the manifest is read
//! ```
//! What a file beside the manifest holds is in the recipe by its digest, so that another content makes another image, and the
//! manifest can go to another host without it.

use super::build::BuildError;
use crate::digest::Digest;
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The table of a manifest that lists them.
pub(super) const KEY: &str = "files";

/// Key of where a file lies.
const FILE: &str = "file";

const SHA256: &str = "sha256";

/// What most files have.
const MODE: u32 = 0o644;

/// A larger file is for a package, in bytes: they are read into memory.
const MAX_LEN: u64 = 64 << 20;

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutFile {
    content: Content,
    /// Its permissions.
    pub mode: u32,
}

impl PutFile {
    /// What is in it, where the manifest itself says it.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::File { .. } => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Text(String),
    /// A file of this host; an empty path where it has not come from another one.
    File {
        file: PathBuf,
        sha256: Digest,
    },
}

/// As a manifest says it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    content: Option<String>,
    file: Option<PathBuf>,
    sha256: Option<String>,
    mode: Option<String>,
}

impl PutFile {
    fn of(value: Value) -> Result<Self, String> {
        let table = match value {
            Value::String(text) => return Ok(Self { content: Content::Text(text), mode: MODE }),
            Value::Table(table) => table,
            _ => return Err("it is text, or a table with `content` or `file`".to_owned()),
        };
        let written = table.try_into::<Written>();
        let Written { content, file, sha256, mode } =
            written.map_err(|error| error.message().to_owned())?;
        let mode = mode.map_or(Ok(MODE), |mode| parse_mode(&mode))?;
        let content = match (content, file, sha256) {
            (Some(text), None, None) => Content::Text(text),
            (None, file, Some(sha256)) => {
                let sha256 = Digest::parse(&sha256);
                let sha256 = sha256.ok_or("sha256 is 64 hexadecimal digits")?;
                Content::File { file: file.unwrap_or_default(), sha256 }
            }
            (None, Some(_), None) => return Err("sha256 is missing".to_owned()),
            (None, None, None) => return Err("`content` or `file` is missing".to_owned()),
            (Some(_), ..) => return Err("it has `content`, so it takes no `file`".to_owned()),
        };
        Ok(Self { content, mode })
    }

    /// What it holds.
    ///
    /// # Errors
    /// [`BuildError::NotHere`], or [`BuildError::Given`] where the file has changed since the manifest was read.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, BuildError> {
        let (path, sha256) = match &self.content {
            Content::Text(text) => return Ok(text.clone().into_bytes()),
            Content::File { file, .. } if file.as_os_str().is_empty() => {
                return Err(BuildError::NotHere);
            }
            Content::File { file, sha256 } => (file, sha256),
        };
        let given = |source| BuildError::Given { path: path.clone(), source };
        let bytes = fs::read(path).map_err(given)?;
        match Digest::of(&bytes) == *sha256 {
            true => Ok(bytes),
            false => Err(given(io::Error::new(
                io::ErrorKind::InvalidData,
                "its content is not what the manifest says: another SHA-256",
            ))),
        }
    }
}

/// chmod(1)'s octal digits.
fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = match text.len() {
        5 => text.strip_prefix('0').unwrap_or_default(),
        _ => text,
    };
    let is_octal =
        (3..=4).contains(&digits.len()) && digits.bytes().all(|c| (b'0'..=b'7').contains(&c));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
    mode.ok_or_else(|| format!("mode is octal digits such as \"0755\", and `{text}` is not"))
}

/// All files of a manifest; what is wrong with one is said with its path.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, PutFile>, D::Error> {
    let values = BTreeMap::<String, Value>::deserialize(from)?;
    let files = values.into_iter().map(|(path, value)| {
        let file = PutFile::of(value);
        file.map(|file| (path.clone(), file))
            .map_err(|why| de::Error::custom(format!("{KEY}.\"{path}\": {why}")))
    });
    files.collect()
}

/// Makes the files that a manifest names beside it those of this folder, and says what they hold now.
///
/// # Errors
/// In words: one cannot be read, or is not what the manifest says.
pub(super) fn look_at(manifest: &mut Table, folder: &Path) -> Result<(), String> {
    for (place, table) in tables(manifest) {
        let Some(Value::String(file)) = table.get(FILE) else { continue };
        let path = folder.join(file);
        let wrong = |why: String| format!("{KEY}.\"{place}\": `{}`: {why}", path.display());
        let found = fs::metadata(&path).map_err(|error| wrong(error.to_string()))?;
        if !found.is_file() || found.len() > MAX_LEN {
            let most = MAX_LEN >> 20;
            return Err(wrong(format!("it is no file of at most {most} MiB")));
        }
        let sha256 = Digest::of_file(&path).map_err(|error| wrong(error.to_string()))?;
        match table.get(SHA256) {
            Some(Value::String(said)) if *said.to_ascii_lowercase() != *sha256.as_str() => {
                return Err(wrong(format!(
                    "its SHA-256 is {sha256}, and not what the manifest says; leave `{SHA256}` out to have it as it is"
                )));
            }
            _ => {}
        }
        let path = path.to_string_lossy().into_owned();
        table.insert(FILE.to_owned(), path.into());
        table.insert(SHA256.to_owned(), sha256.as_str().into());
    }
    Ok(())
}

/// Leaves out where they lie: their digests tell what they are.
pub(super) fn forget_places(manifest: &mut Table) {
    for (_, table) in tables(manifest) {
        table.remove(FILE);
    }
}

/// The files that are more than text.
fn tables(manifest: &mut Table) -> impl Iterator<Item = (String, &mut Table)> {
    let files = manifest.get_mut(KEY).and_then(Value::as_table_mut).into_iter().flatten();
    files.filter_map(|(place, value)| Some((place.to_owned(), value.as_table_mut()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<PutFile, String> {
        PutFile::of(toml::from_str::<Table>(&format!("x = {text}")).unwrap()["x"].clone())
    }

    #[test]
    fn text_has_a_mode_where_one_is_said() {
        for (text, mode) in [
            ("\"hi\"", 0o644),
            ("{ content = \"hi\" }", 0o644),
            ("{ content = \"hi\", mode = \"0755\" }", 0o755),
            ("{ content = \"hi\", mode = \"600\" }", 0o600),
            ("{ content = \"hi\", mode = \"04755\" }", 0o4755),
        ] {
            let file = file(text).unwrap();
            assert_eq!((file.bytes().unwrap(), file.mode), (b"hi".to_vec(), mode), "{text}");
        }
        let sha256 = "0".repeat(64);
        for (text, wanted) in [
            ("1".to_owned(), "it is text, or a table"),
            ("{ mode = \"0755\" }".to_owned(), "`content` or `file` is missing"),
            ("{ content = \"\", mode = \"rwx\" }".to_owned(), "`rwx` is not"),
            ("{ content = \"\", mode = \"0789\" }".to_owned(), "`0789` is not"),
            ("{ content = \"\", mode = \"17777\" }".to_owned(), "`17777` is not"),
            ("{ content = \"\", mode = \"+755\" }".to_owned(), "`+755` is not"),
            ("{ content = \"\", mode = 755 }".to_owned(), "expected a string"),
            ("{ content = \"\", file = \"x\" }".to_owned(), "it takes no `file`"),
            ("{ file = \"x\" }".to_owned(), "sha256 is missing"),
            ("{ sha256 = \"00\" }".to_owned(), "sha256 is 64"),
            ("{ content = \"\", modes = \"\" }".to_owned(), "unknown field `modes`"),
        ] {
            let said = file(&text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
        let elsewhere = file(&format!("{{ sha256 = \"{sha256}\" }}")).unwrap();
        assert!(matches!(elsewhere.bytes(), Err(BuildError::NotHere)));
    }

    #[test]
    fn a_file_is_what_it_was_when_the_manifest_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tool");
        fs::write(&path, b"\x7fELF\xff").unwrap();
        let manifest = |more: &str| {
            let text =
                format!("[files]\n\"bin/tool\" = {{ file = \"tool\", mode = \"0755\"{more} }}");
            let mut manifest = toml::from_str::<Table>(&text).unwrap();
            look_at(&mut manifest, folder.path()).map(|()| manifest)
        };
        let seen = manifest("").unwrap();
        let put = PutFile::of(seen["files"]["bin/tool"].clone()).unwrap();
        assert_eq!((put.bytes().unwrap(), put.mode), (b"\x7fELF\xff".to_vec(), 0o755));
        let mut portable = seen.clone();
        forget_places(&mut portable);
        assert!(!portable.to_string().contains("file ="), "{portable}");
        let elsewhere = PutFile::of(portable["files"]["bin/tool"].clone()).unwrap();
        assert!(matches!(elsewhere.bytes(), Err(BuildError::NotHere)));

        fs::write(&path, b"another").unwrap();
        let error = put.bytes().unwrap_err();
        assert!(matches!(error, BuildError::Given { .. }), "{error}");
        assert_ne!(manifest("").unwrap(), seen);
        let said = manifest(&format!(", sha256 = \"{}\"", "0".repeat(64))).unwrap_err();
        assert!(said.contains("tool`: its SHA-256 is "), "{said}");
        fs::remove_file(&path).unwrap();
        let said = manifest("").unwrap_err();
        assert!(
            said.starts_with("files.\"bin/tool\": `/") && said.contains("No such file"),
            "{said}"
        );
        fs::create_dir(&path).unwrap();
        assert!(manifest("").unwrap_err().ends_with("it is no file of at most 64 MiB"));
    }
}
