//! Runs of tests: outcomes, events, dispatch, reports.
//!
//! ```text
//! suite (find) ──> plan (jobs) ──> run (dispatch ──> execute ──> judge) ──> events ──> report (human, json)
//! ```
//! [`lab`] is what scripts on the host and in guests reach while an attempt runs. A [`job::Job`] is one serialisable value; the executor takes it and gives events and a folder. Reports see
//! events only.

pub mod event;
pub mod job;
pub mod lab;
pub mod outcome;
pub mod plan;
pub mod report;
pub mod run;
pub mod suite;
pub mod tap;
pub mod units;
pub use guestline::text;
