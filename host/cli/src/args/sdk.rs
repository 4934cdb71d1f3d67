//! The command line of what scripts take from this program.

use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// A verb and what it takes: `guestline guest --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct SdkArgs {
    #[command(subcommand)]
    pub(crate) command: SdkCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SdkCommand {
    /// The module `guestline` for Python 3.7 or later, as one file without dependencies
    Python {
        /// Write it there instead of to stdout; into a folder, as guestline.py
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The program `guest`, static, for systems that Guestline does not put it into by itself
    Guest {
        /// Write it there; into a folder, as guest; - is stdout
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}
