//! `guestline image sbom`: what is in an image.

use super::{made, print};
use crate::args::{GlobalArgs, SbomFormat};
use crate::commands::output::{self, Readers};
use crate::context::Context;
use crate::error::CommandError;
use guestline::image::sbom::{cyclonedx, spdx};
use std::path::Path;

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
    format: SbomFormat,
    file: &Path,
) -> Result<u8, CommandError> {
    let (recipe, image) = made(context, global, name)?;
    let bill = match format {
        SbomFormat::Cyclonedx => cyclonedx(&image.manifest, &recipe),
        SbomFormat::Spdx => spdx(&image.manifest, &recipe),
    };
    if file == Path::new("-") {
        return print(&String::from_utf8_lossy(&bill));
    }
    let written =
        output::to(file, "the bill of materials", Readers::Usual, |to| to.write_all(&bill))?;
    written.map(|()| 0).map_err(|error| {
        CommandError::new(format!("cannot write to `{}`: {error}", file.display()))
    })
}
