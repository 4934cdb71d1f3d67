//! `guestline image import` of what others made: it becomes an image.

use super::super::embed::{Cancelling, kind_of};
use super::{BROKEN, built};
use crate::args::{FirmwareArg, GlobalArgs, ImageImportArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::lease::{lines_of, telling};
use crate::terminal::Progress;
use guestline::image::{ImportError, ImportSpec, Kind, LockPolicy};
use guestline::machine::FirmwareKind;
use guestline::provision::{DiskFault, DiskInput, Images};
use std::io::Write;

pub(crate) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageImportArgs,
) -> Result<u8, CommandError> {
    let cancelling = Cancelling::new()?;
    let kind = match kind_of(&args.from, &cancelling) {
        Err(_) if cancelling.is_interrupted() => return Ok(cancelling.status()),
        kind => kind?,
    };
    // A disk that is written to meanwhile would be torn.
    if let Kind::Qcow2 | Kind::RawDisk = kind
        && let Err(error @ DiskFault::InUse { .. }) = DiskInput::open(&args.from, false)
    {
        let hint = error.hint();
        return Err(CommandError::new(error).hints(hint));
    }
    let what = args.from.display().to_string();
    let images = context.images_within(global, args.boot_timeout)?;
    import(context, &images, &spec(args, kind), &what, &cancelling)
}

/// What is to be imported, as the command line says.
pub(super) fn spec(args: &ImageImportArgs, kind: Kind) -> ImportSpec {
    ImportSpec {
        from: args.from.clone(),
        kind,
        name: args.name.clone(),
        pick: args.pick.clone(),
        kernel_of: args.kernel_of.clone(),
        init: args.init.clone(),
        memory_mib: args.memory,
        firmware: args.firmware.map(|firmware| match firmware {
            FirmwareArg::Bios => FirmwareKind::Bios,
            FirmwareArg::Uefi => FirmwareKind::Uefi,
        }),
        seed: args.seed.clone(),
        busybox: args.busybox,
        unchecked: args.no_check,
        replace: args.replace,
    }
}

/// Imports what is called `what` to who asked for it.
pub(super) fn import(
    context: &Context,
    images: &Images,
    spec: &ImportSpec,
    what: &str,
    cancelling: &Cancelling,
) -> Result<u8, CommandError> {
    let _runtime = cancelling.runtime.enter();
    let mut progress = Progress::new();
    let made = telling(what, LockPolicy::Prefer, &cancelling.token, &mut progress, |terms| {
        images.import(spec, terms)
    });
    match made {
        Ok(image) => {
            context.cache().evict(context.limit);
            std::io::stdout().write_all(built(&image).as_bytes())?;
            Ok(0)
        }
        Err(_) if cancelling.is_interrupted() => {
            eprintln!("aborted  import of {what}");
            Ok(cancelling.status())
        }
        Err(error) if is_usage(&error) => Err(refused(error)),
        Err(error) => {
            eprint!("errored  import of {what}: {}", lines_of(&error, error.hint()));
            Ok(BROKEN)
        }
    }
}

/// As wrong usage.
pub(super) fn refused(error: ImportError) -> CommandError {
    let hint = error.hint();
    CommandError::new(error).hints(hint)
}

/// What is wrong with the command line, and not with what was to be imported.
fn is_usage(error: &ImportError) -> bool {
    matches!(
        error,
        ImportError::Name { .. }
            | ImportError::Taken { .. }
            | ImportError::Recipe(_)
            | ImportError::NoKernel { .. }
            | ImportError::NoInit { .. }
            | ImportError::RelativeInit { .. }
            | ImportError::Unfit { .. }
            | ImportError::Seed { .. }
            | ImportError::NoSeed { .. }
    )
}
