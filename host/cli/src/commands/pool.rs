//! `guestline pool`: machines that are ready before a check wants them, kept by this program in the background.

use super::template::{self, Options};
use crate::args::{GlobalArgs, PoolArgs, PoolCommand, PoolStartArgs};
use crate::background::{self, Heard, Told, tell_failed};
use crate::commands::check;
use crate::context::Context;
use crate::error::CommandError;
use crate::lease;
use crate::limits;
use crate::machines::{self, FAILED, Failure, now_us, span};
use crate::signals;
use crate::table;
use crate::terminal::Progress;
use guestline::dirs::Dirs;
use guestline::provision::pool::{self, KeeperError, NotReady, PoolError, PoolSpec, PoolStatus};
use guestline::provision::{MachineRequest, NamedTemplate, Provisioner, WorkRoot};
use guestline::text;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The set-up broke, or the usage was wrong.
const BROKEN: u8 = 125;
const USAGE: u8 = 2;

pub(crate) fn run(global: &GlobalArgs, args: &PoolArgs) -> Result<u8, CommandError> {
    match &args.command {
        PoolCommand::Start(args) => start(global, args),
        PoolCommand::List { json } => machines::run(|dirs| list(dirs, *json)),
        PoolCommand::Stop { ids } => machines::run(|dirs| stop(dirs, ids.clone())),
    }
}

/// The machine that is wanted, of options or of a template with a name.
fn wanted(context: &Context, args: &PoolStartArgs) -> Result<NamedTemplate, CommandError> {
    let options = Options {
        image: &args.image,
        memory_mib: args.memory,
        cpus: args.cpus,
        devices: &args.devices,
    };
    template::wanted(&context.dirs, args.template.as_ref(), options)
}

fn start(global: &GlobalArgs, args: &PoolStartArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let wanted = wanted(&context, args)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let aborted = || {
        eprintln!("aborted  pool start");
        Ok(interrupted.status())
    };
    let mut progress = Progress::new();
    // Before the pool is anybody's: a first image takes its time, and may be interrupted.
    match lease::image(&context, global, &wanted.image, &cancel, &mut progress)? {
        Ok(_) => {}
        Err(_) if interrupted.get().is_some() => return aborted(),
        Err(text) => {
            eprint!("errored  pool start: {text}");
            return Ok(BROKEN);
        }
    }
    progress.show("pool: its first machine is made ready …");
    let words = words(global, args)?;
    let heard = runtime.block_on(background::start::<PoolStatus>(&words, &cancel));
    progress.clear();
    match heard? {
        Heard::Interrupted => aborted(),
        Heard::Told(Told::Ready { what: pool }) => super::image::print(&format!(
            "pool {}: {} of {}, {} MiB each\n",
            pool.id,
            machines_of(pool.size),
            text::printable(&pool.image),
            pool.memory_mib
        )),
        Heard::Told(Told::Failed { text, status }) => {
            let _ = io::stderr().write_all(text.as_bytes());
            Ok(status)
        }
        Heard::Nothing { how, complaint } => {
            eprint!("errored  pool start: its keeper ended ({how}) without a word\n{complaint}");
            Ok(BROKEN)
        }
    }
}

fn machines_of(count: u32) -> String {
    match count {
        1 => "1 machine".to_owned(),
        count => format!("{count} machines"),
    }
}

/// The keeper's command line: ours, without relative paths, since it works in `/`.
fn words(global: &GlobalArgs, args: &PoolStartArgs) -> Result<Vec<OsString>, CommandError> {
    let mut words: Vec<OsString> = vec!["keep-pool".into()];
    let mut add = |option: &str, value: Option<OsString>| {
        if let Some(value) = value {
            words.push(format!("--{option}").into());
            words.push(value);
        }
    };
    let agent = global.agent.as_ref().map(std::path::absolute).transpose()?;
    add("agent", agent.map(std::path::PathBuf::into_os_string));
    add("accel", global.accel.word().map(OsString::from));
    add("size", Some(args.size.to_string().into()));
    add("boot-timeout", args.boot_timeout.map(|limit| format!("{}ms", limit.as_millis()).into()));
    match &args.template {
        Some(name) => add("template", Some(name.as_str().into())),
        None => {
            add("image", Some(args.devices.image(&args.image).into()));
            add("memory", args.memory.map(|mib| format!("{mib}M").into()));
            add("cpus", Some(args.cpus.to_string().into()));
            words.extend(args.devices.words().into_iter().map(OsString::from));
        }
    }
    words.extend((0..global.verbose).map(|_| "-v".into()));
    Ok(words)
}

async fn list(dirs: Dirs, json: bool) -> Result<u8, Failure> {
    let (pools, stuck) = pool::pools(&dirs).await;
    let lines = match json {
        true => pools
            .iter()
            .map(|pool| Ok(serde_json::to_string(pool)? + "\n"))
            .collect::<Result<String, serde_json::Error>>()?,
        false => table(&pools, now_us()),
    };
    print(&lines)?;
    Ok(tell_stuck(&stuck))
}

/// Says which keepers do not answer, and gives the exit status.
fn tell_stuck(stuck: &[PoolError]) -> u8 {
    for error in stuck {
        let kill = format!("`kill -9 {}` ends it and its machines", error.pid);
        Failure::new(text::chain(error)).hint(kill).print();
    }
    if stuck.is_empty() { 0 } else { FAILED }
}

fn print(text: &str) -> Result<u8, Failure> {
    super::image::print(text).map_err(|error| Failure::new(error.to_text().trim_end()))
}

fn table(pools: &[PoolStatus], now_us: u64) -> String {
    let head = ["ID", "IMAGE", "MEMORY", "CPUS", "READY", "LENT", "SERVED", "UPTIME", "PID"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(pools.iter().map(|pool| {
        [
            text::one_line(&pool.id, 40),
            text::one_line(&pool.image, 40),
            format!("{}M", pool.memory_mib),
            pool.cpus.to_string(),
            format!("{}/{}", pool.ready, pool.size),
            pool.lent.to_string(),
            pool.served.to_string(),
            span(Duration::from_micros(now_us.saturating_sub(pool.since_us))),
            pool.pid.to_string(),
        ]
    }));
    let mut lines = table::table(&rows);
    for pool in pools {
        if pool.stopping {
            lines += &format!("{}: stops when the checks in its machines have ended\n", pool.id);
        } else if let Some(why) = &pool.why {
            lines += &format!("{}: {}\n", pool.id, text::printable(why));
        }
    }
    lines
}

async fn stop(dirs: Dirs, ids: Vec<String>) -> Result<u8, Failure> {
    let (pools, stuck) = pool::pools(&dirs).await;
    for id in &ids {
        if !pools.iter().any(|pool| pool.id.starts_with(id)) {
            return Err(Failure::new(format!("there is no pool `{}`", text::printable(id)))
                .hint("`guestline pool list` shows them"));
        }
    }
    let is_meant =
        |pool: &&PoolStatus| ids.is_empty() || ids.iter().any(|id| pool.id.starts_with(id));
    for pool in pools.iter().filter(is_meant) {
        let id = &pool.id;
        match pool::stop(&dirs, id).await? {
            None => {}
            Some(0) => drop(print(&format!("pool {id} is stopped\n"))?),
            Some(lent) => {
                let lent = machines_of(lent);
                print(&format!("pool {id} stops when the checks in {lent} have ended\n"))?;
            }
        }
    }
    Ok(tell_stuck(if ids.is_empty() { &stuck } else { &[] }))
}

/// `guestline keep-pool`: the keeper itself.
pub(crate) fn keep(global: &GlobalArgs, args: &PoolStartArgs) -> u8 {
    let kept = prepare(global, args).and_then(|prepared| match prepared {
        Ok(prepared) => prepared.run(),
        Err(text) => Ok(tell_failed(format!("errored  pool start: {text}"), BROKEN)),
    });
    kept.unwrap_or_else(|error| tell_failed(error.to_text(), USAGE))
}

struct Prepared {
    context: Context,
    root: WorkRoot,
    provisioner: Provisioner,
    spec: PoolSpec,
}

/// All that a pool needs. The outer error is wrong usage, the inner one a broken set-up, in text.
fn prepare(
    global: &GlobalArgs,
    args: &PoolStartArgs,
) -> Result<Result<Prepared, String>, CommandError> {
    let context = Context::new()?;
    let wanted = wanted(&context, args)?;
    let work_root = || {
        let root = WorkRoot::create(&context.dirs, false)?;
        let log = File::create(root.path().join("keeper.log"))?;
        nix::unistd::dup2_stderr(&log)?;
        Ok::<_, io::Error>(root)
    };
    let root = match work_root() {
        Ok(root) => root,
        Err(error) => {
            let folder = context.dirs.runtime.display();
            return Ok(Err(format!("cannot make a work folder in `{folder}`: {error}\n")));
        }
    };
    allow_descriptors();
    check::start_log(global.verbose.max(1));
    let qemu = match lease::qemu(&context) {
        Ok(qemu) => qemu,
        Err(text) => return Ok(Err(text)),
    };
    let accel = context.acceleration(global.accel, false).accel;
    let (cancel, mut progress) = (CancellationToken::new(), Progress::new());
    let image = match lease::image(&context, global, &wanted.image, &cancel, &mut progress)? {
        Ok(image) => image,
        Err(text) => return Ok(Err(text)),
    };
    let limit = args.boot_timeout.unwrap_or_else(|| limits::boot_limit(accel));
    let request = MachineRequest {
        set_up_timeout: limits::check_limit(accel),
        ..lease::request(&wanted, image, limit)
    };
    let provisioner = context.provisioner(qemu, accel, root.clone());
    let spec = PoolSpec { request, size: args.size };
    Ok(Ok(Prepared { context, root, provisioner, spec }))
}

/// A ready machine has some sixteen descriptors open here, and the usual limit is 1024 (getrlimit(2)).
const DESCRIPTORS: u64 = 4096;

fn allow_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it there are fewer machines, and that is told.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(DESCRIPTORS).min(hard), hard);
    }
}

impl Prepared {
    fn run(self) -> Result<u8, CommandError> {
        let Self { context, root, provisioner, spec } = self;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let _context = runtime.enter();
        let cancel = CancellationToken::new();
        let _interrupted = signals::listen_as_told(cancel.clone())?;
        runtime.block_on(async {
            let ready = |status: &PoolStatus| background::tell_ready(status);
            let kept = pool::keep(&provisioner, &context.dirs, &root, spec, &cancel, ready).await;
            provisioner.finish().await;
            Ok(match kept {
                Ok(()) => 0,
                Err(error @ KeeperError::There { .. }) => {
                    let error = CommandError::new(error)
                        .hint("`guestline pool list` shows it, `guestline pool stop` ends it");
                    tell_failed(error.to_text(), USAGE)
                }
                Err(error) => {
                    let mut lines = format!("errored  pool start: {}\n", text::chain(&error));
                    if let KeeperError::Machine(NotReady::Lease(failed)) = &error {
                        lines += &lease::evidence(failed);
                    }
                    tell_failed(lines, BROKEN)
                }
            })
        })
    }
}
