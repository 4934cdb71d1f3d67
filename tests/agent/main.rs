//! The real agent over a socket pair, without a machine: what a session is and is not, frame by frame (`session`),
//! and what the host's API makes of it (`guest`).
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guest;
mod raw;
mod recorded;
mod session;
