//! Fixtures: set-up steps with names, which tests and other fixtures depend on.
//!
//! A step of the guest becomes a layer of the template, one of the host keeps a folder; each is done once for an image and
//! a variant, and again when the step or its files are others.

use super::settings::{Time, Word};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A chain of fixtures is not longer.
const MAX_CHAIN: usize = 64;

/// Where a fixture is set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FixtureOn {
    /// In the machine.
    #[default]
    Guest,
    /// On the host.
    Host,
}

/// A fixture, as a suite says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixtureSettings {
    /// A line for the shell; the files of the suite that it names first or that are its inputs lie beside it.
    pub run: Word,
    /// Where.
    #[serde(default)]
    pub on: FixtureOn,
    /// Files and folders of the suite that it takes.
    #[serde(default)]
    pub inputs: Vec<Word>,
    /// Fixtures that have to be there before.
    #[serde(default)]
    pub needs: Vec<Word>,
    /// How long it may take.
    pub timeout: Option<Time>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// A line that is run when the run is over.
    pub teardown: Option<Word>,
    /// One sentence about it.
    pub about: Option<String>,
}

/// The fixtures that these need, each once and after those that it needs.
pub fn chain(fixtures: &BTreeMap<String, FixtureSettings>, names: &[Word]) -> Vec<String> {
    let mut order = Vec::new();
    for name in names {
        visit(fixtures, name.as_str(), &mut Vec::new(), &mut order);
    }
    order
}

fn visit(
    fixtures: &BTreeMap<String, FixtureSettings>,
    name: &str,
    open: &mut Vec<String>,
    order: &mut Vec<String>,
) {
    let Some(fixture) = fixtures.get(name) else { return };
    if order.iter().any(|done| done == name) || open.iter().any(|above| above == name) {
        return;
    }
    open.push(name.to_owned());
    for need in &fixture.needs {
        visit(fixtures, need.as_str(), open, order);
    }
    open.pop();
    order.push(name.to_owned());
}

/// That what they need is there and leads to an end. Else one that does not, and why.
pub(super) fn check(fixtures: &BTreeMap<String, FixtureSettings>) -> Result<(), (String, String)> {
    for (name, fixture) in fixtures {
        for need in &fixture.needs {
            let Some(needed) = fixtures.get(need.as_str()) else {
                let known: Vec<&str> = fixtures.keys().map(String::as_str).collect();
                let why = missing(need.as_str(), &known);
                return Err((name.clone(), format!("fixture `{name}` needs {why}")));
            };
            if fixture.on == FixtureOn::Host && needed.on == FixtureOn::Guest {
                let why = format!(
                    "fixture `{name}` is set up on the host and needs `{need}` of the guest: a machine is set up after the host"
                );
                return Err((name.clone(), why));
            }
        }
        if let Some(circle) = circle(fixtures, name) {
            return Err((
                name.clone(),
                format!("fixture `{name}` needs itself: {}", circle.join(" → ")),
            ));
        }
    }
    Ok(())
}

/// "`x`, which the suite has not; it has a, b".
pub(super) fn missing(name: &str, known: &[&str]) -> String {
    let name = crate::text::one_line(name, 60);
    match known {
        [] => format!("`{name}`, and the suite has no fixtures: write [fixtures.{name}]"),
        known => format!("`{name}`, which the suite has not: it has {}", known.join(", ")),
    }
}

/// A way from a fixture to itself.
fn circle(fixtures: &BTreeMap<String, FixtureSettings>, start: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(way) = ways.pop() {
        let last = way.last()?;
        for need in fixtures.get(last).iter().flat_map(|it| &it.needs) {
            let mut longer = way.clone();
            longer.push(need.as_str().to_owned());
            if need.as_str() == start {
                return Some(longer);
            }
            if seen.insert(need.clone()) && longer.len() < MAX_CHAIN * 1024 {
                ways.push(longer);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixtures(needs: &[(&str, &[&str])]) -> BTreeMap<String, FixtureSettings> {
        let word = |text: &str| Word::try_from(text.to_owned()).unwrap();
        let one = |(name, needs): &(&str, &[&str])| {
            let needs: Vec<Word> = needs.iter().map(|need| word(need)).collect();
            let run = word("true");
            let fixture = FixtureSettings {
                run,
                needs,
                on: FixtureOn::Guest,
                inputs: vec![],
                timeout: None,
                owner: None,
                teardown: None,
                about: None,
            };
            ((*name).to_owned(), fixture)
        };
        needs.iter().map(one).collect()
    }

    #[test]
    fn each_stands_once_and_after_what_it_needs() {
        let some =
            fixtures(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[]), ("e", &[])]);
        let word = |text: &str| Word::try_from(text.to_owned()).unwrap();
        assert_eq!(chain(&some, &[word("a"), word("d"), word("e")]), ["d", "b", "c", "a", "e"]);
        assert!(check(&some).is_ok());
    }

    #[test]
    fn a_circle_is_shown() {
        let (name, why) =
            check(&fixtures(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])])).unwrap_err();
        assert_eq!((name.as_str(), why.as_str()), ("b", "fixture `b` needs itself: b → c → b"));
    }
}
