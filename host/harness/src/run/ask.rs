//! What a test needs that only a running guest knows: one line of shell asks for all of it.

use super::execute::Broken;
use super::judge::Finding;
use super::place::Place;
use crate::outcome::Stage;
use crate::suite::{Capability, CapabilityName, Environment, Requirement, Side, Unmet};
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::fmt::Write as _;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// So much of the answer is read.
const MAX_LEN: usize = 64 * 1024;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks a guest, called so, for what is needed of it; what it lacks is the finding.
pub(super) async fn ask(
    place: &Place,
    guest: &str,
    needs: &[Requirement],
    cancel: &CancellationToken,
) -> Result<(), Finding> {
    if needs.is_empty() {
        return Ok(());
    }
    let request = ExecRequest::new(Command::Shell(script(needs).into_bytes().into()));
    let output = tokio::select! {
        biased;
        output = place.guest().run(request, &[], MAX_LEN) => output,
        ending = place.ended() => return Err(Finding::MachineEnded(ending)),
        () = cancel.cancelled() => return Err(Finding::Cancelled),
        () = tokio::time::sleep(PATIENCE) => {
            return Err(silent(format!("within {}", crate::text::limit(PATIENCE))));
        }
    };
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return Err(match place.ended_soon().await {
                Some(ending) => Finding::MachineEnded(ending),
                None => Finding::LinkLost(error),
            });
        }
    };
    let answers = match output.exited.status {
        ExitStatus::Exited(0) => String::from_utf8_lossy(&output.stdout).into_owned(),
        status => return Err(silent(format!("by its shell ({status:?})"))),
    };
    match lacking(guest, needs, &answers) {
        lacks if lacks.is_empty() => Ok(()),
        lacks => {
            let lacks: Vec<_> = lacks.iter().map(ToString::to_string).collect();
            Err(Finding::Unmet(lacks.join("; ")))
        }
    }
}

fn silent(how: String) -> Finding {
    let reason = format!("the guest does not say {how} what it has");
    Finding::Broken(Broken { stage: Stage::Agent, reason, hints: vec![], log: vec![] })
}

/// Prints a line for each of the names that is there: the name, and its value behind a tab where it has one.
fn script(needs: &[Requirement]) -> String {
    let mut script = "has() { \"$@\" >/dev/null 2>&1; }\n".to_owned();
    for need in needs {
        // A name has letters, digits, dots, dashes and underlines alone.
        let name = need.name().path();
        let (group, rest) = name.split_once('.').unwrap_or((name, ""));
        let flag = |test: String| format!("{test} && echo {name}\n");
        let value = |of: &str| {
            format!("value=$({of}) && [ -n \"$value\" ] && printf '{name}\\t%s\\n' \"$value\"\n")
        };
        let _ = script.write_str(&match (group, rest) {
            ("tool", tool) => flag(format!("has command -v {tool}")),
            ("module", module) => {
                let loaded = module.replace('-', "_");
                flag(format!("{{ [ -d /sys/module/{loaded} ] || has modprobe -n {module}; }}"))
            }
            ("kernel", "") => value("uname -r"),
            ("arch", "") => value("uname -m"),
            ("cpu", "model") => value("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1"),
            ("cpu", of) => flag(format!("has grep -qw -- {of} /proc/cpuinfo")),
            ("cpus", "") => value("grep -c ^processor /proc/cpuinfo"),
            ("kconfig", option) => {
                let config = "{ zcat /proc/config.gz || cat \"/boot/config-$(uname -r)\"; } 2>/dev/null";
                value(&format!("{config} | sed -n 's/^CONFIG_{option}=//p'"))
            }
            ("image", "os") => value(". /etc/os-release; echo \"$ID\""),
            ("image", "version") => value(". /etc/os-release; echo \"$VERSION_ID\""),
            ("dmi", of) => value(&format!("cat /sys/class/dmi/id/{of} 2>/dev/null")),
            ("pci", ids) => {
                let (vendor, device) = ids.split_once('-').unwrap_or((ids, ""));
                flag(format!("has sh -c 'cd /sys/bus/pci/devices; grep -l 0x{vendor} */vendor | while read d; do grep -q 0x{device} ${{d%vendor}}device && echo x; done | grep -q x'"))
            }
            _ => String::new(),
        });
    }
    script + "true\n"
}

/// What is not met, where a guest, called so, answers this.
fn lacking(guest: &str, needs: &[Requirement], answers: &str) -> Vec<Unmet> {
    let mut environment = Environment::new("this host", guest);
    for line in answers.lines() {
        let (name, value) = match line.split_once('\t') {
            Some((name, value)) => (name, Some(value.trim())),
            None => (line, None),
        };
        // What nobody asked for is not heeded.
        let is_asked = |need: &&Requirement| need.name().path() == name;
        let Some(need) = needs.iter().find(is_asked) else { continue };
        let capability = value.map_or_else(Capability::flag, Capability::fact);
        let on_side: CapabilityName = need.name().on(Side::Guest);
        environment.provide(on_side, capability);
    }
    environment.missing(needs, Side::Guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(texts: &[&str]) -> Vec<Requirement> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_shell_of_this_host_answers() {
        let needs = needs(&[
            "tool.sh",
            "tool.no-such-tool",
            "kernel >= 2",
            "cpus >= 1",
            "!module.no-such-module",
            "kernel < 2",
            "guest.arch",
        ]);
        let output =
            std::process::Command::new("sh").args(["-c", &script(&needs)]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let answers = String::from_utf8(output.stdout).unwrap();
        let lacks: Vec<_> =
            lacking("tiny", &needs, &answers).iter().map(|it| it.requirement.to_string()).collect();
        assert_eq!(lacks, ["tool.no-such-tool", "kernel < 2"]);
    }

    #[test]
    fn what_a_guest_says_beside_the_question_is_not_heeded() {
        let needs = needs(&["tool.iperf3", "kernel >= 6.1"]);
        let said = "tool.other\nkernel\t6.1.0-56\n\0\ttool.iperf3\nhost.lab";
        let lacks: Vec<_> = lacking("tiny", &needs, said).iter().map(ToString::to_string).collect();
        assert_eq!(lacks, ["needs tool.iperf3: nobody provides it"]);
    }
}
