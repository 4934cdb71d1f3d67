//! `guestline image import` of what others made: it becomes an image.

use super::{BROKEN, built};
use crate::args::{FirmwareArg, GlobalArgs, ImageImportArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::lease::{lines_of, telling};
use crate::signals;
use crate::terminal::Progress;
use guestline::image::{ImportError, ImportSpec, Kind, LockPolicy};
use guestline::machine::FirmwareKind;
use guestline::provision::{DiskFault, DiskInput};
use std::io::Write;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageImportArgs,
) -> Result<u8, CommandError> {
    let kind = Kind::of(&args.from).map_err(|error| {
        let hint = error.hint();
        CommandError::new(error).hints(hint)
    })?;
    // A disk that is written to meanwhile would be torn.
    if let Kind::Qcow2 | Kind::RawDisk = kind
        && let Err(error @ DiskFault::InUse { .. }) = DiskInput::open(&args.from, false)
    {
        let hint = error.hint();
        return Err(CommandError::new(error).hints(hint));
    }
    let images = context.images(global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let spec = ImportSpec {
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
        busybox: args.busybox,
        unchecked: args.no_check,
        replace: args.replace,
    };
    let what = args.from.display().to_string();
    let mut progress = Progress::new();
    let made = telling(&what, LockPolicy::Prefer, &cancel, &mut progress, |terms| {
        images.import(&spec, terms)
    });
    match made {
        Ok(image) => {
            context.cache().evict(context.limit);
            std::io::stdout().write_all(built(&image).as_bytes())?;
            Ok(0)
        }
        Err(_) if interrupted.get().is_some() => {
            eprintln!("aborted  import of {what}");
            Ok(interrupted.status())
        }
        Err(error) if is_usage(&error) => {
            let hint = error.hint();
            let error = CommandError::new(error);
            Err(error.hints(hint))
        }
        Err(error) => {
            eprint!("errored  import of {what}: {}", lines_of(&error, error.hint()));
            Ok(BROKEN)
        }
    }
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
    )
}
