//! Facts of a host that Guestline finds by itself: its processors, memory, kernel, firmware, PCI devices, programs.
//!
//! Read from /proc and /sys (proc(5), sysfs(5)), and what the kernel's packages leave beside it.

use super::capability::Capability;
use super::name::{CapabilityName, Side};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is found elsewhere.
#[derive(Debug, Clone, Default)]
pub struct HostTools {
    /// The version of QEMU, if there is one.
    pub qemu: Option<String>,
    /// Guests run with KVM.
    pub kvm: bool,
    /// Where programs are looked for.
    pub path: Option<std::ffi::OsString>,
}

/// Facts by their names.
pub type Facts = BTreeMap<CapabilityName, Capability>;

/// Finds the facts of the host whose root is there.
pub fn host_facts(root: &Path, tools: &HostTools) -> Facts {
    let mut facts = Found(Facts::new());
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    facts.value("arch", std::env::consts::ARCH);
    processors(&read("proc/cpuinfo"), &mut facts);
    let kib = read("proc/meminfo").lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    if let Some(kib) = kib {
        facts.value("memory", &format!("{}M", kib / 1024));
    }
    let release = read("proc/sys/kernel/osrelease").trim().to_owned();
    facts.value("kernel", &release);
    facts.values_of_files(&root.join("sys/class/dmi/id"), "dmi");
    pci(&root.join("sys/bus/pci/devices"), &mut facts);
    options(&read(&format!("boot/config-{release}")), &mut facts);
    modules(&read, &release, &mut facts);
    programs(tools.path.as_deref(), &mut facts);
    if let Some(qemu) = &tools.qemu {
        facts.value("qemu", qemu);
    }
    if tools.kvm {
        facts.flag("kvm");
    }
    let status = read("proc/self/status");
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    if uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0") {
        facts.flag("root");
    }
    facts.0
}

/// What was found so far, all of it on the host.
struct Found(Facts);

impl Found {
    fn put(&mut self, name: &str, capability: Capability) {
        // What cannot be named cannot be asked for.
        if let Ok(name) = name.parse::<CapabilityName>() {
            self.0.insert(name.on(Side::Host), capability);
        }
    }

    fn flag(&mut self, name: &str) {
        self.put(name, Capability::flag());
    }

    fn value(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.put(name, Capability::fact(value));
        }
    }

    /// Each small file of a folder that may be read.
    fn values_of_files(&mut self, folder: &Path, group: &str) {
        for path in files(folder) {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            // They hold one line; `uevent` and `modalias` say the same in one.
            if matches!(name, "uevent" | "modalias") || !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            self.value(&format!("{group}.{name}"), text.trim());
        }
    }
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn processors(cpuinfo: &str, facts: &mut Found) {
    let field = |name: &'static str| {
        cpuinfo.lines().filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let count = field("processor").count();
    if count > 0 {
        facts.value("cpus", &count.to_string());
    }
    if let Some(model) = field("model name").next() {
        facts.value("cpu.model", model);
    }
    // "Features" on Arm.
    for flag in
        field("flags").chain(field("Features")).next().unwrap_or_default().split_whitespace()
    {
        facts.flag(&format!("cpu.{flag}"));
    }
}

fn pci(devices: &Path, facts: &mut Found) {
    for device in files(devices) {
        let id = |file: &str| {
            let text = fs::read_to_string(device.join(file)).unwrap_or_default();
            text.trim().trim_start_matches("0x").to_owned()
        };
        let (vendor, device) = (id("vendor"), id("device"));
        if !vendor.is_empty() && !device.is_empty() {
            facts.flag(&format!("pci.{vendor}-{device}"));
        }
    }
}

fn options(config: &str, facts: &mut Found) {
    for line in config.lines() {
        if let Some((option, value)) =
            line.strip_prefix("CONFIG_").and_then(|line| line.split_once('='))
        {
            facts.value(&format!("kconfig.{option}"), value.trim_matches('"'));
        }
    }
}

/// Modules that can be loaded, and those that are built in (modprobe(8)).
fn modules(read: &dyn Fn(&str) -> String, release: &str, facts: &mut Found) {
    let names = [
        read(&format!("lib/modules/{release}/modules.dep")),
        read(&format!("lib/modules/{release}/modules.builtin")),
    ];
    for line in names.iter().flat_map(|text| text.lines()) {
        let path = line.split_once(':').map_or(line, |(path, _)| path);
        let file = path.rsplit('/').next().unwrap_or_default();
        if let Some((name, _)) = file.split_once(".ko") {
            facts.flag(&format!("module.{name}"));
        }
    }
}

fn programs(path: Option<&OsStr>, facts: &mut Found) {
    for folder in path.into_iter().flat_map(std::env::split_paths) {
        for program in files(&folder) {
            let is_executable = program.metadata().is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            });
            if let Some(name) =
                program.file_name().and_then(OsStr::to_str).filter(|_| is_executable)
            {
                facts.flag(&format!("tool.{name}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
        }
        root
    }

    #[test]
    fn facts_are_found_where_the_kernel_says_them() {
        let root = host(&[
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Big CPU @ 3GHz\nflags\t\t: fpu sse2 avx2\n\nprocessor\t: 1\nflags\t\t: fpu sse2 avx2\n",
            ),
            ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-56-amd64\n"),
            ("proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\n"),
            ("sys/class/dmi/id/sys_vendor", "Dell Inc.\n"),
            ("sys/class/dmi/id/uevent", "MODALIAS=x\n"),
            ("sys/bus/pci/devices/0000:00:01.0/vendor", "0x8086\n"),
            ("sys/bus/pci/devices/0000:00:01.0/device", "0x1533\n"),
            (
                "boot/config-6.1.0-56-amd64",
                "CONFIG_KASAN=y\n# CONFIG_X is not set\nCONFIG_HZ=250\n",
            ),
            (
                "lib/modules/6.1.0-56-amd64/modules.dep",
                "kernel/net/8021q/8021q.ko.xz: kernel/x.ko\n",
            ),
            ("lib/modules/6.1.0-56-amd64/modules.builtin", "kernel/fs/ext4/ext4.ko\n"),
            ("bin/tool", ""),
        ]);
        fs::set_permissions(root.path().join("bin/tool"), fs::Permissions::from_mode(0o755))
            .unwrap();
        let path = Some(root.path().join("bin").into_os_string());
        let tools = HostTools { qemu: Some("10.0.2".to_owned()), kvm: false, path };
        let facts = host_facts(root.path(), &tools);
        let said: Vec<_> = facts
            .iter()
            .filter(|(name, _)| name.path() != "arch")
            .map(|(name, capability)| format!("{name} = {}", capability.provided))
            .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_host_that_says_nothing_has_little() {
        let root = host(&[]);
        let facts = host_facts(root.path(), &HostTools::default());
        assert_eq!(facts.len(), 1, "{facts:?}");
    }
}
