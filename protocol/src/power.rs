//! Ending the guest.

use serde::{Deserialize, Serialize};

/// Powers the guest off: file systems are synced, then the kernel is told (`reboot(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOffRequest {}

/// The guest powers off as soon as this has left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOffResponse {}
