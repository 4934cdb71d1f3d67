//! `guestline ps`: lists the named machines.

use crate::args::PsArgs;
use crate::error::CommandError;
use crate::machines::{self, now_us, span};
use crate::table;
use guestline::supervise::{self, MachineStatus};
use guestline::text;
use std::io::Write;
use std::time::Duration;

/// A supervisor that does not answer within this is told as such.
const ANSWER: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &PsArgs) -> Result<u8, CommandError> {
    machines::run(|dirs| async move {
        let mut machines = Vec::new();
        for (name, folder) in supervise::list(&dirs) {
            match tokio::time::timeout(ANSWER, supervise::status(&folder)).await {
                Ok(Ok(status)) => machines.push(status),
                // It ended in this moment.
                Ok(Err(_)) if supervise::find(&dirs, &name).is_none() => {}
                Ok(Err(error)) => eprintln!("guestline: {}", text::chain(&error)),
                Err(_) => eprintln!("guestline: the supervisor of `{name}` does not answer"),
            }
        }
        let text = match args.json {
            true => machines
                .iter()
                .map(|machine| Ok(serde_json::to_string(machine)? + "\n"))
                .collect::<Result<String, serde_json::Error>>()?,
            false => table(&machines, now_us()),
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(0),
        }
    })
}

fn table(machines: &[MachineStatus], now_us: u64) -> String {
    let head = ["NAME", "STATE", "IMAGE", "KERNEL", "MEMORY", "UPTIME", "PID"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(machines.iter().map(|machine| row(machine, now_us)));
    let mut text = table::table(&rows);
    // Why a machine is lost does not fit the table.
    for machine in machines {
        if let Some(why) = &machine.why {
            text += &format!("{}: {}\n", machine.name, text::printable(why));
        }
    }
    text
}

fn row(machine: &MachineStatus, now_us: u64) -> [String; 7] {
    let none = || "-".to_owned();
    let shown =
        |text: &Option<String>| text.as_deref().map_or_else(none, |text| text::one_line(text, 40));
    let silent = machine.silence_ms.filter(|ms| *ms > 5_000);
    let state = match silent {
        Some(ms) => format!("{} (silent {} s)", machine.state, ms / 1_000),
        None => machine.state.to_string(),
    };
    let memory = machine.memory_mib.map_or_else(none, |mib| match mib {
        mib if mib >= 1024 && mib % 1024 == 0 => format!("{}G", mib / 1024),
        mib => format!("{mib}M"),
    });
    [
        machine.name.to_string(),
        state,
        if machine.image.is_some() { shown(&machine.image) } else { shown(&machine.endpoint) },
        shown(&machine.kernel),
        memory,
        span(Duration::from_micros(now_us.saturating_sub(machine.since_us))),
        machine.pid.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_machines() {
        let web: MachineStatus = serde_json::from_value(serde_json::json!({
            "name": "web", "state": "ready", "why": null, "image": "tiny", "endpoint": null,
            "kernel": "6.1.0-56-cloud-amd64", "memory_mib": 256, "cpus": 1, "pid": 4711, "qemu_pid": 4712,
            "since_us": 1_000_000, "ready_in_us": 2_400_000, "boot": 1, "transport": "virtio-serial",
            "agent": "1a2b", "silence_ms": null, "boot_timeout_ms": 120_000, "console": null,
        }))
        .unwrap();
        let board = MachineStatus {
            name: "board".parse().unwrap(),
            state: supervise::MachineState::Lost,
            why: Some("the link is gone".to_owned()),
            image: None,
            endpoint: Some("tty:/dev/ttyUSB0".to_owned()),
            kernel: None,
            memory_mib: None,
            silence_ms: Some(31_000),
            ..web.clone()
        };
        insta::assert_snapshot!(table(&[web, board], 13_000_000));
        assert_eq!(table(&[], 0), "NAME  STATE  IMAGE  KERNEL  MEMORY  UPTIME  PID\n");
    }
}
