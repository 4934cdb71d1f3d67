//! From words to a filter, and what is wrong with them.

use super::{Expression, MAX_DEPTH, MAX_LEN, Pattern};
use strsim::osa_distance as distance;

/// What may stand before a parenthesis.
const PREDICATES: [&str; 7] = ["name", "tag", "kind", "owner", "variant", "all", "none"];

/// So much of a long filter is shown before and behind the place.
const AROUND: usize = 36;

/// Words that are no filter, with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.shown())]
pub struct FilterError {
    text: String,
    /// Bytes.
    at: usize,
    why: String,
}

/// What may stand between others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    And,
    Or,
    Minus,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

pub(super) fn parse(text: &str) -> Result<Expression, FilterError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    if text.len() > MAX_LEN {
        return Err(parser.error(MAX_LEN, format!("a filter is not longer than {MAX_LEN} bytes")));
    }
    let expression = parser.any_of()?;
    match parser.rest().chars().next() {
        None => Ok(expression),
        Some(')') => Err(parser.here("this parenthesis closes none")),
        Some(_) => Err(parser.here("want `and`, `or` or `-` between two of them")),
    }
}

impl<'a> Parser<'a> {
    /// What is left, without spaces before it.
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed
    }

    fn error(&self, at: usize, why: impl Into<String>) -> FilterError {
        FilterError { text: self.text.to_owned(), at, why: why.into() }
    }

    fn here(&self, why: impl Into<String>) -> FilterError {
        self.error(self.at, why)
    }

    fn any_of(&mut self) -> Result<Expression, FilterError> {
        let mut terms = vec![self.all_of()?];
        while let Some((Operator::Or, len)) = operator(self.rest()) {
            self.at += len;
            terms.push(self.all_of()?);
        }
        Ok(one_or(terms, Expression::Or))
    }

    fn all_of(&mut self) -> Result<Expression, FilterError> {
        let mut terms = vec![self.one()?];
        loop {
            match operator(self.rest()) {
                Some((Operator::And, len)) => {
                    self.at += len;
                    terms.push(self.one()?);
                }
                Some((Operator::Minus, len)) => {
                    self.at += len;
                    terms.push(Expression::Not(self.one()?.into()));
                }
                _ => return Ok(one_or(terms, Expression::And)),
            }
        }
    }

    fn one(&mut self) -> Result<Expression, FilterError> {
        let rest = self.rest();
        let begin = self.at;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.here(format!("it is nested deeper than {MAX_DEPTH}")));
        }
        let one = if let Some(len) = negation(rest) {
            self.at += len;
            Expression::Not(self.one()?.into())
        } else if rest.starts_with('(') {
            self.at += 1;
            let inner = self.any_of()?;
            if !self.rest().starts_with(')') {
                return Err(self.error(begin, "this parenthesis is not closed"));
            }
            self.at += 1;
            inner
        } else {
            self.predicate(rest)?
        };
        self.depth -= 1;
        Ok(one)
    }

    fn predicate(&mut self, rest: &'a str) -> Result<Expression, FilterError> {
        const WANT: &str = "want a word, or one of name(…), tag(…), kind(…), owner(…), variant([…]), \
            all() and none()";
        let word = word(rest);
        if word.is_empty() && rest.starts_with('[') {
            return Err(self.here("values of axes stand behind a name, or in variant([…])"));
        }
        if word.is_empty() || operator(rest).is_some() {
            return Err(self.here(WANT));
        }
        let begin = self.at;
        let behind = &rest[word.len()..];
        if let Some(inner) = behind.strip_prefix('(') {
            if !PREDICATES.contains(&word) {
                let near = PREDICATES.iter().min_by_key(|known| distance(known, word));
                let near = near.filter(|known| distance(known, word) <= 2);
                let way = near
                    .map_or("want name, tag, kind, owner, variant, all or none".into(), |it| {
                        format!("write `{it}`")
                    });
                return Err(self.here(format!("unknown `{word}(…)`: {way}")));
            }
            self.at += word.len() + 1;
            let argument = argument(inner);
            let argument = argument
                .ok_or_else(|| self.error(begin + word.len(), "this parenthesis is not closed"))?;
            let made = self.made(word, argument)?;
            self.at += argument.len() + 1;
            return Ok(made);
        }
        self.at += word.len();
        let name = Expression::Name(Pattern::of(word, true));
        if !behind.starts_with('[') {
            return Ok(name);
        }
        let end = behind.find(']').ok_or_else(|| self.here("this bracket is not closed"))?;
        let variant = self.selector(&behind[..=end])?;
        self.at += end + 1;
        Ok(Expression::And(vec![name, variant]))
    }

    /// What a predicate with this argument means; the place is that of the argument.
    fn made(&self, word: &str, argument: &str) -> Result<Expression, FilterError> {
        let trimmed = argument.trim();
        let is_empty = trimmed.is_empty() || trimmed == "=";
        match word {
            "all" | "none" if !trimmed.is_empty() => {
                Err(self.here(format!("nothing stands in `{word}()`")))
            }
            "all" => Ok(Expression::All),
            "none" => Ok(Expression::Or(Vec::new())),
            _ if is_empty => Err(self.here(format!("`{word}()` says nothing: write a word in it"))),
            "variant" => self.selector(trimmed),
            _ if trimmed.len() > 1 && trimmed.starts_with('/') && trimmed.ends_with('/') => {
                Err(self.here("a regular expression is not known here: use `*` and `?`"))
            }
            "name" => Ok(Expression::Name(Pattern::of(trimmed, true))),
            "tag" => Ok(Expression::Tag(Pattern::of(trimmed, false))),
            "kind" => Ok(Expression::Kind(Pattern::of(trimmed, false))),
            _ => Ok(Expression::Owner(Pattern::of(trimmed, false))),
        }
    }

    fn selector(&self, words: &str) -> Result<Expression, FilterError> {
        let selector = words.parse();
        selector.map(Expression::Variant).map_err(|why| self.here(format!("{why}")))
    }
}

fn one_or(mut terms: Vec<Expression>, many: fn(Vec<Expression>) -> Expression) -> Expression {
    match terms.pop() {
        Some(one) if terms.is_empty() => one,
        last => {
            terms.extend(last);
            many(terms)
        }
    }
}

/// What may stand in a word without parentheses.
fn word(text: &str) -> &str {
    let is_plain = |c: char| c.is_alphanumeric() || "._-/*?\\".contains(c);
    let end = text.find(|c: char| !is_plain(c)).unwrap_or(text.len());
    match text.starts_with('-') {
        true => "",
        false => &text[..end],
    }
}

fn operator(text: &str) -> Option<(Operator, usize)> {
    let signs = [
        ("&&", Operator::And),
        ("&", Operator::And),
        ("||", Operator::Or),
        ("|", Operator::Or),
        ("+", Operator::Or),
        ("-", Operator::Minus),
    ];
    let sign = signs.into_iter().find(|(sign, _)| text.starts_with(sign));
    sign.map(|(sign, operator)| (operator, sign.len())).or_else(|| match word(text) {
        "and" => Some((Operator::And, 3)),
        "or" => Some((Operator::Or, 2)),
        _ => None,
    })
}

fn negation(text: &str) -> Option<usize> {
    match text.starts_with('!') {
        true => Some(1),
        false => (word(text) == "not").then_some(3),
    }
}

/// What stands before the parenthesis that closes.
fn argument(text: &str) -> Option<&str> {
    let mut is_escaped = false;
    let end = text.find(|c: char| {
        let closes = c == ')' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        closes
    })?;
    Some(&text[..end])
}

impl FilterError {
    /// Where in the text, characters from 1.
    pub fn column(&self) -> usize {
        self.before().chars().count() + 1
    }

    /// What is wrong, and what is wanted.
    pub fn why(&self) -> &str {
        &self.why
    }

    fn before(&self) -> &str {
        // A place within a character is that character.
        let at =
            (0..=self.at.min(self.text.len())).rev().find(|&at| self.text.is_char_boundary(at));
        &self.text[..at.unwrap_or(0)]
    }

    /// With the text, and a caret below the place.
    fn shown(&self) -> String {
        let before = self.before();
        let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let skipped = before.chars().count().saturating_sub(AROUND);
        let begin: String = before.chars().skip(skipped).map(plain).collect();
        let mut behind = self.text[before.len()..].chars().map(plain);
        let end: String = behind.by_ref().take(AROUND).collect();
        let dots = if skipped > 0 { "…" } else { "" };
        let more = if behind.next().is_some() { "…" } else { "" };
        let indent = begin.chars().count() + dots.chars().count();
        let (column, why) = (self.column(), &self.why);
        format!("column {column}: {why}\n  {dots}{begin}{end}{more}\n  {:indent$}^", "")
    }
}
