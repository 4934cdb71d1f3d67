//! Credit: how many bytes of data a sender may still send on a channel.
//!
//! The receiver grants credit, at first in the message that opens the direction and then by
//! [`CreditEvent`] as it gets rid of what came; the sender spends it. Both streams of a direction share one
//! account. Messages cost nothing: there are only so many of them for each request.

use serde::{Deserialize, Serialize};

/// More credit for the other side, on the channel of the frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditEvent {
    /// So many bytes more may be sent.
    pub bytes: u32,
}

/// Nothing more comes on this channel in this direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndEvent {
    /// So many bytes of data were sent in this direction. Where data takes another way than messages do, the receiver
    /// waits for that many before it believes the end.
    pub total: u64,
}

/// What must be used up of a window of so many bytes before the credit for it is worth a message: a quarter. Whoever grants
/// does so by then, and whoever sends may wait for that much.
pub const fn worth_granting(window: u64) -> u64 {
    window / 4
}

/// A sender's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendCredit {
    left: u64,
    sent: u64,
}

impl SendCredit {
    /// With this much to begin with.
    pub fn new(bytes: u32) -> Self {
        Self { left: bytes.into(), sent: 0 }
    }

    /// What may be sent now.
    pub fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// All that was sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The receiver grants more.
    pub fn grant(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(bytes.into());
    }

    /// So many bytes are sent.
    pub fn spend(&mut self, len: usize) {
        let len = len as u64;
        self.left = self.left.saturating_sub(len);
        self.sent = self.sent.saturating_add(len);
    }
}

/// The sender sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdrawn {
    /// By so many bytes.
    pub by: u64,
}

impl core::fmt::Display for Overdrawn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes of data beyond what was granted", self.by)
    }
}

impl core::error::Error for Overdrawn {}

/// A receiver's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReceiveCredit {
    window: u64,
    granted: u64,
    received: u64,
    used: u64,
}

impl ReceiveCredit {
    /// The sender was granted this much to begin with, and is to have so much under way.
    pub fn new(window: u32) -> Self {
        Self { window: window.into(), granted: window.into(), received: 0, used: 0 }
    }

    /// All that came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// All that was granted.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// What came and was not used yet.
    pub fn held(&self) -> u64 {
        self.received.saturating_sub(self.used)
    }

    /// The sender was granted so much more, by whoever passes grants on.
    pub fn grant(&mut self, bytes: u32) {
        self.granted = self.granted.saturating_add(bytes.into());
    }

    /// So many bytes came.
    ///
    /// # Errors
    /// [`Overdrawn`] when they were not granted; they are not counted then.
    pub fn receive(&mut self, len: usize) -> Result<(), Overdrawn> {
        let received = self.received.saturating_add(len as u64);
        match received.checked_sub(self.granted) {
            None | Some(0) => {
                self.received = received;
                Ok(())
            }
            Some(by) => Err(Overdrawn { by }),
        }
    }

    /// So many bytes were got rid of. Gives the credit to send now, if it is worth a message: a quarter of the window.
    pub fn use_up(&mut self, len: usize) -> Option<CreditEvent> {
        self.used = self.used.saturating_add(len as u64).min(self.received);
        let wanted = self.used.saturating_add(self.window);
        let more = wanted.saturating_sub(self.granted);
        if more == 0 || more < worth_granting(self.window) {
            return None;
        }
        let bytes = u32::try_from(more).unwrap_or(u32::MAX);
        self.granted = self.granted.saturating_add(bytes.into());
        Some(CreditEvent { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn more_than_granted_is_refused_and_not_counted() {
        let mut receive = ReceiveCredit::new(10);
        assert_eq!(receive.receive(10), Ok(()));
        assert_eq!(receive.receive(1), Err(Overdrawn { by: 1 }));
        assert_eq!(receive.use_up(10), Some(CreditEvent { bytes: 10 }));
        assert_eq!(receive.receive(10), Ok(()));
        assert_eq!(receive.received(), 20);
    }

    proptest! {
        /// A sender that keeps to its credit is never refused, never has more than the window under way, and
        /// never gets stuck for good when the receiver uses all up.
        #[test]
        fn sender_and_receiver_agree(window in 1..100_000u32, steps in prop::collection::vec((any::<bool>(), 0..70_000usize), 0..200)) {
            let mut send = SendCredit::new(window);
            let mut receive = ReceiveCredit::new(window);
            for (is_send, len) in steps {
                if is_send {
                    let len = len.min(send.left());
                    send.spend(len);
                    prop_assert_eq!(receive.receive(len), Ok(()));
                } else if let Some(credit) = receive.use_up(len.min(usize::try_from(receive.held()).unwrap())) {
                    send.grant(credit.bytes);
                }
                prop_assert!(receive.held() <= window.into());
                prop_assert_eq!(send.sent(), receive.received());
            }
            if let Some(credit) = receive.use_up(usize::try_from(receive.held()).unwrap()) {
                send.grant(credit.bytes);
            }
            prop_assert!(send.left() > 0);
        }
    }
}
