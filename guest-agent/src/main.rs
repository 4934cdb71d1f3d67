//! Guestline's guest agent.
//!
//! As process 1 of a JeOS it is the init: it mounts, loads modules, serves, reaps orphans, and
//! powers the machine off on every way out. Anywhere else it is a service that just serves. One
//! thread, one `poll(2)`; nothing that comes over the link may panic it.
//!
//! ```text
//! main ─ init (mounts, modules, signals)          only as process 1
//!      └ serve (the poll loop) ─ session (decides) ─ exec (processes)
//!                              └ port (finds the virtio port), reserve (says why there is none)
//! ```
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod args;
mod exec;
mod init;
mod linux;
mod modules;
mod port;
mod reserve;
mod serve;
mod session;
mod sys;

use std::process::ExitCode;

/// Made from the sources by the build script.
const BUILD: &str = env!("GUESTLINE_AGENT_BUILD");

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run()
    }
    match args::parse(std::env::args_os().skip(1)) {
        Ok(args::Action::Serve(config)) => match serve::run(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("guestline-agent: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(args::Action::Print(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("guestline-agent: {error}\n\n{}", args::USAGE);
            ExitCode::from(2)
        }
    }
}
