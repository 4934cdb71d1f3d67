//! Keys and signatures, in minisign's formats (jedisct1.github.io/minisign, "Minisign's file format"): Ed25519, so that
//! minisign(1) can check and make them as well. That library stays in here.

use crate::digest::Digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use minisign::{
    ErrorKind, KeyPair, PublicKey as MiniPublicKey, PublicKeyBox, SecretKey, SecretKeyBox,
    SignatureBox,
};
use std::fmt;
use std::fs;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

/// The checksum ends a secret key.
const CHECKSUM_LEN: usize = 32;

/// A longer file is no key.
const MAX_LEN: u64 = 4096;

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("cannot use the key file `{path}`", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it says.
    #[error("`{name}` is no {kind} key of minisign: {why}")]
    Wrong {
        /// The file, or what was given.
        name: String,
        /// `public` or `secret`.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No key can be made, or nothing be signed with it.
    #[error("cannot sign: {why}")]
    Sign {
        /// Why.
        why: String,
    },
}

/// Checks signatures.
#[derive(Clone)]
pub struct PublicKey(MiniPublicKey);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// As minisign(1) takes it after `-P`.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_base64())
    }
}

impl PublicKey {
    /// From what somebody gave: the key itself, or the name of a file that has it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(given: &str) -> Result<Self, KeyError> {
        let wrong = |why: minisign::PError| KeyError::Wrong {
            name: crate::text::one_line(given, 100),
            kind: "public",
            why: crate::text::printable(&why.to_string()),
        };
        let path = Path::new(given);
        if !path.is_file() {
            return MiniPublicKey::from_base64(given.trim()).map(Self).map_err(wrong);
        }
        let text = read(path)?;
        let boxed = PublicKeyBox::from_string(&text).and_then(PublicKeyBox::into_public_key);
        // A file with nothing but the key does as well.
        boxed.or_else(|_| MiniPublicKey::from_base64(text.trim())).map(Self).map_err(wrong)
    }

    /// As a file has it.
    pub(super) fn to_text(&self) -> String {
        self.0.to_box().map(PublicKeyBox::into_string).unwrap_or_default()
    }

    /// What a signature calls it by, as minisign(1) prints it.
    pub fn id(&self) -> String {
        key_id(self.0.keynum())
    }
}

/// Makes signatures. It is never shown.
pub struct SigningKey {
    secret: SecretKey,
    public: PublicKey,
}

impl SigningKey {
    /// The key of a file; a password is asked for on the terminal, where the key has one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let wrong = |why: minisign::PError| KeyError::Wrong {
            name: path.display().to_string(),
            kind: "secret",
            why: crate::text::printable(&why.to_string()),
        };
        let boxed = || SecretKeyBox::from_string(&text);
        let secret = match boxed().and_then(SecretKeyBox::into_unencrypted_secret_key) {
            Ok(secret) => secret,
            Err(error) if matches!(error.kind(), ErrorKind::Verify) => {
                without_checksum(&text).ok_or_else(|| wrong(error))?
            }
            Err(_) => boxed().and_then(|key| key.into_secret_key(None)).map_err(wrong)?,
        };
        let public = MiniPublicKey::from_secret_key(&secret).map_err(wrong)?;
        Ok(Self { secret, public: PublicKey(public) })
    }

    /// The key of a file that only its owner may read; made first where there is none. True when it was.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_own_file(path: &Path) -> Result<(Self, bool), KeyError> {
        if path.exists() {
            return Self::from_file(path).map(|key| (key, false));
        }
        let sign = |why: minisign::PError| KeyError::Sign { why: why.to_string() };
        let pair = KeyPair::generate_unencrypted_keypair().map_err(sign)?;
        let text = pair.sk.to_box(Some("minisign secret key of guestline")).map_err(sign)?;
        let written = write_private(path, &text.to_bytes());
        written.map_err(|source| KeyError::File { path: path.to_owned(), source })?;
        // Another process may have been quicker: its key is the one.
        Self::from_file(path).map(|key| (key, true))
    }

    /// What checks its signatures.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature's file, which names what it signs.
    pub(super) fn sign(&self, signed: &[u8]) -> Result<String, KeyError> {
        let (public, digest) = (Some(&self.public.0), Digest::of(signed));
        let comment = format!("{NAMES}{digest}");
        let untrusted = format!("signature by guestline, key {}", self.public.id());
        let signature = minisign::sign(
            public,
            &self.secret,
            Cursor::new(signed),
            Some(&comment),
            Some(&untrusted),
        );
        let signature = signature.map_err(|why| KeyError::Sign { why: why.to_string() })?;
        Ok(signature.to_string())
    }
}

/// Stands before the digest of what is signed, in the signature's comment.
const NAMES: &str = "guestline index sha256:";

/// A signature as it was found.
pub(super) struct Signature {
    boxed: SignatureBox,
    /// The digest of what it says it signs.
    pub(super) names: Digest,
}

impl Signature {
    /// Reads one; in words, what is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
        let boxed = SignatureBox::from_string(text).map_err(|error| error.to_string())?;
        let comment = boxed.trusted_comment().map_err(|error| error.to_string())?;
        let digest = comment.trim_end().strip_prefix(NAMES).and_then(Digest::parse);
        let names = digest.ok_or_else(|| "it is none of an index of images".to_owned())?;
        Ok(Self { boxed, names })
    }

    /// The id of the key that it says it is of.
    pub(super) fn key_id(&self) -> String {
        key_id(self.boxed.keynum())
    }

    /// Is it a signature of this by this key?
    pub(super) fn is_by(&self, key: &PublicKey, signed: &[u8]) -> bool {
        minisign::verify(&key.0, &self.boxed, Cursor::new(signed), true, false, false).is_ok()
    }
}

/// The secret key of a file without password, as `minisign -G -W` makes them: their checksum is nothing but zeros.
fn without_checksum(text: &str) -> Option<SecretKey> {
    let bytes = BASE64.decode(text.lines().nth(1)?).ok()?;
    let checksum = bytes.last_chunk::<CHECKSUM_LEN>()?;
    let secret = SecretKey::from_bytes(&bytes).ok()?;
    (*checksum == [0; CHECKSUM_LEN] && !secret.is_encrypted()).then_some(secret)
}

/// minisign(1) prints them as a number, the lowest byte of which comes first in the file.
fn key_id(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn read(path: &Path) -> Result<String, KeyError> {
    let wrong = |source| KeyError::File { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(wrong)?;
    if !found.is_file() || found.len() > MAX_LEN {
        return Err(wrong(io::Error::new(io::ErrorKind::InvalidData, "it is no key")));
    }
    fs::read_to_string(path).map_err(wrong)
}

/// Writes a file that its owner alone may read, unless there is one.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = crate::dirs::folder_of(path);
    fs::create_dir_all(folder)?;
    // Temporary files have mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        written => written.map(drop).map_err(|error| error.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_one_key_signs_no_other_key_has_signed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys/a.key");
        let (key, made) = SigningKey::from_own_file(&path).unwrap();
        assert!(made && fs::metadata(&path).unwrap().permissions().mode() & 0o777 == 0o600);
        let (again, made) = SigningKey::from_own_file(&path).unwrap();
        assert!(!made);
        let other = SigningKey::from_own_file(&home.path().join("b.key")).unwrap().0;

        let text = key.sign(b"index").unwrap();
        let signature = Signature::parse(text.as_bytes()).unwrap();
        assert_eq!(signature.names, Digest::of(b"index"));
        assert_eq!(signature.key_id(), key.public().id());
        assert!(signature.is_by(again.public(), b"index"));
        assert!(!signature.is_by(again.public(), b"index "));
        assert!(!signature.is_by(other.public(), b"index"));
        // Its comment is signed as well.
        let digest = Digest::of(b"index");
        let forged = text.replace(digest.as_str(), Digest::of(b"other").as_str());
        let forged = Signature::parse(forged.as_bytes()).unwrap();
        assert!(!forged.is_by(key.public(), b"index"));
        for wrong in ["", "x", "untrusted comment: x\n", &text[..text.len() / 2]] {
            assert!(Signature::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_public_key_is_itself_or_a_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.key");
        let key = SigningKey::from_own_file(&path).unwrap().0.public().clone();
        let pub_file = home.path().join("a.pub");
        for text in [key.to_text(), format!("{key}\n")] {
            fs::write(&pub_file, text).unwrap();
            let read = PublicKey::parse(&pub_file.to_string_lossy()).unwrap();
            assert_eq!(read.to_string(), key.to_string());
        }
        assert_eq!(PublicKey::parse(&format!(" {key} ")).unwrap().id(), key.id());
        for wrong in ["", "RWQ", "/no/such/file", &path.to_string_lossy()] {
            assert!(PublicKey::parse(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(SigningKey::from_file(Path::new("/none")), Err(KeyError::File { .. })));
    }
}
