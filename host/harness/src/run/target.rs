//! Where tests run that have no machine of ours: this host, or one that ssh or a serial line leads to.
//!
//! | target | reached | has not |
//! |---|---|---|
//! | `machine` | a machine is leased | |
//! | `host` | the agent as a process here | a pristine system, a screen, another machine |
//! | `ssh:[USER@]HOST[:PORT][,AGENT]` | an agent that ssh starts there | the same |
//! | `serial:DEVICE[,BAUD]` | an agent that listens there | the same, and one test at a time |

use super::execute::{Broken, Executor};
use super::host_side::open_here;
use super::judge::Finding;
use super::place::Place;
use crate::job::Job;
use crate::outcome::Stage;
use crate::text;
use guestline::guest::Guest;
use guestline::link::Endpoint;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// An agent elsewhere answers sooner.
const ANSWER: Duration = Duration::from_secs(60);

/// Where tests run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// In machines.
    #[default]
    Machine,
    /// Here.
    Host,
    /// Where ssh leads.
    Ssh(Endpoint),
    /// Where a serial line leads.
    Serial(Endpoint),
}

/// Words that name no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no target: {why}")]
pub struct NoTarget {
    /// They.
    pub text: String,
    /// In words.
    pub why: String,
}

impl Target {
    /// Its word, for requirements.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Host => "host",
            Self::Ssh(_) => "ssh",
            Self::Serial(_) => "serial",
        }
    }

    /// More than one test can run there at once.
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::Serial(_))
    }

    /// Opens it, where it is no machine of ours.
    pub(super) async fn open(&self, executor: &Executor, job: &Job) -> Result<Place, Finding> {
        let broken =
            |stage, reason| Finding::Broken(Broken { stage, reason, hints: vec![], log: vec![] });
        if !job.machines.is_empty() {
            let names: Vec<_> = job.machines.keys().map(|name| name.as_str()).collect();
            let reason = format!(
                "needs machines of its own ({}), and target {self} has none",
                names.join(", ")
            );
            return Err(Finding::Unmet(reason));
        }
        let endpoint = match self {
            Self::Machine => {
                return Err(broken(Stage::Host, "a machine is leased, not opened".to_owned()));
            }
            Self::Host => return open_here(executor).await.map(Place::Agent),
            Self::Ssh(endpoint) | Self::Serial(endpoint) => endpoint,
        };
        match tokio::time::timeout(ANSWER, Guest::open(endpoint)).await {
            Ok(Ok(guest)) => Ok(Place::Agent(guest)),
            Ok(Err(error)) => Err(broken(Stage::Link, text::chain(&error))),
            Err(_) => {
                let waited = text::limit(ANSWER);
                Err(broken(
                    Stage::Agent,
                    format!("no agent answered over {endpoint} within {waited}"),
                ))
            }
        }
    }
}

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let wrong = |why: String| NoTarget { text: text::one_line(text, 80), why };
        let endpoint =
            |words: String| words.parse::<Endpoint>().map_err(|error| wrong(error.to_string()));
        match text.split_once(':') {
            None if text == "machine" => Ok(Self::Machine),
            None if text == "host" => Ok(Self::Host),
            Some(("ssh", _)) => endpoint(text.to_owned()).map(Self::Ssh),
            Some(("serial", device)) => endpoint(format!("tty:{device}")).map(Self::Serial),
            _ => Err(wrong("write machine, host, ssh:[USER@]HOST or serial:DEVICE".to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh(endpoint) => endpoint.fmt(f),
            Self::Serial(endpoint) => {
                let text = endpoint.to_string();
                write!(f, "serial:{}", text.strip_prefix("tty:").unwrap_or(&text))
            }
            plain => f.write_str(plain.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_they_are_read() {
        for text in
            ["machine", "host", "ssh:root@board", "serial:/dev/ttyUSB0,115200", "serial:/dev/ttyS1"]
        {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for wrong in ["", "guest", "ssh:", "serial:ttyUSB0,fast", "host:x", "tty:/dev/ttyS0"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
        let told = "nowhere".parse::<Target>().unwrap_err().to_string();
        assert_eq!(
            told,
            "`nowhere` is no target: write machine, host, ssh:[USER@]HOST or serial:DEVICE"
        );
    }
}
