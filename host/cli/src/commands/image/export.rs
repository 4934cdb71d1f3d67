//! `guestline image export`: one image as one file.

use super::{BROKEN, DAMAGED, interruptible, made, tell};
use crate::args::GlobalArgs;
use crate::commands::output::{self, Readers};
use crate::context::Context;
use crate::error::CommandError;
use guestline::provision::{ExportError, export_image};
use std::io;
use std::path::{Path, PathBuf};

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
    file: Option<&Path>,
) -> Result<u8, CommandError> {
    let (recipe, image) = made(context, global, name)?;
    let file = file
        .map_or_else(|| PathBuf::from(format!("{}.tar.lz4", recipe.reference())), Path::to_owned);
    interruptible(&recipe.reference(), |cancel| {
        let go_on = || !cancel.is_cancelled();
        let result = output::to(&file, "the image", Readers::Usual, |to| {
            export_image(&image, &recipe, to, &go_on)
        })?;
        let Err(error) = result else {
            eprintln!("exported image {name} to {}", file.display());
            return Ok(0);
        };
        let (status, hint) = match &error {
            ExportError::NoManifest { .. } => {
                return Err(CommandError::new(error).hint(
                    "write a manifest that extends it and has these packages, and export that",
                ));
            }
            // Who reads it has what he wants.
            ExportError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(0);
            }
            ExportError::Damaged { .. } => {
                (DAMAGED, Some(format!("make it anew: guestline image build {name}")))
            }
            _ => (BROKEN, None),
        };
        tell(&format!("cannot export to `{}`", file.display()), &error, hint);
        Ok(status)
    })
}
