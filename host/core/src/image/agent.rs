//! The agent as a file to put into images. The host takes it as bytes, never as a crate.

use super::elf::segments;
use crate::digest::Digest;
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// An agent binary.
#[derive(Debug, Clone)]
pub struct Agent {
    bytes: Cow<'static, [u8]>,
    digest: Digest,
}

/// What was given is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The file.
    #[error("cannot read the agent `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("`{name}` is no static x86-64 program")]
    NotAProgram {
        /// The file, or what else was given.
        name: String,
    },
}

impl Agent {
    /// From a file.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn from_file(path: &Path) -> Result<Self, AgentError> {
        let bytes = std::fs::read(path)
            .map_err(|source| AgentError::Read { path: path.to_owned(), source })?;
        Self::new(bytes.into(), &path.display().to_string())
    }

    /// From bytes that the controller carries.
    ///
    /// # Errors
    /// [`AgentError::NotAProgram`].
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self, AgentError> {
        Self::new(bytes.into(), "the agent inside this program")
    }

    fn new(bytes: Cow<'static, [u8]>, name: &str) -> Result<Self, AgentError> {
        if !is_static_x86_64(&bytes) {
            return Err(AgentError::NotAProgram { name: name.to_owned() });
        }
        let digest = Digest::of(&bytes);
        Ok(Self { bytes, digest })
    }

    /// Any bytes, where nobody runs them.
    #[cfg(test)]
    pub(super) fn for_tests(bytes: Vec<u8>) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes: bytes.into(), digest }
    }

    /// The binary.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// An ELF executable for x86-64 that asks for no
/// interpreter: it must run where there is no C library.
fn is_static_x86_64(bytes: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    segments(bytes).is_some_and(|all| all.iter().all(|segment| segment.kind != INTERPRETER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_no_script_and_no_dynamic_program() {
        assert!(Agent::from_bytes(b"#!/bin/sh\n").is_err());
        assert!(Agent::from_bytes(b"\x7fELF\x02\x01").is_err());
        // The test itself is dynamic.
        let myself = std::env::current_exe().unwrap();
        assert!(matches!(Agent::from_file(&myself), Err(AgentError::NotAProgram { .. })));
        assert!(matches!(Agent::from_file(Path::new("/none")), Err(AgentError::Read { .. })));
    }
}
