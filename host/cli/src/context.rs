//! What every command needs: folders, configuration, agent, accelerator.

use crate::args::{AccelArg, GlobalArgs, parse_size};
use crate::error::CommandError;
use crate::limits::boot_limit;
use guestline::dirs::Dirs;
use guestline::image::{Agent, Catalogue, Mirror, PackageSource, Recipe, Store};
use guestline::machine::accel::{self, ProbeProgram};
use guestline::machine::{Accel, AccelChoice, Acceleration, Qemu, QemuError, on_path};
use guestline::provision::{Cache, Images, Provisioner, WorkRoot};
use serde::{Deserialize, Deserializer, de};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The agent that this program carries; empty when it was built without one.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// The command `guest` for scripts inside machines; empty when this was built without it.
pub(crate) const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// `guestline.toml` in the configuration folder.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    packages: Option<Mirror>,
    #[serde(default)]
    cache: CacheConfig,
    #[serde(default)]
    images: ImagesConfig,
}

/// `[images]`: where published images come from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImagesConfig {
    /// An address, or a folder.
    pub(crate) from: Option<String>,
    /// The public keys that are trusted, or files that have them.
    pub(crate) keys: Vec<String>,
}

/// `[cache]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CacheConfig {
    /// In bytes; written as `"10G"`.
    #[serde(deserialize_with = "read_limit")]
    limit: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { limit: 10 << 30 }
    }
}

pub(crate) struct Context {
    pub(crate) dirs: Dirs,
    pub(crate) source: PackageSource,
    /// How many bytes the cache may take.
    pub(crate) limit: u64,
    /// Where published images come from.
    pub(crate) published: ImagesConfig,
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
        Ok(Self { dirs, source, limit: config.cache.limit, published: config.images })
    }

    pub(crate) fn cache(&self) -> Cache {
        Cache::new(&self.dirs)
    }

    /// Leases machines, and keeps the cache within its limit.
    pub(crate) fn provisioner(&self, qemu: Qemu, accel: Accel, root: WorkRoot) -> Provisioner {
        let provisioner = Provisioner::new(qemu, accel, root, &self.dirs);
        provisioner.with_limit(self.cache(), self.limit)
    }

    /// The images.
    pub(crate) fn store(&self) -> Store {
        Store::new(&self.dirs, self.source.clone())
    }

    /// The images, and what makes them and boots a new one.
    pub(crate) fn images(&self, global: &GlobalArgs) -> Result<Images, CommandError> {
        let accel = self.acceleration(global.accel, false).accel;
        self.images_by(global, Qemu::find(&self.dirs).map_err(Arc::new), accel)
    }

    /// As [`Self::images`], where a new one may take so long to boot.
    pub(crate) fn images_within(
        &self,
        global: &GlobalArgs,
        boot: Option<Duration>,
    ) -> Result<Images, CommandError> {
        let images = self.images(global)?;
        Ok(match boot {
            Some(boot) => images.with_boot(boot),
            None => images,
        })
    }

    /// As [`Self::images`], where QEMU is known.
    pub(crate) fn images_by(
        &self,
        global: &GlobalArgs,
        qemu: Result<Qemu, Arc<QemuError>>,
        accel: Accel,
    ) -> Result<Images, CommandError> {
        let agent = agent(global)?;
        Ok(Images::new(self.store(), agent, &self.dirs, qemu, accel, boot_limit(accel)))
    }

    /// What an image is made of.
    pub(crate) fn recipe(&self, name: &str) -> Result<Recipe, CommandError> {
        Ok(Catalogue::new(&self.dirs).get(name)?)
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

fn read_limit<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    parse_size(&text).map_err(|why| de::Error::custom(format!("cache.limit: {why}, as \"10G\"")))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Result<u64, String> {
        let config = toml::from_str::<Config>(text);
        config.map(|config| config.cache.limit).map_err(|error| error.to_string())
    }

    #[test]
    fn the_limit_of_the_cache() {
        assert_eq!(limit(""), Ok(10 << 30));
        assert_eq!(limit("[cache]"), Ok(10 << 30));
        assert_eq!(limit("[cache]\nlimit = \"500M\""), Ok(500 << 20));
        assert_eq!(limit("[cache]\nlimit = \"0\""), Ok(0));
        insta::assert_snapshot!(limit("[cache]\nlimit = \"ten\"").unwrap_err());
        assert!(limit("[cache]\nlimit = 10").unwrap_err().contains("limit = 10"));
        assert!(limit("[cache]\nlimits = \"1G\"").unwrap_err().contains("unknown field `limits`"));
    }
}
