//! What `--qemu`, `--firmware` and `--install` name, as jobs have it.

use crate::args::SubjectArgs;
use crate::context::Context;
use crate::error::CommandError;
use guestline::digest::Digest;
use guestline::machine::{OLDEST_QEMU, Qemu};
use guestline::text;
use guestline_harness::job::{ContentFile, FirmwareWanted, InstallWanted};
use guestline_harness::plan::{FirmwareNamed, qemu_program};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Packages, and where they are.
#[derive(Debug, Default)]
pub(crate) struct Packages {
    pub(crate) wanted: Option<InstallWanted>,
    pub(crate) files: HashMap<Digest, PathBuf>,
}

/// The folder that paths begin in.
fn here() -> Result<PathBuf, CommandError> {
    std::env::current_dir()
        .map_err(|error| CommandError::new(format!("there is no folder to work in: {error}")))
}

impl SubjectArgs {
    /// The program of the QEMU that is named.
    pub(crate) fn qemu_program(&self) -> Result<Option<PathBuf>, CommandError> {
        let Some(word) = &self.qemu else { return Ok(None) };
        let program = qemu_program(word, &here()?)
            .map_err(|why| CommandError::new(format!("--qemu: {why}")))?;
        Ok(Some(program))
    }

    /// The QEMU that is named.
    pub(crate) fn named_qemu(&self, context: &Context) -> Result<Option<Qemu>, CommandError> {
        let Some(program) = self.qemu_program()? else { return Ok(None) };
        let qemu = Qemu::at(&context.dirs, &program).map_err(|error| {
            CommandError::new(format!("--qemu: {}", text::chain(&error)))
                .hint(format!("it wants a program of QEMU {OLDEST_QEMU} or newer"))
        })?;
        Ok(Some(qemu))
    }

    /// The firmware that is named.
    pub(crate) fn firmware_named(&self) -> Result<Option<FirmwareNamed>, CommandError> {
        let Some(word) = &self.firmware else { return Ok(None) };
        Ok(Some(FirmwareNamed::of(word, &here()?)))
    }

    /// The firmware that is named, and its file.
    pub(crate) fn firmware_wanted(
        &self,
        files: &mut HashMap<Digest, PathBuf>,
    ) -> Result<Option<FirmwareWanted>, CommandError> {
        Ok(match self.firmware_named()? {
            None => None,
            Some(FirmwareNamed::Bios) => Some(FirmwareWanted::Bios),
            Some(FirmwareNamed::Uefi) => Some(FirmwareWanted::Uefi),
            Some(FirmwareNamed::File(path)) => {
                let digest = digest("--firmware", &path)?;
                files.insert(digest.clone(), path);
                Some(FirmwareWanted::File(digest))
            }
        })
    }

    /// The packages that are named.
    pub(crate) fn packages(&self) -> Result<Packages, CommandError> {
        let mut install: Vec<ContentFile> = Vec::new();
        let mut files = HashMap::new();
        for path in &self.install {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.ends_with(".deb") {
                let wrong = format!("--install: `{}` is no .deb", path.display());
                return Err(CommandError::new(wrong));
            }
            if install.iter().any(|file| file.path == name) {
                let wrong = format!("--install: two packages are called `{name}`");
                return Err(CommandError::new(wrong));
            }
            let digest = digest("--install", path)?;
            files.insert(digest.clone(), here()?.join(path));
            install.push(ContentFile { path: name, digest, executable: false });
        }
        let wanted = (!install.is_empty()).then_some(InstallWanted { install });
        Ok(Packages { wanted, files })
    }
}

fn digest(option: &str, path: &Path) -> Result<Digest, CommandError> {
    Digest::of_file(path).map_err(|error| {
        CommandError::new(format!("{option}: cannot read `{}`: {error}", path.display()))
    })
}
