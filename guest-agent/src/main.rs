//! The agent's program; all of it is in the library, for tests and fuzzers.

fn main() -> std::process::ExitCode {
    guestline_agent::main()
}
