//! Disks that virt-builder(1) makes of its templates.
//!
//! It is asked for x86-64, gets a temporary folder of ours, which goes with all that a killed one leaves there, and its own
//! machine has no network: what it fetches, the index and the template, it fetches on this host.

use crate::machine::{Accel, on_path};
use crate::sys;
use crate::text::escape;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// So many bytes of the end of what it says are shown.
const SHOWN: u64 = 2000;

/// So often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(50);

/// So long it may tidy up. Between two programs that it runs it does not listen (it unpacks a template by itself).
const TIDY: Duration = Duration::from_secs(4);

/// Stands behind what failed, and says nothing of it.
const BEHIND: &str = "If reporting bugs,";

/// So many lines of what it said are shown.
const LINES: usize = 12;

/// Why virt-builder has made no disk.
#[derive(Debug, thiserror::Error)]
pub enum VirtBuilderError {
    /// There is no such program.
    #[error("`virt-builder` is not installed, which makes disks of its templates")]
    NotInstalled,
    /// There is no such template.
    #[error("virt-builder has no template `{template}` for x86-64")]
    NoTemplate {
        /// The name.
        template: String,
    },
    /// It cannot be run.
    #[error("cannot run virt-builder")]
    Run(#[source] io::Error),
    /// It failed.
    #[error("virt-builder: {status}\n  {said}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, lines indented by two.
        said: String,
    },
    /// It was stopped.
    #[error("interrupted")]
    Interrupted,
}

impl VirtBuilderError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotInstalled => "on Debian it is in the package guestfs-tools",
            Self::NoTemplate { .. } => "`virt-builder --list` names those that there are",
            Self::Failed { said, .. } if said.contains("supermin") => {
                "its own machine wants a kernel in /boot that this user may read, and its modules in /lib/modules: \
                 on Debian the package linux-image-cloud-amd64 has them"
            }
            _ => return None,
        })
    }
}

/// What is no name of a template for sure; tells whether virt-builder is there, too.
///
/// # Errors
/// [`VirtBuilderError::NotInstalled`], [`VirtBuilderError::NoTemplate`].
pub fn check_virt_builder(template: &str) -> Result<(), VirtBuilderError> {
    if on_path(OsStr::new("virt-builder")).is_none() {
        return Err(VirtBuilderError::NotInstalled);
    }
    match template.is_empty() || template.starts_with('-') {
        true => Err(VirtBuilderError::NoTemplate { template: template.to_owned() }),
        false => Ok(()),
    }
}

/// Has virt-builder make a qcow2 disk at `disk`. What else it writes is in `scratch`, but for templates, which it keeps.
///
/// # Errors
/// [`VirtBuilderError`]; something may be in `scratch` and at `disk` then.
pub fn virt_builder(
    template: &str,
    disk: &Path,
    scratch: &Path,
    accel: Accel,
    cancel: &CancellationToken,
) -> Result<(), VirtBuilderError> {
    check_virt_builder(template)?;
    let failed = VirtBuilderError::Run;
    let mut said = tempfile::tempfile_in(scratch).map_err(failed)?;
    let mut command = command(template, disk, scratch, accel);
    let log = || said.try_clone().map(Stdio::from).map_err(failed);
    command.stdin(Stdio::null()).stdout(log()?).stderr(log()?).process_group(0);
    sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let status = wait(&mut child, cancel).map_err(failed)?;
    if cancel.is_cancelled() {
        return Err(VirtBuilderError::Interrupted);
    }
    if status.success() {
        return Ok(());
    }
    let said = end_of(&mut said).map_err(failed)?;
    // Its exit status is the same for whatever is wrong.
    if said.contains("cannot find os-version") {
        return Err(VirtBuilderError::NoTemplate { template: template.to_owned() });
    }
    let said = last_lines(said.split(BEHIND).next().unwrap_or_default());
    Err(VirtBuilderError::Failed { status, said })
}

/// The last lines, of what may be shown: progress comes first, the error last.
fn last_lines(said: &str) -> String {
    let said = escape(said.trim().as_bytes());
    let lines: Vec<&str> = said.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    shown.join("\n  ")
}

fn command(template: &str, disk: &Path, scratch: &Path, accel: Accel) -> Command {
    let mut command = Command::new("virt-builder");
    command.arg(template).args(["--arch", "x86_64", "--format", "qcow2", "--no-network"]);
    // Else it thinks of one at random that nobody gets to know.
    command.args(["--root-password", "disabled", "--output"]).arg(disk);
    command.env("LC_ALL", "C.UTF-8").env("LIBGUESTFS_BACKEND", "direct");
    // Its own machine is made anew each time, which takes seconds: beside it lie the pieces of the disk, which would stay there
    // if it were killed (guestfs(3), "ENVIRONMENT VARIABLES").
    for name in ["LIBGUESTFS_CACHEDIR", "LIBGUESTFS_TMPDIR", "TMPDIR"] {
        command.env(name, scratch);
    }
    if accel == Accel::Tcg {
        // It takes /dev/kvm because that opens (guestfs(3), "FORCE_TCG").
        let name = "LIBGUESTFS_BACKEND_SETTINGS";
        let mut settings = env::var_os(name).unwrap_or_default();
        settings.push(if settings.is_empty() { "force_tcg" } else { ":force_tcg" });
        command.env(name, settings);
    }
    command
}

/// Waits for its end, or brings that about. Of a signal of its own it takes no notice while it waits for a program, and when it
/// does, it leaves folders behind; when a program of its fails, it tidies up. So those are ended, but for what it tidies up
/// with, which is gone at the next look.
fn wait(child: &mut Child, cancel: &CancellationToken) -> io::Result<ExitStatus> {
    let group = Pid::from_raw(child.id().cast_signed());
    let (mut told, mut seen) = (None, Vec::<Pid>::new());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if cancel.is_cancelled() {
            let told: &mut Instant = told.get_or_insert_with(Instant::now);
            if told.elapsed() > TIDY {
                let _ = killpg(group, Signal::SIGKILL);
                return child.wait();
            }
            let programs = programs_of(group);
            for program in programs.iter().filter(|program| seen.contains(*program)) {
                let _ = kill(*program, Signal::SIGTERM);
            }
            seen = programs;
        }
        std::thread::sleep(LOOK);
    }
}

/// The processes of a group that run another program than its leader (proc_pid_stat(5), field 5; proc_pid_exe(5)).
fn programs_of(group: Pid) -> Vec<Pid> {
    let program = |pid: Pid| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let of_group = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        (rest.split(' ').nth(2)? == group.to_string()).then_some(pid)
    };
    let leader = program(group);
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    all.filter_map(of_group)
        .filter(|&pid| program(pid).is_some_and(|its| Some(its) != leader))
        .collect()
}

/// The end of what it said.
fn end_of(said: &mut File) -> io::Result<String> {
    let end = said.seek(SeekFrom::End(0))?;
    said.seek(SeekFrom::Start(end.saturating_sub(SHOWN)))?;
    let mut text = Vec::new();
    said.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_at_the_end_is_shown_and_drives_no_terminal() {
        let said = format!(
            "{}\x1b[31mvirt-builder: error: no room\n\n",
            "[ 1.0] Downloading\n".repeat(50)
        );
        let shown = last_lines(&said);
        assert_eq!(shown.lines().count(), LINES);
        assert!(
            shown.ends_with("virt-builder: error: no room") && !shown.contains('\x1b'),
            "{shown}"
        );
        assert!(shown.lines().skip(1).all(|line| line.starts_with("  ")), "{shown}");
    }
}
