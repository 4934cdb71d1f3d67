//! The format of an archive: a tar file in an LZ4 frame, whose members come in one order.
//!
//! ```text
//! guestline-cache.json             the index: what follows, with all digests
//! images/NAME/DIGEST/FILE          of each image its files, in the order of its manifest
//! templates/ID/state               of each template the devices,
//! templates/ID/ram.pages           its memory as a stream (template/ram),
//! templates/ID/disk0.pages         and likewise what its disks hold
//! ```
//! Who reads it knows from the index which member comes next, and takes no other: no path of an archive is ever used.

use super::super::template::TemplateRecord;
use crate::digest::Digest;
use crate::image::{FileRecord, GUESTLINE_INDEX, Manifest};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use tar::{EntryType, Header};

/// The format's number.
pub(super) const FORMAT: u32 = 2;

/// The format of an archive without recipes, which older builds read as well.
pub(super) const FORMAT_WITHOUT_RECIPES: u32 = 1;

/// Its name, by which an archive is known.
pub(super) const INDEX: &str = GUESTLINE_INDEX;

/// The name of a template's devices.
pub(super) const STATE: &str = "state";

/// The name of a template's memory.
pub(super) const RAM_PAGES: &str = "ram.pages";

/// The name of what one of its disks holds.
pub(super) fn disk_pages(number: usize) -> String {
    format!("disk{number}.pages")
}

/// More is no index.
const MAX_INDEX_LEN: u64 = 16 * 1024 * 1024;

/// Tar pads to blocks of this (POSIX pax, "ustar Interchange Format").
const BLOCK: usize = 512;

/// What an archive has.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) format: u32,
    /// Version of Guestline that made it.
    pub(super) guestline: String,
    pub(super) images: Vec<Manifest>,
    /// Of an image by itself, what it is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) recipes: Vec<String>,
    pub(super) templates: Vec<ArchivedTemplate>,
}

/// A template in an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArchivedTemplate {
    pub(super) record: TemplateRecord,
    pub(super) state: FileRecord,
    /// The memory's stream.
    pub(super) ram: FileRecord,
    /// The streams of what its disks hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<FileRecord>,
}

/// An archive that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is none, or not as it was written.
    #[error("it is no archive of Guestline's, or damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// A newer Guestline wrote it.
    #[error(
        "it was made by a newer Guestline: its format is {format}, and this one reads {FORMAT}"
    )]
    Newer {
        /// Its format.
        format: u64,
    },
    /// It is one of an image by itself.
    #[error("it is the archive of an image, not of a cache")]
    OfImage,
    /// There is no room for what it has.
    #[error("the disk of `{folder}` has {free_mib} MiB free, and {wanted_mib} MiB are wanted", folder = folder.display())]
    NoRoom {
        /// The cache folder.
        folder: PathBuf,
        /// What is there.
        free_mib: u64,
        /// What is wanted.
        wanted_mib: u64,
    },
    /// The cache folder.
    #[error("cannot write `{path}`", path = path.display())]
    Cache {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

impl ArchiveError {
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    pub(super) fn unreadable(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Cancelled,
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends too early"),
            _ => Self::damaged(error.to_string()),
        }
    }
}

pub(super) fn image_member(image: &Manifest, file: &FileRecord) -> String {
    format!("images/{}/{}/{}", image.name, image.digest().short(), file.name)
}

pub(super) fn template_member(template: &ArchivedTemplate, file: &FileRecord) -> String {
    format!("templates/{}/{}", template.record.key.id(), file.name)
}

/// The format, of an index of whatever format.
fn format_of(text: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(text).ok()?["format"].as_u64()
}

/// Writes members, each announced with its length.
pub(super) struct MemberWriter<W: Write> {
    to: W,
    padding: usize,
}

impl<W: Write> MemberWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, padding: 0 }
    }

    /// Begins a member, of which `size` bytes are to be written next.
    pub(super) fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.pad()?;
        let mut header = Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o400);
        header.set_entry_type(EntryType::Regular);
        // The same content gives the same archive.
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.to.write_all(header.as_bytes())?;
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.padding = (BLOCK - over) % BLOCK;
        Ok(())
    }

    pub(super) fn member(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.begin(name, content.len() as u64)?;
        self.to.write_all(content)
    }

    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.to.write_all(piece)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(self.to)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.to.write_all(&[0; BLOCK][..padding])
    }
}

/// Reads members that are known beforehand.
pub(super) struct MemberReader<'a, R: Read> {
    members: tar::Entries<'a, R>,
}

impl<'a, R: Read> MemberReader<'a, R> {
    pub(super) fn new(archive: &'a mut tar::Archive<R>) -> Result<Self, ArchiveError> {
        let members = archive.entries().map_err(ArchiveError::unreadable)?;
        // Names that are too long for a header would be kept in memory, whatever their length.
        Ok(Self { members: members.raw(true) })
    }

    /// The index, checked as far as it can be by itself.
    pub(super) fn index(&mut self) -> Result<Index, ArchiveError> {
        let member = self.next(INDEX)?;
        if member.size() > MAX_INDEX_LEN {
            return Err(ArchiveError::damaged("its index is too long"));
        }
        let mut text = Vec::new();
        member.take(MAX_INDEX_LEN).read_to_end(&mut text).map_err(ArchiveError::unreadable)?;
        if let Some(format) = format_of(&text).filter(|format| *format > u64::from(FORMAT)) {
            return Err(ArchiveError::Newer { format });
        }
        let index = serde_json::from_slice(&text);
        index.map_err(|error| ArchiveError::damaged(format!("its index: {error}")))
    }

    /// The member that is to come now, which is to be as long as it was said.
    pub(super) fn sized(
        &mut self,
        name: &str,
        size: u64,
    ) -> Result<tar::Entry<'a, R>, ArchiveError> {
        let member = self.next(name)?;
        match member.size() {
            found if found == size => Ok(member),
            found => Err(ArchiveError::damaged(format!("`{name}` has {found} bytes, not {size}"))),
        }
    }

    /// Nothing is to come any more.
    pub(super) fn end(&mut self) -> Result<(), ArchiveError> {
        match self.members.next() {
            None => Ok(()),
            Some(Ok(_)) => Err(ArchiveError::damaged("it has more than its index says")),
            Some(Err(error)) => Err(ArchiveError::unreadable(error)),
        }
    }

    fn next(&mut self, name: &str) -> Result<tar::Entry<'a, R>, ArchiveError> {
        let member = match self.members.next() {
            Some(member) => member.map_err(ArchiveError::unreadable)?,
            None => return Err(ArchiveError::damaged(format!("it ends before `{name}`"))),
        };
        if member.header().entry_type() != EntryType::Regular
            || &*member.path_bytes() != name.as_bytes()
        {
            let found = String::from_utf8_lossy(&member.path_bytes()).into_owned();
            let found = crate::text::one_line(&found, 60);
            return Err(ArchiveError::damaged(format!("it has `{found}` instead of `{name}`")));
        }
        Ok(member)
    }
}

/// Compares what came with what was announced.
pub(super) fn same(name: &str, found: &Digest, wanted: &Digest) -> Result<(), ArchiveError> {
    match found == wanted {
        true => Ok(()),
        false => Err(ArchiveError::damaged(format!("`{name}` has another content"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = MemberWriter::new(Vec::new());
        for (name, content) in members {
            writer.member(name, content).unwrap();
        }
        writer.finish().unwrap()
    }

    fn index_of(bytes: &[u8]) -> Result<Index, ArchiveError> {
        let mut archive = tar::Archive::new(bytes);
        MemberReader::new(&mut archive)?.index()
    }

    #[test]
    fn members_come_in_their_order_and_with_their_length() {
        let bytes = written(&[("a", &[1; 700]), ("b/c", b""), ("d", &[2; 512])]);
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut reader = MemberReader::new(&mut archive).unwrap();
        let mut content = Vec::new();
        reader.sized("a", 700).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [1; 700]);
        let said = |error: ArchiveError| error.to_string();
        let error = reader.sized("b/c", 1).map(drop).unwrap_err();
        assert!(said(error).ends_with("`b/c` has 0 bytes, not 1"));
        let error = reader.sized("e", 512).map(drop).unwrap_err();
        assert!(said(error).ends_with("it has `d` instead of `e`"));
        reader.end().unwrap();
        let error = reader.sized("e", 512).map(drop).unwrap_err();
        assert!(said(error).ends_with("it ends before `e`"));
    }

    #[test]
    fn a_link_or_a_long_name_is_no_member() {
        for kind in
            [EntryType::Symlink, EntryType::Link, EntryType::GNULongName, EntryType::XHeader]
        {
            let mut bytes = written(&[(INDEX, b"{}")]);
            bytes[156] = kind.as_byte();
            let mut header = Header::from_byte_slice(&bytes[..BLOCK]).clone();
            header.set_cksum();
            bytes[..BLOCK].copy_from_slice(header.as_bytes());
            let error = index_of(&bytes).unwrap_err().to_string();
            assert!(error.contains("instead of"), "{error}");
        }
    }

    #[test]
    fn an_index_of_another_format_is_refused_by_its_number() {
        let index = |text: &str| index_of(&written(&[(INDEX, text.as_bytes())])).map(drop);
        let text = r#"{"format":1,"guestline":"0.1.0","images":[],"templates":[]}"#;
        index(text).unwrap();
        let said = |text: &str| index(text).unwrap_err().to_string();
        insta::assert_snapshot!(said(r#"{"format":7,"future":{}}"#), @"it was made by a newer Guestline: its format is 7, and this one reads 2");
        assert!(said(r#"{"format":1}"#).contains("its index: missing field"));
        assert!(said("x").contains("its index: expected value"));
        assert!(matches!(index_of(b"hello"), Err(ArchiveError::Damaged { .. })));
        assert!(matches!(index_of(b""), Err(ArchiveError::Damaged { .. })));
    }
}
