//! From tests to what is run: variants, what each of them needs, order, jobs.
//!
//! ```text
//! find ──> tests ──┐
//! --matrix, --image ├─> Plan: items (a test and a variant each) ──> PlanQueue ──> jobs
//! environments ────┘         │
//!                            └─ incompatible: what is lacking
//! ```
//! A plan is made without booting anything. What only a running guest knows is asked there.

mod content;
mod image;
mod item;
mod jobs;
mod parts;
pub mod store;
mod surroundings;
#[cfg(test)]
mod tests;

pub use content::Files;
pub use image::image_facts;
pub use item::{Fit, Item, Overrides};
pub use jobs::{KernelWanted, PlanQueue};
pub use parts::{FirmwareNamed, qemu_program};
pub use surroundings::{GuestFacts, ImageFacts, KnownQemu, Qemus, Surroundings};

use crate::job::Limits;
use crate::suite::find::{FindError, Found};
use crate::suite::settings::Isolation;
use crate::suite::test::Test;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Variants of a run are not more.
const MAX_ITEMS: usize = 2_000_000;

/// What holds for all tests of a run.
#[derive(Debug, Clone)]
pub struct PlanTerms {
    /// What the command line says in the place of what tests say.
    pub overrides: Overrides,
    /// Limits where a test has none of its own.
    pub limits: Limits,
    /// Where tests run, in a word: `machine`, `host`, `ssh`, `serial`.
    pub target: &'static str,
    /// With whom tests share machines, where the command line says it.
    pub isolation: Option<Isolation>,
    /// More attempts, where the command line says it.
    pub retries: Option<u32>,
    /// Each test is run so often.
    pub repeat: Option<u32>,
}

/// What is to be run, in order.
#[derive(Debug)]
pub struct Plan {
    /// The tests with their variants.
    pub items: Vec<Item>,
    /// What should be known of it, a line each.
    pub warnings: Vec<String>,
    terms: PlanTerms,
}

impl Plan {
    /// Of tests that were found.
    ///
    /// # Errors
    /// What cannot be planned, with its place.
    pub fn new(
        found: &Found,
        terms: PlanTerms,
        surroundings: &mut Surroundings,
    ) -> Result<Self, Vec<FindError>> {
        let mut plan = Self { items: Vec::new(), warnings: Vec::new(), terms };
        let mut errors = Vec::new();
        for test in &found.tests {
            let test = Arc::new(test.clone());
            if let Err(why) = plan.add(&test, surroundings) {
                errors.push(FindError {
                    file: test.suite.root.join(&test.file),
                    line: test.line,
                    why,
                });
            }
        }
        if errors.is_empty() { Ok(plan) } else { Err(errors) }
    }

    fn add(&mut self, test: &Arc<Test>, surroundings: &mut Surroundings) -> Result<(), String> {
        let matrix = match &test.settings.matrix {
            Some(matrix) => matrix.clone().replaced_by(&self.terms.overrides.matrix),
            None => self.terms.overrides.matrix.clone(),
        };
        let variants = matrix.variants().map_err(|error| error.to_string())?;
        surroundings.introduce(&test.suite);
        let mut undocumented = Vec::new();
        for variant in variants {
            if self.items.len() >= MAX_ITEMS {
                return Err(format!(
                    "the run has more than {MAX_ITEMS} variants: select some with --filter"
                ));
            }
            let item = Item::new(test, variant, &self.terms, surroundings)?;
            if undocumented.is_empty() {
                undocumented = item.undocumented(surroundings);
            }
            self.items.push(item);
        }
        for name in undocumented {
            let warning = format!("{}: {name}", test.place());
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(())
    }

    /// Keeps the items of which this holds.
    pub fn retain(&mut self, keep: impl FnMut(&Item) -> bool) {
        self.items.retain(keep);
    }

    /// The images that machines of it boot.
    pub fn images(&self) -> BTreeSet<String> {
        let mut images = BTreeSet::new();
        for item in self.items.iter().filter(|item| item.fit == Fit::Fits) {
            let named = item.wanted_by_name(&self.terms);
            match named.is_empty() {
                true => drop(images.insert(item.wanted(&self.terms).image)),
                false => images.extend(named.into_values().map(|wanted| wanted.image)),
            }
        }
        images
    }

    /// How many tests there are, each with all of its variants.
    pub fn tests(&self) -> usize {
        let mut count = 0;
        let mut last: Option<&Arc<Test>> = None;
        for item in &self.items {
            count += usize::from(last.is_none_or(|last| !Arc::ptr_eq(last, &item.test)));
            last = Some(&item.test);
        }
        count
    }
}
