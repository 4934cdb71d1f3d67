//! What a file or folder is, by its content; its name says nothing.

use super::packing::{Packed, Packing};
use super::read;
use super::rootfs::most_unpacked;
use crate::host::hint_of_io;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// What a file or folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder that is a root file system.
    Folder,
    /// A tar archive of a root file system, perhaps compressed.
    Tar,
    /// An initial RAM file system: cpio archives one after the other, perhaps compressed.
    Cpio,
    /// A folder with an OCI image (OCI image-spec, `image-layout.md`).
    OciLayout,
    /// The same as a tar archive, perhaps compressed.
    OciArchive,
    /// What `docker save` writes, perhaps compressed.
    DockerArchive,
    /// A squashfs.
    Squashfs,
    /// A qcow2 disk image.
    Qcow2,
    /// A raw disk image, or one file system.
    RawDisk,
    /// An ISO 9660 image.
    Iso,
    /// What `guestline cache export` writes.
    Guestline,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "root folder",
            Self::Tar => "tar archive",
            Self::Cpio => "initramfs",
            Self::OciLayout => "OCI image",
            Self::OciArchive => "OCI archive",
            Self::DockerArchive => "docker archive",
            Self::Squashfs => "squashfs",
            Self::Qcow2 => "qcow2 disk",
            Self::RawDisk => "raw disk",
            Self::Iso => "ISO image",
            Self::Guestline => "Guestline archive",
        })
    }
}

/// What cannot be an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKind {
    /// No bytes.
    Empty,
    /// A Linux kernel.
    Kernel,
    /// An ELF program.
    Program,
    /// A disk of another format, by its name.
    OtherDisk(&'static str),
    /// A disk or a file system in a compressed file, which cannot be read from any place.
    Packed {
        /// What it is when it is unpacked.
        kind: Kind,
        /// What unpacks it.
        tool: &'static str,
    },
    /// A pipe, a device or a socket.
    NoFile,
    /// Anything else.
    Unknown,
}

/// A file or folder is nothing that is known here.
#[derive(Debug, thiserror::Error)]
pub enum KindError {
    /// It cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("`{path}` is no image: {why}", path = path.display())]
    None {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: NoKind,
    },
}

impl fmt::Display for NoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Kernel => f.write_str("it is a Linux kernel"),
            Self::Program => f.write_str("it is an ELF program"),
            Self::OtherDisk(name) => write!(f, "it is a {name} disk"),
            Self::Packed { kind, tool } => write!(f, "it is a {kind}, compressed by {tool}"),
            Self::NoFile => f.write_str("it is neither a file nor a folder"),
            Self::Unknown => f.write_str(
                "it is no root folder, tar, initramfs, OCI or docker archive, squashfs, qcow2, raw disk or ISO",
            ),
        }
    }
}

impl KindError {
    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        let (file, why) = match self {
            Self::Read { source, .. } => return hint_of_io(source).map(str::to_owned),
            Self::None { path, why } => (path, why),
        };
        let path = crate::text::quote(&file.to_string_lossy());
        Some(match why {
            NoKind::Kernel => format!("boot it with any image: --kernel {path}"),
            NoKind::OtherDisk(_) => {
                format!("convert it: qemu-img convert -O qcow2 {path} disk.qcow2")
            }
            NoKind::Packed { tool, .. } => {
                let plain = file.extension().and(file.file_stem());
                let plain = plain.map_or_else(|| "disk".into(), |name| name.to_string_lossy());
                let plain = crate::text::quote(&plain);
                format!("unpack it first: {tool} -dc {path} > {plain}")
            }
            NoKind::Program => format!("put it into a machine: guestline check --with {path} …"),
            NoKind::Empty => "was its download interrupted? fetch it once more".to_owned(),
            NoKind::NoFile => "copy it into a file first".to_owned(),
            NoKind::Unknown => format!("`file {path}` may tell what it is"),
        })
    }
}

/// So much of a file tells what it is: what lies farthest is btrfs's magic, at 64 KiB and 64 bytes.
const HEAD: u64 = 66 * 1024;

/// The first member of what `cache export` writes.
pub(crate) const GUESTLINE: &str = "guestline-cache.json";

impl Kind {
    /// Of a file or folder. An archive is read for it, perhaps to its end.
    ///
    /// # Errors
    /// [`KindError`].
    pub fn of(path: &Path, cancel: &CancellationToken) -> Result<Self, KindError> {
        let unreadable = |source| KindError::Read { path: path.to_owned(), source };
        let none = |why| KindError::None { path: path.to_owned(), why };
        let found = fs::metadata(path).map_err(unreadable)?;
        if found.is_dir() {
            let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
            return Ok(if is_layout { Self::OciLayout } else { Self::Folder });
        }
        // Reading a pipe or a device might never end; a disk is read as far as it is.
        if !found.is_file() && !found.file_type().is_block_device() {
            return Err(none(NoKind::NoFile));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let start = head(&mut file).map_err(unreadable)?;
        if start.is_empty() {
            return Err(none(NoKind::Empty));
        }
        let kind = match Packing::of(&start) {
            Packing::Plain => of_bytes(&start),
            packing => {
                file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
                let inside = Packed::open(file).and_then(|mut packed| head(&mut packed));
                // Only archives are read while they are unpacked.
                match of_bytes(&inside.map_err(unreadable)?) {
                    Ok(kind @ (Self::Tar | Self::Cpio)) => Ok(kind),
                    Ok(kind @ (Self::Qcow2 | Self::RawDisk | Self::Iso | Self::Squashfs)) => {
                        Err(NoKind::Packed { kind, tool: packing.tool() })
                    }
                    Ok(_) | Err(_) => Err(NoKind::Unknown),
                }
            }
        };
        match kind.map_err(none)? {
            Self::Tar => of_tar(path, found.len(), cancel).map_err(unreadable),
            kind => Ok(kind),
        }
    }
}

fn head(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    from.take(HEAD).read_to_end(&mut start)?;
    Ok(start)
}

/// Magic numbers and their places, as of magic(5) and the formats' own documents.
fn of_bytes(bytes: &[u8]) -> Result<Kind, NoKind> {
    let has = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let file_systems: [(usize, &[u8]); 4] =
        [(0x438, &[0x53, 0xef]), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (0x218, b"LVM2 001")];
    Ok(match bytes {
        _ if has(0, b"QFI\xfb") => Kind::Qcow2,
        _ if has(0, b"070701") || has(0, b"070702") => Kind::Cpio,
        _ if has(257, b"ustar") => Kind::Tar,
        _ if has(0, b"hsqs") => Kind::Squashfs,
        _ if has(0x8001, b"CD001") => Kind::Iso,
        _ if has(0x202, b"HdrS") => return Err(NoKind::Kernel),
        _ if has(0, b"\x7fELF") => return Err(NoKind::Program),
        _ if has(0, b"KDMV") => return Err(NoKind::OtherDisk("VMDK")),
        _ if has(0, b"conectix") || has(0, b"vhdxfile") => return Err(NoKind::OtherDisk("VHD")),
        _ if has(0x40, &[0x7f, 0x10, 0xda, 0xbe]) => return Err(NoKind::OtherDisk("VDI")),
        _ if has(510, &[0x55, 0xaa]) || has(512, b"EFI PART") => Kind::RawDisk,
        _ if file_systems.iter().any(|(at, magic)| has(*at, magic)) => Kind::RawDisk,
        _ => return Err(NoKind::Unknown),
    })
}

/// A root file system, or a container image in an archive; the names of its members tell.
fn of_tar(path: &Path, len: u64, cancel: &CancellationToken) -> io::Result<Kind> {
    let packed = Packed::open(File::open(path)?)?;
    let mut kind = Kind::Tar;
    let known = read::names(packed, most_unpacked(len), cancel, |name| {
        let name = String::from_utf8_lossy(name);
        let name = name.trim_start_matches("./").trim_end_matches('/');
        let (first, is_file) = (name.split('/').next().unwrap_or_default(), !name.contains('/'));
        match first {
            GUESTLINE => return ControlFlow::Break(Kind::Guestline),
            "oci-layout" if is_file => kind = Kind::OciArchive,
            // Newer `docker save` writes both.
            "manifest.json" if is_file && kind == Kind::Tar => kind = Kind::DockerArchive,
            "" | "blobs" | "index.json" | "manifest.json" | "repositories" => {}
            _ if ROOT_NAMES.contains(&first) => return ControlFlow::Break(Kind::Tar),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(known.unwrap_or(kind))
}

/// What lies at the top of a root (FHS 3.0, 3.2), and of no container archive.
const ROOT_NAMES: [&str; 20] = [
    "bin", "boot", "dev", "etc", "home", "init", "lib", "lib64", "media", "mnt", "opt", "proc",
    "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn kind(bytes: &[u8]) -> Result<Kind, NoKind> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        Kind::of(file.path(), &CancellationToken::new()).map_err(|error| match error {
            KindError::None { why, .. } => why,
            error => panic!("{error}"),
        })
    }

    fn tar_of(names: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            tar.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn at(place: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; place];
        bytes.extend(magic);
        bytes.resize(bytes.len() + 600, 0);
        bytes
    }

    #[test]
    fn the_content_tells() {
        let layer = "a".repeat(64);
        for (bytes, wanted) in [
            (tar_of(&["./bin/sh", "manifest.json"]), Kind::Tar),
            (tar_of(&["oci-layout", "blobs/sha256/x", "index.json"]), Kind::OciArchive),
            (tar_of(&["blobs/x", "manifest.json", "oci-layout"]), Kind::OciArchive),
            (tar_of(&[&format!("{layer}/layer.tar"), "manifest.json"]), Kind::DockerArchive),
            (tar_of(&["guestline-cache.json"]), Kind::Guestline),
            (at(0, b"070701"), Kind::Cpio),
            (at(0, b"QFI\xfb"), Kind::Qcow2),
            (at(0, b"hsqs"), Kind::Squashfs),
            (at(0x8001, b"CD001"), Kind::Iso),
            (at(510, &[0x55, 0xaa]), Kind::RawDisk),
            (at(0x438, &[0x53, 0xef]), Kind::RawDisk),
        ] {
            assert_eq!(kind(&bytes), Ok(wanted));
        }
        let folder = tempfile::tempdir().unwrap();
        let of = |path: &Path| Kind::of(path, &CancellationToken::new());
        assert_eq!(of(folder.path()).unwrap(), Kind::Folder);
        fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        fs::write(folder.path().join("index.json"), "{}").unwrap();
        assert_eq!(of(folder.path()).unwrap(), Kind::OciLayout);
    }

    #[test]
    fn a_compressed_disk_is_to_be_unpacked_first() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("my disk.raw");
        fs::write(&disk, at(510, &[0x55, 0xaa])).unwrap();
        for (tool, end) in [("xz", ".xz"), ("gzip", ".gz")] {
            let ran = std::process::Command::new(tool).arg("-k").arg(&disk).status().unwrap();
            assert!(ran.success());
            let packed = folder.path().join(format!("my disk.raw{end}"));
            let error = Kind::of(&packed, &CancellationToken::new()).unwrap_err();
            let wanted = format!("it is a raw disk, compressed by {tool}");
            assert!(error.to_string().ends_with(&wanted), "{error}");
            let packed = packed.display();
            let wanted = format!("unpack it first: {tool} -dc '{packed}' > 'my disk.raw'");
            assert_eq!(error.hint(), Some(wanted));
        }
    }

    #[test]
    fn what_is_none_is_named() {
        assert_eq!(kind(b""), Err(NoKind::Empty));
        assert_eq!(kind(b"text"), Err(NoKind::Unknown));
        assert_eq!(kind(&at(0x202, b"HdrS")), Err(NoKind::Kernel));
        assert_eq!(kind(&at(0, b"KDMV")), Err(NoKind::OtherDisk("VMDK")));
        let of = |path: &str| Kind::of(Path::new(path), &CancellationToken::new());
        assert!(matches!(of("/none"), Err(KindError::Read { .. })));
        assert!(matches!(of("/dev/null"), Err(KindError::None { .. })));
    }

    #[test]
    fn what_is_none_has_a_way_out() {
        for (why, wanted) in [
            (NoKind::Empty, "fetch it once more"),
            (NoKind::Kernel, "--kernel 'a b'"),
            (NoKind::Program, "--with 'a b'"),
            (NoKind::OtherDisk("VMDK"), "qemu-img convert"),
            (NoKind::Packed { kind: Kind::RawDisk, tool: "xz" }, "unpack it first: xz -dc"),
            (NoKind::NoFile, "copy it"),
            (NoKind::Unknown, "file 'a b'"),
        ] {
            let hint = KindError::None { path: "a b".into(), why }.hint().unwrap_or_default();
            assert!(hint.contains(wanted), "{why:?}: {hint}");
        }
    }

    #[test]
    fn a_bomb_is_not_read_to_its_end_and_neither_is_what_nobody_wants() {
        // More than a GiB of nothing, and behind it what would tell.
        let mut header = tar::Header::new_gnu();
        header.set_path("blobs/large").unwrap();
        header.set_size(1100 << 20);
        header.set_cksum();
        let plain = tempfile::tempfile().unwrap();
        plain.write_all_at(header.as_bytes(), 0).unwrap();
        plain.write_all_at(&tar_of(&["manifest.json"]), 512 + (1100 << 20)).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zstd = std::process::Command::new("zstd");
        zstd.args(["-1", "-c"]).stdin(plain).stdout(file.reopen().unwrap());
        assert!(zstd.status().unwrap().success());
        let cancel = CancellationToken::new();
        assert_eq!(Kind::of(file.path(), &cancel).unwrap(), Kind::Tar);
        cancel.cancel();
        assert!(matches!(Kind::of(file.path(), &cancel), Err(KindError::Read { .. })));
    }
}
