//! Messages as lines of JSON, each with the version of its protocol.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    message: T,
}

/// A message as a line.
pub(crate) fn line(version: u32, message: impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Versioned { version, message }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a line says; in words, why it is no such message. Of another version only that is looked at.
pub(crate) fn understand<T: DeserializeOwned>(
    spoken: u32,
    what: &str,
    line: &[u8],
) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let wrong = |error: serde_json::Error| format!("no {what}: {error}");
    let Version { version } = serde_json::from_slice(line).map_err(wrong)?;
    if version != spoken {
        return Err(format!("version {version} is not spoken here, {spoken} is"));
    }
    Ok(serde_json::from_slice::<Versioned<T>>(line).map_err(wrong)?.message)
}
