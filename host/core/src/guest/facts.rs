//! What a guest is, and what it is busy with.

use super::{Guest, Way};
use crate::link::{Channel, LinkError, clean, unexpected};
use crate::text::printable;
use guestline_protocol::{
    Command, ExecRequest, ExitStatus, FactsRequest, Reply, Request, SampleEvent, SampleRequest,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A list of packages is at most so long, bytes.
const MAX_PACKAGES_LEN: usize = 8 * 1024 * 1024;

/// Lists packages where one of the package managers is known: name, version and architecture in a line.
const PACKAGES: &str = "\
if command -v dpkg-query >/dev/null; then
    dpkg-query -W -f '${Package}\\t${Version}\\t${Architecture}\\n'
elif command -v rpm >/dev/null; then
    rpm -qa --qf '%{NAME}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\n'
elif [ -r /lib/apk/db/installed ]; then
    sed -n 's/^P://p;s/^V://p;s/^A://p;s/^$//p' /lib/apk/db/installed | paste -d '\\t' - - - -
elif [ -r /var/lib/dpkg/status ]; then
    sed -n 's/^Package: //p;s/^Version: //p;s/^Architecture: //p' /var/lib/dpkg/status | paste -d '\\t' - - -
else
    exit 3
fi";

/// What a guest is, as it says of itself: no value here is more trustworthy than the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`.
    pub kernel_version: String,
    /// `uname -m`.
    pub machine: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Bits of `/proc/sys/kernel/tainted`; 0 is untainted.
    pub taint: u64,
    /// os-release(5).
    pub os: BTreeMap<String, String>,
    /// Host name.
    pub hostname: String,
    /// Name of process 1.
    pub init: String,
    /// Seconds since boot.
    pub uptime_seconds: u64,
    /// The first CPU; all are taken to be alike.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Modules that are loaded.
    pub modules: Vec<String>,
}

/// A CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Model, as the kernel names it.
    pub model: String,
    /// Flags, or features on other architectures than x86.
    pub flags: Vec<String>,
    /// Which CPUs are online, such as `0-3`.
    pub online: String,
}

/// Memory, in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All that the kernel has.
    pub total_kib: u64,
    /// What can be had without swapping.
    pub available_kib: u64,
}

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Name, such as `vda`.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// It cannot be written to.
    pub read_only: bool,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Name, such as `eth0`.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// Operational state (RFC 2863), such as `up`.
    pub state: String,
    /// Driver; `-` for none.
    pub driver: String,
}

impl Facts {
    /// From the texts that the agent sends.
    fn read(texts: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| texts.get(name).map_or("", String::as_str).trim();
        let cpuinfo = |keys: &[&str]| {
            let lines = text("/proc/cpuinfo").lines();
            let mut pairs = lines.filter_map(|line| line.split_once(':'));
            let value = pairs.find(|(key, _)| keys.contains(&key.trim()));
            value.map_or("", |(_, value)| value.trim()).to_owned()
        };
        let meminfo = |key: &str| {
            let line = text("/proc/meminfo").lines().find_map(|line| line.strip_prefix(key));
            let number =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let words = |name: &str| -> Vec<Vec<String>> {
            let lines = text(name).lines();
            lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
        };
        let os = text("/etc/os-release").lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.to_owned(), value.trim_matches('"').to_owned()))
        });
        let word = |line: &[String], at: usize| line.get(at).cloned().unwrap_or_default();
        let uptime = text("/proc/uptime").split(['.', ' ']).next().unwrap_or_default();
        Self {
            kernel: text("kernel.release").to_owned(),
            kernel_version: text("kernel.version").to_owned(),
            machine: text("machine").to_owned(),
            cmdline: text("/proc/cmdline").to_owned(),
            taint: text("/proc/sys/kernel/tainted").parse().unwrap_or(0),
            os: os.collect(),
            hostname: text("hostname").to_owned(),
            init: text("init").to_owned(),
            uptime_seconds: uptime.parse().unwrap_or(0),
            cpu: Cpu {
                model: cpuinfo(&["model name", "Model", "cpu model", "Processor"]),
                flags: cpuinfo(&["flags", "Features"])
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
                online: text("cpus").to_owned(),
            },
            memory: Memory {
                total_kib: meminfo("MemTotal"),
                available_kib: meminfo("MemAvailable"),
            },
            disks: words("disks")
                .iter()
                .map(|line| Disk {
                    name: word(line, 0),
                    bytes: word(line, 1).parse().unwrap_or(0),
                    read_only: word(line, 2) == "1",
                })
                .collect(),
            nics: words("nics")
                .iter()
                .map(|line| Nic {
                    name: word(line, 0),
                    mac: word(line, 1),
                    state: word(line, 2),
                    driver: word(line, 3),
                })
                .collect(),
            modules: words("/proc/modules").iter().map(|line| word(line, 0)).collect(),
        }
    }
}

/// Samples of what a guest is busy with. Dropping it ends them.
#[derive(Debug)]
pub struct Samples {
    channel: Channel,
}

impl Samples {
    /// The next one. Cancel safe.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn next(&mut self) -> Result<SampleEvent, LinkError> {
        match self.channel.reply().await? {
            Reply::Sample(sample) => Ok(sample),
            Reply::Error(error) => Err(LinkError::Refused(clean(error))),
            other => Err(unexpected(&other)),
        }
    }
}

impl Guest {
    /// What the guest is. A qemu-guest-agent tells less; what it does not is empty.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn facts(&self) -> Result<Facts, LinkError> {
        let link = match &self.way {
            Way::Agent(link) => link,
            Way::Qga(qga) => {
                let texts = qga.facts().await?.into_iter();
                let texts = texts.map(|(name, text)| (name, clean_text(text.as_bytes())));
                return Ok(Facts::read(&texts.collect()));
            }
        };
        match link.ask(&Request::Facts(FactsRequest {})).await? {
            Reply::Facts(facts) => {
                let texts = facts.facts.into_iter();
                let texts = texts.map(|(name, text)| (name, clean_text(&text)));
                Ok(Facts::read(&texts.collect()))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Names, versions and architectures of the guest's packages, where it has a package manager that is known.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn packages(&self) -> Result<Vec<(String, String, String)>, LinkError> {
        let request = ExecRequest::new(Command::Shell(PACKAGES.as_bytes().to_vec().into()));
        let output = self.run(request, &[], MAX_PACKAGES_LEN).await?;
        if output.exited.status != ExitStatus::Exited(0) {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().map(|line| {
            let mut fields = line.split('\t').map(printable);
            let mut next = || fields.next().unwrap_or_default();
            (next(), next(), next())
        });
        Ok(lines.collect())
    }

    /// Samples of memory and CPU use, this far apart, until they are dropped.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn samples(&self, interval: Duration) -> Result<Samples, LinkError> {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        let link = self.link_to("sample what the guest is busy with")?;
        let channel = link.channel(&Request::Sample(SampleRequest { interval_ms }), 0).await?;
        Ok(Samples { channel })
    }
}

/// A fact's text, as it may be shown.
fn clean_text(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).into_owned();
    text.lines().map(shown).collect::<Vec<_>>().join("\n")
}

/// A line of a fact, as it may be shown.
fn shown(line: &str) -> String {
    crate::text::escape(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_kernel_become_facts() {
        let texts = [
            ("kernel.release", "6.1.0\n"),
            ("/proc/cpuinfo", "processor\t: 0\nmodel name\t: QEMU TCG CPU\nflags\t\t: fpu sse2\n"),
            ("/proc/meminfo", "MemTotal:         230000 kB\nMemAvailable:     200000 kB\n"),
            ("/etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian 12\"\n"),
            ("/proc/sys/kernel/tainted", "512\n"),
            ("/proc/uptime", "12.34 10.00\n"),
            ("disks", "vda 1048576 1\n"),
            ("nics", "lo 00:00:00:00:00:00 unknown -\neth0 52:54:00:12:34:56 up virtio_net\n"),
            ("/proc/modules", "virtio_net 1 0 - Live 0x0\n"),
        ];
        let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let facts = Facts::read(&texts.collect());
        assert_eq!((facts.kernel.as_str(), facts.taint, facts.uptime_seconds), ("6.1.0", 512, 12));
        assert_eq!(facts.cpu.flags, ["fpu", "sse2"]);
        assert_eq!(facts.memory, Memory { total_kib: 230_000, available_kib: 200_000 });
        assert_eq!(facts.os["PRETTY_NAME"], "Debian 12");
        assert_eq!(facts.disks, [Disk { name: "vda".into(), bytes: 1 << 20, read_only: true }]);
        assert_eq!((facts.nics.len(), facts.nics[1].driver.as_str()), (2, "virtio_net"));
        assert_eq!(facts.modules, ["virtio_net"]);
    }

    #[test]
    fn a_guest_that_says_nothing_has_empty_facts() {
        assert_eq!(Facts::read(&BTreeMap::new()), Facts::default());
    }
}
