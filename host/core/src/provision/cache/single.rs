//! One image as an archive by itself: that of a cache, with the image's recipe, so that a host that knows nothing of it can use
//! it.

use super::archive::{
    ArchiveError, FORMAT, INDEX, Index, MemberReader, MemberWriter, image_member, same,
};
use super::export::{ExportError, write_image};
use super::frame::{FrameReader, frame_writer};
use super::import::{MAX_PADDING, ROOM_MIB, receive};
use crate::host::free_mib;
use crate::image::share::{Expected, Placing, ReceiveError, Received};
use crate::image::{Image, Recipe, Store};
use std::io::{self, Read, Write};
use tokio_util::sync::CancellationToken;

/// Why an image's archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It is one of a cache.
    #[error("it has templates, or several images: it is an archive of a cache")]
    OfCache,
    /// The image.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
}

/// Is this the beginning of an archive of Guestline's? It is an LZ4 frame whose tar file begins with the index; a frame is
/// seen as a whole block, so that [`HEAD_LEN`] bytes are wanted.
pub fn is_archive(head: &[u8]) -> bool {
    let mut block = [0; 512];
    let read = FrameReader::new(head).read_exact(&mut block);
    read.is_ok() && block.starts_with(INDEX.as_bytes()) && block[INDEX.len()] == 0
}

/// So much of a file tells whether it is an archive: a block of a frame is no longer, and what is around it.
pub const HEAD_LEN: u64 = (1 << 20) + 1024;

/// Writes an image and what it is made of.
///
/// # Errors
/// [`ExportError`]; what was written is to be thrown away then.
pub fn export_image(
    image: &Image,
    recipe: &Recipe,
    to: impl Write,
    go_on: &dyn Fn() -> bool,
) -> Result<(), ExportError> {
    let name = recipe.reference();
    let text = recipe.whole_text().ok_or(ExportError::NoManifest { name })?;
    let manifest = &image.manifest;
    let index = Index {
        format: FORMAT,
        guestline: env!("CARGO_PKG_VERSION").to_owned(),
        images: vec![manifest.clone()],
        recipes: vec![text.to_owned()],
        templates: Vec::new(),
    };
    let write = ExportError::Write;
    let text = serde_json::to_vec(&index).map_err(|error| write(error.into()))?;
    let mut writer = MemberWriter::new(frame_writer(to));
    writer.member(INDEX, &text).map_err(write)?;
    write_image(manifest, &|file| image.file(file), &mut writer, go_on)?;
    let finished = writer.finish().and_then(|frame| frame.finish().map_err(io::Error::other));
    finished.and_then(|mut to| to.flush()).map_err(write)
}

/// Takes an image out of its archive into the store.
///
/// # Errors
/// [`ImportError`]; nothing of it is there then.
pub(crate) fn import_image(
    store: &Store,
    from: impl Read,
    placing: Placing<'_>,
    cancel: &CancellationToken,
) -> Result<Received, ImportError> {
    let go_on = || !cancel.is_cancelled();
    let mut archive = tar::Archive::new(FrameReader::new(from));
    let mut members = MemberReader::new(&mut archive)?;
    let Index { images, recipes, templates, .. } = members.index()?;
    let ([manifest], true) = (&images[..], templates.is_empty()) else {
        return Err(ImportError::OfCache);
    };
    let [recipe] = &recipes[..] else { return Err(ImportError::OfCache) };
    let expected = Expected::new(store, manifest.clone(), recipe, placing)?;
    if let Some(received) = expected.there()? {
        return Ok(received);
    }
    let folder = store.cache_folder();
    let cannot = |source| ArchiveError::Cache { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(cannot)?;
    let wanted: u64 = manifest.files.iter().map(|file| file.size).sum();
    let wanted_mib = (wanted >> 20) + ROOM_MIB;
    if let Some(free_mib) = free_mib(folder).ok().filter(|free_mib| *free_mib < wanted_mib) {
        let folder = folder.to_owned();
        return Err(ArchiveError::NoRoom { folder, free_mib, wanted_mib }.into());
    }
    let lock = store.lock(cancel, &|_| ()).map_err(ReceiveError::from)?;
    let adopted = expected.begin(&lock)?;
    for file in &manifest.files {
        let name = image_member(manifest, file);
        let found = receive(members.sized(&name, file.size)?, &adopted.file(file), &go_on)?;
        same(&name, &found, &file.sha256)?;
    }
    members.end()?;
    archive.into_inner().finish(MAX_PADDING).map_err(ArchiveError::unreadable)?;
    Ok(expected.finish(adopted)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_known_by_its_beginning() {
        let framed = |content: &[u8]| {
            let mut frame = frame_writer(Vec::new());
            frame.write_all(content).unwrap();
            frame.finish().unwrap()
        };
        let tar = |name: &str| {
            let mut writer = MemberWriter::new(Vec::new());
            writer.member(name, b"{}").unwrap();
            writer.finish().unwrap()
        };
        assert!(is_archive(&framed(&tar(INDEX))));
        // As long as a frame's block can be, and cut there.
        let long = framed(
            &[tar(INDEX), (0..3 << 20).map(|n: u32| n as u8 ^ (n >> 9) as u8).collect()].concat(),
        );
        assert!(is_archive(&long[..usize::try_from(HEAD_LEN).unwrap().min(long.len())]));
        for other in [framed(&tar("bin/sh")), framed(b"hello"), tar(INDEX), Vec::new()] {
            assert!(!is_archive(&other));
        }
        assert!(!is_archive(&framed(&tar(&format!("{INDEX}.old")))));
    }
}
