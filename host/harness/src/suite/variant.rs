//! A variant: the value of each axis, in the order of [`Axis`], and the id that says so.
//!
//! ```text
//! image=tiny,cpu=max,mode=a                 known axes first, then free ones by name
//! cmdline=quiet%20ro                        all but A-Z a-z 0-9 . _ + - as the bytes of UTF-8
//! kernel=bzImage                            a file by its name
//! kernel=bzImage~1f0c3a9be2d4               with a digest of its path where two would be the same
//! image=tiny,cmdline=con…~0d9f3b1c2a4e      not longer than 200 bytes: with a digest of the whole
//! ```
//! An id tells a variant from all others of its matrix. The same values have the same id in every matrix, but for the digest
//! of a path, which is there or not with what else is on the axis.

use super::axis::Axis;
use super::selector::{Selector, SelectorError};
use guestline::digest::Digest;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

/// An id is not longer, bytes.
pub(super) const MAX_ID_LEN: usize = 200;

/// Stands before a digest, and nowhere else in an id.
pub(super) const DIGEST_MARK: char = '~';

/// A value of an axis.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// In its one spelling.
    pub(super) text: Arc<str>,
    /// As an id has it.
    pub(super) label: String,
    /// What it needs.
    pub(super) requires: Vec<String>,
}

/// The axes with their values; those that are not set are as they are without a matrix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variant {
    values: Vec<(Axis, Arc<Value>)>,
}

impl Variant {
    /// Of values in the order of their axes.
    pub(super) fn new(values: Vec<(Axis, Arc<Value>)>) -> Self {
        debug_assert!(values.is_sorted_by(|(one, _), (other, _)| one < other));
        Self { values }
    }

    /// No axis is set: the test as it is without a matrix.
    pub fn is_plain(&self) -> bool {
        self.values.is_empty()
    }

    /// Its name among the variants of its test: `image=tiny,cpu=max`. Empty when it is plain.
    pub fn id(&self) -> String {
        let mut id = String::new();
        for (axis, value) in &self.values {
            let comma = if id.is_empty() { "" } else { "," };
            id.extend([comma, axis.name(), "=", &value.label]);
        }
        if id.len() <= MAX_ID_LEN {
            return id;
        }
        let digest = Digest::of(id.as_bytes());
        let mut end = MAX_ID_LEN - DIGEST_MARK.len_utf8() - digest.short().len();
        // No byte is cut in two.
        if let Some(at) = id[..end].rfind('%').filter(|at| at + 3 > end) {
            end = at;
        }
        format!("{}{DIGEST_MARK}{}", &id[..end], digest.short())
    }

    /// The value of an axis, if it is set.
    pub fn get(&self, axis: &Axis) -> Option<&str> {
        self.value(axis).map(|value| &*value.text)
    }

    pub(super) fn value(&self, axis: &Axis) -> Option<&Value> {
        self.values.iter().find(|(known, _)| known == axis).map(|(_, value)| &**value)
    }

    /// The axes that are set.
    pub fn values(&self) -> impl Iterator<Item = (&Axis, &str)> {
        self.values.iter().map(|(axis, value)| (axis, &*value.text))
    }

    /// What tells a test its variant: `GUESTLINE_VARIANT_<NAME>` for each axis that is set.
    pub fn variables(&self) -> impl Iterator<Item = (String, &str)> {
        self.values().map(|(axis, value)| (axis.variable(), value))
    }

    /// What its values need, each once.
    pub fn requires(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for requirement in self.values.iter().flat_map(|(_, value)| &value.requires) {
            if !found.contains(&requirement.as_str()) {
                found.push(requirement);
            }
        }
        found
    }

    /// It is selected by words such as `[nic=e1000]`; [`Selector`] for many variants.
    ///
    /// # Errors
    /// These are no words that select.
    pub fn matches(&self, words: &str) -> Result<bool, SelectorError> {
        Ok(words.parse::<Selector>()?.matches(self))
    }
}

impl fmt::Display for Variant {
    /// Its id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

/// A byte that an id shows as it is.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._+-".contains(&byte)
}

/// How an id has each of these values of an axis, no two of them alike.
pub(super) fn labels(axis: &Axis, texts: &[Arc<str>]) -> Vec<String> {
    let names: Vec<_> = texts.iter().map(|text| escaped(file_name(axis, text))).collect();
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for name in &names {
        *count.entry(name).or_default() += 1;
    }
    let label = |(name, text): (&String, &Arc<str>)| match count[name.as_str()] {
        // A file that is named without a folder keeps its name.
        2.. if file_name(axis, text) != &**text => {
            format!("{name}{DIGEST_MARK}{}", Digest::of(text.as_bytes()).short())
        }
        _ => name.clone(),
    };
    names.iter().zip(texts).map(label).collect()
}

fn file_name<'a>(axis: &Axis, text: &'a str) -> &'a str {
    let name = || text.rsplit('/').find(|name| !name.is_empty());
    axis.takes_files().then(name).flatten().unwrap_or(text)
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match is_plain(byte) {
            true => escaped.push(char::from(byte)),
            false => {
                // Writing to a string does not fail.
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn variant(values: &[(&str, &str)]) -> Variant {
        let value = |(name, text): &(&str, &str)| {
            let axis = Axis::parse(name).unwrap();
            let text: Arc<str> = (*text).into();
            let label = labels(&axis, &[Arc::clone(&text)]).remove(0);
            (axis, Arc::new(Value { text, label, requires: vec![] }))
        };
        Variant::new(values.iter().map(value).collect())
    }

    fn labels_of(axis: &Axis, texts: &[&str]) -> Vec<String> {
        labels(axis, &texts.iter().map(|text| Arc::from(*text)).collect::<Vec<_>>())
    }

    #[test]
    fn an_id_says_the_values() {
        let some = variant(&[("image", "debian-12"), ("cpu", "max,-avx2"), ("mode", "a b/é")]);
        assert_eq!(some.id(), "image=debian-12,cpu=max%2C-avx2,mode=a%20b%2F%C3%A9");
        assert_eq!(some.to_string(), some.id());
        assert_eq!((Variant::default().id(), Variant::default().is_plain()), (String::new(), true));
        assert_eq!(variant(&[("cmdline", "")]).id(), "cmdline=");
        let variables: Vec<_> = some.variables().collect();
        assert_eq!(variables[2], ("GUESTLINE_VARIANT_MODE".to_owned(), "a b/é"));
        assert_eq!((some.get(&Axis::Cpu), some.get(&Axis::Nic)), (Some("max,-avx2"), None));
    }

    #[test]
    fn files_go_by_their_names() {
        let kernels = labels_of(&Axis::Kernel, &["/a/bzImage", "b/vm linuz", "x/", "/"]);
        assert_eq!(kernels, ["bzImage", "vm%20linuz", "x", "%2F"]);
        let alike = labels_of(&Axis::Kernel, &["/a/bzImage", "/b/bzImage", "bzImage", "/c/other"]);
        let digest = |text: &str| Digest::of(text.as_bytes()).short().to_owned();
        assert_eq!(alike[0], format!("bzImage~{}", digest("/a/bzImage")));
        assert_eq!(alike[1], format!("bzImage~{}", digest("/b/bzImage")));
        assert_eq!(alike[2..], ["bzImage", "other"]);
        // What only looks like one is kept whole.
        assert_eq!(labels_of(&Axis::Nic, &["a/b"]), ["a%2Fb"]);
    }

    #[test]
    fn a_long_id_ends_with_a_digest() {
        let long = |end: &str| variant(&[("image", "tiny"), ("cmdline", &("é".repeat(300) + end))]);
        let (one, other) = (long("a").id(), long("b").id());
        assert!(one.len() <= MAX_ID_LEN && one.starts_with("image=tiny,cmdline=%C3%A9"));
        assert_ne!(one, other);
        assert_eq!(one, long("a").id());
        let just = variant(&[("mode", &"x".repeat(MAX_ID_LEN - 5))]).id();
        assert_eq!((just.len(), just.contains(DIGEST_MARK)), (MAX_ID_LEN, false));
        for len in 196..210 {
            let cut = variant(&[("mode", &("x".repeat(len - 30) + &" ".repeat(30)))]).id();
            let (shown, _) = cut.split_once(DIGEST_MARK).unwrap();
            let last = shown.rfind('%').unwrap();
            assert!(cut.len() <= MAX_ID_LEN && last + 3 == shown.len(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_two_values_have_one_label(
            texts in prop::collection::btree_set("[ab/~%é ]{0,4}|[a-z/]{0,3}(bzImage|b%7E)", 1..12),
        ) {
            let texts: Vec<Arc<str>> = texts.into_iter().map(Arc::from).collect();
            for axis in [Axis::Kernel, Axis::Free("mode".into())] {
                let labels = labels(&axis, &texts);
                let plain = |byte: u8| is_plain(byte) || byte == b'%' || byte == b'~';
                prop_assert!(labels.iter().all(|label| label.bytes().all(plain)));
                prop_assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), texts.len());
            }
        }
    }
}
