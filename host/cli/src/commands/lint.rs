//! `guestline image lint`: what something lacks for checks to run in it.

use super::embed::{Cancelling, Failed, Job, kind_of, on_disk, scratch};
use super::image::{BROKEN, DAMAGED, print};
use crate::args::{GlobalArgs, ImageLintArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use guestline::image::embed::{Boots, FolderRoot, Output, Root};
use guestline::image::lint::{Finding, Linted, lint, lint_recipe};
use guestline::image::{
    ArchiveEditError, ArchiveInput, Catalogue, Kind, RecipeError, look_into_archive,
};
use guestline::provision::Edited;
use guestline::text;
use serde_json::json;
use std::path::Path;

/// What is no image, or cannot be read.
const UNREADABLE: u8 = 2;

pub(crate) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageLintArgs,
) -> Result<u8, CommandError> {
    let file = &args.file;
    let name = text::printable(&file.display().to_string());
    let is_manifest = file.extension().is_some_and(|end| end == "toml") && file.is_file();
    if is_manifest || is_name(context, file)? {
        return manifest(context, args, &name);
    }
    let agent = agent(global)?;
    let cancelling = Cancelling::new()?;
    let kind = match kind_of(file, &cancelling) {
        Err(_) if cancelling.is_interrupted() => return Ok(cancelling.status()),
        kind => kind?,
    };
    let linted = match kind {
        Kind::Folder => lint(&mut FolderRoot::new(file), &agent, Boots::Disk, false)
            .map(|linted| (linted, None))
            .map_err(|error| (Failed::new(&error, error.hint().map(str::to_owned), true), false)),
        Kind::Qcow2 | Kind::RawDisk => {
            let job = Job { context, global, cancelling: &cancelling };
            let look = move |root: &mut dyn Root, _: bool| {
                lint(root, &agent, Boots::Disk, true).map(|linted| (linted, true))
            };
            match on_disk(&job, file, &Output::Nowhere, args.root.as_deref(), look)? {
                Ok(Edited {
                    found: Linted { system, mut findings }, place, is_unclean, ..
                }) => {
                    findings.extend(is_unclean.then(|| Finding::unclean(&place)));
                    Ok((Linted { system, findings }, Some(place)))
                }
                Err(failed) => {
                    let is_machine = failed.is_machine;
                    Err((failed, is_machine))
                }
            }
        }
        Kind::Tar | Kind::Cpio | Kind::OciLayout | Kind::OciArchive | Kind::DockerArchive => {
            let scratch = scratch(context)?;
            let input =
                ArchiveInput { path: file, kind, pick: args.pick.as_deref(), scratch: &scratch };
            let look = |root: &mut dyn Root| {
                lint(root, &agent, Boots::of(kind), false).map_err(ArchiveEditError::from)
            };
            look_into_archive(input, &cancelling.token, look)
                .map(|linted| (linted, None))
                .map_err(|error| (Failed { is_usage: true, ..Failed::from(error) }, false))
        }
        Kind::Squashfs | Kind::Iso => {
            let findings = Vec::from_iter(Finding::unseen(kind, file));
            return told(&name, &kind.to_string(), &findings, args.json);
        }
        Kind::Guestline => {
            return Err(CommandError::new(format!(
                "`{name}` is a {kind}, and none is looked into"
            ))
            .hint("take in what is in it, and look at that by its name"));
        }
    };
    match linted {
        Ok((linted, place)) => {
            let system = match place {
                Some(place) => format!("{}, in {place}", linted.system),
                None => linted.system,
            };
            told(&name, &system, &linted.findings, args.json)
        }
        Err(_) if cancelling.is_interrupted() => {
            eprintln!("aborted  {name}");
            Ok(cancelling.status())
        }
        Err((failed, true)) => {
            eprint!("errored  {name}: {failed}");
            Ok(BROKEN)
        }
        Err((failed, false)) => {
            eprint!("error: `{name}`: {failed}");
            Ok(UNREADABLE)
        }
    }
}

/// Is it an image of the catalogue, perhaps with more packages, and no file?
fn is_name(context: &Context, file: &Path) -> Result<bool, CommandError> {
    let Some(name) = file.to_str().filter(|name| !name.contains('/') && !file.exists()) else {
        return Ok(false);
    };
    match Catalogue::new(&context.dirs).get(name) {
        Err(RecipeError::Unknown { known, .. }) => Err(CommandError::new(format!(
            "`{}` is no file, and no image is called that; there is: {}",
            text::printable(name),
            known.join(", ")
        ))),
        // What is wrong with its manifest is a finding.
        _ => Ok(true),
    }
}

fn manifest(context: &Context, args: &ImageLintArgs, name: &str) -> Result<u8, CommandError> {
    let recipe = match context.recipe(&args.file.display().to_string()) {
        Ok(recipe) => recipe,
        Err(error) => {
            let finding = Finding {
                id: "manifest",
                what: error.to_text().trim_start_matches("error: ").trim_end().to_owned(),
                costs: "the image cannot be made".to_owned(),
                mends: "docs/images.md has all keys".to_owned(),
                prevents: true,
            };
            return told(name, "a manifest", &[finding], args.json);
        }
    };
    let cancelling = Cancelling::new()?;
    let found = lint_recipe(&recipe, &context.dirs, &context.source, &cancelling.token);
    let what = match found {
        Some(_) => format!("manifest of image {}", recipe.name),
        None => format!(
            "manifest of image {}; its packages are not looked up, for there are no lists here",
            recipe.name
        ),
    };
    told(name, &what, &found.unwrap_or_default(), args.json)
}

fn told(name: &str, what: &str, findings: &[Finding], json: bool) -> Result<u8, CommandError> {
    let wrong = findings.iter().any(|finding| finding.prevents);
    if json {
        print(&format!("{}\n", json!({ "file": name, "what": what, "findings": findings })))?;
    } else {
        let mut lines = format!("{name}: {what}\n");
        for finding in findings {
            lines += &format!("  {}\n", finding.to_string().replace('\n', "\n  "));
        }
        if findings.is_empty() {
            lines += "  nothing is missing\n";
        }
        print(&lines)?;
    }
    Ok(if wrong { DAMAGED } else { 0 })
}
