//! `guestline facts`: what a named machine is, as its guest says.

use crate::args::FactsArgs;
use crate::error::CommandError;
use crate::machines;
use guestline::guest::Facts;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

pub(crate) fn run(args: &FactsArgs) -> Result<u8, CommandError> {
    machines::run(|dirs| async move {
        let attached = machines::attach(dirs, &args.name).await?;
        let facts = match attached.guest.facts().await {
            Ok(facts) => facts,
            Err(error) => return Err(attached.up.explain(error).await),
        };
        let packages = match args.packages {
            true => match attached.guest.packages().await {
                Ok(packages) => Some(packages),
                Err(error) => return Err(attached.up.explain(error).await),
            },
            false => None,
        };
        let text = match args.json {
            true => {
                let mut value = serde_json::to_value(&facts)?;
                if let Some(packages) = &packages {
                    let package = |(name, version, architecture): &(String, String, String)| json!({ "name": name, "version": version, "architecture": architecture });
                    value["packages"] = packages.iter().map(package).collect();
                }
                serde_json::to_string_pretty(&value)? + "\n"
            }
            false => in_words(&facts, packages.as_deref()),
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(0),
        }
    })
}

fn in_words(facts: &Facts, packages: Option<&[(String, String, String)]>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{name:<12}{value}");
        }
    };
    let mib = |kib: u64| format!("{} MiB", kib / 1024);
    let os = facts.os.get("PRETTY_NAME").map_or("", String::as_str);
    line("host name", &facts.hostname);
    line("system", os);
    line("kernel", &format!("{} {} {}", facts.kernel, facts.kernel_version, facts.machine));
    line("tainted", &if facts.taint == 0 { "no".to_owned() } else { facts.taint.to_string() });
    line("cmdline", &facts.cmdline);
    line("init", &facts.init);
    line("uptime", &machines::span(Duration::from_secs(facts.uptime_seconds)));
    line("cpu", &format!("{}, online {}", facts.cpu.model, facts.cpu.online));
    let (total, available) = (mib(facts.memory.total_kib), mib(facts.memory.available_kib));
    line("memory", &format!("{total}, {available} available"));
    for disk in &facts.disks {
        let mode = if disk.read_only { ", read-only" } else { "" };
        line("disk", &format!("{}: {} bytes{mode}", disk.name, disk.bytes));
    }
    for nic in &facts.nics {
        line("nic", &format!("{}: {}, {}, driver {}", nic.name, nic.mac, nic.state, nic.driver));
    }
    line("modules", &facts.modules.join(" "));
    for (name, version, architecture) in packages.unwrap_or_default() {
        line("package", &format!("{name} {version} {architecture}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_says_little_has_few_lines() {
        let facts = Facts { kernel: "6.1.0".to_owned(), ..Facts::default() };
        let text = in_words(&facts, Some(&[("a".into(), "1".into(), "all".into())]));
        assert!(text.contains("kernel      6.1.0"), "{text}");
        assert!(text.ends_with("package     a 1 all\n"), "{text}");
        assert!(!text.contains("host name"), "{text}");
    }
}
