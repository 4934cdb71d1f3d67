//! `guestline up`: starts a supervisor, which is this program again, and waits until its machine is ready.

use crate::args::{GlobalArgs, UpArgs};
use crate::background::{self, Heard, Told, tell_failed};
use crate::commands::check;
use crate::context::Context;
use crate::error::CommandError;
use crate::lease;
use crate::limits;
use crate::machines;
use crate::own_kernel;
use crate::signals::{self, Heeded};
use crate::terminal::Progress;
use guestline::guest::Brought;
use guestline::link::Endpoint;
use guestline::provision::{MachineRequest, WorkRoot};
use guestline::supervise::{
    self, Down, Finished, How, MachineStatus, RegistryError, Source, SuperviseError, Supervision,
};
use guestline::text;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// The set-up broke, or the usage was wrong.
const BROKEN: u8 = 125;
const USAGE: u8 = 2;

pub(crate) fn run(global: &GlobalArgs, args: &UpArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let name = &args.name;
    // What is wrong with the command line is told before anything is made.
    if supervise::find(&context.dirs, name).is_some() {
        return Err(taken(&args.name));
    }
    endpoint(args)?;
    args.devices.check().map_err(CommandError::new)?;
    let named = own_kernel::named(&args.kernel)?;
    let words = supervisor_words(global, args)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _context = runtime.enter();
    let cancel = CancellationToken::new();
    let interrupted = signals::listen(cancel.clone(), false)?;
    let aborted = || {
        eprintln!("aborted  up {name}");
        Ok(interrupted.status())
    };
    let mut progress = Progress::new();
    if args.connect.is_none() {
        // Before the machine is anybody's: a first image takes its time, and may be interrupted.
        let image = args.devices.image(&args.image);
        match lease::image(&context, global, &image, &cancel, &mut progress)? {
            Ok(_) => {}
            Err(_) if interrupted.get().is_some() => return aborted(),
            Err(text) => {
                eprint!("errored  up {name}: {text}");
                return Ok(BROKEN);
            }
        }
        if let Some(named) = named {
            match named.ready(&context, &image, &cancel, &mut progress) {
                Ok(_) => {}
                Err(_) if interrupted.get().is_some() => return aborted(),
                Err(text) => {
                    eprintln!("errored  up {name}: {text}");
                    return Ok(BROKEN);
                }
            }
        }
    }
    progress.show(&format!("{name}: booting …"));
    let heard = runtime.block_on(background::start::<MachineStatus>(&words, &cancel));
    progress.clear();
    match heard? {
        Heard::Interrupted => aborted(),
        Heard::Told(Told::Ready { what: machine }) => {
            if let Err(failure) = runtime.block_on(bring(&context, args, &cancel)) {
                if interrupted.get().is_some() {
                    return aborted();
                }
                eprintln!("errored  up {name}: {failure}");
                return Ok(BROKEN);
            }
            let took = Duration::from_micros(machine.ready_in_us.unwrap_or(0));
            let kernel = machine.kernel.as_deref().unwrap_or("of unknown name");
            let line = format!(
                "{name} is up: kernel {}, {:.1} s\n",
                text::printable(kernel),
                took.as_secs_f64()
            );
            super::image::print(&line)
        }
        Heard::Told(Told::Failed { text, status }) => {
            let _ = io::stderr().write_all(text.as_bytes());
            Ok(status)
        }
        Heard::Nothing { how, complaint } => {
            eprint!("errored  up {name}: its supervisor ended ({how}) without a word\n{complaint}");
            Ok(BROKEN)
        }
    }
}

/// Puts files of this host into the machine; it goes down when that cannot be done.
async fn bring(context: &Context, args: &UpArgs, cancel: &CancellationToken) -> Result<(), String> {
    if args.with.with.is_empty() {
        return Ok(());
    }
    let name = &args.name;
    let bringing = async {
        let attached = machines::attach(context.dirs.clone(), name).await;
        let attached = attached.map_err(|failure| failure.message().to_owned())?;
        for Brought { from, to } in &args.with.with {
            attached.guest.bring(from, to).await.map_err(|error| {
                format!("cannot put `{}` at `{to}`: {}", from.display(), text::chain(&error))
            })?;
        }
        Ok(())
    };
    let brought = tokio::select! {
        brought = bringing => brought,
        () = cancel.cancelled() => Err("interrupted".to_owned()),
    };
    if brought.is_err() {
        let _ = super::down::take_down(context.dirs.clone(), name.clone(), true).await;
    }
    brought
}

fn taken(name: &supervise::MachineName) -> CommandError {
    CommandError::new(format!("`{name}` is up already"))
        .hint(format!("`guestline exec {name} -- COMMAND` runs a command in it"))
        .hint(format!("`guestline down {name}` takes it down"))
}

fn endpoint(args: &UpArgs) -> Result<Option<Endpoint>, CommandError> {
    Ok(args.connect.as_deref().map(str::parse).transpose()?)
}

/// The supervisor's command line: ours, without relative paths, since it works in `/`.
fn supervisor_words(
    global: &GlobalArgs,
    args: &UpArgs,
) -> Result<Vec<std::ffi::OsString>, CommandError> {
    let mut words: Vec<std::ffi::OsString> = vec!["supervise".into(), args.name.as_str().into()];
    let mut add = |option: &str, value: Option<std::ffi::OsString>| {
        if let Some(value) = value {
            words.push(format!("--{option}").into());
            words.push(value);
        }
    };
    let agent = global.agent.as_ref().map(std::path::absolute).transpose()?;
    add("agent", agent.map(PathBuf::into_os_string));
    add("accel", global.accel.word().map(Into::into));
    add("boot-timeout", args.boot_timeout.map(|limit| format!("{}ms", limit.as_millis()).into()));
    match &args.connect {
        Some(endpoint) => add("connect", Some(absolute_endpoint(endpoint).into())),
        None => {
            add("image", Some(args.devices.image(&args.image).into()));
            add("memory", args.memory.map(|mib| format!("{mib}M").into()));
            add("cpus", Some(args.cpus.to_string().into()));
            words.extend(args.kernel.absolute_words()?);
            words.extend(args.devices.words().into_iter().map(Into::into));
            for (given, word) in [(args.fresh_reboot, "--fresh-reboot"), (args.gdb, "--gdb")] {
                words.extend(given.then(|| word.into()));
            }
        }
    }
    for _ in 0..global.verbose {
        words.push("-v".into());
    }
    Ok(words)
}

/// An endpoint whose path does not depend on the folder we are in.
fn absolute_endpoint(endpoint: &str) -> String {
    let Some((kind @ ("tty" | "unix" | "qga"), path)) = endpoint.split_once(':') else {
        return endpoint.to_owned();
    };
    match std::path::absolute(Path::new(path)) {
        Ok(path) => format!("{kind}:{}", path.display()),
        Err(_) => endpoint.to_owned(),
    }
}

/// `guestline supervise`: the supervisor itself.
pub(crate) fn supervise(global: &GlobalArgs, args: &UpArgs) -> u8 {
    match prepare(global, args) {
        Ok(Ok(prepared)) => prepared.run(),
        Ok(Err(text)) => tell_failed(format!("errored  up {}: {text}", args.name), BROKEN),
        Err(error) => tell_failed(error.to_text(), USAGE),
    }
}

struct Prepared {
    context: Context,
    root: WorkRoot,
    supervision: Supervision,
}

/// All that a machine needs. The outer error is wrong usage, the inner one a broken set-up, in text.
fn prepare(global: &GlobalArgs, args: &UpArgs) -> Result<Result<Prepared, String>, CommandError> {
    let context = Context::new()?;
    let root = match WorkRoot::create(&context.dirs, false) {
        Ok(root) => root,
        Err(error) => {
            let folder = context.dirs.runtime.display();
            return Ok(Err(format!("cannot make a work folder in `{folder}`: {error}\n")));
        }
    };
    let log = File::create(root.path().join("supervisor.log"))?;
    nix::unistd::dup2_stderr(&log)?;
    check::start_log(global.verbose.max(1));
    let (source, limit) = match endpoint(args)? {
        Some(endpoint) => {
            (Source::Connect(endpoint), limits::boot_limit(guestline::machine::Accel::Kvm))
        }
        None => {
            let qemu = match lease::qemu(&context) {
                Ok(qemu) => qemu,
                Err(text) => return Ok(Err(text)),
            };
            let accel = context.acceleration(global.accel, false).accel;
            let cancel = CancellationToken::new();
            let image =
                match lease::image(&context, global, &args.image, &cancel, &mut Progress::new())? {
                    Ok(image) => image,
                    Err(text) => return Ok(Err(text)),
                };
            let named = own_kernel::named(&args.kernel)?;
            let vmlinux = named.as_ref().and_then(own_kernel::Named::vmlinux);
            let ready = named
                .map(|named| named.ready(&context, &args.image, &cancel, &mut Progress::new()));
            let own = match ready.transpose() {
                Ok(own) => own.unwrap_or_default(),
                Err(text) => return Ok(Err(format!("{text}\n"))),
            };
            let limit = args.boot_timeout.unwrap_or_else(|| match args.gdb {
                true => own_kernel::NO_LIMIT,
                false => limits::boot_limit(accel),
            });
            let request = MachineRequest {
                memory_mib: args.memory.unwrap_or(image.manifest.memory_mib),
                kernel: own.kernel,
                kconfig: own.kconfig,
                modules: own.modules,
                cmdline: own_kernel::cmdline(&args.kernel, args.gdb),
                gdb: args.gdb.then(|| tell_of_gdb(vmlinux)),
                cpus: args.cpus,
                disks: args.devices.disks.clone(),
                nics: args.devices.nics.clone(),
                fresh_reboot: args.fresh_reboot,
                hostname: Some(args.name.as_str().to_owned()),
                ..MachineRequest::new(image, limit)
            };
            let provisioner = context.provisioner(qemu, accel, root.clone()).with_reboots();
            let (provisioner, request) = (Box::new(provisioner), Box::new(request));
            (Source::Boot { provisioner, request }, limit)
        }
    };
    let boot_timeout = args.boot_timeout.unwrap_or(limit);
    let supervision = Supervision { name: args.name.clone(), source, boot_timeout };
    Ok(Ok(Prepared { context, root, supervision }))
}

/// Has who started us told how to attach a debugger, as soon as there is a socket for it.
fn tell_of_gdb(vmlinux: Option<PathBuf>) -> UnboundedSender<PathBuf> {
    let (gdb, mut waiting) = unbounded_channel::<PathBuf>();
    std::thread::spawn(move || {
        while let Some(socket) = waiting.blocking_recv() {
            let line = own_kernel::gdb_line(vmlinux.as_deref(), &socket);
            background::tell_note(format!("the machine waits for a debugger: {line}"));
        }
    });
    gdb
}

impl Prepared {
    fn run(self) -> u8 {
        let runtime = match tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                return tell_failed(format!("errored  cannot start: {error}\n"), BROKEN);
            }
        };
        let name = self.supervision.name.clone();
        runtime.block_on(async {
            let (down, orders) = Down::channel();
            if let Err(error) = obey_signals(&down) {
                tracing_lost(&error);
            }
            let mut was_ready = false;
            let ready = |status: &MachineStatus| {
                was_ready = true;
                background::tell_ready(status)
            };
            let Self { context, root, supervision } = self;
            let finished =
                supervise::supervise(&context.dirs, root, supervision, orders, ready).await;
            let status = status_of(&name, &finished, was_ready);
            finished.tell().await;
            status
        })
    }
}

/// A machine without signals still goes down by request; that is worth a line in its log.
fn tracing_lost(error: &io::Error) {
    eprintln!("signals are not heard: {error}");
}

/// Tells who started us when the machine never got there.
fn status_of(name: &supervise::MachineName, finished: &Finished, was_ready: bool) -> u8 {
    match &finished.result {
        Ok(ended) if !was_ready => {
            let why = text::printable(&ended.why);
            tell_failed(format!("errored  up {name}: {why}\n"), BROKEN)
        }
        Ok(ended)
            if matches!(ended.how, How::Down | How::Killed | How::LetGo | How::PoweredOff) =>
        {
            0
        }
        Ok(_) => BROKEN,
        Err(SuperviseError::Registry(RegistryError::Up { name })) => {
            tell_failed(taken(name).to_text(), USAGE)
        }
        Err(error) => {
            let mut lines = format!("errored  up {name}: {}\n", text::chain(error));
            if let SuperviseError::Lease(failed) = error {
                lines += &lease::evidence(failed);
            }
            tell_failed(lines, BROKEN)
        }
    }
}

/// Every signal takes the machine down; from the second on without asking the guest.
fn obey_signals(down: &Down) -> io::Result<()> {
    let (mut hangup, mut interrupt, mut terminate) = (
        Heeded::listen(SignalKind::hangup())?,
        Heeded::listen(SignalKind::interrupt())?,
        Heeded::listen(SignalKind::terminate())?,
    );
    let down = down.clone();
    tokio::spawn(async move {
        let mut force = false;
        loop {
            tokio::select! {
                () = hangup.recv() => {}
                () = interrupt.recv() => {}
                () = terminate.recv() => {}
            }
            down.order(force);
            force = true;
        }
    });
    Ok(())
}
