//! Read-only file systems for disks: squashfs out of a tar file, the same bytes from the same members.

use super::build::BuildError;
use super::packages::run_on;
use nix::unistd::Uid;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

/// The time of what has none: reproducible-builds.org, `SOURCE_DATE_EPOCH`.
pub(super) const EPOCH: &str = "0";

/// How a file system is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Small, and quick to read.
    Zstd,
    /// The same, quick to write and a tenth larger.
    ZstdSoon,
    /// What every kernel with squashfs can read; quick to write: the best level takes forty times as long for a tenth less.
    Gzip,
}

/// Packs a tar file as squashfs.
pub(super) fn pack(
    tar: File,
    to: &Path,
    compression: Compression,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    // The root folder has no member in the tar file, and is whose we are.
    let mut pack = match Uid::effective().is_root() {
        true => Command::new("mksquashfs"),
        false => {
            let mut unshare = Command::new("unshare");
            unshare.args(["--map-root-user", "mksquashfs"]);
            unshare
        }
    };
    pack.args([
        "-",
        &to.to_string_lossy(),
        "-tar",
        "-comp",
        match compression {
            Compression::Zstd | Compression::ZstdSoon => "zstd",
            Compression::Gzip => "gzip",
        },
        "-noappend",
        "-no-progress",
        "-quiet",
    ]);
    if compression != Compression::Zstd {
        pack.args(["-Xcompression-level", "3"]);
    }
    pack.args(["-root-mode", "0755"]);
    pack.env("SOURCE_DATE_EPOCH", EPOCH);
    run_on(&mut pack, Some(tar), cancel)?;
    Ok(())
}

/// A tar file whose members are root's and have no time.
pub(super) struct TarWriter(tar::Builder<BufWriter<File>>);

impl TarWriter {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        // Also for who is another user in a user namespace.
        file.set_permissions(Permissions::from_mode(0o644))?;
        Ok(Self(tar::Builder::new(BufWriter::new(file))))
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content)
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Symlink, 0o777), path, target)
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner()?.flush()
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
