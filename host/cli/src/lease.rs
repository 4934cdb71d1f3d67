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
        if image.made_in.is_some() {
            eprintln!("image {name}: {}", how_made(image));
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
    let image = telling(&recipe.reference(), lock, cancel, progress, make);
    image.map_err(|error| lines_of(&error, error.hint()))
}

/// What an image was made from just now, and how long that took.
pub(crate) fn how_made(image: &Image) -> String {
    let took = image.made_in.unwrap_or_default().as_secs_f64();
    match image.manifest.packages.len() {
        0 => format!("made in {took:.1} s"),
        packages => format!("made from {packages} packages in {took:.1} s"),
    }
}

/// An error, and what mends it.
pub(crate) fn lines_of(error: &dyn std::error::Error, hint: Option<String>) -> String {
    let mut lines = format!("{}\n", text::chain(error));
    lines.extend(hint.map(|hint| format!("  hint: {hint}\n")));
    lines
}

/// Makes what is an image, telling its steps.
pub(crate) fn telling<T>(
    name: &str,
    lock: LockPolicy,
    cancel: &CancellationToken,
    progress: &mut Progress,
    make: impl FnOnce(&BuildTerms<'_>) -> T,
) -> T {
    let shown = RefCell::new(progress);
    let tell = |news: BuildNews<'_>| match news {
        BuildNews::Step(step) => shown.borrow_mut().show(&format!("image {name}: {step} …")),
        BuildNews::Note(note) => {
            shown.borrow_mut().clear();
            eprintln!("image {name}: {}", text::printable(note));
        }
    };
    let made = make(&BuildTerms { lock, cancel, tell: &tell });
    shown.borrow_mut().clear();
    made
}

/// The machine that a name, or options, stand for, of an image; it may take so long to boot.
pub(crate) fn request(wanted: &NamedTemplate, image: Image, boot: Duration) -> MachineRequest {
    MachineRequest {
        memory_mib: wanted.memory_mib.unwrap_or(image.manifest.memory_mib),
        cpus: wanted.cpus,
        disks: wanted.disks.clone(),
        nics: wanted.nics.clone(),
        layers: wanted.layers.iter().cloned().map(Into::into).collect(),
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
        error => {
            return lines + &error.hint().map_or(String::new(), |hint| format!("  hint: {hint}\n"));
        }
    };
    lines + &format!("  hint: {hint}\n")
}
