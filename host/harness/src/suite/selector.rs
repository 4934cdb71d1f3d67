//! Selectors: which variants are meant, as `[nic=e1000]` or `[image=tiny,cpu=max]` behind the name of a test.
//!
//! All that is said has to hold; an axis of which nothing is said may have any value. A value is written as in an id, so
//! that an id selects its variant and no other of its matrix; or as in the matrix if it has no comma.

use super::axis::{Axis, AxisError, beginning};
use super::variant::{DIGEST_MARK, MAX_ID_LEN, Variant, is_plain};
use std::collections::BTreeMap;
use std::str::FromStr;
use thiserror::Error;

/// So many digits of a digest stand in an id.
const DIGITS: usize = 12;

/// Which variants are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    terms: BTreeMap<Axis, Wanted>,
    /// The id that it is, if that was cut.
    cut: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// As in an id.
    Label(String),
    /// As in a matrix.
    Text(String),
}

/// Words that select no variant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// One bracket is missing.
    #[error("`{words}` has one bracket: write `[AXIS=VALUE,…]`")]
    Bracket {
        /// All of them.
        words: String,
    },
    /// Nothing is said.
    #[error("`[]` selects nothing: write `[AXIS=VALUE,…]`")]
    Empty,
    /// It names no axis.
    #[error(
        "`{word}` is not AXIS=VALUE; in a value a comma is written %2C, as `guestline list` does"
    )]
    Word {
        /// It.
        word: String,
    },
    /// There is no such axis.
    #[error(transparent)]
    Axis(#[from] AxisError),
    /// An axis has one value.
    #[error("axis `{axis}` is named twice, and a variant has one value of it")]
    Twice {
        /// Which.
        axis: Axis,
    },
    /// An axis cannot have this value.
    #[error("axis `{axis}` cannot be `{value}`: {why}")]
    Value {
        /// Which.
        axis: Axis,
        /// The value.
        value: String,
        /// What is wanted.
        why: String,
    },
}

impl Selector {
    /// This variant is meant.
    pub fn matches(&self, variant: &Variant) -> bool {
        let holds = |(axis, wanted): (&Axis, &Wanted)| {
            variant.value(axis).is_some_and(|value| match wanted {
                Wanted::Label(label) => value.label == *label,
                Wanted::Text(text) => *value.text == **text,
            })
        };
        match &self.cut {
            Some(id) => variant.id() == *id,
            None => self.terms.iter().all(holds),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// With its brackets or without.
    fn from_str(words: &str) -> Result<Self, SelectorError> {
        let bracket = || SelectorError::Bracket { words: beginning(words) };
        let inner = match words.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(bracket)?,
            None if words.ends_with(']') => return Err(bracket()),
            None => words,
        };
        if inner.is_empty() {
            return Err(SelectorError::Empty);
        }
        let mut selector = Self { terms: BTreeMap::new(), cut: None };
        // An id that was cut is two bytes shorter at most.
        if (MAX_ID_LEN - 2..=MAX_ID_LEN).contains(&inner.len()) && without_digest(inner).is_some() {
            selector.cut = Some(inner.to_owned());
            return Ok(selector);
        }
        for word in inner.split(',') {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| SelectorError::Word { word: beginning(word) })?;
            let axis = Axis::parse(name.trim())?;
            let wanted = wanted(&axis, value)?;
            if selector.terms.insert(axis.clone(), wanted).is_some() {
                return Err(SelectorError::Twice { axis });
            }
        }
        Ok(selector)
    }
}

fn wanted(axis: &Axis, value: &str) -> Result<Wanted, SelectorError> {
    let shown = without_digest(value).unwrap_or(value);
    let is_label = shown.bytes().all(|byte| is_plain(byte) || byte == b'%');
    let text = axis.value(value).map_err(|why| {
        let value = beginning(value);
        SelectorError::Value { axis: axis.clone(), value, why }
    })?;
    Ok(if is_label { Wanted::Label(text) } else { Wanted::Text(text) })
}

/// What stands before the digest at the end of a label or an id.
fn without_digest(text: &str) -> Option<&str> {
    let (shown, digest) = text.rsplit_once(DIGEST_MARK)?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (digest.len() == DIGITS && digest.bytes().all(is_digit)).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::super::Matrix;
    use super::*;
    use proptest::prelude::*;

    fn variants(words: &[&str]) -> Vec<Variant> {
        Matrix::from_words(words).unwrap().variants().unwrap().collect()
    }

    /// Which of them the words select.
    fn selected(variants: &[Variant], words: &str) -> Vec<String> {
        let selector: Selector = words.parse().unwrap();
        variants.iter().filter(|variant| selector.matches(variant)).map(Variant::id).collect()
    }

    #[test]
    fn all_that_is_said_has_to_hold() {
        let some = variants(&["nic=e1000,virtio", "memory=512,1G"]);
        assert_eq!(selected(&some, "[nic=e1000]").len(), 2);
        assert_eq!(selected(&some, "nic=e1000,memory=1024"), ["memory=1G,nic=e1000"]);
        assert_eq!(selected(&some, "[memory=512MiB,nic=virtio]"), ["memory=512M,nic=virtio"]);
        assert!(selected(&some, "[nic=e1000e]").is_empty());
        assert!(selected(&some, "[cpu=max]").is_empty());
        assert_eq!(some[0].matches("[nic=e1000]"), Ok(true));
        assert_eq!(some[0].matches("[nic=virtio]"), Ok(false));
    }

    #[test]
    fn a_value_is_written_as_in_the_id_or_the_matrix() {
        let some = variants(&["kernel=/a/bzImage,/b/bzImage", r"cpu=max\,-avx2,a b,a~b,a%20b"]);
        assert_eq!(selected(&some, "[kernel=/a/bzImage,cpu=a b]").len(), 1);
        assert_eq!(selected(&some, "[cpu=max%2C-avx2]").len(), 2);
        assert_eq!(selected(&some, "[cpu=a~b]").len(), 2);
        assert_eq!(selected(&some, "[cpu=a%20b]"), selected(&some, "[cpu=a b]"));
        for one in &some {
            assert_eq!(selected(&some, &format!("[{one}]")), [one.id()]);
        }
    }

    #[test]
    fn a_long_id_selects_its_variant() {
        let long = format!("cmdline={0}a,{0}b,{0}\u{e9}", "x".repeat(300));
        let some = variants(&[&long, "mode=1,2"]);
        for one in &some {
            assert!(one.id().len() <= MAX_ID_LEN);
            assert_eq!(selected(&some, &one.id()), [one.id()]);
        }
    }

    #[test]
    fn what_selects_nothing_is_an_error() {
        let error = |words: &str| words.parse::<Selector>().unwrap_err();
        for words in ["[nic=e1000", "nic=e1000]", "[", "]"] {
            assert!(matches!(error(words), SelectorError::Bracket { .. }), "{words}");
        }
        assert_eq!((error(""), error("[]")), (SelectorError::Empty, SelectorError::Empty));
        assert_eq!(
            error("[cpu=max,-avx2]").to_string(),
            "`-avx2` is not AXIS=VALUE; in a value a comma is written %2C, as `guestline list` does"
        );
        assert!(matches!(error("[e1000]"), SelectorError::Word { .. }));
        assert!(matches!(error("[Nic=x]"), SelectorError::Axis(AxisError::Name { .. })));
        assert_eq!(error("[nic=a,nic=b]"), SelectorError::Twice { axis: Axis::Nic });
        assert_eq!(
            error("[memory=lots]").to_string(),
            "axis `memory` cannot be `lots`: want a number, perhaps with M or G"
        );
    }

    proptest! {
        #[test]
        fn an_id_selects_its_variant_and_no_other(
            values in prop::collection::vec("[ab/~%,= é\\[\\]]{0,3}|.{0,3}", 1..6),
            axis in 0..3_usize,
        ) {
            let mut values: Vec<_> = values.iter().map(|value| value.replace('\0', "")).collect();
            values.retain(|value| !value.is_empty() && !value.contains('\\'));
            values.sort();
            values.dedup();
            prop_assume!(!values.is_empty());
            let escaped: Vec<_> = values.iter().map(|value| value.replace(',', r"\,")).collect();
            let axis = ["kernel", "cpu", "mode"][axis];
            let some = variants(&[&format!("{axis}={}", escaped.join(",")), "other=1,2"]);
            for one in &some {
                prop_assert_eq!(selected(&some, &format!("[{one}]")), [one.id()]);
            }
        }

        #[test]
        fn no_words_panic(words in ".{0,40}|\\[?[a-z=,~%\\]]{0,20}") {
            let _ = words.parse::<Selector>();
        }
    }
}
