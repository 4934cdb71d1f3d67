//! What commands share that need a machine: its image, and what is said when there is none.

use crate::args::GlobalArgs;
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::terminal::Progress;
use guestline::image::{Image, Recipe};
use guestline::machine::Qemu;
use guestline::provision::{FailedLease, LeaseError, MachineRequest, NamedTemplate, SetUpFailure};
use guestline::text;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So many last lines of the console are shown where it is the evidence.
const CONSOLE_SHOWN: usize = 5;

/// So many last lines of a set-up line's output are.
const OUTPUT_SHOWN: usize = 10;

/// QEMU; in text, why there is none.
pub(crate) fn qemu(context: &Context) -> Result<Qemu, String> {
    Qemu::find(&context.dirs).map_err(|error| {
        format!("{}\n  hint: `guestline doctor` says what to install\n", text::chain(&error))
    })
}

/// The image; in text, why there is none. The outer error is wrong usage.
pub(crate) fn image(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
    cancel: &CancellationToken,
    progress: &mut Progress,
) -> Result<Result<Image, String>, CommandError> {
    Recipe::named(name)?;
    let agent = agent(global)?;
    let making = || progress.show(&format!("image {name}: being made from packages …"));
    let image = context.store(cancel).get(name, &agent, making);
    progress.clear();
    Ok(match image {
        Ok(image) => {
            if let Some(took) = image.made_in {
                let packages = image.manifest.packages.len();
                let took = took.as_secs_f64();
                eprintln!("image {name}: made from {packages} packages in {took:.1} s");
            }
            Ok(image)
        }
        Err(error) => {
            let mut lines = format!("{}\n", text::chain(&error));
            lines.extend(error.hint().map(|hint| format!("  hint: {hint}\n")));
            Err(lines)
        }
    })
}

/// The machine that a name, or options, stand for, of an image; it may take so long to boot.
pub(crate) fn request(wanted: &NamedTemplate, image: Image, boot: Duration) -> MachineRequest {
    MachineRequest {
        memory_mib: wanted.memory_mib.unwrap_or(image.manifest.memory_mib),
        cpus: wanted.cpus,
        disks: wanted.disks.clone(),
        nics: wanted.nics.clone(),
        layers: wanted.layers.clone(),
        ..MachineRequest::new(image, boot)
    }
}

/// The console's last lines, and what mends it.
pub(crate) fn evidence(failed: &FailedLease) -> String {
    let mut lines = String::new();
    if let LeaseError::SetUp { failure: failure @ SetUpFailure::Ended { .. }, .. } = &failed.error {
        let said = failure.output_before_last(OUTPUT_SHOWN);
        return said.iter().map(|line| format!("  {line}\n")).collect();
    }
    let from = failed.console.len().saturating_sub(CONSOLE_SHOWN);
    for line in &failed.console[from..] {
        lines += &format!("  {}   (console)\n", text::one_line(line.text.trim_end(), 200));
    }
    let hint = match &failed.error {
        LeaseError::Memory(_) => {
            "--memory 256M is the default; `guestline doctor` shows what is free"
        }
        LeaseError::Silent { .. } => "--boot-timeout gives it more time",
        LeaseError::SetUp { failure: SetUpFailure::TimedOut { .. }, .. } => {
            "--timeout gives its lines more time"
        }
        _ => return lines,
    };
    lines + &format!("  hint: {hint}\n")
}
