//! One level of results: its plan, what came of it, and what is nested in its next result.

use super::line::{Directive, Result};
use super::{MAX_TOLD, TapEvent, bounded};
use crate::outcome::Outcome;

/// Results that belong together.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) indent: usize,
    /// What they are a part of, where that is said before.
    pub(super) name: Option<String>,
    plan: Option<u64>,
    count: u64,
    /// The number of the next one, if it has none of its own.
    next: u64,
    /// Those of this level that wait for the result that they are a part of.
    waiting: Vec<TapEvent>,
    /// Those that are nested in the next result of this level.
    within: Vec<TapEvent>,
}

impl Level {
    pub(super) fn at(indent: usize) -> Self {
        let (waiting, within) = Default::default();
        Self { indent, name: None, plan: None, count: 0, next: 1, waiting, within }
    }

    /// Takes the plan; what is wrong with that.
    pub(super) fn plan(&mut self, count: u64) -> Option<String> {
        let before = self.plan.replace(count)?;
        Some(format!("{}it has two plans, 1..{before} and 1..{count}", self.said()))
    }

    /// Takes a result; what is wrong with it.
    pub(super) fn result(&mut self, result: Result) -> Option<String> {
        let number = result.number.unwrap_or(self.next);
        let problem = (number != self.next).then(|| match number < self.next {
            true => format!("{}result {number} stands twice or too late", self.said()),
            false => format!("{}result {} is missing", self.said(), self.next),
        });
        self.next = number.saturating_add(1);
        self.count += 1;
        let within = std::mem::take(&mut self.within);
        let own = match result.name.as_str() {
            "" => number.to_string(),
            name => name.to_owned(),
        };
        let (outcome, todo) = outcome(&result);
        let has_failed =
            |event: &TapEvent| matches!(event.outcome, Outcome::Failed { .. }) && !event.todo;
        // What it is made of tells more; it is told itself where it says what they do not.
        let is_told = match &outcome {
            Outcome::Failed { .. } => !within.iter().any(has_failed),
            Outcome::Skipped { .. } => true,
            _ => within.is_empty(),
        };
        let within =
            within.into_iter().map(|event| TapEvent { name: below(&own, &event.name), ..event });
        let own = is_told.then(|| TapEvent { name: own.clone(), outcome, todo });
        let room = MAX_TOLD.saturating_sub(self.waiting.len());
        let told: Vec<_> = within.chain(own).take(room).collect();
        self.waiting.extend(told);
        problem
    }

    /// What has come of it so far.
    pub(super) fn take(&mut self) -> Vec<TapEvent> {
        std::mem::take(&mut self.waiting)
    }

    /// What was nested comes before the next result.
    pub(super) fn within(&mut self, events: Vec<TapEvent>) {
        let room = MAX_TOLD.saturating_sub(self.within.len());
        self.within.extend(events.into_iter().take(room));
    }

    /// It is over. What is wrong, and what it leaves.
    pub(super) fn close(self) -> (Option<String>, Vec<TapEvent>) {
        let said = self.said();
        let problem = match self.plan {
            Some(plan) if plan != self.count => {
                Some(format!("{said}{plan} results were planned, and {} came", self.count))
            }
            None if self.count > 0 => {
                Some(format!("{said}there is no plan, so results may be missing"))
            }
            _ => None,
        };
        let mut left = self.waiting;
        left.extend(self.within);
        (problem, left)
    }

    fn said(&self) -> String {
        self.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default()
    }
}

fn outcome(result: &Result) -> (Outcome, bool) {
    match (&result.directive, result.is_ok) {
        (Some(Directive::Skip(why)), _) => (Outcome::Skipped { reason: why.clone() }, false),
        (directive, true) => (Outcome::Passed, *directive == Some(Directive::Todo)),
        (directive, false) => {
            let todo = *directive == Some(Directive::Todo);
            (Outcome::Failed { reason: "not ok".to_owned(), stage: None }, todo)
        }
    }
}

fn below(above: &str, name: &str) -> String {
    bounded(&format!("{above}/{name}"))
}
