//! The command `guest`: with it a script in any language combines steps on the host and in guests within one test, and
//! the sides of a test find each other. `docs/guest.md` describes it.
//!
//! ```text
//! script ──> guest ── unix socket, JSON lines ──> controller (the harness) ── link ──> machine
//! ```
//! [`protocol`] is what both ends speak. The command decides nothing: it turns its words into one request
//! ([`arguments`]) and shows what comes back ([`show`]). It is built static too and pushed into machines, so it has no
//! dependency but the JSON.

pub mod arguments;
mod base64;
mod connection;
pub mod data;
pub mod protocol;
mod show;
mod stdin;
mod time;

pub use connection::{Connection, ConnectionError};
pub use data::Data;

use arguments::Parsed;
use std::ffi::OsString;
use std::io::{self, Write};

/// The variable of the environment that names the socket.
pub const SOCKET: &str = "GUESTLINE_SOCKET";

/// Guestline itself failed; a command's own status is any other.
pub const FAILED: u8 = 255;

/// The time that was given is over, as of timeout(1).
pub const TIMED_OUT: u8 = 124;

/// Does what the words after the program's name say, and returns the exit status.
pub fn main(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    let wants_json = arguments::wants_json(&words);
    let folder = std::env::current_dir().unwrap_or_default();
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let invocation = match arguments::parse(&words, &folder) {
        Ok(Parsed::Show(text)) => {
            return match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => 0,
                Err(_) => FAILED,
            };
        }
        Ok(Parsed::Do(invocation)) => invocation,
        Err(error) => {
            return show::failure("usage", &error.to_string(), wants_json, &mut out, &mut err);
        }
    };
    match Connection::open_named() {
        Ok(connection) => show::perform(&invocation, connection, &mut out, &mut err),
        Err(error) => {
            show::failure(error.word(), &error.to_string(), wants_json, &mut out, &mut err)
        }
    }
}
