//! The reserve link, a serial line: how an agent without a port tells what is missing, before it serves there.

use crate::linux;
use guestline_protocol::hello::MAX_LACKS;
use guestline_protocol::{
    End, FrameHead, Framing, LinkTroubleEvent, Reply, Session, TtyFraming, encode,
};
use std::fs::File;
use std::io::Write;

/// Says on the reserve link, and on the console, what is missing.
pub(crate) fn tell(tty: &mut File, mut lacks: Vec<String>) {
    let kernel = linux::release();
    eprintln!("guestline-agent: no port on kernel {kernel}; lacks {}", lacks.join(", "));
    lacks.truncate(MAX_LACKS);
    let trouble = Reply::LinkTrouble(LinkTroubleEvent { kernel, lacks });
    let head = FrameHead::message(Session::NONE, 0);
    if let Ok(bytes) = TtyFraming::new(End::Guest).seal(head, encode(&trouble), 1)
        && let Err(error) = tty.write_all(&bytes)
    {
        eprintln!("guestline-agent: {}: {error}", linux::RESERVE_TTY);
    }
}
