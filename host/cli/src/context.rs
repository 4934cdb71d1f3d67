//! What every command needs: folders, configuration, agent, accelerator.

use crate::args::{AccelArg, GlobalArgs};
use crate::error::CommandError;
use guestline::dirs::Dirs;
use guestline::image::{Agent, Mirror, PackageSource, Store};
use guestline::machine::accel::{self, ProbeProgram};
use guestline::machine::{Accel, AccelChoice, Acceleration, on_path};
use serde::Deserialize;
use std::ffi::OsStr;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// The agent that this program carries; empty when it was built without one.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// `guestline.toml` in the configuration folder.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    packages: Option<Mirror>,
}

pub(crate) struct Context {
    pub(crate) dirs: Dirs,
    pub(crate) source: PackageSource,
}

impl Context {
    pub(crate) fn new() -> Result<Self, CommandError> {
        let dirs = Dirs::from_env().map_err(|error| {
            CommandError::new(error).hint("set HOME, or GUESTLINE_HOME to a folder")
        })?;
        let config = read_config(&dirs)?;
        let source = match config.packages {
            Some(mirror) => PackageSource::Mirror(mirror),
            None if is_debian() => PackageSource::Apt,
            None => PackageSource::None { host: os_release("ID") },
        };
        Ok(Self { dirs, source })
    }

    /// The images; making one ends early when `cancel` is.
    pub(crate) fn store(&self, cancel: &CancellationToken) -> Store {
        Store::new(&self.dirs, self.source.clone(), cancel.clone())
    }

    /// What runs the guest's code. `again` asks the host again even when the answer is known.
    pub(crate) fn acceleration(&self, choice: AccelArg, again: bool) -> Acceleration {
        let choice = match choice {
            AccelArg::Auto => AccelChoice::Auto,
            AccelArg::Kvm => AccelChoice::Only(Accel::Kvm),
            AccelArg::Tcg => AccelChoice::Only(Accel::Tcg),
        };
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let probe = ProbeProgram { program, args: vec!["kvm-probe".into()] };
        accel::decide(&self.dirs, choice, &probe, again)
    }
}

/// The agent to put into images.
pub(crate) fn agent(global: &GlobalArgs) -> Result<Agent, CommandError> {
    match &global.agent {
        Some(path) => Ok(Agent::from_file(path)?),
        None if AGENT.is_empty() => Err(CommandError::new("this build carries no guest agent")
            .hint("`make build` in the source tree builds one and puts it in")
            .hint("or name one: --agent FILE (`guest-agent/build.sh` prints where it built it)")),
        None => Ok(Agent::from_bytes(AGENT)?),
    }
}

fn read_config(dirs: &Dirs) -> Result<Config, CommandError> {
    let path = dirs.config.join("guestline.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            CommandError::new(format!("configuration `{}` is wrong\n{error}", path.display()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(CommandError::new(format!("cannot read `{}`: {error}", path.display()))),
    }
}

fn is_debian() -> bool {
    os_release("ID") == "debian" && on_path(OsStr::new("apt-get")).is_some()
}

/// A value of os-release(5).
fn os_release(key: &str) -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or("unknown").trim_matches('"').to_owned()
}
