//! Suites: tests found in folders, what they need and what there is.

pub mod capability;
pub mod declared;
pub mod device;
pub mod environment;
pub mod header;
pub mod known;
pub mod name;
pub mod requirement;
pub mod value;
pub mod version;

pub use capability::{Capability, Provided};
pub use declared::{Declared, DeclaredError, Tags};
pub use device::{Bus, Device};
pub use environment::{Answer, DeviceNeed, Environment, Shortfall, Undocumented, Unmet};
pub use name::{CapabilityName, Side};
pub use requirement::{Condition, Operator, Requirement, RequirementError};
pub use value::Value;
pub use version::Version;
