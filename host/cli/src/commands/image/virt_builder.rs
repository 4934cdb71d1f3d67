//! `guestline image import virt-builder:TEMPLATE`: virt-builder(1) makes the disk, the agent is put into it, and it is imported.

use super::super::embed::{Cancelling, Job, in_machine, on_disk};
use super::{BROKEN, foreign};
use crate::args::{GlobalArgs, ImageImportArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use crate::lease::lines_of;
use crate::terminal::Progress;
use guestline::image::embed::{Boots, Output, Work};
use guestline::image::{Catalogue, Kind, VirtBuilderError, check_virt_builder, virt_builder};
use guestline::text;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Stands before the name of a template.
const PREFIX: &str = "virt-builder:";

/// Where disks are made, in the cache folder.
const FOLDER: &str = "virt-builder";

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
    let wrong = |error: VirtBuilderError| {
        let hint = error.hint();
        CommandError::new(error).hints(hint)
    };
    check_virt_builder(template).map_err(wrong)?;
    let agent = agent(global)?;
    let name = template.to_lowercase().replace(['/', ':'], "-");
    let cancelling = Cancelling::new()?;
    let folder = WorkFolder::make(&context.dirs.cache.join(FOLDER))?;
    let disk = folder.path.join(format!("{name}.qcow2"));
    let own_name = args.name.clone().unwrap_or(name);
    let args = ImageImportArgs { from: disk.clone(), name: Some(own_name), ..args.clone() };
    let spec = foreign::spec(&args, Kind::Qcow2);
    // What would be refused in the end is told before anything is made.
    spec.check(&Catalogue::new(&context.dirs)).map_err(foreign::refused)?;
    let what = text::one_line(&format!("{PREFIX}{template}"), 200);
    let mut progress = Progress::new();
    progress.show(&format!("virt-builder makes {} …", text::one_line(template, 60)));
    let accel = context.acceleration(global.accel, false).accel;
    let made = virt_builder(template, &disk, &folder.path, accel, &cancelling.token);
    progress.clear();
    match made {
        _ if cancelling.is_interrupted() => return Ok(aborted(&what, &cancelling)),
        Err(error @ VirtBuilderError::NoTemplate { .. }) => return Err(wrong(error)),
        Err(error) => {
            let hint = error.hint().map(str::to_owned);
            eprint!("errored  import of {what}: {}", lines_of(&error, hint));
            return Ok(BROKEN);
        }
        Ok(()) => {}
    }
    let job = Job { context, global, cancelling: &cancelling };
    let work = Work::Embed { agent, boots: Boots::Disk };
    match on_disk(&job, &disk, &Output::InPlace, None, in_machine(work))? {
        Err(_) if cancelling.is_interrupted() => return Ok(aborted(&what, &cancelling)),
        Err(failed) => {
            eprint!("errored  import of {what}: {failed}");
            return Ok(BROKEN);
        }
        Ok(edited) => {
            for note in edited.found.notes.iter().chain(&edited.notes) {
                eprintln!("image {what}: {}", text::printable(note));
            }
        }
    }
    let images = context.images_within(global, args.boot_timeout)?;
    foreign::import(context, &images, &spec, &what, &cancelling)
}

fn aborted(what: &str, cancelling: &Cancelling) -> u8 {
    eprintln!("aborted  import of {what}");
    cancelling.status()
}

/// Where a disk is made: gone with this, or swept by the next when its owner died.
struct WorkFolder {
    path: PathBuf,
    _lock: Flock<File>,
}

impl WorkFolder {
    fn make(below: &Path) -> io::Result<Self> {
        fs::create_dir_all(below)?;
        // One process at a time makes and sweeps: a folder that nobody has locked belongs to the dead.
        let lock = |path: &Path, how| {
            Flock::lock(File::open(path)?, how).map_err(|(_, errno)| errno.into())
        };
        let _turn: Flock<File> = lock(below, FlockArg::LockExclusive)?;
        for entry in fs::read_dir(below)?.flatten() {
            let is_dead: io::Result<_> = lock(&entry.path(), FlockArg::LockExclusiveNonblock);
            if is_dead.is_ok() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = tempfile::Builder::new().tempdir_in(below)?.keep();
        let _lock = lock(&path, FlockArg::LockExclusive)?;
        Ok(Self { path, _lock })
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
