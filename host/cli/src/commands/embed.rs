//! `guestline image embed` and `unembed`: the agent put into what others made, and taken out again.

use super::image::{BROKEN, print};
use crate::args::{GlobalArgs, ImageEmbedArgs, ImageUnembedArgs, OutputArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::lease;
use crate::signals;
use crate::terminal::Progress;
use guestline::dirs::folder_of;
use guestline::image::embed::{
    Boots, CopyError, FolderError, Output, Root, Work, Worked, edit_folder,
};
use guestline::image::{Agent, ArchiveEditError, ArchiveInput, Kind, edit_archive, nocloud_seed};
use guestline::machine::Qemu;
use guestline::provision::{
    DiskEditor, DiskFault, DiskInput, EditError, Edited, RootWork, WorkRoot,
};
use guestline::text;
use std::fmt;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The image that disks are changed in.
const TOOLS: &str = "tools";

pub(crate) fn embed(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageEmbedArgs,
) -> Result<u8, CommandError> {
    let agent = agent(global)?;
    let Some(input) = &args.input else {
        let to = args.output.output.as_deref();
        return seed(&agent, to.ok_or_else(|| CommandError::new("-o names no file"))?);
    };
    let work = Work::Embed { agent, boots: Boots::Disk };
    run(context, global, input, &args.output, work)
}

/// Writes a disk for cloud-init: whole or not at all.
fn seed(agent: &Agent, to: &Path) -> Result<u8, CommandError> {
    let wrong = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            CommandError::new(format!("`{}` is there already", to.display()))
                .hint("name a place where nothing is")
        }
        _ => CommandError::new(format!("cannot write `{}`: {error}", to.display())),
    };
    if to.symlink_metadata().is_ok() {
        return Err(wrong(io::ErrorKind::AlreadyExists.into()));
    }
    let bytes = nocloud_seed(agent).map_err(wrong)?;
    let mut file = tempfile::NamedTempFile::new_in(folder_of(to)).map_err(wrong)?;
    file.write_all(&bytes).map_err(wrong)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(wrong)?;
    file.persist_noclobber(to).map_err(|error| wrong(error.error))?;
    print(&format!(
        "{}: a NoCloud seed, {}; attach it as a disk beside a cloud image, whose cloud-init puts the agent in\n",
        to.display(),
        text::size(bytes.len() as u64)
    ))
}

pub(crate) fn unembed(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageUnembedArgs,
) -> Result<u8, CommandError> {
    run(context, global, &args.input, &args.output, Work::Unembed)
}

/// Why nothing came of it.
pub(crate) struct Failed {
    /// In words, perhaps with lines of evidence.
    pub(crate) lines: String,
    /// What mends it.
    pub(crate) hint: Option<String>,
    /// It is how the command was called that is wrong.
    pub(crate) is_usage: bool,
    /// It is not for what was looked at, but for want of a machine.
    pub(crate) is_machine: bool,
}

impl Failed {
    pub(crate) fn new(error: &dyn std::error::Error, hint: Option<String>, is_usage: bool) -> Self {
        let lines = format!("{}\n", text::chain(error));
        Self { lines, hint, is_usage, is_machine: false }
    }

    fn of_machine(lines: String) -> Self {
        Self { lines, hint: None, is_usage: false, is_machine: true }
    }
}

impl Failed {
    /// As wrong usage.
    pub(crate) fn into_error(self) -> CommandError {
        let error = CommandError::new(self.lines.trim_end());
        error.hints(self.hint)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines)?;
        match &self.hint {
            Some(hint) => writeln!(f, "  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<FolderError> for Failed {
    fn from(error: FolderError) -> Self {
        let (hint, is_usage) = match &error {
            FolderError::Embed(error) => (error.hint(), false),
            FolderError::Copy(error) => {
                let is_usage = matches!(error, CopyError::Exists { .. } | CopyError::Within { .. });
                (error.hint(), is_usage)
            }
        };
        Self::new(&error, hint.map(str::to_owned), is_usage)
    }
}

impl From<ArchiveEditError> for Failed {
    fn from(error: ArchiveEditError) -> Self {
        let is_usage = matches!(
            error,
            ArchiveEditError::Exists { .. } | ArchiveEditError::Copy(CopyError::Exists { .. })
        );
        Self::new(&error, error.hint(), is_usage)
    }
}

/// Where contents of archives are kept while they are worked on.
pub(crate) fn scratch(context: &Context) -> Result<PathBuf, CommandError> {
    let cache = &context.dirs.cache;
    std::fs::create_dir_all(cache).map_err(|error| {
        CommandError::new(format!("cannot make `{}`: {error}", cache.display()))
    })?;
    Ok(cache.clone())
}

impl From<EditError> for Failed {
    fn from(error: EditError) -> Self {
        if let EditError::Machine(failed) = &error {
            let lines = format!("{error}\n{}", lease::evidence(failed));
            return Self::of_machine(lines);
        }
        let is_usage = matches!(
            error,
            EditError::Several { .. }
                | EditError::NoSuchRoot { .. }
                | EditError::Disk(DiskFault::Exists { .. } | DiskFault::Kind(_))
                | EditError::Disk(DiskFault::NoDisk { .. } | DiskFault::Device { .. })
        );
        let is_machine =
            matches!(error, EditError::Lost(_) | EditError::TimedOut { .. } | EditError::BadEnd);
        Self { is_machine, ..Self::new(&error, error.hint(), is_usage) }
    }
}

/// What something is; what is none that is known is wrong usage.
pub(crate) fn kind_of(file: &Path, cancelling: &Cancelling) -> Result<Kind, CommandError> {
    Kind::of(file, &cancelling.token)
        .map_err(|error| CommandError::new(text::chain(&error)).hints(error.hint()))
}

/// Work as a machine of the image for disks does it.
pub(crate) fn in_machine(work: Work) -> impl RootWork<Worked> {
    move |root: &mut dyn Root, really: bool| {
        work.run(root, really).map(|worked| {
            let is_done = worked.is_done;
            (worked, is_done)
        })
    }
}

fn run(
    context: &Context,
    global: &GlobalArgs,
    input: &Path,
    args: &OutputArgs,
    work: Work,
) -> Result<u8, CommandError> {
    let output = match (&args.output, args.in_place, args.dry_run) {
        (_, _, true) => Output::Nowhere,
        (Some(to), _, _) => Output::New(to.clone()),
        (None, true, _) => Output::InPlace,
        (None, false, false) => {
            return Err(CommandError::new("it is not said where the changed copy goes").hint(
                "-o OUT writes it there, --in-place changes IN itself, --dry-run only tells",
            ));
        }
    };
    let cancelling = Cancelling::new()?;
    let kind = match kind_of(input, &cancelling) {
        Err(_) if cancelling.is_interrupted() => return Ok(cancelling.status()),
        kind => kind?,
    };
    if args.root.is_some() && !matches!(kind, Kind::Qcow2 | Kind::RawDisk) {
        return Err(CommandError::new(format!("--root is for disks, and this is a {kind}")));
    }
    let worked = match kind {
        Kind::Folder => edit_folder(input, &output, &work, &cancelling.token)
            .map(|worked| (worked, None))
            .map_err(Failed::from),
        Kind::Qcow2 | Kind::RawDisk => {
            let job = Job { context, global, cancelling: &cancelling };
            let root = args.root.as_deref();
            on_disk(&job, input, &output, root, in_machine(work))?.map(|edited| {
                let Edited { found, place, notes, .. } = edited;
                (found, Some((place, notes)))
            })
        }
        Kind::Tar | Kind::Cpio | Kind::OciLayout | Kind::OciArchive | Kind::DockerArchive => {
            let work = work.of(kind);
            let input = ArchiveInput {
                path: input,
                kind,
                pick: args.pick.as_deref(),
                scratch: &scratch(context)?,
            };
            edit_archive(input, &output, &work, &cancelling.token)
                .map(|worked| (worked, None))
                .map_err(Failed::from)
        }
        Kind::Squashfs | Kind::Iso | Kind::Guestline => {
            return Err(CommandError::new(format!(
                "`{}` is a {kind}, and nothing is embedded into one",
                input.display()
            )));
        }
    };
    let name = input.display();
    match worked {
        Ok((worked, disk)) => print(&told(&name.to_string(), &output, &worked, disk)),
        Err(_) if cancelling.is_interrupted() => {
            eprintln!("aborted  {name}");
            Ok(cancelling.status())
        }
        Err(failed) if failed.is_usage => Err(failed.into_error()),
        Err(failed) => {
            eprint!("errored  {name}: {failed}");
            Ok(BROKEN)
        }
    }
}

/// What interrupts a piece of work, and the runtime that it is done in.
pub(crate) struct Cancelling {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) token: CancellationToken,
    interrupted: signals::Interrupted,
}

impl Cancelling {
    pub(crate) fn new() -> Result<Self, CommandError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let token = CancellationToken::new();
        let interrupted = {
            let _context = runtime.enter();
            signals::listen(token.clone(), false)?
        };
        Ok(Self { runtime, token, interrupted })
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.get().is_some()
    }

    pub(crate) fn status(&self) -> u8 {
        self.interrupted.status()
    }
}

/// Work on a disk, and who asks for it.
pub(crate) struct Job<'a> {
    pub(crate) context: &'a Context,
    pub(crate) global: &'a GlobalArgs,
    pub(crate) cancelling: &'a Cancelling,
}

/// Works on a disk in a machine of the image for that. The outer error is wrong usage.
pub(crate) fn on_disk<T: Send + 'static>(
    job: &Job<'_>,
    input: &Path,
    output: &Output,
    root: Option<&str>,
    work: impl RootWork<T>,
) -> Result<Result<Edited<T>, Failed>, CommandError> {
    let Job { context, global, cancelling } = job;
    let failed = |error: EditError| Ok(Err(Failed::from(error)));
    if let Output::New(to) = output
        && to.symlink_metadata().is_ok()
    {
        return failed(DiskFault::Exists { path: to.clone() }.into());
    }
    // What cannot be used is told before anything is made.
    let input = match DiskInput::open(input, *output == Output::InPlace) {
        Ok(input) => input,
        Err(error) => return failed(error.into()),
    };
    let _runtime = cancelling.runtime.enter();
    let mut progress = Progress::new();
    let tools = lease::image(context, global, TOOLS, &cancelling.token, &mut progress)?;
    let tools = match tools {
        Ok(tools) => tools,
        Err(lines) => return Ok(Err(Failed::of_machine(lines))),
    };
    let qemu: Qemu = match lease::qemu(context) {
        Ok(qemu) => qemu,
        Err(lines) => return Ok(Err(Failed::of_machine(lines))),
    };
    let accel = context.acceleration(global.accel, false).accel;
    let folder = WorkRoot::create(&context.dirs, false)?;
    let provisioner = context.provisioner(qemu, accel, folder);
    let boot = crate::limits::boot_limit(accel);
    let editor = DiskEditor { provisioner: &provisioner, tools, boot };
    progress.show("looking into the disk …");
    let worked =
        cancelling.runtime.block_on(editor.work(input, output, root, &cancelling.token, work));
    progress.clear();
    Ok(worked.map_err(Failed::from))
}

/// What was done, a line each.
fn told(
    name: &str,
    output: &Output,
    worked: &Worked,
    disk: Option<(String, Vec<String>)>,
) -> String {
    let done = *output != Output::Nowhere;
    let mut lines = String::new();
    let (place, notes) = disk.unzip();
    match (&worked.system, place) {
        (Some(system), Some(place)) => lines += &format!("{name}: {system}, in {place}\n"),
        (Some(system), None) => lines += &format!("{name}: {system}\n"),
        (None, Some(place)) => lines += &format!("{name}: in {place}\n"),
        (None, None) => lines += &format!("{name}:\n"),
    }
    for change in &worked.changes {
        lines += &format!("  {}\n", change.told(done));
    }
    if worked.is_done {
        lines += match worked.system {
            Some(_) => "  nothing to add: all is there already\n",
            None => "  nothing to remove: no agent was embedded\n",
        };
    }
    for note in worked.notes.iter().chain(notes.iter().flatten()) {
        lines += &format!("  note: {note}\n");
    }
    lines
}
