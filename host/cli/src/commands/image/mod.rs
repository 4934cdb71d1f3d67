//! `guestline image`: what machines boot.

mod export;
mod foreign;
mod import;
mod publish;
mod pull;
mod sbom;
mod virt_builder;

use super::{embed, lint};
use crate::args::{GlobalArgs, ImageArgs, ImageBuildArgs, ImageCommand};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::lease;
use crate::signals;
use crate::terminal::Progress;
use guestline::image::{Image, ImageStatus, LockPolicy, MANIFEST_SCHEMA, Manifest, Recipe};
use guestline::provision::Removal;
use guestline_harness::text;
use serde_json::json;
use std::io::Write;
use tokio_util::sync::CancellationToken;

/// The image cannot be made; something is damaged.
pub(super) const BROKEN: u8 = 125;
pub(super) const DAMAGED: u8 = 1;
/// All was done, but for an image whose manifest is wrong.
const WRONG_MANIFEST: u8 = 2;

pub(crate) fn run(global: &GlobalArgs, args: &ImageArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    match &args.command {
        ImageCommand::List { source, json } if source.from.is_some() => {
            pull::list(&context, source, *json)
        }
        ImageCommand::List { json, .. } => list(&context, global, *json),
        ImageCommand::Show { name, json, kconfig: Some(pattern) } => {
            kconfig(&context, global, name, pattern, *json)
        }
        ImageCommand::Show { name, json, kconfig: None } => show(&context, global, name, *json),
        ImageCommand::Build(args) => build(&context, global, args),
        ImageCommand::Import(args) => import::run(&context, global, args),
        ImageCommand::Verify { names } => verify(&context, global, names),
        ImageCommand::Rm { names } => rm(&context, names),
        ImageCommand::Embed(args) => embed::embed(&context, global, args),
        ImageCommand::Unembed(args) => embed::unembed(&context, global, args),
        ImageCommand::Lint(args) => lint::run(&context, global, args),
        ImageCommand::Export { name, output } => {
            export::run(&context, global, name, output.as_deref())
        }
        ImageCommand::Publish(args) => publish::run(&context, global, args),
        ImageCommand::Pull(args) => pull::run(&context, global, args),
        ImageCommand::Sbom { name, format, output } => {
            sbom::run(&context, global, name, *format, output)
        }
        ImageCommand::Schema => print(MANIFEST_SCHEMA),
    }
}

/// Runs what ends early, with nothing half made, when its argument is cancelled: at the first signal.
fn interruptible(
    what: &str,
    run: impl FnOnce(&CancellationToken) -> Result<u8, CommandError>,
) -> Result<u8, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let status = run(&cancel);
    if interrupted.get().is_some() {
        eprintln!("aborted  image {what}");
        return Ok(interrupted.status());
    }
    status
}

/// An image that is made, and what it is made of.
fn made(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
) -> Result<(Recipe, Image), CommandError> {
    let recipe = context.recipe(name)?;
    match context.store().find(&recipe, &agent(global)?) {
        Ok(Some(image)) => Ok((recipe, image)),
        Ok(None) => Err(CommandError::new(format!("image `{name}` is not made"))
            .hint(format!("make it: guestline image build {name}"))),
        Err(error) => {
            let hint = error.hint();
            Err(CommandError::new(error).hints(hint))
        }
    }
}

/// Says why something could not be done, and what mends it.
fn tell(what: &str, error: &dyn std::error::Error, hint: Option<String>) {
    let mut lines = format!("error: {what}: {}\n", text::chain(error));
    lines.extend(hint.map(|hint| format!("hint: {hint}\n")));
    // Nothing is left to tell when standard error is gone.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}

fn build(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageBuildArgs,
) -> Result<u8, CommandError> {
    let name = &args.name;
    // A name that is wrong is told before anything is fetched.
    let recipe = context.recipe(name)?;
    let images = context.images(global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let lock = match (args.locked, args.update_lock) {
        (true, _) => LockPolicy::Only,
        (_, true) => LockPolicy::Update,
        _ => LockPolicy::Prefer,
    };
    let mut progress = Progress::new();
    let made = lease::with_terms(&recipe, lock, &cancel, &mut progress, |terms| {
        images.build(&recipe, terms)
    });
    match made {
        Ok(image) => {
            context.cache().evict(context.limit);
            print(&built(&image))
        }
        Err(_) if interrupted.get().is_some() => {
            eprintln!("aborted  image {name}");
            Ok(interrupted.status())
        }
        Err(lines) => {
            eprint!("errored  image {name}: {lines}");
            Ok(BROKEN)
        }
    }
}

pub(super) fn built(image: &Image) -> String {
    let manifest = &image.manifest;
    format!(
        "image {}: {}\n{}",
        manifest.name,
        lease::how_made(image),
        described(image, manifest.packages.len() <= 4),
    )
}

/// What an image is, a line each.
fn described(image: &Image, with_packages: bool) -> String {
    let manifest = &image.manifest;
    let folder = image.folder.display();
    let mut text = format!(
        "  digest  {}\n  size    {}\n  kernel  {}\n  folder  {folder}\n",
        manifest.digest(),
        size(manifest),
        kernel(manifest),
    );
    for package in manifest.packages.iter().filter(|_| with_packages) {
        text += &format!("  package {} {}\n", package.name, package.version);
    }
    text
}

fn kernel(manifest: &Manifest) -> &str {
    if manifest.disk.is_some() { "its own" } else { &manifest.kernel_release }
}

fn size(manifest: &Manifest) -> String {
    let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn list(context: &Context, global: &GlobalArgs, json: bool) -> Result<u8, CommandError> {
    // Without an agent nothing can be made, but the catalogue can be shown.
    let agent = agent(global).ok();
    let mut lines = match json {
        true => String::new(),
        false => format!(
            "{:<18}  {:<12}  {:>8}  {:<28}  {}\n",
            "NAME", "DIGEST", "SIZE", "KERNEL", "WHAT"
        ),
    };
    let mut wrong = false;
    for status in context.store().list(agent.as_ref()) {
        let ImageStatus { recipe, manifest } = match status {
            Ok(status) => status,
            Err(error) => {
                eprintln!("guestline: {}", text::chain(&error));
                wrong = true;
                continue;
            }
        };
        let (name, summary) = (&recipe.name, &recipe.summary);
        if json {
            lines += &format!(
                "{}\n",
                json!({ "name": name, "summary": summary, "provides": recipe.provides, "made": manifest })
            );
            continue;
        }
        let (digest, size, kernel) = match &manifest {
            Some(manifest) => {
                let digest = manifest.digest().short().to_owned();
                (digest, size(manifest), kernel(manifest).to_owned())
            }
            None => ("not made".to_owned(), String::new(), String::new()),
        };
        lines += &format!("{name:<18}  {digest:<12}  {size:>8}  {kernel:<28}  {summary}\n");
    }
    print(&lines)?;
    Ok(if wrong { WRONG_MANIFEST } else { 0 })
}

/// What the kernel of an image is configured with, as capabilities.
fn kconfig(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
    pattern: &str,
    json: bool,
) -> Result<u8, CommandError> {
    let recipe = context.recipe(name)?;
    let image = context.store().find(&recipe, &agent(global)?)?;
    let build = |why: &str| {
        CommandError::new(format!("image `{name}` {why}"))
            .hint(format!("guestline image build {name}"))
    };
    let image = image.ok_or_else(|| build("is not made"))?;
    let config = image.kconfig().ok_or_else(|| build("says nothing of its kernel's options"))?;
    let pattern = pattern.to_lowercase();
    let wanted: Vec<(String, &str)> = config
        .capabilities()
        .filter(|(option, _)| option.to_lowercase().contains(&pattern))
        .collect();
    if json {
        let object: serde_json::Map<String, serde_json::Value> =
            wanted.into_iter().map(|(option, value)| (option, json!(value))).collect();
        return print(&format!("{}\n", serde_json::Value::from(object)));
    }
    let lines =
        wanted.iter().map(|(option, value)| format!("{option}={}\n", text::printable(value)));
    print(&lines.collect::<String>())
}

fn show(
    context: &Context,
    global: &GlobalArgs,
    name: &str,
    json: bool,
) -> Result<u8, CommandError> {
    let recipe = context.recipe(name)?;
    let image = match agent(global) {
        Ok(agent) => context.store().find(&recipe, &agent)?,
        Err(_) => None,
    };
    if json {
        let made = image.as_ref().map(|image| &image.manifest);
        return print(&format!(
            "{}\n",
            json!({
                "name": recipe.name, "summary": recipe.summary, "suite": recipe.suite, "packages": recipe.packages,
                "memory_mib": recipe.memory_mib, "ready": recipe.ready, "init": recipe.init, "shell": recipe.shell,
                "warm_up": recipe.warm_up, "provides": recipe.provides, "owner": recipe.owner,
                "licence": recipe.licence, "cmdline": recipe.kernel.cmdline, "made": made,
            })
        ));
    }
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut lines = format!(
        "image {}: {}\n  suite   {}\n  init    {}\n  ready   {}\n  memory  {} MiB\n  owner   {}\n  licence {}\n",
        recipe.name,
        recipe.summary,
        or_none(&recipe.suite),
        recipe.init.as_deref().unwrap_or("the agent"),
        recipe.ready,
        recipe.memory_mib,
        recipe.owner,
        recipe.licence,
    );
    lines += &format!(
        "  provides {}\n  wants   {}\n",
        recipe.provides.join(", "),
        recipe.packages.join(", ")
    );
    match &image {
        Some(image) => lines += &described(image, true),
        None => lines += "  not made: the first check that wants it makes it\n",
    }
    print(&lines)
}

fn verify(context: &Context, global: &GlobalArgs, names: &[String]) -> Result<u8, CommandError> {
    let store = context.store();
    let (recipes, is_wrong) = match names.is_empty() {
        true => all_recipes(context),
        false => (recipes(context, names)?, false),
    };
    let agent = agent(global)?;
    let (mut lines, mut damaged) = (String::new(), false);
    for recipe in &recipes {
        let name = recipe.reference();
        let word = match store.verify(recipe, &agent) {
            Some(Ok(())) => "right".to_owned(),
            Some(Err(why)) => {
                damaged = true;
                format!("damaged: {why}; `guestline image build {name}` makes it anew")
            }
            None if names.is_empty() => continue,
            None => "not made".to_owned(),
        };
        lines += &format!("{name}: {word}\n");
    }
    print(&lines)?;
    Ok(match damaged {
        true => DAMAGED,
        false if is_wrong => WRONG_MANIFEST,
        false => 0,
    })
}

/// All recipes of the catalogue that can be read; of a manifest that is wrong that is said, and told.
fn all_recipes(context: &Context) -> (Vec<Recipe>, bool) {
    let store = context.store();
    let (mut recipes, mut is_wrong) = (Vec::new(), false);
    for name in store.catalogue().names() {
        match store.catalogue().get(&name) {
            Ok(recipe) => recipes.push(recipe),
            Err(error) => {
                eprintln!("guestline: {}", text::chain(&error));
                is_wrong = true;
            }
        }
    }
    (recipes, is_wrong)
}

/// All of them are looked up before anything is done with one.
fn recipes(context: &Context, names: &[String]) -> Result<Vec<Recipe>, CommandError> {
    names.iter().map(|name| context.recipe(name)).collect()
}

fn rm(context: &Context, names: &[String]) -> Result<u8, CommandError> {
    for (recipe, asked) in recipes(context, names)?.iter().zip(names) {
        let (name, digest) = (&recipe.name, recipe.digest());
        // A path means what lies there, and not what has the same name; NAME+PACKAGE not what has other packages. What was
        // made of a folder has the name of no other image, and went with each change of the folder.
        let is_folder = recipe.root.as_ref().is_some_and(|root| root.file.is_dir());
        let just = (asked != name && !is_folder).then_some(&digest);
        for removal in context.cache().remove_image(name, just, &|| true) {
            match removal {
                Removal::Removed => {}
                Removal::InUse => {
                    return Err(CommandError::new(format!(
                        "image `{}` is in use",
                        recipe.reference()
                    ))
                    .hint("take down the machines that it runs in first"));
                }
                Removal::Failed(error) => {
                    return Err(CommandError::new(format!(
                        "cannot remove image `{}`: {error}",
                        recipe.reference()
                    )));
                }
            }
        }
        if asked != name {
            continue;
        }
        context.store().forget(name)?;
        let forgotten = context.store().catalogue().forget(name);
        match forgotten {
            Ok(false) => {}
            Ok(true) => println!("image {name}: the manifest that came with it is gone as well"),
            Err(error) => {
                return Err(CommandError::new(format!(
                    "cannot remove the manifest that came with image `{name}`: {error}"
                )));
            }
        }
    }
    Ok(0)
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
