//! Guestline's guest agent.
//!
//! As process 1 of a JeOS it is the init: it mounts, loads modules, serves, reaps orphans, and
//! powers the machine off on every way out, unless the image has another init, beside which it lives on. Anywhere else it is a service that just serves. One
//! thread and one `poll(2)` for the link and for processes, threads for what may block; nothing that comes over the
//! link may panic it.
//!
//! ```text
//! main ─ init (mounts, modules) ─ root (the disk)  only as process 1
//!      └ serve (the poll loop) ─ link, session (what came, and what it means)
//!          │                   ├ exec (processes), forward (sockets)
//!          │                   └ jobs (threads) ─ work ─ guestline-files, follow, control
//!          └ source (opens the link) ─ port (finds a virtio port), reserve (says why there is none)
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod args;
mod bulk;
mod control;
mod exec;
mod follow;
mod forward;
mod init;
mod jobs;
mod link;
mod linux;
mod modules;
mod outlet;
mod port;
mod presence;
mod reading;
mod refusal;
mod reserve;
mod root;
mod serve;
pub mod session;
mod source;
mod sys;
mod thread;
#[cfg(all(panic = "abort", target_env = "musl"))]
mod unwind;
mod work;

use std::process::ExitCode;

/// Made from the sources by the build script.
pub const BUILD: &str = env!("GUESTLINE_AGENT_BUILD");

/// The program.
pub fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run()
    }
    match args::parse(std::env::args_os().skip(1)) {
        Ok(args::Action::Serve(config)) => match serve::run(&config, None) {
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
