//! The command line of what is about named machines.

use super::{DeviceArgs, KernelArgs, WithArgs, parse_memory, parse_time};
use clap::{Args, Subcommand, ValueEnum};
use guestline::guest::PullOptions;
use guestline::supervise::MachineName;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const UP_HELP: &str = "\
Exit status: 0 when it is up, 2 wrong usage or the name is taken, 125 the set-up broke, 129, 130, 143 interrupted.";

pub(crate) const EXEC_HELP: &str = "\
Standard input is passed on as it comes; -n passes nothing. The first SIGINT or SIGTERM goes to the
command, the second kills it with all that it started; so does the end of this program.

Exit status: the command's own, 128 and the number for a signal that killed it, 127 no such program,
126 it cannot be executed, 141 standard output was closed, 255 with a message when Guestline failed.";

pub(crate) const FILES_HELP: &str = "\
As with cp: TO is a folder to copy into when it ends with / or is a folder already, else the copy's
own place. Folders are copied with all that is in them. `-` is standard input or output. Paths in the
machine begin at its /.

Exit status: 0, 1 something could not be copied (it is named), 2 wrong usage, 255 Guestline failed.";

pub(crate) const FORWARD_HELP: &str = "\
LISTEN and TARGET are each a port (of 127.0.0.1), ADDRESS:PORT, or the path of a unix socket with a /
in it. Port 0 takes a free one, which is printed. No network is needed in the machine.

  guestline forward web 8080 80                    localhost:8080 here is port 80 in web
  guestline forward web /tmp/x.sock /run/app.sock
  guestline forward web --from-guest 3128 proxy.example.org:3128

Runs until it is interrupted, over reboots of the guest.";

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The machine's name: a-z, 0-9 and -, at most 32
    pub(crate) name: MachineName,
    /// Image that the machine boots
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) kernel: KernelArgs,
    /// Memory, as 512, 512M, 2G [default: the image's, 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
    #[command(flatten)]
    pub(crate) with: WithArgs,
    /// Time for each boot, until the agent answers [default: 120 s, half as much again under TCG,
    /// more on a loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) boot_timeout: Option<Duration>,
    /// Boot it, instead of restoring it from a template that was saved after a boot
    #[arg(long)]
    pub(crate) fresh_reboot: bool,
    /// Boot it and let it wait for a debugger; the line to attach it is printed, and no time limit counts
    #[arg(long, conflicts_with = "boot_timeout")]
    pub(crate) gdb: bool,
    /// Boot nothing: reach an agent elsewhere, as tty:/dev/ttyUSB0,115200, unix:/path, vsock:CID:PORT,
    /// exec:COMMAND or ssh:HOST
    #[arg(long, value_name = "ENDPOINT", conflicts_with_all = ["image", "kernel", "cmdline", "memory", "cpus", "packages", "disks", "nics", "fresh_reboot", "gdb"])]
    pub(crate) connect: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The machines
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) names: Vec<MachineName>,
    /// All that are up
    #[arg(long)]
    pub(crate) all: bool,
    /// Do not ask the guest to power off first
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// A JSON object a line, as the control socket gives it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// As this user of the guest, by name or number
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// As this group of the guest, by name or number
    #[arg(short, long)]
    pub(crate) group: Option<String>,
    /// Set a variable of its environment; NAME alone takes it out
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<OsString>,
    /// In this folder of the guest [default: /]
    #[arg(short = 'C', long, value_name = "FOLDER")]
    pub(crate) cwd: Option<OsString>,
    /// On a terminal of its own, of the size of this one
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Give it nothing to read
    #[arg(short = 'n', long, conflicts_with = "tty")]
    pub(crate) no_stdin: bool,
    /// Kill it, with all that it started, after this time, as 90, 90s, 500ms, 2m; the status is 255 then
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// The words are a line for the guest's shell, `/bin/sh -c` unless its image says another
    #[arg(long)]
    pub(crate) shell: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) argv: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// Files and folders of this host, then where to put them in the machine
    #[arg(value_names = ["FROM", "TO"], num_args = 2.., required = true)]
    pub(crate) paths: Vec<OsString>,
    /// Keep owners, by number; else files belong to root
    #[arg(short = 'p', long)]
    pub(crate) owners: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// Files and folders of the machine, then where to put them on this host
    #[arg(value_names = ["FROM", "TO"], num_args = 2.., required = true)]
    pub(crate) paths: Vec<OsString>,
    /// Keep owners, by number, and make device nodes, pipes and sockets; wants root
    #[arg(short = 'p', long)]
    pub(crate) owners: bool,
    /// At most so much of each FROM, as 500M, 2G; holes do not count
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = parse_size)]
    pub(crate) max_bytes: u64,
    /// At most so many files, folders and whatever else of each FROM
    #[arg(long, value_name = "N", default_value_t = PullOptions::MAX_ENTRIES)]
    pub(crate) max_entries: u64,
    /// Leave so much of this host's file system free, or a twentieth of a small one
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub(crate) keep_free: u64,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The machine
    pub(crate) name: MachineName,
    #[command(flatten)]
    pub(crate) log: WhichLog,
    /// Go on as it grows
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Whose times are shown; a console has the host's only, since the machine's start
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t = ClockArg::Guest)]
    pub(crate) clock: ClockArg,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct WhichLog {
    /// The serial console, as this host recorded it (the default)
    #[arg(long)]
    pub(crate) console: bool,
    /// The kernel's log
    #[arg(long)]
    pub(crate) kernel: bool,
    /// The journal of systemd
    #[arg(long)]
    pub(crate) journal: bool,
    /// What syslog writes
    #[arg(long)]
    pub(crate) syslog: bool,
    /// Any file of the guest, over its rotation
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClockArg {
    /// When a line came, by this host's clock
    Host,
    /// When it was written, by the guest's clock
    Guest,
    /// Host's, then guest's
    Both,
}

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// Where to listen
    pub(crate) listen: String,
    /// Where connections go
    pub(crate) target: String,
    /// Listen in the machine, and connect here
    #[arg(long)]
    pub(crate) from_guest: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// So many times
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
    /// With this pause between them
    #[arg(short, long, value_name = "TIME", default_value = "200ms", value_parser = parse_time)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct FactsArgs {
    /// The machine
    pub(crate) name: MachineName,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// With its packages
    #[arg(long)]
    pub(crate) packages: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    /// The machine
    pub(crate) name: MachineName,
    #[command(subcommand)]
    pub(crate) action: PowerArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PowerArg {
    /// Boot the guest again, and wait until it is back
    Reboot {
        /// At once: no sync, and past the guest's init
        #[arg(short, long)]
        force: bool,
    },
    /// Power the guest off; the machine is gone then
    Off {
        /// At once: no sync, and past the guest's init
        #[arg(short, long)]
        force: bool,
    },
    /// Go into another kernel, and wait until it is up
    Kexec {
        /// Path of the kernel in the machine
        kernel: OsString,
        /// Path of its initial RAM file system in the machine
        #[arg(long, value_name = "PATH")]
        initrd: Option<OsString>,
        /// Its command line [default: that of the running kernel]
        #[arg(long, value_name = "TEXT")]
        cmdline: Option<OsString>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    pub(crate) command: AgentCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Write the static agent, mode 0755
    Extract {
        /// Where to; `-` is standard output
        #[arg(default_value = "guestline-agent")]
        file: PathBuf,
    },
    /// Print a service file that starts the agent in a Linux of your own
    Unit {
        /// For which init
        #[arg(value_enum)]
        init: InitArg,
        /// Where the agent will be
        #[arg(long, value_name = "PATH", default_value = "/usr/local/sbin/guestline-agent")]
        path: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitArg {
    /// A unit, for /etc/systemd/system/guestline-agent.service
    Systemd,
    /// A script, for /etc/init.d/guestline-agent
    Openrc,
    /// A line for /etc/inittab, and a shell loop for anything else
    Plain,
}

/// A number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[number.len()..] {
        "" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err("want a number of bytes, perhaps with K, M, G or T".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "want a number of bytes, perhaps with K, M, G or T")?;
    number.checked_mul(unit).ok_or_else(|| "that is more than there can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        assert_eq!(parse_size("64G"), Ok(PullOptions::MAX_BYTES));
        assert_eq!(parse_size("1GiB"), Ok(PullOptions::KEEP_FREE));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("1500"), Ok(1500));
        for wrong in ["", "G", "-1", "1.5G", "5X", "1 G", "18446744073709551615K"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
