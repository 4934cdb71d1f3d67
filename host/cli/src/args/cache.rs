//! The command line of what is about the cache.

use super::{parse_size, parse_time};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const CACHE_HELP: &str = "\
The cache may take what `limit` below `[cache]` in guestline.toml says, 10G by default.
When a template or an image was made, what was used least recently goes until that is so;
what is in use stays.

Exit status: 0, 1 something is damaged, 2 wrong usage or configuration, 125 the disk did
not do, 129, 130, 143 interrupted.";

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List what is in the cache
    List {
        /// One object a line, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how much room it takes on the disk
    Du,
    /// Remove what the dead left, what is damaged, and what was used least recently beyond the limit
    ///
    /// What is in use stays, whatever is asked; so does what another user or a newer Guestline made.
    Prune(CachePruneArgs),
    /// Read all of it, and drop what is not what was made
    Verify,
    /// Write templates into a file for another host, with the images they belong to
    Export {
        /// The file; - is standard output
        file: PathBuf,
        /// Templates, by the beginnings of their ids [default: all]
        ids: Vec<String>,
    },
    /// Take in what `export` wrote; what is there already stays
    ///
    /// A template is a machine's memory and the state of QEMU's devices: take in only what you would
    /// run.
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CachePruneArgs {
    /// Until it takes at most this, as 500M, 2G [default: the limit that is configured]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) limit: Option<u64>,
    /// What was not used for this long, as 12h, 30d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) older_than: Option<Duration>,
    /// Everything that is not in use
    #[arg(long, conflicts_with_all = ["limit", "older_than"])]
    pub(crate) all: bool,
}
