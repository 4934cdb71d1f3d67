//! Requirements: what a test needs of where it runs.
//!
//! ```text
//! requirement = NAME                     it is there
//!             | "!" NAME                 it is not there
//!             | NAME OPERATOR VALUE      it is there and compares so
//!             | NAME "-" VERSION "+"     the older spelling of NAME >= VERSION
//! OPERATOR    = "=" | "==" | "!=" | "<" | "<=" | ">" | ">="
//! ```
//! The NAME of the older spelling is what stands before the first `-` with a digit behind it. Spaces around an operator are
//! optional. Names are in [`super::name`], values in [`super::value`]; of a name that Guestline knows ([`super::known`]) the
//! value is checked.

use super::known::{Kind, known_of};
use super::name::{CapabilityName, CapabilityNameError};
use super::value::{Value, ValueError};
use super::version::Version;
use crate::text::one_line;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A requirement is not longer, bytes: longer than a name with a value.
pub const MAX_LEN: usize = 512;

/// What operators are made of.
const OPERATOR: &[char] = &['=', '!', '<', '>', '~'];

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table below")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// All of them, as they are written.
const OPERATORS: [(Operator, &str); 6] = [
    (Operator::Equal, "="),
    (Operator::NotEqual, "!="),
    (Operator::Less, "<"),
    (Operator::AtMost, "<="),
    (Operator::Greater, ">"),
    (Operator::AtLeast, ">="),
];

/// What is asked of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It is there, with whatever value.
    Present,
    /// It is not there.
    Absent,
    /// It is there and has such a value.
    Compare {
        /// How its value is compared.
        operator: Operator,
        /// What with.
        value: Value,
    },
}

/// One thing that a test needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Requirement {
    name: CapabilityName,
    condition: Condition,
}

/// A text that is no requirement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is no requirement: {why}")]
pub struct RequirementError {
    /// It, or its beginning.
    pub text: String,
    /// What is wrong.
    pub why: RequirementFault,
}

/// What is wrong with a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequirementFault {
    /// There is nothing.
    #[error("it is empty: write a name, as `root` or `kernel >= 6.1`, or leave it out")]
    Empty,
    /// There is too much.
    #[error("it is longer than {MAX_LEN} bytes")]
    TooLong,
    /// The name.
    #[error(transparent)]
    Name(#[from] CapabilityNameError),
    /// Words without an operator.
    #[error("there is no operator between its words: write `{meant}`")]
    NoOperator {
        /// What may be meant.
        meant: String,
    },
    /// No such operator.
    #[error("there is no operator `{operator}`: write =, !=, <, <=, > or >=")]
    Operator {
        /// What stands there.
        operator: String,
    },
    /// Both an absence and a value.
    #[error("`!` stands before a name alone: turn the operator round instead, or leave `!` out")]
    Negated,
    /// More than one condition.
    #[error(
        "it has more than one condition: write each of them as a requirement of its own, or the value between \
         double quotes if `{sign}` is part of it"
    )]
    Several {
        /// What tells.
        sign: char,
    },
    /// A plus, and no version.
    #[error(
        "before a plus at its end stands a version, as in `kernel-3.3.10+`: write `NAME >= VERSION`"
    )]
    Plus,
    /// A value that cannot be larger or smaller.
    #[error("a text is neither larger nor smaller than others: compare it with = or !=")]
    NoOrder,
    /// The value.
    #[error("{name}: {why}")]
    Value {
        /// Whose.
        name: CapabilityName,
        /// What is wrong with it.
        why: ValueError,
    },
}

impl Operator {
    /// Whether values that stand so to each other are what is asked.
    pub fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = if text == "==" { "=" } else { text };
        OPERATORS.into_iter().find(|(_, written)| *written == text).map(|(operator, _)| operator)
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = OPERATORS.into_iter().find(|(operator, _)| operator == self);
        f.write_str(written.map_or("", |(_, written)| written))
    }
}

impl Condition {
    /// Whether a value is what is asked; none where the two cannot be compared so.
    pub fn holds(&self, have: &Value) -> Option<bool> {
        match self {
            Self::Present => Some(true),
            Self::Absent => Some(false),
            Self::Compare { operator: Operator::Equal, value } => Some(have.is_same(value)),
            Self::Compare { operator: Operator::NotEqual, value } => Some(!have.is_same(value)),
            Self::Compare { operator, value } => {
                have.compare(value).map(|order| operator.holds(order))
            }
        }
    }
}

impl Requirement {
    /// Whom it speaks of.
    pub fn name(&self) -> &CapabilityName {
        &self.name
    }

    /// What it asks.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }
}

impl FromStr for Requirement {
    type Err = RequirementError;

    fn from_str(text: &str) -> Result<Self, RequirementError> {
        parse(text).map_err(|why| RequirementError { text: one_line(text, 80), why })
    }
}

fn parse(text: &str) -> Result<Requirement, RequirementFault> {
    if text.len() > MAX_LEN {
        return Err(RequirementFault::TooLong);
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(RequirementFault::Empty);
    }
    if let Some(name) = text.strip_prefix('!') {
        let is_more = name.contains(OPERATOR);
        let name = if is_more { Err(RequirementFault::Negated) } else { read_name(name.trim()) };
        return Ok(Requirement { name: name?, condition: Condition::Absent });
    }
    if let Some(at) = text.find(OPERATOR) {
        let (name, rest) = text.split_at(at);
        let value = rest.trim_start_matches(OPERATOR);
        let operator = &rest[..rest.len() - value.len()];
        let name = read_name(name.trim_end())?;
        let Some(operator) = Operator::parse(operator) else {
            return Err(RequirementFault::Operator { operator: operator.to_owned() });
        };
        return compared(name, operator, value.trim_start());
    }
    match text.strip_suffix('+') {
        Some(older) => {
            let begins_version =
                |at: &usize| older[at + 1..].starts_with(|c: char| c.is_ascii_digit());
            let at = older.match_indices('-').map(|(at, _)| at).find(begins_version);
            let at = at.ok_or(RequirementFault::Plus)?;
            compared(older[..at].parse()?, Operator::AtLeast, &older[at + 1..])
        }
        None => Ok(Requirement { name: read_name(text)?, condition: Condition::Present }),
    }
}

fn read_name(text: &str) -> Result<CapabilityName, RequirementFault> {
    // What is most likely meant by two words.
    if let Some((name, value)) = text.split_once(char::is_whitespace) {
        let value = value.trim();
        let operator = if value.parse::<Version>().is_ok() { ">=" } else { "=" };
        if name.parse::<CapabilityName>().is_ok() && value.parse::<Value>().is_ok() {
            return Err(RequirementFault::NoOperator {
                meant: format!("{name} {operator} {value}"),
            });
        }
    }
    Ok(text.parse()?)
}

fn compared(
    name: CapabilityName,
    operator: Operator,
    text: &str,
) -> Result<Requirement, RequirementFault> {
    if let Some(sign) =
        text.chars().find(|c| "<>=,&|".contains(*c)).filter(|_| !text.starts_with('"'))
    {
        return Err(RequirementFault::Several { sign });
    }
    let kind = known_of(&name).map_or(Kind::Any, |known| known.kind);
    let has_order = !matches!(operator, Operator::Equal | Operator::NotEqual);
    let value = match kind.value(text) {
        Ok(_) if has_order && kind == Kind::Text => return Err(RequirementFault::NoOrder),
        // Where an order is asked, a version was meant.
        Ok(Value::Text(text)) if has_order => match text.parse::<Version>() {
            Ok(_) => return Err(RequirementFault::NoOrder),
            Err(why) => Err(why.into()),
        },
        value => value,
    };
    match value {
        Ok(value) => Ok(Requirement { name, condition: Condition::Compare { operator, value } }),
        Err(why) => Err(RequirementFault::Value { name, why }),
    }
}

impl TryFrom<String> for Requirement {
    type Error = RequirementError;

    fn try_from(text: String) -> Result<Self, RequirementError> {
        text.parse()
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.to_string()
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.condition {
            Condition::Present => write!(f, "{name}"),
            Condition::Absent => write!(f, "!{name}"),
            Condition::Compare { operator, value } => {
                write!(f, "{name} {operator} {}", value.quoted())
            }
        }
    }
}

#[cfg(test)]
mod tests;
