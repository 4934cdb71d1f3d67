//! This side's terminal: raw while a guest's terminal is shown on it, and safe from what a guest says otherwise.

use guestline::text;
use guestline_protocol::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// How the terminal was, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input is a raw terminal for as long as this lives.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// When standard input is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let entered = Self(());
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(entered))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was; also for who leaves without dropping.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

/// The size of this side's terminal, or that of a VT100.
pub(crate) fn size() -> TerminalSize {
    let found = terminal_size::terminal_size_of(io::stdout())
        .or_else(|| terminal_size::terminal_size_of(io::stdin()));
    match found {
        Some((width, height)) => TerminalSize { columns: width.0, rows: height.0 },
        None => TerminalSize { columns: 80, rows: 24 },
    }
}

/// May this process read its terminal, or would that stop it (`SIGTTIN`, termios(3))?
pub(crate) fn may_read() -> bool {
    let stdin = io::stdin();
    let owner = nix::unistd::tcgetpgrp(&stdin);
    !stdin.is_terminal() || owner.is_ok_and(|owner| owner == nix::unistd::getpgrp())
}

/// Makes what a guest says fit for where it goes: as it is, or escaped for a terminal.
pub(crate) struct Shown {
    escape: bool,
    /// A character whose end has not come.
    partial: Vec<u8>,
}

impl Shown {
    pub(crate) fn new(escape: bool) -> Self {
        Self { escape, partial: Vec::new() }
    }

    pub(crate) fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if !self.escape {
            return bytes;
        }
        let mut all = std::mem::take(&mut self.partial);
        all.extend(bytes);
        self.partial = all.split_off(all.len() - text::partial_len(&all));
        text::escape(&all).into_bytes()
    }

    /// What is left at the end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        text::escape(&std::mem::take(&mut self.partial)).into_bytes()
    }
}

/// A line about progress on a terminal, and nothing anywhere else.
pub(crate) struct Progress {
    shown: bool,
    enabled: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { shown: false, enabled: io::stderr().is_terminal() }
    }

    pub(crate) fn show(&mut self, line: &str) {
        if self.enabled {
            self.shown = true;
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }

    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_whole_characters_and_nothing_that_drives_it() {
        let mut shown = Shown::new(true);
        let euro = "€".as_bytes();
        assert_eq!(shown.take([b"\x1b[2J", &euro[..1]].concat()), b"\\u{1b}[2J");
        assert_eq!(shown.take(euro[1..].to_vec()), euro);
        assert_eq!(shown.take(euro[..2].to_vec()), b"");
        assert_eq!(shown.rest(), b"\\xe2\\x82");
        assert_eq!(Shown::new(false).take(b"\x1b\xff".to_vec()), b"\x1b\xff");
    }
}
