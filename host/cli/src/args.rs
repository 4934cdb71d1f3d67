//! The command line.

mod cache;
mod devices;
mod embed;
mod image;
mod kernel;
mod machines;
mod pool;
mod sdk;
mod subject;
mod suites;

pub(crate) use cache::*;
pub(crate) use devices::*;
pub(crate) use embed::*;
pub(crate) use guestline_harness::units::{
    memory as parse_memory, mib as parse_mib, time as parse_time,
};
pub(crate) use image::*;
pub(crate) use kernel::*;
pub(crate) use machines::*;
pub(crate) use pool::*;
pub(crate) use sdk::*;
pub(crate) use subject::*;
pub(crate) use suites::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use guestline::provision::TemplateName;
use std::path::PathBuf;
use std::time::Duration;

const STATUSES: &str = "\
Exit status (the first that matches):
                                               with --bisect
  129, 130, 143  interrupted by SIGHUP, SIGINT, SIGTERM   128
  2              wrong usage or configuration             128
  1              something failed                         1
  125            something errored: the set-up broke      125
  4              nothing was judged (--allow-none: 0)     125
  5              a report could not be written            0
  0              otherwise                                0";

/// Run checks inside virtual machines
///
/// Each check gets a pristine machine of its own; its verdict follows its output.
#[derive(Debug, Parser)]
#[command(name = "guestline", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Put this guest agent into images instead of the one inside this program
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) agent: Option<PathBuf>,
    /// What runs the guest's code: auto takes KVM only where 64-bit guest code has been seen to run
    #[arg(long, value_enum, default_value_t = AccelArg::Auto, global = true)]
    pub(crate) accel: AccelArg,
    /// Say more; twice for the program's own log
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccelArg {
    Auto,
    Kvm,
    Tcg,
}

impl AccelArg {
    /// The word of the option; none for the default.
    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Kvm => Some("kvm"),
            Self::Tcg => Some("tcg"),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run command lines, each a test in its own pristine machine
    #[command(after_help = STATUSES)]
    Check(CheckArgs),
    /// Run tests: files, folders, suites
    #[command(after_help = STATUSES)]
    Run(RunArgs),
    /// Run one job that `run --plan-only` wrote
    #[command(after_help = STATUSES)]
    Job(JobArgs),
    /// List tests, what they need, and whether they can run here
    List(ListArgs),
    /// List what tests may ask for here: what this host has, what its admin declares, and an image
    Env(EnvArgs),
    /// Start a machine that stays up, under a name
    #[command(after_help = UP_HELP)]
    Up(UpArgs),
    /// Take named machines down
    Down(DownArgs),
    /// List the named machines
    Ps(PsArgs),
    /// Run a command in a named machine, with its input, output and exit status
    #[command(after_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Copy files of this host into a named machine
    #[command(after_help = FILES_HELP)]
    Push(PushArgs),
    /// Copy files of a named machine to this host
    #[command(after_help = FILES_HELP)]
    Pull(PullArgs),
    /// Show a log of a named machine: its console, its kernel's, or any file
    Logs(LogsArgs),
    /// Forward a socket into a named machine, or out of it
    #[command(after_help = FORWARD_HELP)]
    Forward(ForwardArgs),
    /// Ask a named machine for signs of life
    Ping(PingArgs),
    /// Show what a named machine is
    Facts(FactsArgs),
    /// Reboot a named machine, or power it off from inside
    Power(PowerArgs),
    /// Get the guest agent that this program carries, and service files for it
    Agent(AgentArgs),
    /// Within a test: do something in a machine, or tell the test something
    ///
    /// The same as the program `guest`, which this one also is when it is called by that name.
    #[command(disable_help_flag = true)]
    Guest(GuestArgs),
    /// Get what scripts and tests use: the Python module, the static program `guest`
    Sdk(SdkArgs),
    /// Own a named machine (for Guestline itself)
    #[command(hide = true)]
    Supervise(UpArgs),
    /// Build and list images
    #[command(after_help = IMAGE_HELP)]
    Image(ImageArgs),
    /// Save machines that are set up, under a name, to restore them for checks
    Template(TemplateArgs),
    /// Keep machines ready, so that a check need not wait for its own
    #[command(after_help = POOL_HELP)]
    Pool(PoolArgs),
    /// Keep a pool (for Guestline itself)
    #[command(hide = true)]
    KeepPool(PoolStartArgs),
    /// See, prune, verify and carry what is kept: templates, images, packages
    #[command(after_help = CACHE_HELP)]
    Cache(CacheArgs),
    /// Show what this host has and lacks, and what mends it
    Doctor,
    /// Measure speed and size, each figure as a ratio to a floor taken in the same run
    Bench(BenchArgs),
    /// Run the three guests of the KVM probe (for Guestline itself)
    #[command(hide = true)]
    KvmProbe,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Command lines for the guest's shell, `/bin/sh -c` unless its image says another; status 0 passes, 77 skips, any other fails
    #[arg(value_name = "LINE", conflicts_with = "argv", required_unless_present = "argv")]
    pub(crate) lines: Vec<String>,
    /// One command of the guest and its arguments, without a shell
    #[arg(last = true, value_name = "ARGV")]
    pub(crate) argv: Vec<String>,
    /// Image that the machines boot
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) kernel: KernelArgs,
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// Time for each check, as 90, 90s, 500ms, 2m [default: 60 s, half as much again under TCG, more
    /// on a loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// Time for each boot, until the agent answers [default: 120 s, scaled likewise]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) boot_timeout: Option<Duration>,
    /// Memory of each machine, as 512, 512M, 2G [default: the image's, 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// CPUs of each machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
    #[command(flatten)]
    pub(crate) with: WithArgs,
    /// Machines of this template (`guestline template create`)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "kernel", "cmdline", "memory", "cpus", "packages", "disks", "nics"])]
    pub(crate) template: Option<TemplateName>,
    /// Boot every machine, instead of restoring it from a template that was saved after a boot
    #[arg(long)]
    pub(crate) fresh_reboot: bool,
    /// Fail a test that passed, when meanwhile the guest's kernel warned (or worse), oopsed, or became tainted
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) fail_on: Vec<FailOnArg>,
    /// Boot the machine and let it wait for a debugger; the line to attach it is printed, and no time limit counts
    #[arg(long, conflicts_with_all = ["template", "timeout", "boot_timeout"])]
    pub(crate) gdb: bool,
    #[command(flatten)]
    pub(crate) options: RunOptions,
}

/// What every run of tests can be told.
#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// At most N machines at once [default: as many as the host has cores, and memory for]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: Option<u32>,
    /// Leave the machines' work folders, and say where they are
    #[arg(long)]
    pub(crate) keep: bool,
    /// Exit statuses for `git bisect run`
    #[arg(long)]
    pub(crate) bisect: bool,
    /// Exit with 0 also when nothing was judged
    #[arg(long)]
    pub(crate) allow_none: bool,
    /// `json`: one event a line on stdout, and nothing else there
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Human)]
    pub(crate) message_format: MessageFormat,
}

impl RunOptions {
    /// So many tests run at once.
    pub(crate) fn parallel(&self) -> usize {
        self.jobs.map_or_else(crate::limits::cores, |jobs| usize::try_from(jobs).unwrap_or(1))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOnArg {
    /// A warning, an oops or a BUG
    Warn,
    /// Any new taint
    Taint,
    /// An oops or a BUG
    Oops,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    Human,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct TemplateArgs {
    #[command(subcommand)]
    pub(crate) command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Boot a machine, run lines in it and save it
    ///
    /// The name stands for the image and the lines: with a new image, agent or QEMU the machine is booted, set up and saved
    /// anew when it is wanted next.
    Create(CreateArgs),
    /// List the named templates
    List {
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what a template is
    Show {
        /// Its name
        name: TemplateName,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget named templates and remove what was saved of them
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<TemplateName>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: a-z, 0-9, `.`, `_` and `-`, at most 64
    pub(crate) name: TemplateName,
    /// A line for the guest's shell, run as root before the machine is saved; may be given several times
    #[arg(short, long, value_name = "LINE")]
    pub(crate) exec: Vec<String>,
    /// Begin with this template instead of an image
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "memory", "cpus", "packages", "disks", "nics"])]
    pub(crate) from: Option<TemplateName>,
    /// Image that the machine boots
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub(crate) image: String,
    /// Memory, as 512, 512M, 2G [default: the image's, 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
    /// Time for each line [default: 60 s, half as much again under TCG, more on a loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// Time for the boot, until the agent answers [default: 120 s, scaled likewise]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) boot_timeout: Option<Duration>,
    /// Give a name that is taken another meaning
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Measure only these
    #[arg(value_enum, value_name = "FIGURE")]
    pub(crate) figures: Vec<Figure>,
    /// Runs of each; medians are printed
    #[arg(short = 'n', long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// CPUs of the guest of `link`
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) cpus: u32,
    /// `json`: the figures of `link` as one object on stdout
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Human)]
    pub(crate) message_format: MessageFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Figure {
    /// Cold boot to verdict, against a bare boot of the same kernel
    Boot,
    /// What the controller adds to what QEMU and the guest need
    Controller,
    /// The agent's size and memory
    Agent,
    /// The link beside the raw port and what else gives commands to guests; only when named
    Link,
    /// Images made, imported and changed, and the one with systemd beside tiny; only when named
    Image,
    /// Restored machines beside bare QEMU with the same template, and what else runs a check in a fresh machine; only when
    /// named
    Machine,
    /// Planning and dispatch of many tests, and a hundred one-liners beside their floors; only when named
    Suite,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
