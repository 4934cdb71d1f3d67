//! A file or folder of this host, brought into a guest before anything is done there.

use super::{FilesError, Guest, PushOptions};
use crate::text;
use guestline_protocol::RemoteError;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where it goes, if nothing is said.
const PLACE: &str = "/mnt";

/// A file or folder of this host, and its place in the guest: `DIR` or `DIR:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// On this host.
    pub from: PathBuf,
    /// In the guest; absolute.
    pub to: String,
}

impl FromStr for Brought {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = match text.rsplit_once(":/") {
            Some((from, to)) => (from, Some(format!("/{to}"))),
            None => (text, None),
        };
        let from = std::path::absolute(from).map_err(|error| error.to_string())?;
        let found = from.metadata().map_err(|error| format!("`{}`: {error}", from.display()))?;
        if !found.is_dir() && !found.is_file() {
            return Err(format!("`{}` is neither a file nor a folder", from.display()));
        }
        let name = std::fs::canonicalize(&from).unwrap_or_else(|_| from.clone());
        let name = name.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let to = match (to, name) {
            (Some(to), _) if to.split('/').any(|part| part == "..") => {
                return Err(format!("`{to}` has `..` in it"));
            }
            (Some(to), _) => to,
            (None, Some(name)) => format!("{PLACE}/{name}"),
            (None, None) => {
                return Err("want DIR:PATH, with an absolute PATH of the guest".to_owned());
            }
        };
        Ok(Self { from, to })
    }
}

impl Guest {
    /// Puts a file or folder of this host at a place in the guest, whose folders are made; what is in such a folder stays.
    ///
    /// # Errors
    /// [`FilesError`]; also when a part of it could not be put there.
    pub async fn bring(&self, from: &Path, to: &str) -> Result<(), FilesError> {
        let is_folder = from.is_dir();
        let above = Path::new(to).parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let folder = if is_folder { to } else { &above };
        self.make_folder(folder.as_bytes(), 0o755, true).await?;
        let options = PushOptions { into: is_folder, owners: false };
        let put = self.push(from, to.as_bytes(), options).await?;
        match put.troubles.into_iter().next() {
            None => Ok(()),
            Some(trouble) => {
                let path = text::escape(&trouble.path);
                let message = format!("`{path}`: {}", trouble.error.message);
                Err(FilesError::Host(RemoteError { message, ..trouble.error }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_said_or_has_the_folders_name() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let parse = |text: &str| text.parse::<Brought>();
        let dir = dir.to_str().unwrap();
        assert_eq!(parse(dir).unwrap(), Brought { from: dir.into(), to: "/mnt/data".into() });
        assert_eq!(parse(&format!("{dir}:/opt/x")).unwrap().to, "/opt/x");
        assert!(parse(&format!("{dir}:/../x")).is_err());
        assert!(parse(&format!("{dir}:x")).unwrap_err().contains("No such file"));
        assert!(parse("/dev/null:/x").unwrap_err().contains("neither a file nor a folder"));
    }
}
