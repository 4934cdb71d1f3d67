//! What is to be done to a root: the agent put in, or taken out.

use super::plan::{Change, Plan};
use super::root::Root;
use super::survey::{Boots, System};
use super::tree::EmbedError;
use super::undo::unembed;
use crate::image::{Agent, Kind};

/// See the module.
#[derive(Debug, Clone)]
pub enum Work {
    /// The agent is put in.
    Embed {
        /// The agent.
        agent: Agent,
        /// What a kernel starts there.
        boots: Boots,
    },
    /// What was put in is taken out.
    Unembed,
}

/// What was done to a root, or is to be.
#[derive(Debug, Clone)]
pub struct Worked {
    /// What it holds, where that was looked at.
    pub system: Option<System>,
    /// What becomes of what.
    pub changes: Vec<Change>,
    /// What to know of it.
    pub notes: Vec<String>,
    /// It is as it is to be.
    pub is_done: bool,
}

impl Work {
    /// The same on what is of this kind.
    pub fn of(self, kind: Kind) -> Self {
        match self {
            Self::Embed { agent, .. } => Self::Embed { agent, boots: Boots::of(kind) },
            Self::Unembed => Self::Unembed,
        }
    }

    /// Finds out what is to be done, and does it if that is wanted.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn run(&self, root: &mut dyn Root, really: bool) -> Result<Worked, EmbedError> {
        match self {
            Self::Embed { agent, boots } => {
                let plan = Plan::make(root, agent, *boots)?;
                if really {
                    plan.apply(root)?;
                }
                let is_done = plan.is_done();
                let Plan { system, changes, notes, .. } = plan;
                Ok(Worked { system: Some(system), changes, notes, is_done })
            }
            Self::Unembed => {
                let (changes, is_done) = unembed(root, really)?;
                Ok(Worked { system: None, changes, notes: Vec::new(), is_done })
            }
        }
    }
}
