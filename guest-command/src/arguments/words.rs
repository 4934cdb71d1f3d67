//! Options and words of a command line, told apart as getopt_long(3) does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The options that there may be, besides those that there always are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Those with a value.
    pub(super) values: &'static [&'static str],
    /// Those without.
    pub(super) flags: &'static [&'static str],
}

/// Short names.
const SHORT: [(u8, &str); 8] = [
    (b'm', "machine"),
    (b'u', "user"),
    (b'C', "cwd"),
    (b'e', "env"),
    (b'i', "stdin"),
    (b'h', "help"),
    (b'V', "version"),
    (b't', "timeout"),
];

const ALWAYS_VALUES: [&str; 1] = ["machine"];
const ALWAYS_FLAGS: [&str; 2] = ["json", "help"];

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    options: Vec<(&'static str, OsString)>,
    /// What is no option.
    pub(super) words: Vec<OsString>,
    /// So many of the words stood before a `--`.
    pub(super) dashes: Option<usize>,
    /// So many, as they were typed, stood behind the first word that is no option.
    pub(super) rest: usize,
}

impl Given {
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// The last one counts.
    pub(super) fn value(&self, name: &str) -> Option<&OsString> {
        self.options.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &OsString> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.to_str() {
            Some("") => Err(format!("--{name} is empty")),
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(format!("`{}` is no text", value.to_string_lossy())),
        }
    }

    /// With the options that stood before the verb.
    pub(super) fn globals(&mut self, before: Given) {
        self.options.splice(0..0, before.options);
    }
}

/// Tells them apart; with `stop`, the first word that is no option ends the options.
pub(super) fn split(words: &[OsString], known: Options, stop: bool) -> Result<Given, String> {
    let mut given = Given::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            given.dashes = Some(given.words.len());
            given.words.extend(rest.by_ref().cloned());
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|&byte| byte == b'=') {
                Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
                None => (long, None),
            };
            let find = |names: &[&'static str]| {
                names.iter().copied().find(|known| known.as_bytes() == name)
            };
            let shown = String::from_utf8_lossy(name);
            if let Some(name) = find(&ALWAYS_VALUES).or_else(|| find(known.values)) {
                let value = value.or_else(|| rest.next().cloned());
                let value = value.ok_or_else(|| format!("--{name} wants a value"))?;
                given.options.push((name, value));
            } else if let Some(name) = find(&ALWAYS_FLAGS).or_else(|| find(known.flags)) {
                if value.is_some() {
                    return Err(format!("--{name} takes no value"));
                }
                given.options.push((name, OsString::new()));
            } else {
                return Err(format!("there is no option --{shown} here"));
            }
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            let mut letters = &bytes[1..];
            while let Some((letter, more)) = letters.split_first() {
                letters = more;
                let unknown = || format!("there is no option -{} here", [*letter].escape_ascii());
                let (_, name) =
                    SHORT.into_iter().find(|(short, _)| short == letter).ok_or_else(unknown)?;
                if ALWAYS_VALUES.contains(&name) || known.values.contains(&name) {
                    let value = match std::mem::take(&mut letters) {
                        [] => rest.next().cloned(),
                        value => Some(OsString::from_vec(value.to_vec())),
                    };
                    let value =
                        value.ok_or_else(|| format!("-{} wants a value", char::from(*letter)))?;
                    given.options.push((name, value));
                } else if ALWAYS_FLAGS.contains(&name) || known.flags.contains(&name) {
                    given.options.push((name, OsString::new()));
                } else {
                    return Err(unknown());
                }
            }
        } else {
            given.words.push(word.clone());
            if stop {
                given.rest = rest.len();
                given.words.extend(rest.by_ref().cloned());
            }
        }
    }
    Ok(given)
}
