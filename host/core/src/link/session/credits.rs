//! Credit for the guest that is not sent yet: one account for each channel, so that a guest that reads nothing makes no
//! queue of it.

use super::task::Task;
use guestline_protocol::{CreditEvent, Request, encode};
use std::collections::HashMap;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Credits(HashMap<u32, u32>);

impl Credits {
    pub(super) fn add(&mut self, channel: u32, credit: &CreditEvent) {
        let bytes = self.0.entry(channel).or_default();
        *bytes = bytes.saturating_add(credit.bytes);
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Task {
    /// Sends what was granted, when the port has time for it.
    pub(super) fn send_credits(&mut self) {
        if self.credits.0.is_empty() || self.control.is_busy() {
            return;
        }
        for (channel, bytes) in std::mem::take(&mut self.credits.0) {
            if self.state.is_open(channel) {
                self.send(channel, encode(&Request::Credit(CreditEvent { bytes })));
            }
        }
    }
}
