//! What commands share that need a machine: its image, and what is said when there is none.

use crate::args::GlobalArgs;
use crate::context::Context;
use crate::error::CommandError;
use crate::terminal::Progress;
use guestline::image::{BuildNews, BuildTerms, Image, ImageError, LockPolicy, Recipe};
use guestline::machine::Qemu;
use guestline::provision::{FailedLease, LeaseError, MachineRequest, NamedTemplate, SetUpFailure};
use guestline::text;
use std::cell::RefCell;
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
    let recipe = context.recipe(name)?;
    let images = context.images(global)?;
    let image = with_terms(&recipe, LockPolicy::default(), cancel, progress, |terms| {
        images.get(&recipe, terms)
    });
    Ok(image.inspect(|image| {
        if let Some(took) = image.made_in {
            let packages = image.manifest.packages.len();
            eprintln!("image {name}: made from {packages} packages in {:.1} s", took.as_secs_f64());
        }
    }))
}

/// Makes an image, telling its steps; in text, why there is none.
pub(crate) fn with_terms(
    recipe: &Recipe,
    lock: LockPolicy,
    cancel: &CancellationToken,
    progress: &mut Progress,
    make: impl FnOnce(&BuildTerms<'_>) -> Result<Image, ImageError>,
) -> Result<Image, String> {
    let name = &recipe.reference();
    let shown = RefCell::new(progress);
    let tell = |news: BuildNews<'_>| match news {
        BuildNews::Step(step) => shown.borrow_mut().show(&format!("image {name}: {step} …")),
        BuildNews::Note(note) => {
            shown.borrow_mut().clear();
            eprintln!("image {name}: {}", text::printable(note));
        }
    };
    let image = make(&BuildTerms { lock, cancel, tell: &tell });
    shown.borrow_mut().clear();
    image.map_err(|error| {
        let mut lines = format!("{}\n", text::chain(&error));
        lines.extend(error.hint().map(|hint| format!("  hint: {hint}\n")));
        lines
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
        error @ LeaseError::KernelLacks { .. } => {
            return lines + &error.hint().map_or(String::new(), |hint| format!("  hint: {hint}\n"));
        }
        LeaseError::Silent { .. } => "--boot-timeout gives it more time",
        LeaseError::SetUp { failure: SetUpFailure::TimedOut { .. }, .. } => {
            "--timeout gives its lines more time"
        }
        _ => return lines,
    };
    lines + &format!("  hint: {hint}\n")
}
