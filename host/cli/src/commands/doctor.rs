//! `guestline doctor`: what this host has and lacks, and the command that mends it.

use super::image::print;
use crate::args::{AccelArg, GlobalArgs};
use crate::context::{Context, agent};
use crate::error::CommandError;
use guestline::dirs::make_private;
use guestline::host::free_mib;
use guestline::image::{ImageStatus, PackageSource};
use guestline::machine::{Accel, OLDEST_QEMU, Qemu, QemuError, on_path};
use guestline::provision::available_mib;
use nix::unistd::AccessFlags;
use std::ffi::OsStr;
use std::path::Path;

/// Programs that something needs: name, what for, whether nothing works without it, Debian package.
const PROGRAMS: &[(&str, &str, bool, &str)] = &[
    ("apt-get", "packages for images, on Debian", false, "apt"),
    ("dpkg-deb", "unpacks packages for images", true, "dpkg"),
    ("xz", "unpacks kernel modules of Debian 13 and later", false, "xz-utils"),
    ("zstd", "unpacks kernels of Debian 13 and later", false, "zstd"),
    (
        "mmdebstrap",
        "installs packages into images with a suite, such as debian-12",
        false,
        "mmdebstrap",
    ),
    ("mksquashfs", "packs the root of these images", false, "squashfs-tools"),
    ("curl", "packages from a configured mirror", false, "curl"),
    ("gpgv", "checks a configured mirror", false, "gpgv"),
];

/// Needed for the default machine and for making its image.
const MEMORY_WANTED_MIB: u64 = 480;
const DISK_WANTED_MIB: u64 = 500;

/// With less than this nothing can be kept.
const DISK_NEEDED_MIB: u64 = 16;

struct Row {
    state: State,
    what: &'static str,
    found: String,
    mend: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Something is slower or not to be had.
    Lacking,
    /// No check can be run.
    Broken,
}

impl Row {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { state: State::Good, what, found: found.into(), mend: String::new() }
    }

    fn new(
        state: State,
        what: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { state, what, found: found.into(), mend: mend.into() }
    }
}

/// 0 when checks can be run, else 1.
pub(crate) fn run(global: &GlobalArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let mut rows = vec![qemu(&context), accelerator(&context, global.accel), memory()];
    rows.push(disk(&context.dirs.cache, "cache"));
    rows.push(disk(&context.dirs.state, "evidence"));
    rows.push(work_folder(&context.dirs.runtime));
    rows.extend([agent_row(global), packages(&context)]);
    rows.extend(images(&context, global));
    for (name, what_for, needed, package) in PROGRAMS {
        rows.push(match on_path(OsStr::new(name)) {
            Some(path) => Row::good(name, format!("{}: {what_for}", path.display())),
            None => {
                let state = if *needed { State::Broken } else { State::Lacking };
                Row::new(
                    state,
                    name,
                    format!("missing: {what_for}"),
                    format!("apt-get install {package}"),
                )
            }
        });
    }
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Row { state, what, found, mend } in &rows {
        let state = match state {
            State::Good => "ok",
            State::Lacking => "lacks",
            State::Broken => "BROKEN",
        };
        text += &format!("{state:<6}  {what:<width$}  {found}\n");
        if !mend.is_empty() {
            text += &format!("{:<6}  {:<width$}  mend: {mend}\n", "", "");
        }
    }
    let broken = rows.iter().any(|row| row.state == State::Broken);
    text += if broken { "no check can be run here yet\n" } else { "checks can be run here\n" };
    print(&text)?;
    Ok(u8::from(broken))
}

fn qemu(context: &Context) -> Row {
    match Qemu::find(&context.dirs) {
        Ok(qemu) => Row::good("QEMU", format!("{} ({})", qemu.version, qemu.path.display())),
        Err(error) => {
            let mend = match &error {
                QemuError::NotThere { .. } => {
                    "unset GUESTLINE_QEMU, or set it to a qemu-system-x86_64".to_owned()
                }
                _ => format!(
                    "apt-get install qemu-system-x86   ({OLDEST_QEMU} or newer; `make setup` in the source tree does it)"
                ),
            };
            Row::new(State::Broken, "QEMU", error.to_string(), mend)
        }
    }
}

fn accelerator(context: &Context, choice: AccelArg) -> Row {
    let acceleration = context.acceleration(choice, true);
    let found = format!("{} ({})", acceleration.accel.as_str(), acceleration.why);
    match acceleration.accel {
        Accel::Kvm => Row::good("accelerator", found),
        Accel::Tcg => {
            let mend = match acceleration.why.contains("group") {
                true => "adduser $USER kvm, and log in again",
                false => {
                    "none from here: QEMU translates instead, which works everywhere and is slower"
                }
            };
            Row::new(State::Lacking, "accelerator", found, mend)
        }
    }
}

fn memory() -> Row {
    let free = available_mib();
    let found = format!("{free} MiB free for machines; one takes 256 MiB unless asked for more");
    match free < MEMORY_WANTED_MIB {
        true => Row::new(State::Broken, "memory", found, "end what uses it"),
        false => Row::good("memory", found),
    }
}

/// Free space where `path` is or will be.
fn disk(path: &Path, what: &'static str) -> Row {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free_mib = match free_mib(there) {
        Ok(free_mib) => free_mib,
        Err(error) => {
            return Row::new(
                State::Broken,
                what,
                format!("{}: {error}", path.display()),
                "make the folder",
            );
        }
    };
    if let Err(error) = nix::unistd::access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        let found = format!("{} cannot be written: {}", there.display(), error.desc());
        let mend = "make it yours, or set GUESTLINE_HOME to a folder elsewhere";
        return Row::new(State::Broken, what, found, mend);
    }
    let found = format!("{free_mib} MiB free at {}", path.display());
    let mend = "make room, or set GUESTLINE_HOME to a folder elsewhere";
    if free_mib < DISK_NEEDED_MIB {
        return Row::new(State::Broken, what, found, mend);
    }
    match free_mib < DISK_WANTED_MIB {
        true => Row::new(State::Lacking, what, found, mend),
        false => Row::good(what, found),
    }
}

/// Made as a check would make it.
fn work_folder(path: &Path) -> Row {
    match make_private(path) {
        Ok(()) => Row::good("work folders", path.display().to_string()),
        Err(error) => {
            let mend =
                format!("remove {}, or set GUESTLINE_HOME to a folder elsewhere", path.display());
            Row::new(State::Broken, "work folders", error.to_string(), mend)
        }
    }
}

fn agent_row(global: &GlobalArgs) -> Row {
    match agent(global) {
        Ok(agent) => {
            let (size, digest) = (agent.bytes().len() / 1000, agent.digest().short());
            Row::good("agent", format!("{size} kB, digest {digest}"))
        }
        Err(error) => {
            let text = error.to_text();
            let found = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Row::new(
                State::Broken,
                "agent",
                found,
                "`make build` in the source tree, or --agent FILE",
            )
        }
    }
}

fn packages(context: &Context) -> Row {
    match &context.source {
        PackageSource::Apt => Row::good("packages", "through this host's apt"),
        PackageSource::Mirror(mirror) => {
            Row::good("packages", format!("from {} ({})", mirror.mirror, mirror.suite))
        }
        PackageSource::None { host } => {
            let found = format!("this host is `{host}`, and no mirror is configured");
            let file = context.dirs.config.join("guestline.toml");
            let mend = format!("name a Debian mirror in {} (docs/images.md)", file.display());
            Row::new(State::Lacking, "packages", found, mend)
        }
    }
}

/// The images that are made, and the one that every check takes by default.
fn images(context: &Context, global: &GlobalArgs) -> Vec<Row> {
    let agent = agent(global).ok();
    let rows = context.store().list(agent.as_ref()).into_iter().filter_map(|status| {
        let ImageStatus { recipe, manifest } = match status {
            Ok(status) => status,
            Err(error) => {
                let mend = error.hint().unwrap_or_default();
                return Some(Row::new(
                    State::Broken,
                    "image",
                    guestline::text::chain(&error),
                    mend,
                ));
            }
        };
        let name = &recipe.name;
        match &manifest {
            Some(manifest) => {
                let (digest, release) = (manifest.digest(), &manifest.kernel_release);
                let found = format!("{name}: {}, kernel {release}", digest.short());
                Some(Row::good("image", found))
            }
            None if name == "tiny" => Some(Row::new(
                // Without packages it cannot be made either.
                match context.source {
                    PackageSource::None { .. } => State::Broken,
                    _ => State::Lacking,
                },
                "image",
                format!("{name}: not made yet; the first check makes it"),
                format!("guestline image build {name}"),
            )),
            None => None,
        }
    });
    rows.collect()
}
