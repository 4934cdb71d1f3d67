//! `guestline power`: reboots a named machine, or powers it off from inside.

use crate::args::{PowerArg, PowerArgs};
use crate::error::CommandError;
use crate::machines::{self, Attached, Failure};
use guestline::supervise::{self, MachineState};
use guestline::text;
use guestline_protocol::{ByteBuf, PowerAction};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// How long a guest that powers off is waited for.
const OFF: Duration = Duration::from_secs(30);

/// How often.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &PowerArgs) -> Result<u8, CommandError> {
    let bytes = |text: &OsStr| ByteBuf::from(text.as_bytes());
    let (action, force) = match &args.action {
        PowerArg::Reboot { force } => (PowerAction::Reboot, *force),
        PowerArg::Off { force } => (PowerAction::Off, *force),
        PowerArg::Kexec { kernel, initrd, cmdline } => {
            let (initrd, cmdline) = (initrd.as_deref().map(bytes), cmdline.as_deref().map(bytes));
            (PowerAction::Kexec { kernel: bytes(kernel), initrd, cmdline }, false)
        }
    };
    machines::run(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let began = Instant::now();
        let goes_off = action == PowerAction::Off;
        // The boot that the session is in: what comes after is the next one.
        let before = supervise::status(&attached.up.folder).await?;
        if let Err(error) = attached.guest.power(action, force).await {
            return Err(attached.up.explain(error).await);
        }
        match goes_off {
            true => gone(&attached, began).await,
            false => back(&attached, before.boot + 1, before.boot_timeout_ms, began).await,
        }
    })
}

async fn back(
    attached: &Attached,
    boot: u64,
    limit_ms: u64,
    began: Instant,
) -> Result<u8, Failure> {
    let name = &attached.up.name;
    let limit = Duration::from_millis(limit_ms);
    let waiting = supervise::wait_for_boot(&attached.up.folder, boot);
    match tokio::time::timeout(limit, waiting).await {
        Ok(Ok(status)) if status.state == MachineState::Ready => {
            let kernel = text::printable(status.kernel.as_deref().unwrap_or("of unknown name"));
            println!("{name} is back: kernel {kernel}, {:.1} s", began.elapsed().as_secs_f64());
            Ok(0)
        }
        Ok(Ok(status)) => {
            let why = status.why.as_deref().unwrap_or("the link is gone");
            Err(Failure::new(format!("`{name}` rebooted, and its agent cannot be reached: {why}"))
                .hint(format!("`guestline logs {name}` shows its console")))
        }
        // It ended instead.
        Ok(Err(_)) => Err(machines::not_up(&attached.up.dirs, name)),
        Err(_) => {
            let limit = text::limit(limit);
            Err(Failure::new(format!("`{name}` was not back within {limit}"))
                .hint(format!("`guestline logs {name}` shows its console")))
        }
    }
}

async fn gone(attached: &Attached, began: Instant) -> Result<u8, Failure> {
    let name = &attached.up.name;
    while began.elapsed() < OFF {
        if !attached.up.folder.exists() {
            println!("{name} is off: {:.1} s", began.elapsed().as_secs_f64());
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::new(format!("`{name}` said that it powers off, and did not"))
        .hint(format!("`guestline down --force {name}` ends it")))
}
