//! One file a command.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod embed;
pub(crate) mod env;
pub(crate) mod exec;
pub(crate) mod facts;
pub(crate) mod files;
pub(crate) mod forward;
pub(crate) mod image;
pub(crate) mod job;
pub(crate) mod lint;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod output;
pub(crate) mod ping;
pub(crate) mod pool;
pub(crate) mod power;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod sdk;
pub(crate) mod template;
pub(crate) mod up;
