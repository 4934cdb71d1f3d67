//! Who opened the channels of a session, and takes what comes on them.

use super::OpenOrder;
use crate::link::LinkError;
use crate::link::ids::ChannelId;
use crate::link::inbox::{InboxSender, Item};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Callers(HashMap<u32, Caller>);

#[derive(Debug)]
struct Caller {
    /// Nobody else gets the number while the guest may still speak on it.
    _id: Arc<ChannelId>,
    /// None when the caller went away.
    taker: Option<Taker>,
}

/// Where things go.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) inbox: InboxSender,
    pub(super) granted: watch::Sender<u64>,
}

impl Callers {
    pub(super) fn add(&mut self, order: OpenOrder) {
        let OpenOrder { id, inbox, granted, .. } = order;
        let taker = Some(Taker { inbox, granted });
        self.0.insert(id.number(), Caller { _id: id, taker });
    }

    /// Who takes what comes on a channel, if somebody does.
    pub(super) fn taker(&self, channel: u32) -> Option<&Taker> {
        self.0.get(&channel)?.taker.as_ref()
    }

    /// The caller went away; the guest does not know yet.
    pub(super) fn leave(&mut self, channel: u32) {
        if let Some(caller) = self.0.get_mut(&channel) {
            caller.taker = None;
        }
    }

    /// Nothing comes on a channel any more.
    pub(super) fn close(&mut self, channel: u32) {
        self.0.remove(&channel);
    }

    /// Nothing comes on any channel, for this reason.
    pub(super) fn fail(&mut self, error: &LinkError) {
        for taker in self.0.drain().filter_map(|(_, caller)| caller.taker) {
            taker.inbox.send(Item::Lost(error.clone()));
        }
    }
}
