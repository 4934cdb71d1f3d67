//! `guestline image`: build and list.

use crate::args::{GlobalArgs, ImageArgs, ImageCommand};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::signals;
use guestline::image::{Image, ImageError, Recipe};
use guestline_harness::text;
use std::io::Write;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &GlobalArgs, args: &ImageArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    match &args.command {
        ImageCommand::Build { name } => {
            // A name that is wrong is told before anything is fetched.
            Recipe::named(name)?;
            let agent = agent(global)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let _context = runtime.enter();
            let cancel = CancellationToken::new();
            let interrupted = signals::listen(cancel.clone(), false)?;
            match context.store(&cancel).build(name, &agent) {
                Ok(image) => {
                    context.cache().evict(context.limit);
                    print(&built(&image))
                }
                Err(_) if interrupted.get().is_some() => {
                    eprintln!("aborted  image {name}");
                    Ok(interrupted.status())
                }
                Err(error) => {
                    let mut lines = format!("errored  image {name}: {}\n", text::chain(&error));
                    lines.extend(error.hint().map(|hint| format!("  hint: {hint}\n")));
                    eprint!("{lines}");
                    Ok(125)
                }
            }
        }
        ImageCommand::List => print(&list(&context, global)?),
    }
}

fn built(image: &Image) -> String {
    let manifest = &image.manifest;
    let folder = image.kernel.parent().map(|path| path.display().to_string()).unwrap_or_default();
    let mut text = format!(
        "image {}: made from {} packages in {:.1} s\n  digest  {}\n  folder  {folder}\n",
        manifest.name,
        manifest.packages.len(),
        image.made_in.unwrap_or_default().as_secs_f64(),
        manifest.digest(),
    );
    for package in &manifest.packages {
        text += &format!("  package {} {}\n", package.name, package.version);
    }
    text
}

fn list(context: &Context, global: &GlobalArgs) -> Result<String, ImageError> {
    // Without an agent nothing can be made, but the catalogue can be shown.
    let agent = agent(global).ok();
    let mut text =
        format!("{:<12}  {:<12}  {:>8}  {:<28}  {}\n", "NAME", "DIGEST", "SIZE", "KERNEL", "WHAT");
    for status in context.store(&CancellationToken::new()).list(agent.as_ref())? {
        let (digest, size, kernel) = match &status.manifest {
            Some(manifest) => {
                let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
                let size = format!("{:.1} MB", bytes as f64 / 1e6);
                (manifest.digest().short().to_owned(), size, manifest.kernel_release.clone())
            }
            None => ("not made".to_owned(), String::new(), String::new()),
        };
        let (name, summary) = (&status.recipe.name, &status.recipe.summary);
        text += &format!("{name:<12}  {digest:<12}  {size:>8}  {kernel:<28}  {summary}\n");
    }
    Ok(text)
}

/// Data goes to stdout; a reader that went away has what it wants.
pub(crate) fn print(text: &str) -> Result<u8, CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::new(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(0),
    }
}
