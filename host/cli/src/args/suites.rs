//! The command line of what is about suites: `run`, `list`.

use super::{KernelArgs, RunOptions, SubjectArgs, parse_memory, parse_time};
use clap::{Args, ValueEnum};
use guestline_harness::run::Target;
use guestline_harness::suite::Filter;
use guestline_harness::suite::settings::Isolation;
use guestline_harness::suite::shard::Shard;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What tests are meant, and what is said of them all.
#[derive(Debug, Args)]
pub(crate) struct SelectArgs {
    /// Files, folders, or names of tests, each perhaps with [AXIS=VALUE,…] behind it [default: the folder here]
    #[arg(value_name = "REF")]
    pub(crate) references: Vec<String>,
    /// Run variants with these values: AXIS=VALUE,VALUE…
    #[arg(long, value_name = "AXIS=VALUES")]
    pub(crate) matrix: Vec<String>,
    /// Image that machines boot, in the place of what tests say
    #[arg(long, value_name = "NAME")]
    pub(crate) image: Option<String>,
    /// Memory of each machine, as 512, 512M, 2G, in the place of what tests say
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// CPUs of each machine, in the place of what tests say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: Option<u32>,
    /// Only those that this expression means: name(net/*), tag(slow), kind(script), owner(web*), variant([cpu=max]),
    /// with and, or, not; a bare word is a part of a name
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) filter: Option<Filter>,
    /// Only one of so many shares of all tests: 2/5
    #[arg(long, value_name = "K/N")]
    pub(crate) shard: Option<Shard>,
    /// What each test needs beside what it says
    #[arg(long, value_name = "REQUIREMENT")]
    pub(crate) require: Vec<String>,
    /// What this host and its lab provide (docs/requirements.md)
    #[arg(long, value_name = "FILE")]
    pub(crate) environment: Vec<PathBuf>,
    /// Where tests run: in machines, on this host, where ssh:[USER@]HOST or serial:DEVICE lead to an agent
    #[arg(long, value_name = "TARGET", default_value = "machine")]
    pub(crate) target: Target,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,
    #[command(flatten)]
    pub(crate) kernel: KernelArgs,
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// Time for each test that has none of its own, as 90, 90s, 500ms, 2m [default: 60 s, half as much again under TCG,
    /// more on a loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    /// Time for each boot, until the agent answers [default: 120 s, scaled likewise]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) boot_timeout: Option<Duration>,
    /// Time for the whole run; what has not ended then is interrupted
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) run_timeout: Option<Duration>,
    /// With whom tests share a machine, in the place of what they say
    #[arg(long, value_enum, value_name = "WITH")]
    pub(crate) isolation: Option<IsolationArg>,
    /// Boot every machine, instead of restoring it from a template that was saved after a boot
    #[arg(long)]
    pub(crate) fresh_reboot: bool,
    /// Make at most N more attempts at a test that does not pass
    #[arg(long, value_name = "N", conflicts_with = "repeat")]
    pub(crate) retries: Option<u32>,
    /// Run each test N times; one that fails once has failed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) repeat: Option<u32>,
    /// Run tests in another order, that of this seed; without one a new seed is taken, and said
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "new")]
    pub(crate) shuffle: Option<Seed>,
    /// End with the first test that has failed
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// Run again whenever a file of the suites changes, or a kernel that is named, until interrupted
    #[arg(long, conflicts_with = "plan_only")]
    pub(crate) watch: bool,
    /// Run nothing: write the jobs, and what they need, below this folder; `guestline job` runs them
    #[arg(long, requires = "out")]
    pub(crate) plan_only: bool,
    /// Where the jobs go
    #[arg(long, value_name = "DIR", requires = "plan_only")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: RunOptions,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// DIR/jobs/NUMBER.json of `guestline run --plan-only --out DIR`
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where its tests run: machine, host, ssh:[USER@]HOST or serial:DEVICE
    #[arg(long, value_name = "TARGET", default_value = "machine")]
    pub(crate) target: Target,
    /// The QEMU that the job names by its digest: a file, or a name on PATH
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) qemu: Option<String>,
    #[command(flatten)]
    pub(crate) options: RunOptions,
}

/// What an order turns on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "new" => Ok(Self(guestline_harness::event::now_us() % 1_000_000)),
            number => number.parse().map(Self).map_err(|_| "want a whole number".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationArg {
    /// With nobody
    Machine,
    /// With other tests of its suite that want the same machine
    Suite,
}

impl IsolationArg {
    pub(crate) fn wanted(self) -> Isolation {
        match self {
            Self::Machine => Isolation::Machine,
            Self::Suite => Isolation::Suite,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) select: SelectArgs,
    /// Only what can be run here
    #[arg(long, conflicts_with = "incompatible")]
    pub(crate) compatible: bool,
    /// Only what cannot be run here, with what it lacks
    #[arg(long)]
    pub(crate) incompatible: bool,
    /// Say of one test what it needs and what there is
    #[arg(long, value_name = "TEST", conflicts_with_all = ["compatible", "incompatible"])]
    pub(crate) why: Option<String>,
    /// Files that are no tests, too, and why they are none
    #[arg(short, long)]
    pub(crate) all: bool,
    /// One object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// Only these, and what is below them: `host.cpu`; or one requirement, and whether it is met: 'kernel >= 6.1'
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The image of the guests
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub(crate) image: String,
    /// What this host and its lab provide beside what is found (docs/requirements.md)
    #[arg(long, value_name = "FILE")]
    pub(crate) environment: Vec<PathBuf>,
    /// One object a line
    #[arg(long)]
    pub(crate) json: bool,
}
