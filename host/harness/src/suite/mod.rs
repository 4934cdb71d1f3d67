//! Suites: tests found in folders, what they need, what there is, and what each of them is run with.

pub mod axis;
pub mod capability;
pub mod declared;
pub mod device;
pub mod environment;
pub mod header;
pub mod known;
pub mod matrix;
pub mod name;
pub mod pairwise;
pub mod requirement;
pub mod selector;
mod space;
pub mod value;
pub mod variant;
pub mod version;

pub use axis::{Axis, AxisError};
pub use capability::{Capability, Provided};
pub use declared::{Declared, DeclaredError, Tags};
pub use device::{Bus, Device};
pub use environment::{Answer, DeviceNeed, Environment, Shortfall, Undocumented, Unmet};
pub use matrix::{Matrix, MatrixError, Strategy, Variants};
pub use name::{CapabilityName, Side};
pub use pairwise::Chosen;
pub use requirement::{Condition, Operator, Requirement, RequirementError};
pub use selector::{Selector, SelectorError};
pub use value::Value;
pub use variant::Variant;
pub use version::Version;
