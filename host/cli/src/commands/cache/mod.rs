//! `guestline cache`: what is kept, how much room it takes, what goes, whether it is right, and the way to another host.

mod archive;
mod list;
mod prune;
mod verify;

use crate::args::{CacheArgs, CacheCommand};
use crate::context::Context;
use crate::error::CommandError;
use crate::signals::{self, Interrupted};
use tokio_util::sync::CancellationToken;

/// Something is damaged.
const DAMAGED: u8 = 1;
/// The disk did not do.
const BROKEN: u8 = 125;

pub(crate) fn run(args: &CacheArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    match &args.command {
        CacheCommand::List { json } => list::list(&context, *json),
        CacheCommand::Du => list::du(&context),
        CacheCommand::Prune(args) => interruptible(|go_on| prune::run(&context, args, go_on)),
        CacheCommand::Verify => interruptible(|go_on| verify::run(&context, go_on)),
        CacheCommand::Export { file, ids } => {
            interruptible(|go_on| archive::export(&context, file, ids, go_on))
        }
        CacheCommand::Import { file } => {
            interruptible(|go_on| archive::import(&context, file, go_on))
        }
    }
}

/// Runs what ends early, with nothing half made, when its argument says no: at the first signal.
fn interruptible(
    run: impl FnOnce(&dyn Fn() -> bool) -> Result<u8, CommandError>,
) -> Result<u8, CommandError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted: Interrupted = signals::listen(cancel.clone(), false)?;
    let status = run(&|| !cancel.is_cancelled())?;
    match interrupted.get() {
        Some(_) => {
            eprintln!("aborted  cache");
            Ok(interrupted.status())
        }
        None => Ok(status),
    }
}
