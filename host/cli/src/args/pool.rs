//! The command line of `guestline pool`.

use super::{DeviceArgs, parse_memory, parse_time};
use clap::{Args, Subcommand};
use guestline::provision::TemplateName;
use std::time::Duration;

pub(crate) const POOL_HELP: &str = "\
`guestline check` takes a machine that is ready, when a pool has one of the kind that it wants, and restores
one else. A ready machine has never run a test, and is gone after it.

  guestline pool start --size 4
  guestline check 'grep -q avx2 /proc/cpuinfo'
  guestline pool stop

Exit status: 0, 2 wrong usage, or there is such a pool already, 125 the set-up broke, 129, 130, 143
interrupted, 255 a keeper does not do what it is asked, or there is no such pool.";

#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    pub(crate) command: PoolCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Keep machines of a kind ready, in the background, until `pool stop`
    Start(PoolStartArgs),
    /// List the pools
    List {
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// End pools; checks that run in their machines come to their end
    Stop {
        /// Ids of their templates, as `pool list` shows them, or how they begin [default: all]
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PoolStartArgs {
    /// So many machines wait
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) size: u32,
    /// Image that the machines boot
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    pub(crate) image: String,
    /// Memory of each, as 512, 512M, 2G [default: the image's, 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// CPUs of each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
    /// Machines of this template (`guestline template create`)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "memory", "cpus", "packages", "disks", "nics"])]
    pub(crate) template: Option<TemplateName>,
    /// Time for a boot, until the agent answers [default: 120 s, half as much again under TCG, more on a
    /// loaded host]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) boot_timeout: Option<Duration>,
}
