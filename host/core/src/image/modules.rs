//! Kernel modules: which ones a module needs, in which order to load them, and `modules.dep`.

use super::module_disk::unpacked_path;
use super::module_index::name_of;
use super::packages::{PackageError, unpack};
use std::collections::BTreeMap;

/// The modules of a kernel package: name with underscores, path below `/lib/modules/RELEASE/`, content.
#[derive(Debug, Default)]
pub(super) struct ModuleSet {
    modules: BTreeMap<String, Module>,
    /// Names that `modules.builtin` lists.
    builtin: Vec<String>,
}

#[derive(Debug)]
struct Module {
    path: String,
    /// As packed as it came until [`Module::open`].
    content: Vec<u8>,
    needs: Option<Vec<String>>,
}

impl Module {
    /// Unpacks it, once, and tells what it needs.
    fn open(&mut self) -> Result<Vec<String>, PackageError> {
        if let Some(needs) = &self.needs {
            return Ok(needs.clone());
        }
        if !self.content.starts_with(b"\x7fELF") {
            self.content = unpack(&self.content)?;
        }
        Ok(self.needs.insert(needs(&self.content)).clone())
    }
}

/// A module that a recipe names cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The kernel has it not.
    #[error("kernel package has no module `{name}`")]
    Missing {
        /// The module.
        name: String,
    },
    /// It is packed, and cannot be unpacked.
    #[error("cannot unpack module `{name}`")]
    Unpack {
        /// The module.
        name: String,
        /// Why.
        #[source]
        source: PackageError,
    },
}

impl ModuleSet {
    /// Adds a file of `/lib/modules/RELEASE/`, when it is of use here.
    pub(super) fn add(&mut self, path: &str, content: Vec<u8>) {
        if path == "modules.builtin" {
            let text = String::from_utf8_lossy(&content).into_owned();
            self.builtin = text.lines().filter_map(name_of).collect();
        } else if let Some(name) = name_of(path) {
            let path = unpacked_path(path);
            self.modules.insert(name, Module { path, content, needs: None });
        }
    }

    /// The named modules and all they need, each after what it needs. Built-in ones are left out.
    pub(super) fn closure(&mut self, names: &[String]) -> Result<Vec<String>, ModuleError> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order, &mut Vec::new())?;
        }
        Ok(order)
    }

    fn visit(
        &mut self,
        name: &str,
        order: &mut Vec<String>,
        open: &mut Vec<String>,
    ) -> Result<(), ModuleError> {
        let name = name.replace('-', "_");
        if order.contains(&name) || open.contains(&name) || self.builtin.contains(&name) {
            return Ok(());
        }
        let missing = || ModuleError::Missing { name: name.clone() };
        let module = self.modules.get_mut(&name).ok_or_else(missing)?;
        let needs =
            module.open().map_err(|source| ModuleError::Unpack { name: name.clone(), source })?;
        open.push(name.clone());
        for need in &needs {
            self.visit(need, order, open)?;
        }
        open.pop();
        order.push(name);
        Ok(())
    }

    /// Path and content of a module.
    pub(super) fn file(&self, name: &str) -> Option<(&str, &[u8])> {
        self.modules.get(name).map(|module| (module.path.as_str(), module.content.as_slice()))
    }

    /// `modules.dep` (modules.dep(5)) for these modules: direct and indirect needs, nearest first.
    pub(super) fn dep(&mut self, names: &[String]) -> String {
        let mut text = String::new();
        for name in names {
            let Some(path) = self.file(name).map(|(path, _)| path.to_owned()) else {
                continue;
            };
            let mut needs = self.closure(std::slice::from_ref(name)).unwrap_or_default();
            needs.pop();
            needs.reverse();
            let paths = needs.iter().filter_map(|need| self.file(need)).map(|(path, _)| path);
            let paths: String = paths.flat_map(|path| [" ", path]).collect();
            text += &format!("{path}:{paths}\n");
        }
        text
    }
}

/// What `.modinfo` gives as `depends=`: NUL-terminated `key=value` strings (Linux
/// `include/linux/module.h`).
fn needs(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &content[at + KEY.len()..];
    let value = value.split(|&byte| byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value).into_owned();
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ModuleSet {
        let mut set = ModuleSet::default();
        for (path, needs) in [
            ("kernel/a/virtio.ko", "virtio_ring"),
            ("kernel/a/virtio_ring.ko", ""),
            ("kernel/b/virtio-console.ko", "virtio,virtio_ring,builtin-one"),
        ] {
            set.add(
                path,
                format!("\x7fELF\0license=GPL\0depends={needs}\0vermagic=x\0").into_bytes(),
            );
        }
        set.add("modules.builtin", b"kernel/c/builtin-one.ko\n".to_vec());
        set
    }

    #[test]
    fn what_is_needed_comes_first_and_built_in_ones_not_at_all() {
        let order = set().closure(&["virtio-console".into(), "builtin_one".into()]).unwrap();
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_console"]);
        let missing = set().closure(&["nvme".into()]).unwrap_err();
        assert_eq!(missing.to_string(), "kernel package has no module `nvme`");
    }

    #[test]
    fn modules_dep_lists_all_needs() {
        let dep = set().dep(&["virtio_ring".into(), "virtio_console".into()]);
        assert_eq!(
            dep,
            "kernel/a/virtio_ring.ko:\n\
             kernel/b/virtio-console.ko: kernel/a/virtio.ko kernel/a/virtio_ring.ko\n"
        );
    }
}
