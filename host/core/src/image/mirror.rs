//! Packages from a configured mirror, for hosts without Debian's apt: `curl` fetches, `gpgv` checks.
//!
//! ```text
//! InRelease ── gpgv with the keyring ──> SHA-256 of Packages.xz ──> SHA-256 of each package
//! ```
//! (Debian Repository Format, "Release files" and "Packages indices".)

use super::apt::Wanted;
use super::packages::{
    PackageError, Stanza, Watch, making_folder, nearest, run, run_watched, unpack,
};
use crate::digest::Digest;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_util::sync::CancellationToken;

const INDEX: &str = "main/binary-amd64/Packages.xz";

/// A Debian mirror, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Address of the folder that has `dists` and `pool`: `https://…`, `file:///…`.
    pub mirror: String,
    /// Suite, such as `bookworm`.
    pub suite: String,
    /// Address of the archive of security updates, which has suites of its own.
    pub security: Option<String>,
    /// Keyring that the suite is signed with.
    #[serde(default = "default_keyring")]
    pub keyring: PathBuf,
}

/// Signs Debian's archives (package debian-archive-keyring).
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

fn default_keyring() -> PathBuf {
    PathBuf::from(KEYRING)
}

/// The mirror gives what cannot be trusted or read.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// `InRelease` does not list the index.
    #[error("suite `{suite}` of the mirror has no {INDEX}")]
    NoIndex {
        /// The suite.
        suite: String,
    },
    /// The index has another digest.
    #[error("{INDEX} of suite `{suite}` has the wrong SHA-256: {found}, not {wanted}")]
    Digest {
        /// The suite.
        suite: String,
        /// Of the download.
        found: Digest,
        /// Of the signed list.
        wanted: Digest,
    },
}

/// A suite's packages.
pub(super) struct Index {
    text: String,
    suite: String,
}

impl Mirror {
    /// What apt is to know of a suite on it, as sources.list(5).
    pub(super) fn sources(&self, wanted: &Wanted) -> String {
        let mut text = wanted.sources(&self.mirror, &self.keyring);
        if let Some(security) = &self.security {
            text += &wanted.source(security, "-security", &self.keyring);
        }
        text
    }

    /// Fetches and checks the list of packages.
    pub(super) fn index(
        &self,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Index, PackageError> {
        let pool = |source| PackageError::Pool { path: scratch.to_owned(), source };
        let folder = making_folder(scratch).map_err(pool)?;
        let signed = folder.path().join("InRelease");
        let release = folder.path().join("Release");
        self.get(&format!("dists/{}/InRelease", self.suite), &signed, &|| (), cancel)?;
        let mut check = Command::new("gpgv");
        check.arg("--keyring").arg(&self.keyring).arg("--output").arg(&release).arg(&signed);
        run(&mut check, cancel)?;
        let listed = std::fs::read_to_string(&release).map_err(pool)?;
        let wanted = index_digest(&listed)
            .ok_or_else(|| MirrorError::NoIndex { suite: self.suite.clone() })?;
        let packed = folder.path().join("Packages.xz");
        self.get(&format!("dists/{}/{INDEX}", self.suite), &packed, &|| (), cancel)?;
        let bytes = std::fs::read(&packed).map_err(pool)?;
        let found = Digest::of(&bytes);
        if found != wanted {
            return Err(MirrorError::Digest { suite: self.suite.clone(), found, wanted }.into());
        }
        let text = String::from_utf8_lossy(&unpack(&bytes)?).into_owned();
        Ok(Index { text, suite: self.suite.clone() })
    }

    /// Downloads a package into a folder.
    pub(super) fn download(
        &self,
        stanza: &Stanza,
        folder: &Path,
        watch: Watch<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), PackageError> {
        let path = folder.join(stanza.file_begin() + "amd64.deb");
        self.get(&stanza.filename, &path, watch, cancel)
    }

    fn get(
        &self,
        path: &str,
        to: &Path,
        watch: Watch<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), PackageError> {
        let address = format!("{}/{path}", self.mirror.trim_end_matches('/'));
        let mut curl = curl();
        curl.args(["--retry", "2", "-o"]).arg(to).arg(address);
        run_watched(&mut curl, None, watch, cancel).map(drop)
    }
}

impl Index {
    /// The newest stanza of this name: an index lists the packages of one suite, each once.
    pub(super) fn find(&self, name: &str) -> Result<Stanza, PackageError> {
        let head = format!("Package: {name}\n");
        let mut stanzas = self.text.split("\n\n").map(|stanza| stanza.trim_start_matches('\n'));
        let found = stanzas.find(|stanza| stanza.starts_with(&head)).and_then(Stanza::parse);
        found.ok_or_else(|| PackageError::Unknown {
            name: name.to_owned(),
            place: self.place(),
            near: nearest(
                name,
                self.text.lines().filter_map(|line| line.strip_prefix("Package: ")),
            ),
        })
    }

    /// Where its packages are, in words.
    pub(super) fn place(&self) -> String {
        format!("suite `{}` of the mirror", self.suite)
    }
}

/// curl(1), silent but for errors; a transfer that has stalled is given up.
pub(super) fn curl() -> Command {
    let mut curl = Command::new("curl");
    curl.args(["-fsSL", "--connect-timeout", "20", "--speed-limit", "1", "--speed-time", "30"]);
    curl
}

/// The digest of [`INDEX`] in the `SHA256` field of a Release file.
fn index_digest(release: &str) -> Option<Digest> {
    let mut lines = release.lines().skip_while(|line| *line != "SHA256:").skip(1);
    let listed = lines.by_ref().take_while(|line| line.starts_with(' '));
    let mut entries = listed.map(|line| line.split_whitespace().collect::<Vec<_>>());
    entries.find_map(|entry| match entry[..] {
        [digest, _, INDEX] => Digest::parse(digest),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_index_in_the_right_list() {
        let (md5, sha) = ("0".repeat(32), "1".repeat(64));
        let release =
            format!("MD5Sum:\n {md5} 5 {INDEX}\nSHA256:\n {sha} 5 {INDEX}\n x y z\nEnd: x\n");
        assert_eq!(index_digest(&release), Digest::parse(&sha));
        assert_eq!(index_digest(&release.replace("SHA256", "SHA1")), None);
    }
}
