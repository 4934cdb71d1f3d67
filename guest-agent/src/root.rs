//! The disks of a JeOS, read-only and shared with other machines: its root, upon which lies a layer in memory that takes what
//! is written (overlayfs, Linux `Documentation/filesystems/overlayfs.rst`), and its kernel's modules.
//!
//! ```text
//! guestline.root=TYPE:SERIAL   the disk with this serial number, and its file system
//! /run/root/disk ── lower ──┐
//! /run/root/layer (tmpfs) ──┴─> /run/root/all ── becomes / ; what the initramfs held is removed
//!
//! guestline.modules_disk=TYPE:SERIAL   the disk with the running kernel's modules ── /lib/modules/RELEASE
//! ```

use crate::linux;
use guestline_files::describe;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names of the kernel parameters that say where the root is, and the modules.
const PARAMETER: &str = "guestline.root";
const MODULES_PARAMETER: &str = "guestline.modules_disk";

const PLACE: &str = "/run/root";

/// Mounts that go with us.
const KEPT: [&str; 3] = ["proc", "sys", "dev"];

/// A disk that is there is found sooner.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

/// Goes to the root on a disk, if the kernel command line names one.
///
/// # Errors
/// In words; we are where we were then.
pub(crate) fn switch() -> Result<(), String> {
    let Some(root) = linux::parameter(PARAMETER) else { return Ok(()) };
    let disk = Disk::find(PARAMETER, &root)?;
    let [place, lower, layer, all] =
        ["", "disk", "layer", "all"].map(|name| Path::new(PLACE).join(name));
    let made = |error: std::io::Error| format!("cannot make a folder in {PLACE}: {error}");
    fs::create_dir_all(&place).map_err(made)?;
    for folder in [&lower, &layer, &all] {
        fs::create_dir_all(folder).map_err(made)?;
    }
    disk.mount(&lower)?;
    on(Path::new("layer"), &layer, "tmpfs", MsFlags::empty(), "mode=0755,size=75%")?;
    let [upper, work] = ["upper", "work"].map(|name| layer.join(name));
    for folder in [&upper, &work] {
        fs::create_dir(folder).map_err(made)?;
    }
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    on(Path::new("root"), &all, "overlay", MsFlags::empty(), &options)?;
    enter(&all).map_err(|errno| format!("cannot go to the root: {}", describe(errno)))
}

/// Modules may lie in what is mounted after the first ones were loaded.
pub(crate) fn is_elsewhere() -> bool {
    [PARAMETER, MODULES_PARAMETER].iter().any(|name| linux::parameter(name).is_some())
}

/// Mounts the disk with the running kernel's modules, if the kernel command line names one, where they are looked for.
///
/// # Errors
/// In words.
pub(crate) fn mount_modules() -> Result<(), String> {
    let Some(disk) = linux::parameter(MODULES_PARAMETER) else { return Ok(()) };
    let folder = Path::new(linux::MODULES).join(linux::release());
    let made = fs::create_dir_all(&folder);
    made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    Disk::find(MODULES_PARAMETER, &disk)?.mount(&folder)
}

/// A disk that many machines read.
struct Disk<'a> {
    node: PathBuf,
    /// Its file system.
    kind: &'a str,
}

impl<'a> Disk<'a> {
    /// By the value of a kernel parameter.
    fn find(parameter: &str, value: &'a str) -> Result<Self, String> {
        let (kind, serial) = value
            .split_once(':')
            .ok_or_else(|| format!("{parameter}={value} is not TYPE:SERIAL"))?;
        let node =
            wait_for(serial).ok_or_else(|| format!("no disk with serial number `{serial}`"))?;
        Ok(Self { node, kind })
    }

    fn mount(&self, target: &Path) -> Result<(), String> {
        on(&self.node, target, self.kind, MsFlags::MS_RDONLY, "")
    }
}

/// Mounts; what went wrong is told in words.
fn on(
    source: &Path,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), String> {
    mount(Some(source), target, Some(kind), flags, Some(options)).map_err(|errno| {
        let why = describe(errno);
        format!("cannot mount {kind} {} on {}: {why}", source.display(), target.display())
    })
}

/// Makes a folder the root, as switch_root(8) does.
fn enter(root: &Path) -> Result<(), Errno> {
    for name in KEPT {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        let _ = fs::create_dir(&to);
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    }
    chdir(root)?;
    // Nothing of it is used any more, and it takes memory.
    if let Ok(initramfs) = fs::metadata("/") {
        remove(Path::new("/"), initramfs.dev());
    }
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")
}

/// Removes what is in a folder, and on the same file system.
fn remove(folder: &Path, device: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            remove(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

/// The device node of a disk, by its serial number (virtio 1.2, 5.2.6.2).
fn wait_for(serial: &str) -> Option<PathBuf> {
    let began = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            let node = Path::new(linux::DEV).join(entry.file_name());
            if found.trim_end() == serial && node.exists() {
                return Some(node);
            }
        }
        if began.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_one_file_system_is_removed() {
        let folder = std::env::temp_dir().join(format!("guestline-root-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("link")).unwrap();
        remove(&folder, fs::metadata(&folder).unwrap().dev() + 1);
        assert!(folder.join("a/b/file").exists());
        remove(&folder, fs::metadata(&folder).unwrap().dev());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(Path::new("/etc").exists());
        fs::remove_dir(&folder).unwrap();
    }
}
