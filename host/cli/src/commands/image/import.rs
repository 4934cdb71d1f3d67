//! `guestline image import`: what a file is, and who takes it in.

use super::{BROKEN, DAMAGED, foreign, interruptible, print, tell, virt_builder};
use crate::args::{GlobalArgs, ImageImportArgs};
use crate::context::Context;
use crate::error::CommandError;
use guestline::image::share::{ReceiveError, Received};
use guestline::provision::{ArchiveError, HEAD_LEN, ImportError, is_archive};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;

/// What a file is.
enum Found {
    /// What `guestline image export` wrote, read from its beginning.
    Archive(Box<dyn Read>),
    /// What others made, perhaps.
    Other,
}

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageImportArgs,
) -> Result<u8, CommandError> {
    let file = &args.from;
    if let Some(template) = virt_builder::template(file) {
        return virt_builder::run(context, global, args, template);
    }
    let found = find(file)
        .map_err(|error| CommandError::new(format!("cannot read `{}`: {error}", file.display())))?;
    match found {
        Found::Archive(archive) => archived(context, global, args, archive),
        Found::Other if file == Path::new("-") => {
            Err(CommandError::new("what comes from standard input is no archive of an image")
                .hint("only what `guestline image export` writes is taken from there"))
        }
        Found::Other => foreign::run(context, global, args),
    }
}

/// Looks at the beginning of a file; a pipe has only one.
fn find(file: &Path) -> io::Result<Found> {
    let mut from: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(io::stdin()),
        // Opening a pipe might never end.
        false if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) => {
            return Ok(Found::Other);
        }
        false => Box::new(File::open(file)?),
    };
    let mut head = Vec::new();
    from.by_ref().take(HEAD_LEN).read_to_end(&mut head)?;
    Ok(match is_archive(&head) {
        true => Found::Archive(Box::new(Cursor::new(head).chain(from))),
        false => Found::Other,
    })
}

fn archived(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageImportArgs,
    archive: Box<dyn Read>,
) -> Result<u8, CommandError> {
    let images = context.images_within(global, args.boot_timeout)?;
    interruptible(&args.from.display().to_string(), |cancel| {
        let error = match images.receive(archive, args.name.as_deref(), args.replace, cancel) {
            Ok(received) => {
                context.cache().evict(context.limit);
                return print(&told(&received));
            }
            Err(error) => error,
        };
        let (status, hint) = match &error {
            ImportError::OfCache => (2, Some("take it in by `guestline cache import`".to_owned())),
            ImportError::Receive(error) => (status(error), error.hint()),
            ImportError::Archive(error) => match error {
                ArchiveError::Damaged { .. } | ArchiveError::OfImage => {
                    let hint = "nothing of it came in; `guestline image export` writes one anew";
                    (DAMAGED, Some(hint.to_owned()))
                }
                ArchiveError::Newer { .. } => {
                    let hint = "export it with this version, or install the newer one";
                    (DAMAGED, Some(hint.to_owned()))
                }
                ArchiveError::NoRoom { .. } => {
                    (BROKEN, Some("make room: `guestline cache prune --limit SIZE`".to_owned()))
                }
                ArchiveError::Cache { .. } | ArchiveError::Cancelled => (BROKEN, None),
            },
        };
        if !cancel.is_cancelled() {
            tell(&format!("cannot import `{}`", args.from.display()), &error, hint);
        }
        Ok(status)
    })
}

/// The exit status where an image of another host is not taken.
pub(super) fn status(error: &ReceiveError) -> u8 {
    match error {
        ReceiveError::Wrong { .. } => DAMAGED,
        ReceiveError::Taken { .. } | ReceiveError::OtherThere { .. } => 2,
        _ => BROKEN,
    }
}

/// What became of an image of another host.
pub(super) fn told(received: &Received) -> String {
    let Received { name, manifest, was_there, agent_exchanged, brought_recipe } = received;
    let word = if *was_there { "there" } else { "new  " };
    let mut text = format!(
        "{word}  image {name} ({}): kernel {}, {} packages\n",
        manifest.digest().short(),
        guestline::text::one_line(&manifest.kernel_release, 60),
        manifest.packages.len()
    );
    if *agent_exchanged {
        text += "       another agent was in it: this program's is now, and it boots with that\n";
    }
    if *brought_recipe && !was_there {
        text += &format!(
            "       its manifest came with it; `guestline image rm {name}` takes both away\n"
        );
    }
    text
}
