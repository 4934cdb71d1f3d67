//! A kernel's configuration: read where it lies, and compared with what machine and image need (Linux
//! `Documentation/kbuild/kconfig-language.rst`; embedded by `CONFIG_IKCONFIG`, `kernel/configs.c`).

use super::packages::unpack;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// A larger file is none, in bytes; Debian's has 300 kB.
const MAX_LEN: u64 = 4 << 20;

/// What a configuration is embedded between.
const BEGIN: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// What every machine needs built in.
const ALWAYS: [&str; 7] =
    ["64BIT", "BLK_DEV_INITRD", "BINFMT_ELF", "DEVTMPFS", "PROC_FS", "SYSFS", "TTY"];

/// What a root on a disk needs built in, beside its drivers.
const ROOT: [&str; 3] = ["BLOCK", "TMPFS", "SQUASHFS_ZSTD"];

/// What it needs that may be a module: option, and name of the module.
const ROOT_DRIVERS: [(&str, &str); 4] = [
    ("VIRTIO_PCI", "virtio_pci"),
    ("VIRTIO_BLK", "virtio_blk"),
    ("SQUASHFS", "squashfs"),
    ("OVERLAY_FS", "overlay"),
];

/// What the link needs; in its stead a serial line does.
const LINK: [(&str, &str); 2] =
    [("VIRTIO_PCI", "virtio_pci"), ("VIRTIO_CONSOLE", "virtio_console")];
const SERIAL: &str = "SERIAL_8250";

/// The options of a kernel that are set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kconfig(BTreeMap<String, String>);

/// An option that a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Its name, without `CONFIG_`.
    pub option: &'static str,
    /// It is a module, and that is not at hand.
    pub is_module: bool,
}

impl Kconfig {
    /// Of the text of a `.config`.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("CONFIG_"));
        let pairs = lines.filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Of a file; none when it is no configuration.
    pub fn read(path: &Path) -> Option<Self> {
        Self::of(&Self::text(path).ok()??)
    }

    /// What a file holds; none when it is none that a configuration could be.
    pub(crate) fn text(path: &Path) -> io::Result<Option<Vec<u8>>> {
        let found = fs::metadata(path)?;
        let is_config = found.is_file() && found.len() <= MAX_LEN;
        Ok(if is_config { Some(fs::read(path)?) } else { None })
    }

    /// Of such a file's content; nothing where it sets none.
    pub(crate) fn of(text: &[u8]) -> Option<Self> {
        Some(Self::parse(&String::from_utf8_lossy(text))).filter(|config| !config.0.is_empty())
    }

    /// Of what a `vmlinux` has embedded.
    pub(crate) fn embedded(vmlinux: &[u8]) -> Option<Self> {
        let find =
            |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).position(|window| window == mark);
        let from = vmlinux.get(find(vmlinux, BEGIN)? + BEGIN.len()..)?;
        let packed = from.get(..find(from, END)?)?;
        let text = unpack(packed).ok()?;
        Some(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// The value of an option: `y`, `m`, a number or a text as it is written; none when it is not set.
    pub fn get(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str)
    }

    /// Capabilities of a machine with this kernel: `kconfig.NAME` and its value.
    pub fn capabilities(&self) -> impl Iterator<Item = (String, &str)> {
        self.0.iter().map(|(name, value)| (format!("kconfig.{name}"), value.as_str()))
    }

    /// What it lacks for a machine, whose root is a disk or not; `has` says which modules are at hand.
    pub fn lacks(&self, has_root: bool, has: &dyn Fn(&str) -> bool) -> Vec<Lack> {
        let mut lacks = Vec::new();
        let built_in = |option: &&'static str| self.get(option) == Some("y");
        let driver = |(option, module): &(&'static str, &str)| match self.get(option) {
            Some("y") => None,
            Some("m") if has(module) => None,
            value => Some(Lack { option, is_module: value == Some("m") }),
        };
        let missing =
            |option: &'static str| Lack { option, is_module: self.get(option) == Some("m") };
        lacks.extend(ALWAYS.into_iter().filter(|option| !built_in(option)).map(missing));
        if has_root {
            lacks.extend(ROOT.into_iter().filter(|option| !built_in(option)).map(missing));
            lacks.extend(ROOT_DRIVERS.iter().filter_map(driver));
        }
        if !built_in(&SERIAL) {
            lacks.extend(LINK.iter().filter_map(driver));
        }
        let mut seen = Vec::new();
        lacks.retain(|lack| {
            let is_new = !seen.contains(&lack.option);
            seen.push(lack.option);
            is_new
        });
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "# Linux/x86 6.1\nCONFIG_64BIT=y\nCONFIG_BLK_DEV_INITRD=y\nCONFIG_BINFMT_ELF=y\n\
        CONFIG_DEVTMPFS=y\nCONFIG_PROC_FS=y\nCONFIG_SYSFS=y\nCONFIG_TTY=y\nCONFIG_BLOCK=y\nCONFIG_TMPFS=y\n\
        CONFIG_SQUASHFS_ZSTD=y\nCONFIG_VIRTIO_PCI=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_SQUASHFS=m\nCONFIG_OVERLAY_FS=m\n\
        CONFIG_VIRTIO_CONSOLE=m\n# CONFIG_X is not set\nCONFIG_LOCALVERSION=\"-me\"\n";

    fn options(text: &str, has_root: bool, has: bool) -> Vec<&'static str> {
        let lacks = Kconfig::parse(text).lacks(has_root, &|_| has);
        lacks.into_iter().map(|lack| lack.option).collect()
    }

    #[test]
    fn values_are_as_they_are_written() {
        let config = Kconfig::parse(FULL);
        assert_eq!((config.get("64BIT"), config.get("X")), (Some("y"), None));
        let all: Vec<_> = config.capabilities().collect();
        assert!(all.contains(&("kconfig.LOCALVERSION".to_owned(), "\"-me\"")));
    }

    #[test]
    fn modules_do_where_they_are_at_hand() {
        assert!(options(FULL, true, true).is_empty());
        let all = ["VIRTIO_PCI", "VIRTIO_BLK", "SQUASHFS", "OVERLAY_FS", "VIRTIO_CONSOLE"];
        assert_eq!(options(FULL, true, false), all);
        assert_eq!(options(FULL, false, false), ["VIRTIO_PCI", "VIRTIO_CONSOLE"]);
        // The serial line does for a link.
        let serial = format!("{FULL}CONFIG_SERIAL_8250=y\n");
        assert!(options(&serial, false, false).is_empty());
        let without = serial.replace("CONFIG_BINFMT_ELF=y", "");
        assert_eq!(options(&without, false, false), ["BINFMT_ELF"]);
        let as_module = serial.replace("CONFIG_TTY=y", "CONFIG_TTY=m");
        let lacks = Kconfig::parse(&as_module).lacks(false, &|_| true);
        assert_eq!(lacks, [Lack { option: "TTY", is_module: true }]);
    }

    #[test]
    fn an_embedded_configuration_is_found() {
        use std::io::Write;
        let mut gzip = std::process::Command::new("gzip")
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        gzip.stdin.take().unwrap().write_all(FULL.as_bytes()).unwrap();
        let packed = gzip.wait_with_output().unwrap().stdout;
        let vmlinux = [b"\x7fELF..", BEGIN, &packed, END, b".."].concat();
        assert_eq!(Kconfig::embedded(&vmlinux), Some(Kconfig::parse(FULL)));
        assert_eq!(Kconfig::embedded(b"IKCFG_STxIKCFG_ED"), None);
        assert_eq!(Kconfig::embedded(b"\x7fELF"), None);
    }
}
