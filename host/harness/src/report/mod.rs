//! Reports: each sees the events and nothing else.

mod human;
mod json;

pub use human::{Human, HumanConfig};
pub use json::Json;

use crate::event::Record;
use std::io;
use tokio::sync::mpsc;

/// A report.
pub trait Report: Send {
    /// Takes an event.
    ///
    /// # Errors
    /// When it could not be written: the report is lost from here on.
    fn record(&mut self, record: &Record) -> io::Result<()>;
}

/// Feeds a report until the events end; returns the error that cut it short. Events are taken on, so that a
/// run never waits for a report that is lost.
pub fn feed(mut report: Box<dyn Report>, mut events: mpsc::Receiver<Record>) -> Option<io::Error> {
    let mut lost = None;
    while let Some(record) = events.blocking_recv() {
        if lost.is_none() {
            lost = report.record(&record).err();
        }
    }
    lost
}
