//! An archive's templates and images into the cache.
//!
//! What the archive says is checked before it is believed. All of it is brought beside its place first; when the archive
//! has been read to its end, and every digest agrees, it is published and sealed as if it had been made here. What is
//! there already stays.

use super::Cache;
use super::archive::{
    ArchiveError, ArchivedTemplate, Index, MemberReader, RAM_PAGES, STATE, disk_pages,
    image_member, same, template_member,
};
use super::frame::FrameReader;
use crate::digest::{Digest, Hasher};
use crate::host::free_mib;
use crate::image::share::MAX_FILE;
use crate::image::{Adopted, FileRecord, Manifest};
use crate::machine::qcow2::check_overlay;
use crate::machine::{MAX_DISKS, MEMORY_MIB, Qemu};
use crate::provision::template::{BadStream, FORMAT, Making, TemplateRecord, host_cpu, write_ram};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const PIECE: usize = 256 * 1024;

/// The state of a machine's devices has no more bytes.
const MAX_STATE: u64 = 1 << 30;

/// Nor does what a disk holds.
const MAX_DISK: u64 = 32 << 40;

/// Beside what comes in, so much room has to stay on the disk.
pub(super) const ROOM_MIB: u64 = 16;

/// After an archive's end its tar file may be padded with so much.
pub(super) const MAX_PADDING: u64 = 64 * 1024;

/// What became of something in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// It came in.
    New,
    /// It was there.
    There,
    /// Another of its name was there, and stays.
    OtherThere,
}

/// What came of an archive.
#[derive(Debug)]
pub struct Imported {
    /// The images, by their manifests.
    pub images: Vec<(Manifest, Arrival)>,
    /// The templates, by their records; and why this host does not use one, where it does not.
    pub templates: Vec<(TemplateRecord, Arrival, Option<String>)>,
}

/// An image or template on its way in.
enum Coming<T> {
    In(T),
    There,
    OtherThere,
}

impl<T> Coming<T> {
    fn arrival(&self) -> Arrival {
        match self {
            Self::In(_) => Arrival::New,
            Self::There => Arrival::There,
            Self::OtherThere => Arrival::OtherThere,
        }
    }
}

impl Cache {
    /// Takes an archive in. `host` is this host's QEMU.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing of it is there then, unless it came to its publishing.
    pub fn import(
        &self,
        from: impl Read,
        host: Option<&Qemu>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Imported, ArchiveError> {
        let mut archive = tar::Archive::new(FrameReader::new(from));
        let mut members = MemberReader::new(&mut archive)?;
        let index = members.index()?;
        check(&index)?;
        let images_folder = self.folder.join("images");
        let lock = self.images.wait_for_making(go_on, &|_| ()).map_err(cannot(&images_folder))?;
        let lock = lock.ok_or(ArchiveError::Cancelled)?;
        let mut images = Vec::new();
        for manifest in &index.images {
            images.push(self.begin_image(manifest, &lock)?);
        }
        let mut templates = Vec::new();
        for template in &index.templates {
            templates.push(self.begin_template(template)?);
        }
        self.check_room(&index, &images, &templates)?;
        for (manifest, coming) in index.images.iter().zip(&images) {
            for file in &manifest.files {
                let name = image_member(manifest, file);
                let member = members.sized(&name, file.size)?;
                if let Coming::In(adopted) = coming {
                    let found = receive(member, &adopted.file(file), go_on)?;
                    same(&name, &found, &file.sha256)?;
                }
            }
        }
        for (template, coming) in index.templates.iter().zip(&templates) {
            let name = template_member(template, &template.state);
            let state = members.sized(&name, template.state.size)?;
            if let Coming::In(making) = coming {
                same(&name, &receive(state, &making.state(), go_on)?, &template.state.sha256)?;
            }
            let name = template_member(template, &template.ram);
            let ram = members.sized(&name, template.ram.size)?;
            if let Coming::In(making) = coming {
                let len = template.record.memory_mib << 20;
                let found = receive_pages(ram, &name, len..=len, &making.ram(), go_on)?;
                same(&name, &found, &template.ram.sha256)?;
            }
            for (number, disk) in template.disks.iter().enumerate() {
                let name = template_member(template, disk);
                let pages = members.sized(&name, disk.size)?;
                if let Coming::In(making) = coming {
                    let path = making.disk(number);
                    let found = receive_pages(pages, &name, 1..=MAX_DISK, &path, go_on)?;
                    same(&name, &found, &disk.sha256)?;
                    let checked = File::open(&path).and_then(|file| check_overlay(&file));
                    let checked = checked.map_err(cannot(&path))?;
                    checked.map_err(|why| ArchiveError::damaged(format!("`{name}`: {why}")))?;
                }
            }
        }
        members.end()?;
        archive.into_inner().finish(MAX_PADDING).map_err(ArchiveError::unreadable)?;
        self.publish(index, images, templates, host)
    }

    fn begin_image(
        &self,
        manifest: &Manifest,
        lock: &nix::fcntl::Flock<File>,
    ) -> Result<Coming<Adopted>, ArchiveError> {
        // Asked first: a name that leads elsewhere makes no path.
        if let Err(why) = Adopted::check(manifest) {
            let name = crate::text::one_line(&manifest.name, 60);
            return Err(ArchiveError::damaged(format!("image `{name}`: {why}")));
        }
        let place = self.images.folder_of(manifest);
        match fs::read(place.join("manifest.json")) {
            Ok(text) if text == manifest.to_json() => return Ok(Coming::There),
            _ if place.symlink_metadata().is_ok() => return Ok(Coming::OtherThere),
            _ => {}
        }
        Adopted::begin(&self.images, manifest, lock).map(Coming::In).map_err(cannot(&place))
    }

    fn begin_template(&self, template: &ArchivedTemplate) -> Result<Coming<Making>, ArchiveError> {
        let key = &template.record.key;
        if self.templates.has(&key.id()) {
            return Ok(Coming::There);
        }
        let making = self.templates.begin(key).map_err(cannot(self.templates.folder()))?;
        // Somebody makes it just now.
        Ok(making.map_or(Coming::There, Coming::In))
    }

    /// Nothing is begun that does not fit.
    fn check_room(
        &self,
        index: &Index,
        images: &[Coming<Adopted>],
        templates: &[Coming<Making>],
    ) -> Result<(), ArchiveError> {
        let mut wanted = 0_u64;
        for (manifest, coming) in index.images.iter().zip(images) {
            if matches!(coming, Coming::In(_)) {
                let sizes = manifest.files.iter().map(|file| file.size);
                wanted = sizes.fold(wanted, u64::saturating_add);
            }
        }
        for (template, coming) in index.templates.iter().zip(templates) {
            if matches!(coming, Coming::In(_)) {
                let files = [&template.state, &template.ram].into_iter().chain(&template.disks);
                wanted = files.map(|file| file.size).fold(wanted, u64::saturating_add);
            }
        }
        let Ok(free_mib) = free_mib(&self.folder) else { return Ok(()) };
        let wanted_mib = (wanted >> 20).saturating_add(ROOM_MIB);
        if wanted > 0 && free_mib < wanted_mib {
            let folder = self.folder.clone();
            return Err(ArchiveError::NoRoom { folder, free_mib, wanted_mib });
        }
        Ok(())
    }

    fn publish(
        &self,
        index: Index,
        images: Vec<Coming<Adopted>>,
        templates: Vec<Coming<Making>>,
        host: Option<&Qemu>,
    ) -> Result<Imported, ArchiveError> {
        let mut imported = Imported { images: Vec::new(), templates: Vec::new() };
        for (manifest, coming) in index.images.into_iter().zip(images) {
            let arrival = coming.arrival();
            if let Coming::In(adopted) = coming {
                let place = self.images.folder_of(&manifest);
                adopted
                    .publish(&manifest)
                    .map_err(cannot(&place))?
                    .map_err(ArchiveError::damaged)?;
            }
            imported.images.push((manifest, arrival));
        }
        for (ArchivedTemplate { record, .. }, coming) in index.templates.into_iter().zip(templates)
        {
            let arrival = coming.arrival();
            let unused = unused(&record, host);
            if let Coming::In(making) = coming {
                let same = host.filter(|qemu| qemu.digest == record.key.qemu);
                // Which QEMU it will be is not known otherwise; older ones open it for writing.
                let opens_read_only = same.is_some_and(Qemu::opens_read_only);
                let place = self.templates.folder().join(record.key.id().as_str());
                let template = making.publish(record.clone(), opens_read_only);
                if let Some(template) = template.map_err(cannot(&place))? {
                    // Read again, from where it is now.
                    template.digest_pages(&|| true).map_err(cannot(&place))?;
                }
            }
            imported.templates.push((record, arrival, unused));
        }
        Ok(imported)
    }
}

/// Is what an index says possible?
fn check(index: &Index) -> Result<(), ArchiveError> {
    if !index.recipes.is_empty() {
        return Err(ArchiveError::OfImage);
    }
    for template in &index.templates {
        let (record, id) = (&template.record, template.record.key.id());
        let wrong = |what: &str| Err(ArchiveError::damaged(format!("template {id}: {what}")));
        if record.key.format != FORMAT {
            return wrong(&format!("it has format {}, not {FORMAT}", record.key.format));
        }
        if !(1..=*MEMORY_MIB.end()).contains(&record.memory_mib) {
            return wrong("no machine has that much memory");
        }
        // Eight bytes, and eight more with each page of 4096.
        let most = 8 + (record.memory_mib << 8) * (8 + 4096);
        if template.ram.size > most || template.state.size > MAX_STATE {
            return wrong("its files are too long");
        }
        let disks = (0..template.disks.len()).map(disk_pages);
        if (&*template.state.name, &*template.ram.name) != (STATE, RAM_PAGES)
            || !disks.eq(template.disks.iter().map(|disk| disk.name.clone()))
        {
            return wrong("its files have other names");
        }
        if template.disks.len() != record.disks || record.disks > MAX_DISKS {
            return wrong("it has not the disks that its record says");
        }
    }
    let long = |file: &&FileRecord| file.size > MAX_FILE;
    if let Some(file) = index.images.iter().flat_map(|image| &image.files).find(long) {
        let name = crate::text::one_line(&file.name, 60);
        return Err(ArchiveError::damaged(format!("`{name}` of an image is too long")));
    }
    let ids = index.templates.iter().map(|template| template.record.key.id().to_string());
    let images = index.images.iter().map(|image| image.digest().to_string());
    let mut all: Vec<String> = ids.chain(images).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    match all.len() == count {
        true => Ok(()),
        false => Err(ArchiveError::damaged("its index names something twice")),
    }
}

/// Why this host does not use a template.
fn unused(record: &TemplateRecord, host: Option<&Qemu>) -> Option<String> {
    let theirs = crate::text::one_line(&record.qemu, 20);
    match host {
        None => return Some(format!("made by QEMU {theirs}, and this host has none")),
        Some(qemu) if qemu.digest != record.key.qemu => {
            let ours = qemu.version.to_string();
            return Some(match theirs == ours {
                true => format!("made by another build of QEMU {theirs} than this host's"),
                false => format!("made by QEMU {theirs}, and this host has {ours}"),
            });
        }
        Some(_) => {}
    }
    let other_cpu = record.key.host_cpu.as_ref().is_some_and(|cpu| *cpu != host_cpu());
    other_cpu.then(|| "made under KVM on another CPU than this host's".to_owned())
}

fn cannot(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path: PathBuf = path.to_owned();
    move |source| ArchiveError::Cache { path, source }
}

/// Writes a member to a new file, and tells its digest.
pub(super) fn receive(
    mut member: impl Read,
    path: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<Digest, ArchiveError> {
    let made = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = made.map_err(cannot(path))?;
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; PIECE]);
    loop {
        if !go_on() {
            return Err(ArchiveError::Cancelled);
        }
        let len = member.read(&mut buffer).map_err(ArchiveError::unreadable)?;
        let piece = buffer.get(..len).unwrap_or_default();
        if piece.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(piece);
        file.write_all(piece).map_err(cannot(path))?;
    }
}

fn receive_pages(
    member: impl Read,
    name: &str,
    len: RangeInclusive<u64>,
    path: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<Digest, ArchiveError> {
    write_ram(member, len, path, go_on).map_err(|bad| match bad {
        BadStream::Wrong(why) => ArchiveError::damaged(format!("`{name}`: {why}")),
        BadStream::Read(error) => ArchiveError::unreadable(error),
        BadStream::Write(source) => ArchiveError::Cache { path: path.to_owned(), source },
    })
}
