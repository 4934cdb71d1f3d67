//! Loading kernel modules by name, in the order given, each after those that it needs. Paths come from `modules.dep`
//! (modules.dep(5)), which lists what is to be loaded first last.

use crate::linux;
use guestline_files::describe;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A module that did not load.
#[derive(Debug)]
pub(crate) struct NotLoaded {
    /// Its name.
    pub(crate) name: String,
    /// There is none of the name here; there may be elsewhere.
    pub(crate) is_absent: bool,
    why: String,
}

impl NotLoaded {
    /// In words.
    pub(crate) fn trouble(&self) -> String {
        format!("module `{}` ({})", self.name, self.why)
    }
}

/// Loads each module; what did not load is told. A module that the kernel has built in
/// fails here and is missed by nobody, so failures only matter to one who misses something.
pub(crate) fn load<'a>(names: impl Iterator<Item = &'a str>) -> Vec<NotLoaded> {
    let not_loaded =
        |name: &str, is_absent, why| NotLoaded { name: name.to_owned(), is_absent, why };
    let running = linux::release();
    let Some((folder, made_for)) = modules_folder(&running) else {
        return names
            .map(|name| not_loaded(name, true, format!("no {}", linux::MODULES)))
            .collect();
    };
    let index = fs::read_to_string(folder.join("modules.dep")).unwrap_or_default();
    names
        .filter_map(|name| {
            let (is_absent, why) = match paths_of(&index, name) {
                None => (true, "not in the image".to_owned()),
                Some(paths) => match paths.rev().try_for_each(|path| insert(&folder.join(path))) {
                    Ok(()) => return None,
                    Err(error) => (false, describe(error)),
                },
            };
            Some(match made_for == running {
                true => not_loaded(name, is_absent, why),
                false => {
                    not_loaded(name, is_absent, format!("{why}: the image's is for {made_for}"))
                }
            })
        })
        .collect()
}

/// The folder of the running kernel, else the only one there is, and the kernel it is for.
fn modules_folder(running: &str) -> Option<(PathBuf, String)> {
    let own = Path::new(linux::MODULES).join(running);
    if !running.is_empty() && own.is_dir() {
        return Some((own, running.to_owned()));
    }
    let entry = fs::read_dir(linux::MODULES).ok()?.flatten().next()?;
    Some((entry.path(), entry.file_name().to_string_lossy().into_owned()))
}

/// The paths that `modules.dep` gives a module: its own, and those of what it needs. The kernel takes `-` and `_` for the
/// same.
fn paths_of<'a>(
    index: &'a str,
    name: &str,
) -> Option<impl DoubleEndedIterator<Item = &'a str> + use<'a>> {
    let wanted = name.replace('-', "_");
    index.lines().filter_map(|line| line.split_once(':')).find_map(|(path, needs)| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let is_it = file.strip_suffix(".ko").is_some_and(|stem| stem.replace('-', "_") == wanted);
        is_it.then(|| std::iter::once(path).chain(needs.split_ascii_whitespace()))
    })
}

fn insert(path: &Path) -> Result<(), Errno> {
    let file =
        File::open(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_module_whichever_dash_it_is_written_with() {
        let index = "kernel/a/virtio.ko:\nkernel/b/virtio-rng.ko: kernel/a/virtio.ko\n";
        let paths = |name: &str| paths_of(index, name).map(|paths| paths.collect::<Vec<_>>());
        let rng = vec!["kernel/b/virtio-rng.ko", "kernel/a/virtio.ko"];
        assert_eq!(paths("virtio_rng"), Some(rng));
        assert_eq!(paths("virtio"), Some(vec!["kernel/a/virtio.ko"]));
        assert_eq!(paths("rng"), None);
    }
}
