//! Answers that took time to find out, kept in the cache folder. One that cannot be kept is found out again.

use crate::dirs::Dirs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;

/// What was kept under a name, if it can be read.
pub(crate) fn recall<T: DeserializeOwned>(dirs: &Dirs, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dirs.cache.join(name)).ok()?).ok()
}

/// Keeps an answer under a name, where that is possible.
pub(crate) fn keep<T: Serialize>(dirs: &Dirs, name: &str, answer: &T) {
    if let Ok(text) = serde_json::to_vec(answer) {
        let written = fs::create_dir_all(&dirs.cache);
        let _ = written.and_then(|()| fs::write(dirs.cache.join(name), text));
    }
}
