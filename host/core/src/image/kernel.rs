//! Kernel files: are they whole, and the `vmlinux` inside a `bzImage`.
//!
//! A guest that unpacks its own kernel under translation pays for every byte, so the host does it
//! once when the image is made, and QEMU enters the `vmlinux` by PVH (QEMU `docs/pvh.txt`; Xen
//! `public/elfnote.h`). Layout of a `bzImage`: Linux `Documentation/arch/x86/boot.rst`.

use super::elf::{Segment, segments, u32_at};
use super::lz4::{LegacyDecoder, MAGIC};
use super::packages::unpack;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A larger file is no kernel, in bytes; one with all its debug information has half of it.
pub const MAX_KERNEL_LEN: u64 = 1 << 30;

/// A file is no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error("cannot read the kernel `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a folder without a kernel.
    #[error("`{path}` has no kernel: neither arch/x86/boot/bzImage nor vmlinux is in it", path = path.display())]
    NotBuilt {
        /// The folder.
        path: PathBuf,
    },
    /// It is something else.
    #[error("`{path}` is no x86 kernel: neither a bzImage nor a vmlinux with a PVH entry", path = path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// Its end is missing.
    #[error("kernel `{path}` is cut short: {len} bytes of {wanted}", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What it has.
        len: u64,
        /// What its header promises.
        wanted: u64,
    },
}

/// Checks that a file is a whole kernel that QEMU can boot, and returns its content.
///
/// # Errors
/// [`KernelError`].
pub fn inspect(path: &Path) -> Result<Vec<u8>, KernelError> {
    let unreadable = |source| KernelError::Read { path: path.to_owned(), source };
    let not_a_kernel = || KernelError::NotAKernel { path: path.to_owned() };
    // Reading a pipe or a device might never end.
    let found = fs::metadata(path).map_err(unreadable)?;
    if found.is_dir() {
        return Err(KernelError::NotBuilt { path: path.to_owned() });
    }
    if !found.is_file() || found.len() > MAX_KERNEL_LEN {
        return Err(not_a_kernel());
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let wanted = match bytes.starts_with(b"\x7fELF") {
        true => elf_len(&bytes).ok_or_else(not_a_kernel)?,
        false => BzImage::parse(&bytes).ok_or_else(not_a_kernel)?.len,
    };
    let len = bytes.len() as u64;
    if len < wanted {
        return Err(KernelError::Truncated { path: path.to_owned(), len, wanted });
    }
    if bytes.starts_with(b"\x7fELF") && !has_pvh_entry(&bytes) {
        return Err(not_a_kernel());
    }
    Ok(bytes)
}

/// The `vmlinux` in a `bzImage`, if we know its compression and it has a PVH entry.
pub(crate) fn vmlinux(bytes: &[u8]) -> Option<Vec<u8>> {
    let payload = bytes.get(BzImage::parse(bytes)?.payload)?;
    // The last four bytes are the length of what is inside.
    let (packed, len) = payload.split_at_checked(payload.len().checked_sub(4)?)?;
    let len = usize::try_from(u32::from_le_bytes(len.try_into().ok()?)).ok()?;
    let vmlinux = match packed {
        _ if packed.starts_with(&MAGIC) => {
            let mut out = Vec::new();
            // What is longer than it says is no kernel.
            LegacyDecoder::new(packed).take(len as u64 + 1).read_to_end(&mut out).ok()?;
            out
        }
        _ => unpack(packed).ok()?,
    };
    let whole = vmlinux.len() == len && elf_len(&vmlinux).is_some_and(|end| end <= len as u64);
    (whole && has_pvh_entry(&vmlinux)).then_some(vmlinux)
}

/// `uname -r` of a kernel, as it says itself: a `bzImage` in its header ("kernel_version"), a `vmlinux` in its banner.
pub fn release(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let text = match bytes.starts_with(b"\x7fELF") {
        true => {
            let at = bytes.windows(BANNER.len()).position(|window| window == BANNER)?;
            bytes.get(at + BANNER.len()..)?
        }
        false => {
            BzImage::parse(bytes)?;
            let at = usize::from(u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?));
            bytes.get(at.checked_add(0x200)?..)?
        }
    };
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    let release = str::from_utf8(text.get(..end)?).ok()?;
    let is_one = !release.is_empty() && release.len() < 65 && !release.contains('/');
    is_one.then(|| release.to_owned())
}

struct BzImage {
    /// What the header promises, in bytes.
    len: u64,
    payload: std::ops::Range<usize>,
}

impl BzImage {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(0x1fe..0x200)? != [0x55, 0xaa] || bytes.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let setup_sectors = match *bytes.get(0x1f1)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup = (setup_sectors + 1) * 512;
        let len = setup + u64::from(u32_at(bytes, 0x1f4)?) * 16;
        let start = setup.checked_add(u32_at(bytes, 0x248)?.into())?;
        let end = start.checked_add(u32_at(bytes, 0x24c)?.into())?;
        Some(Self { len, payload: usize::try_from(start).ok()?..usize::try_from(end).ok()? })
    }
}

/// Where the last segment of an x86-64 ELF file ends (ELF-64 Object File Format).
fn elf_len(bytes: &[u8]) -> Option<u64> {
    let segments = segments(bytes)?;
    segments.iter().map(|segment| segment.offset.checked_add(segment.len)).max()?
}

/// Is there a note that names a PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`, type 18)?
fn has_pvh_entry(bytes: &[u8]) -> bool {
    const NOTE: u32 = 4;
    const HEADER: usize = 12;
    let found = |segment: &Segment| {
        let start = usize::try_from(segment.offset).ok()?;
        let mut notes = bytes.get(start..start.checked_add(usize::try_from(segment.len).ok()?)?)?;
        while notes.len() > HEADER {
            let name = usize::try_from(u32_at(notes, 0)?).ok()?;
            let data = usize::try_from(u32_at(notes, 4)?).ok()?;
            if u32_at(notes, 8)? == 18 && notes.get(HEADER..HEADER + 4)? == b"Xen\0" {
                return Some(());
            }
            let len = HEADER.checked_add(name.checked_next_multiple_of(4)?)?;
            notes = notes.get(len.checked_add(data.checked_next_multiple_of(4)?)?..)?;
        }
        None
    };
    let notes = segments(bytes).unwrap_or_default();
    notes.iter().filter(|segment| segment.kind == NOTE).any(|segment| found(segment).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bzImage with one setup sector, `payload` and 32 bytes of something else.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x1f1] = 1;
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        let code = payload.len().next_multiple_of(16) + 32;
        bytes[0x1f4..0x1f8].copy_from_slice(&u32::try_from(code / 16).unwrap().to_le_bytes());
        bytes[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        bytes[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
        bytes.resize(1040, 0);
        bytes.extend(payload);
        bytes.resize(1024 + code, 0);
        bytes
    }

    fn inspect_bytes(bytes: &[u8]) -> Result<Vec<u8>, KernelError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        inspect(file.path())
    }

    #[test]
    fn a_whole_kernel_passes_and_a_cut_one_is_named() {
        let whole = bzimage(b"payload");
        assert!(inspect_bytes(&whole).is_ok());
        let cut = inspect_bytes(&whole[..whole.len() - 1]);
        assert!(
            matches!(cut, Err(KernelError::Truncated { len: 1071, wanted: 1072, .. })),
            "{cut:?}"
        );
        assert!(matches!(inspect_bytes(b"text"), Err(KernelError::NotAKernel { .. })));
        assert!(matches!(inspect(Path::new("/")), Err(KernelError::NotBuilt { .. })));
        assert!(matches!(inspect(Path::new("/none")), Err(KernelError::Read { .. })));
        // An ELF file without PVH entry.
        let myself = std::env::current_exe().unwrap();
        assert!(matches!(inspect(&myself), Err(KernelError::NotAKernel { .. })));
    }

    #[test]
    fn a_kernel_says_its_release() {
        let mut bytes = bzimage(b"payload");
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        bytes[0x300..0x30b].copy_from_slice(b"6.1.0-x (a)");
        assert_eq!(release(&bytes).as_deref(), Some("6.1.0-x"));
        let vmlinux = b"\x7fELF..Linux version 6.2.0+ (me)\0";
        assert_eq!(release(vmlinux).as_deref(), Some("6.2.0+"));
        assert_eq!(release(b"\x7fELF..Linux version "), None);
    }

    proptest! {
        #[test]
        fn no_file_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), kind in 0..3) {
            match kind {
                0 => bytes.splice(0..0, *b"\x7fELF\x02\x01").for_each(drop),
                1 => bytes = bzimage(&bytes),
                _ => {}
            }
            if kind == 0 && bytes.len() > 64 {
                bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
            }
            let _ = vmlinux(&bytes);
            let _ = release(&bytes);
            let _ = elf_len(&bytes);
            has_pvh_entry(&bytes);
        }
    }
}
