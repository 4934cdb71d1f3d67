//! The reserve link, a serial line: how an agent without a port tells what is missing.

use crate::linux;
use guestline_protocol::{Envelope, Framing, LinkTroubleEvent, Reply, Session, TtyFraming, encode};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::OpenOptions;
use std::io::{self, Write};

/// Says on the reserve link, and on the console, what is missing.
pub(crate) fn tell(lacks: Vec<String>) {
    let kernel = linux::release();
    eprintln!("guestline-agent: no port on kernel {kernel}; lacks {}", lacks.join(", "));
    let trouble = Reply::LinkTrouble(LinkTroubleEvent { kernel, lacks });
    let mut bytes = Vec::new();
    let body = encode(&Envelope { id: 0, body: trouble });
    if TtyFraming::default().encode(Session::NONE, &body, &mut bytes).is_ok()
        && let Err(error) = write(&bytes)
    {
        eprintln!("guestline-agent: {}: {error}", linux::RESERVE_TTY);
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut tty = OpenOptions::new().read(true).write(true).open(linux::RESERVE_TTY)?;
    let mut settings = tcgetattr(&tty)?;
    cfmakeraw(&mut settings);
    tcsetattr(&tty, SetArg::TCSANOW, &settings)?;
    tty.write_all(bytes)
}
