//! What a QEMU program offers: CPU models, machine types, devices. It is asked once, in 0.1 s, so that a name that it does not
//! know is told before anything boots, with the one that was perhaps meant.

use super::qemu::Qemu;
use crate::dirs::Dirs;
use crate::recall;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to say one list.
const PATIENCE: Duration = Duration::from_secs(10);

/// More is not read of a list, bytes; QEMU 10's longest has 20 kB.
const MAX_LEN: u64 = 1 << 20;

/// Another number is asked for anew.
const FORMAT: u32 = 1;

/// What QEMU says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    format: u32,
    /// Models for `-cpu`.
    pub cpus: Vec<String>,
    /// Types for `-machine`.
    pub machines: Vec<String>,
    /// Models for `-device`, with their other names.
    pub devices: Vec<String>,
}

/// A name that is none of those that QEMU knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("QEMU {version} has no {what} `{name}`{}", meant(.nearest.as_deref()))]
pub struct NotOffered {
    /// The QEMU's version.
    pub version: String,
    /// "CPU model", "machine type", "network card".
    pub what: &'static str,
    /// What was asked for.
    pub name: String,
    /// What was perhaps meant.
    pub nearest: Option<String>,
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; perhaps `{name}` is meant")).unwrap_or_default()
}

impl Offers {
    /// Of a QEMU; remembered in the cache folder as long as its program is the same. None where it does not say.
    pub fn of(dirs: &Dirs, qemu: &Qemu) -> Option<Self> {
        let name = format!("qemu-offers-{}.json", qemu.digest.short());
        let known = recall::recall(dirs, &name).filter(|known: &Self| known.format == FORMAT);
        if known.is_some() {
            return known;
        }
        let ask = |option: &str| ask(qemu, option);
        let found = Self {
            format: FORMAT,
            cpus: cpus(&ask("-cpu")?),
            machines: machines(&ask("-machine")?),
            devices: devices(&ask("-device")?),
        };
        // A list that is empty was not understood.
        if found.cpus.is_empty() || found.machines.is_empty() || found.devices.is_empty() {
            return None;
        }
        recall::keep(dirs, &name, &found);
        Some(found)
    }

    /// Is there such a CPU model? What follows it behind a comma is QEMU's to judge.
    ///
    /// # Errors
    /// [`NotOffered`].
    pub fn check_cpu(&self, qemu: &Qemu, cpu: &str) -> Result<(), NotOffered> {
        check(qemu, "CPU model", cpu.split(',').next().unwrap_or_default(), &self.cpus)
    }

    /// Is there such a machine type?
    ///
    /// # Errors
    /// [`NotOffered`].
    pub fn check_machine(&self, qemu: &Qemu, machine: &str) -> Result<(), NotOffered> {
        check(qemu, "machine type", machine, &self.machines)
    }

    /// Is there such a network card, as far as it can be told from another device?
    ///
    /// # Errors
    /// [`NotOffered`].
    pub fn check_nic(&self, qemu: &Qemu, model: &str) -> Result<(), NotOffered> {
        check(qemu, "network card", model, &self.devices)
    }
}

fn check(qemu: &Qemu, what: &'static str, name: &str, names: &[String]) -> Result<(), NotOffered> {
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let most = (name.len() / 3).clamp(1, 3);
    let near = names
        .iter()
        .map(|known| (strsim::levenshtein(&known.to_lowercase(), &name.to_lowercase()), known));
    let nearest =
        near.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name.clone());
    Err(NotOffered { version: qemu.version.to_string(), what, name: name.to_owned(), nearest })
}

fn ask(qemu: &Qemu, option: &str) -> Option<String> {
    let mut command = Command::new(&qemu.path);
    command.args([option, "help"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    sys::die_with_us(&mut command);
    let mut child = command.spawn().ok()?;
    let reading = child.stdout.take().map(|stdout| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.take(MAX_LEN).read_to_end(&mut text);
            text
        })
    })?;
    ends(&mut child).then_some(())?;
    Some(String::from_utf8_lossy(&reading.join().ok()?).into_owned())
}

/// Waits until it has ended well; one that takes too long is killed.
fn ends(child: &mut Child) -> bool {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// The first word of each line up to the empty one; QEMU 7.2 has `x86` before it.
fn cpus(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1).take_while(|line| !line.trim().is_empty());
    let word = |line: &str| {
        let mut words = line.split_whitespace();
        match words.next()? {
            "x86" => words.next().map(str::to_owned),
            word => Some(word.to_owned()),
        }
    };
    lines.filter_map(word).collect()
}

/// The first word of each line, behind the heading.
fn machines(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1).take_while(|line| !line.trim().is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// `name "e1000", bus PCI, alias "e1000-82540em", desc "…"`.
fn devices(text: &str) -> Vec<String> {
    let named = |line: &str, before: &str| {
        let (_, rest) = line.split_once(before)?;
        rest.split_once('"').map(|(name, _)| name.to_owned())
    };
    let lines = text.lines().filter(|line| line.starts_with("name \""));
    lines.flat_map(|line| [named(line, "name \""), named(line, "alias \"")]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::machine::QemuVersion;

    #[test]
    fn lists_are_read_as_old_and_new_qemus_write_them() {
        let new = "Available CPUs:\n  486                   (alias configured by machine type)\n  qemu64-v1             QEMU Virtual CPU\n\nRecognized CPUID flags:\n  3dnow 3dnowext\n";
        let old = "Available CPUs:\nx86 486                   (alias)\nx86 qemu64-v1\n\nRecognized CPUID flags:\n  3dnow\n";
        assert_eq!(cpus(new), ["486", "qemu64-v1"]);
        assert_eq!(cpus(old), cpus(new));
        let text = "Supported machines are:\nmicrovm              microvm (i386)\npc                   Standard PC (alias of pc-i440fx-10.0)\n";
        assert_eq!(machines(text), ["microvm", "pc"]);
        let text = "Network devices:\nname \"e1000\", bus PCI, alias \"e1000-82540em\", desc \"Intel\"\nname \"vmxnet3\", bus PCI\n\nInput devices:\n";
        assert_eq!(devices(text), ["e1000", "e1000-82540em", "vmxnet3"]);
    }

    #[test]
    fn a_name_that_is_not_there_tells_the_nearest() {
        let qemu =
            Qemu { path: "/q".into(), version: QemuVersion(10, 0), digest: Digest::of(b"q") };
        let offers = Offers {
            cpus: vec!["qemu64".into(), "Skylake-Server".into()],
            machines: vec!["q35".into()],
            devices: vec!["e1000".into()],
            ..Offers::default()
        };
        let wrong = |found: Result<(), NotOffered>| found.unwrap_err().to_string();
        assert_eq!(offers.check_cpu(&qemu, "qemu64,-sse2"), Ok(()));
        assert_eq!(
            wrong(offers.check_cpu(&qemu, "skylake-server,+avx2")),
            "QEMU 10.0 has no CPU model `skylake-server`; perhaps `Skylake-Server` is meant"
        );
        assert_eq!(
            wrong(offers.check_machine(&qemu, "zzz")),
            "QEMU 10.0 has no machine type `zzz`"
        );
        assert!(wrong(offers.check_nic(&qemu, "e100")).ends_with("perhaps `e1000` is meant"));
    }
}
