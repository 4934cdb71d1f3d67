//! Pseudo-terminals for commands (pty(7)).

use super::errno;
use crate::sys::spawn::set_terminal_size;
use guestline_protocol::TerminalSize;
use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::fchown;

/// `^D`, what ends the input of a terminal that was not told otherwise.
const END_OF_FILE: u8 = 4;

/// Opens a terminal: our end, which does not block, and the command's.
///
/// # Errors
/// When the kernel or the guest's `/dev` has none.
pub(super) fn terminal(size: TerminalSize, uid: Option<u32>) -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
    if let Some(uid) = uid {
        // The user may open it by name too, as after a login.
        fchown(&slave, Some(uid), None).map_err(|error| errno(&error))?;
    }
    let master = OwnedFd::from(master);
    set_terminal_size(master.as_fd(), size.columns, size.rows)?;
    Ok((master, slave))
}

/// What to write to our end so that the reader of the other finds the end of its input.
///
/// Where a line has begun, the first character only hands that over (termios(3), `VEOF`).
pub(super) fn end_of_input(master: &OwnedFd, is_line_open: bool) -> Vec<u8> {
    let settings = tcgetattr(master).ok();
    let character = settings.as_ref().and_then(|settings| {
        settings.control_chars.get(SpecialCharacterIndices::VEOF as usize).copied()
    });
    let is_by_line = settings.is_none_or(|all| all.local_flags.contains(LocalFlags::ICANON));
    let count = if is_line_open && is_by_line { 2 } else { 1 };
    vec![character.unwrap_or(END_OF_FILE); count]
}
