//! Keys of tables: which is meant by one that is not known, and which has the value that is wrong.

use crate::text::one_line;
use std::ops::Range;
use strsim::osa_distance as distance;
use toml::de::DeTable;

/// Where the values of a table's keys stand.
pub(super) struct Places(Vec<(String, Range<usize>)>);

impl Places {
    pub(super) fn of(table: &DeTable<'_>) -> Self {
        let place = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<_>)| {
            (key.get_ref().to_string(), key.span().start..value.span().end.max(key.span().end))
        };
        Self(table.iter().map(place).collect())
    }

    /// What is wrong, with its place and the key that it is about.
    pub(super) fn fault(&self, error: &toml::de::Error) -> (usize, String) {
        let at = error.span().map_or(0, |span| span.start);
        let why = error.message().trim().replace('\n', " ");
        let key = self.0.iter().find(|(_, place)| error.span().is_some() && place.contains(&at));
        match key.filter(|(key, _)| !why.starts_with(&format!("`{key}`"))) {
            Some((key, _)) => (at, format!("`{key}`: {why}")),
            None => (at, why),
        }
    }
}

/// What is wrong with a text that is no TOML, with its place in it.
pub(super) fn no_toml(text: &str, error: &toml::de::Error) -> (usize, String) {
    let span = error.span().unwrap_or(0..0);
    let why = error.message().trim().replace('\n', " ");
    let what = text.get(span.clone()).map(|what| one_line(what, 80)).unwrap_or_default();
    let is_twice = why == "duplicate key" && !what.is_empty();
    (span.start, if is_twice { format!("`{what}` stands twice: leave one out") } else { why })
}

/// Why a key cannot be taken: with the known key that it is almost, else with all of them and a hint.
pub(super) fn unknown(key: &str, known: &[&str], hint: &str) -> String {
    let unknown = one_line(key, 80);
    let near = known.iter().min_by_key(|word| distance(word, &unknown));
    match near.filter(|word| distance(word, &unknown) <= (word.len() / 3).max(1)) {
        Some(near) => format!("unknown key `{unknown}`: write `{near}`"),
        None => format!("unknown key `{unknown}`: here may be {}{hint}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named() {
        let known = ["image", "on", "requires"];
        assert_eq!(unknown("imgae", &known, ""), "unknown key `imgae`: write `image`");
        assert_eq!(unknown("require", &known, ""), "unknown key `require`: write `requires`");
        assert_eq!(
            unknown("xyz", &known, "; see"),
            "unknown key `xyz`: here may be image, on, requires; see"
        );
    }
}
