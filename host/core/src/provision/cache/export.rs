//! Templates, with the images they belong to, into an archive.

use super::archive::{
    ArchivedTemplate, FORMAT_WITHOUT_RECIPES, INDEX, Index, MemberWriter, RAM_PAGES, STATE,
    disk_pages, image_member, template_member,
};
use super::frame::frame_writer;
use super::{Cache, Content};
use crate::digest::Digest;
use crate::folder_lock::FolderLock;
use crate::image::{FileRecord, Manifest};
use crate::kept::Condition;
use crate::provision::template::{Found, PageDigests, Template, stream_ram, survey_ram};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// So much is copied at a time.
const PIECE: usize = 256 * 1024;

/// Nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No such template.
    #[error("no template `{id}` in the cache")]
    Unknown {
        /// As it was named.
        id: String,
    },
    /// An image with packages that were asked for beside those of its manifest.
    #[error("image `{name}` has no manifest of its own to go with it")]
    NoManifest {
        /// The image.
        name: String,
    },
    /// No template at all.
    #[error("the cache has no template")]
    Empty,
    /// Something is not what it was.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Its kind and id.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Something cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Its kind and id.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

/// What was exported.
#[derive(Debug)]
pub struct Exported {
    /// The ids of the templates.
    pub templates: Vec<String>,
    /// Names of the images.
    pub images: Vec<String>,
    /// Templates whose image is not in the cache.
    pub without_image: Vec<String>,
}

/// An image, held so that it is not removed.
struct Held {
    manifest: Manifest,
    folder: PathBuf,
    _lock: Option<FolderLock>,
}

impl Cache {
    /// Writes templates, by the beginnings of their ids, or all, with their images.
    ///
    /// # Errors
    /// [`ExportError`]; what was written is to be thrown away then.
    pub fn export(
        &self,
        ids: &[String],
        to: impl Write,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Exported, ExportError> {
        let chosen = self.chosen(ids)?;
        let (images, without_image) = self.images_of(&chosen);
        let mut templates = Vec::new();
        for template in &chosen {
            templates.push(survey(template, go_on)?);
        }
        let exported = Exported {
            templates: chosen.iter().map(|template| template.id().to_string()).collect(),
            images: images.iter().map(|image| image.manifest.name.clone()).collect(),
            without_image,
        };
        let index = Index {
            format: FORMAT_WITHOUT_RECIPES,
            guestline: env!("CARGO_PKG_VERSION").to_owned(),
            images: images.iter().map(|image| image.manifest.clone()).collect(),
            recipes: Vec::new(),
            templates: templates.clone(),
        };
        let write = ExportError::Write;
        let text = serde_json::to_vec(&index).map_err(|error| write(error.into()))?;
        let mut writer = MemberWriter::new(frame_writer(to));
        writer.member(INDEX, &text).map_err(write)?;
        for Held { manifest, folder, .. } in &images {
            write_image(manifest, &|file| folder.join(file), &mut writer, go_on)?;
        }
        for (template, archived) in chosen.iter().zip(&templates) {
            let (what, name) = (what(template), template_member(archived, &archived.state));
            writer.begin(&name, archived.state.size).map_err(write)?;
            copy(&template.state(), &archived.state, &what, &mut writer, go_on)?;
            let mut pages = vec![(template.ram(), &archived.ram)];
            let disks = template.disks().into_iter().map(|disk| disk.path().to_owned());
            pages.extend(disks.zip(&archived.disks));
            for (path, record) in pages {
                writer.begin(&template_member(archived, record), record.size).map_err(write)?;
                copy_pages(&path, record, &what, &mut writer, go_on)?;
            }
        }
        let finished = writer.finish().and_then(|frame| frame.finish().map_err(io::Error::other));
        finished.and_then(|mut to| to.flush()).map_err(write)?;
        Ok(exported)
    }

    /// The templates, checked and held.
    fn chosen(&self, ids: &[String]) -> Result<Vec<Template>, ExportError> {
        let mut chosen = Vec::new();
        let mut named = vec![false; ids.len()];
        for (kept, _) in self.templates.kept() {
            if !matches!(kept.condition, Condition::Ready | Condition::Damaged(_)) {
                continue;
            }
            let mut wanted = ids.is_empty();
            for (id, named) in ids.iter().zip(&mut named) {
                if !id.is_empty() && kept.name.starts_with(id.as_str()) {
                    (wanted, *named) = (true, true);
                }
            }
            if !wanted {
                continue;
            }
            match self.templates.inspect(&kept) {
                Found::Ready(template) => chosen.push(*template),
                // What nobody named is left out; `cache verify` tells of it.
                _ if ids.is_empty() => {}
                Found::Damaged(why) => {
                    return Err(ExportError::Damaged {
                        what: format!("template {}", kept.name),
                        why,
                    });
                }
                // It went meanwhile.
                Found::Absent | Found::Foreign(_) => {
                    return Err(ExportError::Unknown { id: kept.name });
                }
            }
        }
        if let Some((id, _)) = ids.iter().zip(named).find(|(_, named)| !named) {
            return Err(ExportError::Unknown { id: id.clone() });
        }
        if chosen.is_empty() {
            return Err(ExportError::Empty);
        }
        Ok(chosen)
    }

    /// The images of templates, each once, and the templates without.
    fn images_of(&self, templates: &[Template]) -> (Vec<Held>, Vec<String>) {
        let mut images = Vec::new();
        for entry in self.entries() {
            let Content::Image(Some(manifest)) = entry.content else { continue };
            let digest = manifest.digest();
            if entry.condition == Condition::Ready
                && templates.iter().any(|template| template.record.key.image == digest)
            {
                let folder = entry.kept.folder;
                let _lock = FolderLock::shared(&folder).ok().flatten();
                images.push(Held { manifest: *manifest, folder, _lock });
            }
        }
        let has =
            |image: &Digest| images.iter().any(|held: &Held| held.manifest.digest() == *image);
        let without = templates.iter().filter(|template| !has(&template.record.key.image));
        let without = without.map(|template| template.id().to_string()).collect();
        (images, without)
    }
}

/// Writes the files of an image, in the order of its manifest.
pub(super) fn write_image<W: Write>(
    manifest: &Manifest,
    place_of: &dyn Fn(&str) -> PathBuf,
    writer: &mut MemberWriter<W>,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ExportError> {
    let what = format!("image {}", manifest.name);
    for file in &manifest.files {
        let begun = writer.begin(&image_member(manifest, file), file.size);
        begun.map_err(ExportError::Write)?;
        copy(&place_of(&file.name), file, &what, writer, go_on)?;
    }
    Ok(())
}

fn what(template: &Template) -> String {
    format!("template {}", template.id())
}

/// Reads a template's memory and disks, and tells what its files are.
fn survey(template: &Template, go_on: &dyn Fn() -> bool) -> Result<ArchivedTemplate, ExportError> {
    let what = what(template);
    let read = |source| ExportError::Read { what: what.clone(), source };
    let pages = |path: &Path, name: String| {
        let surveyed = survey_ram(path, go_on).map_err(read)?;
        let (sha256, size) = surveyed.ok_or(ExportError::Cancelled)?;
        Ok::<_, ExportError>(FileRecord { name, size, sha256 })
    };
    let ram = pages(&template.ram(), RAM_PAGES.to_owned())?;
    let disks = template.disks().into_iter().enumerate();
    let disks = disks
        .map(|(number, disk)| pages(disk.path(), disk_pages(number)))
        .collect::<Result<Vec<_>, _>>()?;
    let found = PageDigests {
        pages: ram.sha256.clone(),
        disks: disks.iter().map(|disk| disk.sha256.clone()).collect(),
    };
    if let Some(name) = template.known_pages().and_then(|known| known.difference(&found)) {
        let why = format!("{name} has another content");
        return Err(ExportError::Damaged { what, why });
    }
    let state = fs::metadata(template.state()).map_err(read)?;
    let sha256 = Digest::of_file(&template.state()).map_err(read)?;
    Ok(ArchivedTemplate {
        record: template.record.clone(),
        state: FileRecord { name: STATE.to_owned(), size: state.len(), sha256 },
        ram,
        disks,
    })
}

/// Copies a file that is to be what its record says.
fn copy<W: Write>(
    path: &Path,
    record: &FileRecord,
    what: &str,
    writer: &mut MemberWriter<W>,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ExportError> {
    let read = |source| ExportError::Read { what: what.to_owned(), source };
    let mut file = File::open(path).map_err(read)?.take(record.size);
    let (mut hasher, mut buffer, mut left) =
        (crate::digest::Hasher::default(), vec![0; PIECE], record.size);
    while left > 0 {
        if !go_on() {
            return Err(ExportError::Cancelled);
        }
        let len = file.read(&mut buffer).map_err(read)?;
        let piece = buffer.get(..len).unwrap_or_default();
        if piece.is_empty() {
            return Err(read(io::ErrorKind::UnexpectedEof.into()));
        }
        hasher.update(piece);
        writer.write(piece).map_err(ExportError::Write)?;
        left -= len as u64;
    }
    match hasher.finish() == record.sha256 {
        true => Ok(()),
        false => {
            let why = format!("{} has another content", record.name);
            Err(ExportError::Damaged { what: what.to_owned(), why })
        }
    }
}

/// Copies the pages of a file, as many as there were when it was looked at.
fn copy_pages<W: Write>(
    path: &Path,
    record: &FileRecord,
    what: &str,
    writer: &mut MemberWriter<W>,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ExportError> {
    let (mut left, mut lost) = (record.size, None);
    let streamed = stream_ram(path, go_on, &mut |piece| {
        left = left.checked_sub(piece.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        writer.write(piece).map_err(|error| {
            let kind = error.kind();
            lost = Some(error);
            kind.into()
        })
    });
    if let Some(error) = lost {
        return Err(ExportError::Write(error));
    }
    match streamed {
        Ok(true) if left == 0 => Ok(()),
        Ok(false) => Err(ExportError::Cancelled),
        Ok(true) => {
            let (what, why) = (what.to_owned(), format!("{} changes", record.name));
            Err(ExportError::Damaged { what, why })
        }
        Err(source) => Err(ExportError::Read { what: what.to_owned(), source }),
    }
}
