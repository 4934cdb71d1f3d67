//! What the command `guest` reaches, over its own protocol: the real server, the real agent over a socket pair, clients
//! good and bad, the static program and the Python module. No machine is needed.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod hostile;
mod power;
mod program;
mod protocol;
mod rig;
mod sides;
