//! Filters: which tests of those that were found are meant.
//!
//! | written | means tests |
//! |---|---|
//! | `WORD` | whose name has it in it, or is it, where it has `*` or `?` |
//! | `WORD[nic=e1000]` | the same of these variants |
//! | `name(WORD)`, `name(=NAME)` | the same; that are called just so |
//! | `tag(WORD)`, `kind(WORD)`, `owner(WORD)` | that have such a tag, are of such a kind, have such an owner |
//! | `variant([nic=e1000])` | of these variants ([`Selector`]) |
//! | `all()`, `none()` | all; none |
//! | `not A`, `!A` | that A does not mean |
//! | `A and B`, `A & B`, `A - B` | that both mean; that A means and B does not |
//! | `A or B`, `A \| B`, `A + B` | that one of them means |
//!
//! `not` goes before `and` and `-`, and these before `or`; parentheses before all. `*` stands for any text, also with `/` in it, `?`
//! for one character; a backslash takes from what is behind it its meaning. Case counts.

mod parse;

pub use parse::FilterError;

use super::selector::Selector;
use super::variant::Variant;
use std::fmt;
use std::str::FromStr;

/// A filter is not longer, bytes.
pub const MAX_LEN: usize = 4096;

/// Parentheses and `not` are not nested deeper.
const MAX_DEPTH: usize = 64;

/// Which tests are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    text: String,
    expression: Expression,
}

/// A test, or one of its variants, that may be meant.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The name of the test, without its variant.
    pub name: &'a str,
    /// Its tags.
    pub tags: &'a [String],
    /// What kind of test it is.
    pub kind: &'a str,
    /// Who answers for it.
    pub owner: Option<&'a str>,
    /// Which variant of it.
    pub variant: Option<&'a Variant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    All,
    Name(Pattern),
    Tag(Pattern),
    Kind(Pattern),
    Owner(Pattern),
    Variant(Selector),
    Not(Box<Self>),
    /// With none in it, it means all.
    And(Vec<Self>),
    /// With none in it, it means none.
    Or(Vec<Self>),
}

/// A name with `*` and `?` in it; `\` before them takes their meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    Exactly(String),
    Contains(String),
    Glob(Vec<Piece>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// `*`.
    Any,
    /// `?`.
    One,
    Char(char),
}

impl Filter {
    /// Whether this one is meant.
    pub fn matches(&self, candidate: &Candidate<'_>) -> bool {
        self.expression.matches(candidate)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Ok(Self { text: text.to_owned(), expression: parse::parse(text)? })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Expression {
    fn matches(&self, it: &Candidate<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Name(pattern) => pattern.matches(it.name),
            Self::Tag(pattern) => it.tags.iter().any(|tag| pattern.matches(tag)),
            Self::Kind(pattern) => pattern.matches(it.kind),
            Self::Owner(pattern) => it.owner.is_some_and(|owner| pattern.matches(owner)),
            Self::Variant(selector) => it.variant.is_some_and(|variant| selector.matches(variant)),
            Self::Not(inner) => !inner.matches(it),
            Self::And(inner) => inner.iter().all(|inner| inner.matches(it)),
            Self::Or(inner) => inner.iter().any(|inner| inner.matches(it)),
        }
    }
}

impl Pattern {
    /// Of a word; one without `*` and `?` may be a part where `in_part` says so.
    pub(super) fn of(word: &str, in_part: bool) -> Self {
        if let Some(exact) = word.strip_prefix('=') {
            return Self::Exactly(exact.to_owned());
        }
        let mut pieces = Vec::new();
        let mut chars = word.chars();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Char(chars.next().unwrap_or(c)),
                c => Piece::Char(c),
            });
        }
        let plain = |piece: &Piece| match piece {
            Piece::Char(c) => Some(*c),
            Piece::Any | Piece::One => None,
        };
        match pieces.iter().map(plain).collect::<Option<String>>() {
            Some(part) if in_part => Self::Contains(part),
            Some(whole) => Self::Exactly(whole),
            None => Self::Glob(pieces),
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exactly(whole) => text == whole,
            Self::Contains(part) => text.contains(part.as_str()),
            Self::Glob(pieces) => glob(pieces, text),
        }
    }
}

/// Goes back to the last `*` alone: what an earlier one could take, the last can as well.
fn glob(pieces: &[Piece], text: &str) -> bool {
    let (mut at, mut rest) = (0, text.chars());
    let mut back = None;
    loop {
        let mut next = rest.clone();
        match (pieces.get(at), next.next()) {
            (Some(Piece::Any), _) => {
                at += 1;
                back = Some((at, rest.clone()));
            }
            (Some(Piece::One), Some(_)) => (at, rest) = (at + 1, next),
            (Some(Piece::Char(want)), Some(c)) if *want == c => (at, rest) = (at + 1, next),
            (None, None) => return true,
            _ => {
                let Some((behind, from)) = &mut back else { return false };
                if from.next().is_none() {
                    return false;
                }
                (at, rest) = (*behind, from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
