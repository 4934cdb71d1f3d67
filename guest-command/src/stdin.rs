//! Standard input on its way to a command: one piece at a time, as the command takes them.

use crate::Data;
use crate::connection::send;
use crate::protocol::{MAX_PIECE, Request};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

/// Starts the thread that reads. What it is told of each `taken` lets it send the next piece; it ends with the program.
pub(crate) fn pump(to: UnixStream) -> mpsc::Sender<()> {
    let (taken, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_PIECE];
        loop {
            let request = match io::stdin().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => Request::End {},
                Ok(len) => Request::Input { data: Data(buffer[..len].to_vec()) },
            };
            // That the connection is gone is told by the one who reads it.
            if send(&to, &request).is_err() || request == (Request::End {}) || wait.recv().is_err()
            {
                return;
            }
        }
    });
    taken
}
