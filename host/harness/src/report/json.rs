//! The event stream as JSON lines.

use super::Report;
use crate::event::{Record, RunEvent};
use std::io::{self, Write};

/// Writes each event as one line.
pub struct Json<W> {
    out: W,
}

impl<W: Write + Send> Json<W> {
    /// Onto `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write + Send> Report for Json<W> {
    fn record(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        match record.event {
            RunEvent::Output { .. } => Ok(()),
            _ => self.out.flush(),
        }
    }
}
