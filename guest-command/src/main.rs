//! The command `guest`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(guestline_guest::main(std::env::args_os().skip(1)))
}
