//! The program `guestline`: one file a command; clap stays here.

mod args;
mod background;
mod commands;
mod context;
mod error;
mod lease;
mod limits;
mod machines;
mod own_kernel;
mod runner;
mod signals;
mod subject;
mod suites;
mod table;
mod terminal;
mod watch;

use args::{Cli, Command};
use clap::Parser;
use error::CommandError;
use guestline_harness::outcome::usage_status;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    // A link of that name in the PATH of a script.
    if Path::new(&name).file_name() == Some("guest".as_ref()) {
        return ExitCode::from(guestline_guest::main(words));
    }
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
        Command::Run(run) => commands::run::run(&cli.global, &run),
        Command::Job(job) => commands::job::run(&cli.global, &job),
        Command::List(list) => commands::list::run(&cli.global, &list),
        Command::Env(env) => commands::env::run(&cli.global, &env),
        Command::Up(up) => commands::up::run(&cli.global, &up),
        Command::Down(down) => commands::down::run(&down),
        Command::Ps(ps) => commands::ps::run(&ps),
        Command::Exec(exec) => commands::exec::run(&exec),
        Command::Push(push) => commands::files::push(&push),
        Command::Pull(pull) => commands::files::pull(&pull),
        Command::Logs(logs) => commands::logs::run(&logs),
        Command::Forward(forward) => commands::forward::run(&forward),
        Command::Ping(ping) => commands::ping::run(&ping),
        Command::Facts(facts) => commands::facts::run(&facts),
        Command::Power(power) => commands::power::run(&power),
        Command::Agent(agent) => commands::agent::run(&cli.global, &agent),
        Command::Guest(guest) => Ok(guestline_guest::main(guest.words)),
        Command::Sdk(sdk) => commands::sdk::run(&sdk),
        Command::Supervise(up) => Ok(commands::up::supervise(&cli.global, &up)),
        Command::Image(image) => commands::image::run(&cli.global, &image),
        Command::Template(template) => commands::template::run(&cli.global, &template),
        Command::Pool(pool) => commands::pool::run(&cli.global, &pool),
        Command::KeepPool(start) => Ok(commands::pool::keep(&cli.global, &start)),
        Command::Cache(cache) => commands::cache::run(&cache),
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
