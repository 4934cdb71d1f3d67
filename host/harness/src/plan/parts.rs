//! Parts of a machine that are named by a word or a file: QEMU, firmware.

use guestline::machine::on_path;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What starts a machine, as it is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FirmwareNamed {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// A file.
    File(PathBuf),
}

impl FirmwareNamed {
    /// Of a word; a file is looked for from a folder on.
    pub fn of(word: &str, folder: &Path) -> Self {
        match word {
            "bios" => Self::Bios,
            "uefi" => Self::Uefi,
            path => Self::File(folder.join(path)),
        }
    }
}

/// The program of a QEMU: a path from a folder on, or without a slash a name on `PATH`.
///
/// # Errors
/// It is on no `PATH`.
pub fn qemu_program(word: &str, folder: &Path) -> Result<PathBuf, String> {
    if word.contains('/') {
        return Ok(folder.join(word));
    }
    on_path(OsStr::new(word))
        .ok_or_else(|| format!("no `{word}` on PATH; a file is named with a slash: ./{word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_makes_a_path() {
        let folder = Path::new("/suite");
        assert_eq!(qemu_program("./q", folder), Ok("/suite/./q".into()));
        assert_eq!(qemu_program("/opt/q", folder), Ok("/opt/q".into()));
        assert!(qemu_program("no-such-qemu", folder).unwrap_err().contains("on PATH"));
        assert!(qemu_program("sh", folder).unwrap().ends_with("sh"));
    }

    #[test]
    fn firmware_is_a_word_or_a_file() {
        let folder = Path::new("/suite");
        assert_eq!(FirmwareNamed::of("uefi", folder), FirmwareNamed::Uefi);
        let file = FirmwareNamed::File("/suite/OVMF.fd".into());
        assert_eq!(FirmwareNamed::of("OVMF.fd", folder), file);
    }
}
