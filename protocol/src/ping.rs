//! A sign of life.

use serde::{Deserialize, Serialize};

/// Asks for a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRequest {
    /// Comes back in the answer.
    pub token: u64,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingResponse {
    /// The token of the request.
    pub token: u64,
    /// The guest's wall clock (`CLOCK_REALTIME`), microseconds since 1970.
    pub clock_us: u64,
}
