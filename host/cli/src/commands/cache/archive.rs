//! `guestline cache export` and `import`.

use super::list::template;
use super::{BROKEN, DAMAGED};
use crate::commands::image::print;
use crate::commands::output::{self, Readers};
use crate::context::Context;
use crate::error::CommandError;
use guestline::machine::Qemu;
use guestline::provision::{ArchiveError, Arrival, ExportError, Exported, Imported};
use guestline::text;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

pub(super) fn export(
    context: &Context,
    file: &Path,
    ids: &[String],
    go_on: &dyn Fn() -> bool,
) -> Result<u8, CommandError> {
    let cache = context.cache();
    let result =
        output::to(file, "the archive", Readers::Owner, |to| cache.export(ids, to, go_on))?;
    exported(file, result)
}

/// Says what came of it.
fn exported(file: &Path, result: Result<Exported, ExportError>) -> Result<u8, CommandError> {
    let error = match result {
        Ok(exported) => {
            eprint!("{}", export_told(&exported));
            return Ok(0);
        }
        Err(error) => error,
    };
    let status = match error {
        ExportError::Unknown { .. } | ExportError::Empty | ExportError::NoManifest { .. } => {
            return Err(CommandError::new(error)
                .hint("`guestline cache list` shows what there is; a check makes a template"));
        }
        ExportError::Cancelled => return Ok(0),
        // Who reads it has what he wants.
        ExportError::Write(ref error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
        ExportError::Damaged { .. } => DAMAGED,
        ExportError::Read { .. } | ExportError::Write(_) => BROKEN,
    };
    eprintln!("error: cannot export to `{}`: {}", file.display(), text::chain(&error));
    if status == DAMAGED {
        eprintln!("hint: `guestline cache verify` drops what is damaged");
    }
    Ok(status)
}

fn export_told(exported: &Exported) -> String {
    let mut text = String::new();
    for id in &exported.without_image {
        text += &format!("template {id}: its image is not in the cache, so it goes without\n");
    }
    let (templates, images) = (exported.templates.len(), exported.images.len());
    text + &format!("exported {} and {}\n", count(templates, "template"), count(images, "image"))
}

fn count(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

pub(super) fn import(
    context: &Context,
    file: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<u8, CommandError> {
    let (cache, host) = (context.cache(), Qemu::find(&context.dirs).ok());
    let imported = if file == Path::new("-") {
        cache.import(BufReader::new(io::stdin()), host.as_ref(), go_on)
    } else {
        let archive = File::open(file).map_err(|error| {
            CommandError::new(format!("cannot read `{}`: {error}", file.display()))
        })?;
        cache.import(BufReader::new(archive), host.as_ref(), go_on)
    };
    let error = match imported {
        Ok(imported) => return print(&import_told(&imported)),
        Err(error) => error,
    };
    let status = match error {
        ArchiveError::Cancelled => return Ok(0),
        ArchiveError::OfImage => {
            return Err(CommandError::new(error).hint("take it in by `guestline image import`"));
        }
        ArchiveError::Damaged { .. } | ArchiveError::Newer { .. } => DAMAGED,
        ArchiveError::NoRoom { .. } | ArchiveError::Cache { .. } => BROKEN,
    };
    let mut stderr = io::stderr();
    // Nothing is left to tell when standard error is gone.
    let _ = stderr.write_all(refused(file, &error).as_bytes());
    Ok(status)
}

fn refused(file: &Path, error: &ArchiveError) -> String {
    let mut text = format!("error: cannot import `{}`: {}\n", file.display(), text::chain(error));
    text += match error {
        ArchiveError::Damaged { .. } => {
            "hint: nothing of it came in; `guestline cache export` writes one anew\n"
        }
        ArchiveError::Newer { .. } => {
            "hint: export it with this version, or install the newer one\n"
        }
        ArchiveError::NoRoom { .. } => {
            "hint: make room: `guestline cache prune --all` removes all that is not in use\n"
        }
        ArchiveError::Cache { .. } | ArchiveError::Cancelled | ArchiveError::OfImage => "",
    };
    text
}

fn import_told(imported: &Imported) -> String {
    let mut text = String::new();
    for (manifest, arrival) in &imported.images {
        let name = format!("image {} ({})", manifest.name, manifest.digest().short());
        text += &match arrival {
            Arrival::New => format!("new    {name}\n"),
            Arrival::There => format!("there  {name}\n"),
            Arrival::OtherThere => {
                format!(
                    "there  {name}: made from other packages, and stays; templates of the archive's are not used\n"
                )
            }
        };
    }
    for (record, arrival, unused) in &imported.templates {
        let word = if *arrival == Arrival::New { "new  " } else { "there" };
        text += &format!("{word}  template {}  {}", record.key.id(), template(record));
        if let Some(why) = unused {
            text += &format!("; not used here: {}", text::printable(why));
        }
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline::provision::{CacheEntry, Content};

    fn records() -> Vec<guestline::provision::TemplateRecord> {
        let entries = super::super::list::tests::entries().into_iter();
        entries
            .filter_map(|CacheEntry { content, .. }| match content {
                Content::Template(Some(record)) => Some(*record),
                _ => None,
            })
            .collect()
    }

    fn image() -> guestline::image::Manifest {
        let mut entries = super::super::list::tests::entries().into_iter();
        entries
            .find_map(|CacheEntry { content, .. }| match content {
                Content::Image(Some(manifest)) => Some(*manifest),
                _ => None,
            })
            .unwrap()
    }

    #[test]
    fn what_went_out() {
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
        let exported = Exported {
            templates: ids(&["0123456789ab", "123456789abc"]),
            images: ids(&["tiny"]),
            without_image: ids(&["123456789abc"]),
        };
        insta::assert_snapshot!(export_told(&exported));
    }

    #[test]
    fn what_came_in() {
        let why = "made by QEMU 10.0, and this host has 7.2".to_owned();
        let mut records = records().into_iter();
        let mut next = || records.next().unwrap();
        let imported = Imported {
            images: vec![
                (image(), Arrival::New),
                (image(), Arrival::There),
                (image(), Arrival::OtherThere),
            ],
            templates: vec![(next(), Arrival::New, None), (next(), Arrival::There, Some(why))],
        };
        insta::assert_snapshot!(import_told(&imported));
    }

    #[test]
    fn why_nothing_came_in() {
        let path = Path::new("cache.tar.lz4");
        let errors = [
            ArchiveError::Damaged { what: "it ends before `templates/x/state`".to_owned() },
            ArchiveError::Newer { format: 2 },
            ArchiveError::NoRoom { folder: "/cache".into(), free_mib: 3, wanted_mib: 110 },
            ArchiveError::Cache { path: "/cache".into(), source: io::Error::from_raw_os_error(28) },
        ];
        insta::assert_snapshot!(errors.map(|error| refused(path, &error)).concat());
    }
}
