//! What a guest is, and what it is busy with.

use crate::limits::at_most;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The longest fact, in bytes; what is longer is cut.
pub const MAX_FACT_LEN: usize = 64 * 1024;

/// At most so many facts are told.
pub const MAX_FACTS: usize = 64;

/// Asks what the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsRequest {}

/// What the guest is: texts as its kernel gives them, for the host to read. The boot id is not among them, since its
/// first reading draws it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsResponse {
    /// Name and text, such as `/proc/meminfo`; of `/proc/cpuinfo` the first processor. `disks` has a line for
    /// each block device: name, bytes, 1 if read-only; `nics` for each interface: name, MAC, state, driver.
    #[serde(deserialize_with = "at_most::<MAX_FACTS, _, _>")]
    pub facts: Vec<(String, ByteBuf)>,
}

/// Asks for samples of memory and CPU use until it is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRequest {
    /// Between two samples, at least 10 ms.
    pub interval_ms: u32,
}

/// A sample. Times are since the guest's boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleEvent {
    /// The guest's wall clock, microseconds since 1970.
    pub clock_us: u64,
    /// All CPUs were busy for so long, microseconds (proc_stat(5): all but idle and iowait).
    pub cpu_busy_us: u64,
    /// All CPUs were idle for so long, microseconds.
    pub cpu_idle_us: u64,
    /// Memory, KiB (proc_meminfo(5), `MemTotal`).
    pub memory_total_kib: u64,
    /// Of it available, KiB (`MemAvailable`).
    pub memory_available_kib: u64,
    /// Processes and threads that want a CPU now.
    pub runnable: u32,
}
