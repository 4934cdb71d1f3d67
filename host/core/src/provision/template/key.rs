//! What a template was made of: all that makes a saved machine another one, and that QEMU would accept in silence.

use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The format of templates and of the folder they lie in; another number is another template.
pub(super) const FORMAT: u32 = 1;

/// All that a template depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateKey {
    /// The format's number.
    pub format: u32,
    /// Digest of the image: of its kernel, its initial RAM file system and its agent.
    pub image: Digest,
    /// Digest of the agent in it.
    pub agent: Digest,
    /// Digest of the kernel that is booted instead of the image's.
    pub kernel: Option<Digest>,
    /// Digests of that kernel's modules: of what comes behind the image's initial RAM file system, and of their disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<(Digest, Option<Digest>)>,
    /// Kernel command line.
    pub cmdline: String,
    /// Machine type, CPU, memory and devices, as QEMU's options; see [`crate::machine::MachineSpec::seen_by_guest`].
    pub machine: String,
    /// The host's CPU, where the guest sees it, or has its time stamp counter without having been told how fast it is.
    pub host_cpu: Option<String>,
    /// Digest of the QEMU program.
    pub qemu: Digest,
    /// What was run in it after its boot: the lines of each layer.
    pub layers: Vec<Vec<String>>,
}

/// Tells templates apart: the beginning of the digest of its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TemplateId(String);

impl TemplateId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TemplateKey {
    /// The id of its template.
    pub fn id(&self) -> TemplateId {
        let text = serde_json::to_vec(self).unwrap_or_default();
        TemplateId(Digest::of(&text).short().to_owned())
    }

    /// The key of the template that its last layer was laid upon.
    pub(in crate::provision) fn parent(&self) -> Option<Self> {
        let (_, below) = self.layers.split_last()?;
        Some(Self { layers: below.to_vec(), ..self.clone() })
    }
}

/// What `/proc/cpuinfo` (proc_cpuinfo(5)) says of the first CPU, but for what changes by itself.
pub(in crate::provision) fn host_cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let steady = ["vendor_id", "cpu family", "model", "model name", "stepping", "flags"];
    let lines = first
        .lines()
        .filter(|line| line.split_once(':').is_some_and(|(name, _)| steady.contains(&name.trim())));
    Digest::of(lines.collect::<Vec<_>>().join("\n").as_bytes()).short().to_owned()
}

#[cfg(test)]
pub(super) fn example() -> TemplateKey {
    TemplateKey {
        format: FORMAT,
        image: Digest::of(b"image"),
        agent: Digest::of(b"agent"),
        kernel: None,
        modules: None,
        cmdline: "quiet".to_owned(),
        machine: "-m\n256M".to_owned(),
        host_cpu: None,
        qemu: Digest::of(b"qemu"),
        layers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_makes_another_template() {
        let key = example();
        assert_eq!(key.id(), example().id());
        let layered = TemplateKey { layers: vec![vec!["true".to_owned()]], ..example() };
        assert_eq!(layered.parent(), Some(example()));
        let others = [
            TemplateKey { format: 2, ..example() },
            TemplateKey { image: Digest::of(b"x"), ..example() },
            TemplateKey { agent: Digest::of(b"x"), ..example() },
            TemplateKey { kernel: Some(Digest::of(b"x")), ..example() },
            TemplateKey { modules: Some((Digest::of(b"x"), None)), ..example() },
            TemplateKey { modules: Some((Digest::of(b"x"), Some(Digest::of(b"y")))), ..example() },
            TemplateKey { cmdline: String::new(), ..example() },
            TemplateKey { machine: String::new(), ..example() },
            TemplateKey { host_cpu: Some(host_cpu()), ..example() },
            TemplateKey { qemu: Digest::of(b"x"), ..example() },
            TemplateKey { layers: vec![vec!["false".to_owned()]], ..example() },
            layered,
        ];
        let mut ids: Vec<TemplateId> = others.iter().map(TemplateKey::id).collect();
        ids.push(key.id());
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), others.len() + 1);
    }
}
