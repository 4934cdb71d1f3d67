//! `guestline template`: machines that are set up and saved, under names.

use super::check;
use super::image::print;
use crate::args::{CreateArgs, DeviceArgs, GlobalArgs, TemplateArgs, TemplateCommand};
use crate::context::Context;
use crate::error::CommandError;
use crate::lease;
use crate::limits;
use crate::signals;
use crate::terminal::Progress;
use guestline::dirs::Dirs;
use guestline::provision::{
    MachineRequest, NamedTemplate, NamedTemplateError, NamedTemplates, NicWanted, Notice, Removal,
    Template, TemplateName, TemplateStore, WorkRoot,
};
use guestline::text;
use guestline_harness::outcome::Stage;
use guestline_harness::run::stage_of;
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The set-up broke.
const BROKEN: u8 = 125;

pub(crate) fn run(global: &GlobalArgs, args: &TemplateArgs) -> Result<u8, CommandError> {
    match &args.command {
        TemplateCommand::Create(create) => self::create(global, create),
        TemplateCommand::List { json } => list(&Context::new()?, *json),
        TemplateCommand::Show { name, json } => show(&Context::new()?, name, *json),
        TemplateCommand::Rm { names } => rm(&Context::new()?, names),
    }
}

/// What a name stands for.
pub(crate) fn named(dirs: &Dirs, name: &TemplateName) -> Result<NamedTemplate, CommandError> {
    let all = NamedTemplates::new(dirs);
    all.get(name).map_err(|error| {
        let is_missing = matches!(error, NamedTemplateError::Missing { .. });
        let error = CommandError::new(error);
        match (is_missing, &all.names()[..]) {
            (false, _) => error.hint(format!("`guestline template rm {name}` forgets it")),
            (true, []) => {
                error.hint(format!("make it: guestline template create {name} --exec LINE"))
            }
            (true, names) => {
                let names: Vec<&str> = names.iter().map(TemplateName::as_str).collect();
                error.hint(format!("there is: {}", names.join(", ")))
            }
        }
    })
}

/// A machine, as options say.
pub(crate) struct Options<'a> {
    pub(crate) image: &'a str,
    pub(crate) memory_mib: Option<u64>,
    pub(crate) cpus: u32,
    pub(crate) devices: &'a DeviceArgs,
}

/// What is wanted: what a name stands for, else what options say.
pub(crate) fn wanted(
    dirs: &Dirs,
    name: Option<&TemplateName>,
    options: Options<'_>,
) -> Result<NamedTemplate, CommandError> {
    if let Some(name) = name {
        return named(dirs, name);
    }
    let Options { image, memory_mib, cpus, devices } = options;
    devices.check().map_err(CommandError::new)?;
    let DeviceArgs { disks, nics, .. } = devices.clone();
    let mut wanted = NamedTemplate::new(devices.image(image));
    (wanted.memory_mib, wanted.cpus, wanted.disks, wanted.nics) = (memory_mib, cpus, disks, nics);
    Ok(wanted)
}

fn create(global: &GlobalArgs, args: &CreateArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let (all, name) = (NamedTemplates::new(&context.dirs), &args.name);
    if let Some(line) = args.exec.iter().find(|line| line.trim().is_empty()) {
        return Err(CommandError::new(format!("an empty line sets up nothing: `{line}`")));
    }
    let options = Options {
        image: &args.image,
        memory_mib: args.memory,
        cpus: args.cpus,
        devices: &args.devices,
    };
    let mut wanted = wanted(&context.dirs, args.from.as_ref(), options)?;
    wanted.last = None;
    if !args.exec.is_empty() {
        wanted.layers.push(args.exec.clone());
    }
    match all.get(name) {
        Err(NamedTemplateError::Missing { .. }) => {}
        _ if args.force => {}
        Ok(there) if there.is_same(&wanted) => {}
        Ok(_) => {
            let error =
                CommandError::new(format!("template `{name}` is there already, and is another"));
            return Err(error
                .hint(format!("`guestline template show {name}` says what it is"))
                .hint("--force gives the name its new meaning"));
        }
        Err(error) => return Err(error.into()),
    }
    context.recipe(&wanted.image)?;
    check::start_log(global.verbose);
    let errored = |text: String| {
        eprint!("errored  template {name}: {text}");
        Ok(BROKEN)
    };
    let qemu = match lease::qemu(&context) {
        Ok(qemu) => qemu,
        Err(text) => return errored(format!("{}: {text}", Stage::Host)),
    };
    let accel = context.acceleration(global.accel, false).accel;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let aborted = || {
        eprintln!("aborted  template {name}");
        Ok(interrupted.status())
    };
    let mut progress = Progress::new();
    let image = match lease::image(&context, global, &wanted.image, &cancel, &mut progress)? {
        Ok(image) => image,
        Err(_) if interrupted.get().is_some() => return aborted(),
        Err(text) => return errored(format!("{}: {text}", Stage::Image)),
    };
    let root = WorkRoot::create(&context.dirs, false)?;
    let provisioner = context.provisioner(qemu, accel, root);
    let request = MachineRequest {
        set_up_timeout: args.timeout.unwrap_or_else(|| limits::check_limit(accel)),
        ..lease::request(
            &wanted,
            image,
            args.boot_timeout.unwrap_or_else(|| limits::boot_limit(accel)),
        )
    };
    progress.show(&format!("template {name}: being made …"));
    let made = runtime.block_on(async {
        let made = provisioner.template_of(&request, &cancel).await;
        provisioner.finish().await;
        made
    });
    progress.clear();
    match made {
        Ok((_, template, notices)) => {
            wanted.last = Some(template.id());
            all.put(name, &wanted)?;
            print(&made_line(name, &template, &notices))
        }
        Err(_) if interrupted.get().is_some() => aborted(),
        Err(failed) => {
            let stage = stage_of(&failed.error);
            let why = text::chain(&failed.error);
            errored(format!("{stage}: {why}\n{}", lease::evidence(&failed)))
        }
    }
}

/// "template web: made in 3.1 s (05b92b82fc1b)".
fn made_line(name: &TemplateName, template: &Template, notices: &[Notice]) -> String {
    let made: Duration = notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::Made { id, elapsed, .. } if *id == template.id() => Some(*elapsed),
            _ => None,
        })
        .sum();
    let id = template.id();
    match made {
        Duration::ZERO => format!("template {name}: is there already ({id})\n"),
        made => format!("template {name}: made in {:.1} s ({id})\n", made.as_secs_f64()),
    }
}

fn list(context: &Context, json: bool) -> Result<u8, CommandError> {
    let (all, store) = (NamedTemplates::new(&context.dirs), TemplateStore::new(&context.dirs));
    let mut text = String::new();
    if !json {
        text += &format!(
            "{:<24} {:<12} {:>7} {:>5} {:>6}  SAVED\n",
            "NAME", "IMAGE", "MEMORY", "CPUS", "LAYERS"
        );
    }
    for name in all.names() {
        let template = match all.get(&name) {
            Ok(template) => template,
            Err(error) => {
                eprintln!("guestline: {}", text::chain(&error));
                continue;
            }
        };
        let saved = template.last.as_ref().filter(|id| store.has(id));
        if json {
            text += &format!("{}\n", describe(&name, &template, saved.is_some()));
            continue;
        }
        let memory = template.memory_mib.map_or("-".to_owned(), |mib| format!("{mib}M"));
        let saved = saved.map_or("when it is wanted next", |id| id.as_str());
        let (image, cpus, layers) = (&template.image, template.cpus, template.layers.len());
        text += &format!("{name:<24} {image:<12} {memory:>7} {cpus:>5} {layers:>6}  {saved}\n");
    }
    print(&text)
}

fn describe(name: &TemplateName, template: &NamedTemplate, is_saved: bool) -> serde_json::Value {
    json!({
        "name": name.as_str(), "image": template.image, "memory_mib": template.memory_mib, "cpus": template.cpus,
        "disks_mib": template.disks, "nics": template.nics, "layers": template.layers, "saved": template.last.as_ref().filter(|_| is_saved),
    })
}

fn show(context: &Context, name: &TemplateName, json: bool) -> Result<u8, CommandError> {
    let template = named(&context.dirs, name)?;
    let store = TemplateStore::new(&context.dirs);
    let saved = template.last.as_ref().filter(|id| store.has(id));
    if json {
        return print(&format!("{}\n", describe(name, &template, saved.is_some())));
    }
    let memory = template.memory_mib.map_or("the image's".to_owned(), |mib| format!("{mib} MiB"));
    let mut text = format!(
        "template {name}\n  image   {}\n  memory  {memory}\n  cpus    {}\n",
        template.image, template.cpus
    );
    for disk in &template.disks {
        text += &format!("  disk    {} MiB\n", disk.size_mib());
    }
    for nic in &template.nics {
        text += &format!(
            "  nic     {}\n",
            if *nic == NicWanted::default() { "-".to_owned() } else { nic.to_string() }
        );
    }
    for (number, layer) in (1..).zip(&template.layers) {
        for line in layer {
            text += &format!("  layer {number} {}\n", text::one_line(line, 200));
        }
    }
    text += &match saved {
        Some(id) => format!("  saved   {}\n", store.folder().join(id.as_str()).display()),
        None => "  saved   when it is wanted next\n".to_owned(),
    };
    print(&text)
}

fn rm(context: &Context, names: &[TemplateName]) -> Result<u8, CommandError> {
    let (all, store) = (NamedTemplates::new(&context.dirs), TemplateStore::new(&context.dirs));
    // All of them are looked at before one is removed.
    let mut templates = Vec::new();
    for name in names {
        match all.get(name) {
            Err(error @ NamedTemplateError::Missing { .. }) => return Err(error.into()),
            // Without a line of its own it is what all machines of its kind are restored from.
            template => {
                let its_own = template.ok().filter(|template| !template.layers.is_empty());
                templates.push((name, its_own.and_then(|template| template.last)));
            }
        }
    }
    for (name, last) in templates {
        let others = all.names();
        let others = others.iter().filter(|other| *other != name);
        let is_shared = others
            .filter_map(|other| all.get(other).ok()?.last)
            .any(|other| Some(&other) == last.as_ref());
        if let Some(id) = last.filter(|_| !is_shared) {
            match store.remove_id(&id) {
                Removal::InUse => {
                    let error = CommandError::new(format!("template `{name}` is in use"));
                    return Err(
                        error.hint("take down the machines that were restored from it first")
                    );
                }
                Removal::Removed => {}
                Removal::Failed(error) => {
                    let folder = store.folder().join(id.as_str());
                    let error = format!("cannot remove `{}`: {error}", folder.display());
                    return Err(CommandError::new(error));
                }
            }
        }
        all.remove(name)?;
    }
    Ok(0)
}
