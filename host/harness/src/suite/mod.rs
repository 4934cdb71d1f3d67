//! Suites: tests found in folders, and what they need.

pub mod header;
pub mod known;
pub mod name;
pub mod requirement;
pub mod value;
pub mod version;

pub use name::{CapabilityName, Side};
pub use requirement::{Condition, Operator, Requirement, RequirementError};
pub use value::Value;
pub use version::Version;
