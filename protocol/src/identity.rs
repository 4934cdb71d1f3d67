//! What a restored machine must be given: the time, randomness and an identity of its own.

use serde::{Deserialize, Serialize};

/// Sets the guest's wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClockRequest {
    /// To this time, microseconds since 1970.
    pub clock_us: u64,
}

/// The clock is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClockResponse {
    /// What it said just before, microseconds since 1970.
    pub before_us: u64,
}

/// Stirs the host's randomness into the guest's pool and reseeds its generator (random(4), `RNDADDENTROPY`,
/// `RNDRESEEDCRNG`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddEntropyRequest {
    /// 32 to 512 bytes, each credited with eight bits.
    pub seed: serde_bytes::ByteBuf,
}

/// Gives the guest an identity; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRequest {
    /// Host name: for the kernel, and for `/etc/hostname`.
    pub hostname: Option<String>,
    /// Machine id (machine-id(5)): 32 lower-case hexadecimal digits.
    pub machine_id: Option<String>,
    /// Network interfaces.
    pub nics: Vec<NicIdentity>,
    /// The whole of `/etc/hosts`.
    pub hosts: Option<String>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicIdentity {
    /// Its name in the guest, such as `eth0`.
    pub name: String,
    /// Its MAC address; the interface goes down for a moment.
    pub mac: Option<[u8; 6]>,
    /// IPv4 address and length of the prefix.
    pub ipv4: Option<([u8; 4], u8)>,
    /// IPv6 address and length of the prefix.
    pub ipv6: Option<([u8; 16], u8)>,
    /// IPv4 address of the router, for everything else.
    pub router: Option<[u8; 4]>,
    /// Bring it up.
    pub up: bool,
}
