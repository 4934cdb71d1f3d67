//! Whether a guest that does not answer is busy or dead, as whoever watches its machine can tell.

/// What a guest does that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// Its CPUs are busy.
    Busy,
    /// Its CPUs do nothing.
    Idle,
    /// The host gives it no time.
    Starved,
    /// Nobody can tell.
    Unknown,
}

impl std::fmt::Display for Pulse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Busy => "the guest's CPUs are busy",
            Self::Idle => "the guest's CPUs do nothing",
            Self::Starved => "the host gives the guest no CPU time",
            Self::Unknown => "whether the guest lives is unknown",
        })
    }
}

/// Asked, and answers what the guest did since it was asked before.
pub type PulseWatch = Box<dyn FnMut() -> Pulse + Send>;
