//! The program `guestline`: one file a command; clap stays here.

mod args;
mod commands;
mod context;
mod error;
mod signals;

use args::{Cli, Command};
use clap::Parser;
use error::CommandError;
use guestline_harness::outcome::usage_status;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Known before the command line is: a wrong one must not be taken for a bad revision.
    let bisect =
        std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--bisect");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let status = if error.use_stderr() { usage_status(bisect) } else { 0 };
            return ExitCode::from(status);
        }
    };
    let result = match cli.command {
        Command::Check(check) => commands::check::run(&cli.global, &check),
        Command::Image(image) => commands::image::run(&cli.global, &image),
        Command::Doctor => commands::doctor::run(&cli.global),
        Command::Bench(bench) => commands::bench::run(&cli.global, &bench),
        Command::KvmProbe => {
            guestline::machine::accel::probe::main();
            Ok(0)
        }
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report(&error);
            ExitCode::from(usage_status(bisect))
        }
    }
}

fn report(error: &CommandError) {
    // Nothing is left to tell when standard error is gone.
    let _ = std::io::stderr().write_all(error.to_text().as_bytes());
}
