//! `guestline image import virt-builder:TEMPLATE`: virt-builder(1) makes the disk, the agent is put into it, and it is imported.

use super::super::embed::{Cancelling, Job, in_machine, on_disk};
use super::{BROKEN, foreign};
use crate::args::{GlobalArgs, ImageImportArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::terminal::Progress;
use guestline::image::embed::{Boots, Output, Work};
use guestline::machine::{Accel, on_path};
use guestline::text;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Stands before the name of a template.
const PREFIX: &str = "virt-builder:";

/// So many bytes of the end of what it says are shown.
const SHOWN: u64 = 2000;

/// So often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The template, if that is what is to be imported.
pub(super) fn template(from: &Path) -> Option<&str> {
    from.to_str()?.strip_prefix(PREFIX)
}

pub(super) fn run(
    context: &Context,
    global: &GlobalArgs,
    args: &ImageImportArgs,
    template: &str,
) -> Result<u8, CommandError> {
    let program = on_path(OsStr::new("virt-builder")).ok_or_else(|| {
        CommandError::new("`virt-builder` is not installed, which makes disks of its templates")
            .hint("on Debian it is in the package guestfs-tools")
    })?;
    if template.is_empty() || template.starts_with('-') {
        return Err(CommandError::new(format!("`{template}` is no template of virt-builder"))
            .hint("`virt-builder --list` names those that there are"));
    }
    let agent = agent(global)?;
    let cancelling = Cancelling::new()?;
    std::fs::create_dir_all(&context.dirs.cache)?;
    let folder =
        tempfile::Builder::new().prefix("virt-builder-").tempdir_in(&context.dirs.cache)?;
    let disk = folder.path().join("disk.qcow2");
    let mut progress = Progress::new();
    progress.show(&format!("virt-builder makes {template} …"));
    let accel = context.acceleration(global.accel, false).accel;
    let built = build(&program, template, &disk, accel, &cancelling.token);
    progress.clear();
    let name = text::printable(&args.from.display().to_string());
    if cancelling.is_interrupted() {
        eprintln!("aborted  import of {name}");
        return Ok(cancelling.status());
    }
    if let Err(said) = built {
        eprintln!("errored  import of {name}: {said}");
        return Ok(BROKEN);
    }
    let job = Job { context, global, cancelling: &cancelling };
    let work = Work::Embed { agent, boots: Boots::Disk };
    if let Err(failed) = on_disk(&job, &disk, &Output::InPlace, None, in_machine(work))? {
        eprint!("errored  import of {name}: {failed}");
        return Ok(BROKEN);
    }
    // Signals are listened to anew there.
    drop(cancelling);
    let own_name = args.name.clone().unwrap_or_else(|| template.replace(['/', ':'], "-"));
    let args = ImageImportArgs { from: disk, name: Some(own_name), ..args.clone() };
    foreign::run(context, global, &args)
}

/// Makes the disk; in text, why there is none.
fn build(
    program: &Path,
    template: &str,
    disk: &Path,
    accel: Accel,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot run virt-builder: {error}");
    let mut said = tempfile::tempfile().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg(template).args(["--format", "qcow2", "--output"]).arg(disk);
    command.env("LIBGUESTFS_BACKEND", "direct").stdin(Stdio::null());
    if accel == Accel::Tcg {
        // It takes /dev/kvm because that opens (guestfs(3), "FORCE_TCG").
        command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    }
    let log = |said: &File| said.try_clone().map(Stdio::from).map_err(failed);
    let child = command.stdout(log(&said)?).stderr(log(&said)?);
    std::os::unix::process::CommandExt::process_group(child, 0);
    let mut child = child.spawn().map_err(failed)?;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if cancel.is_cancelled() => {
                let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
                break child.wait().map_err(failed)?;
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let end = said.seek(SeekFrom::End(0)).unwrap_or(0);
    let _ = said.seek(SeekFrom::Start(end.saturating_sub(SHOWN)));
    let _ = said.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    Err(format!("virt-builder: {status}\n  {}", text::printable(text.trim()).replace('\n', "\n  ")))
}
