//! Versions and their order.
//!
//! ```text
//! [EPOCH:]6.1.0-56     numbers and words in sections: [6 1 0] [56]
//! ```
//! A version is read from the left, a piece at a time; the first piece that differs decides, in this order:
//!
//! ```text
//! before an end (~, -rc1)  <  the end  <  a new section (-)  <  a word  <  a number
//! ```
//! Numbers count as numbers and words regardless of case; `.`, `+` and `_` only part them. Zeros behind which a section
//! ends, a word stands or what comes before the end are none: 6.1, 6.1.0 and 6.1-0 are the same version. The words `alpha`,
//! `beta`, `pre` and `rc` come before the end, as if `~` stood before them: 6.1.0-rc3 is older than 6.1. The rest is near to
//! Debian's order (deb-version(7)).
//!
//! What is compared is a list of pieces, made once and ordered like any list of Rust. So the order is total.

use crate::text::one_line;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use thiserror::Error;

/// A version is not longer, bytes.
pub const MAX_LEN: usize = 256;

/// Words of what comes before a release.
const BEFORE: [&str; 4] = ["alpha", "beta", "pre", "rc"];

/// A version: text in the spelling of whoever wrote it, with its place in the order.
///
/// Two that are spelt otherwise may be equal: 6.1 and 6.1.0.
#[derive(Debug, Clone)]
pub struct Version {
    text: Box<str>,
    /// Empty for none.
    epoch: Number,
    pieces: Box<[Piece]>,
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VersionError {
    /// It is too long.
    #[error("`{begin}` is no version: it is longer than {MAX_LEN} bytes")]
    TooLong {
        /// Its beginning.
        begin: String,
    },
    /// No digit is its beginning.
    #[error("`{text}` is no version: one begins with a digit, as 6.1, 7sp1 or 2013-10-24")]
    Begin {
        /// It.
        text: String,
    },
    /// Something is in it that no version has.
    #[error("`{text}` is no version: one has letters, digits and `.-+~_`, not `{wrong}`")]
    Character {
        /// It.
        text: String,
        /// What is wrong.
        wrong: String,
    },
}

/// A number of any length: how many digits, and which, without leading zeros.
type Number = (usize, Box<str>);

/// What versions are compared by; the order of the variants is that of the pieces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Piece {
    /// What follows comes before what ends here.
    Before,
    End,
    Section,
    Word(Box<str>),
    Number(Number),
}

impl Version {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let shown = || one_line(text, 80);
        if text.len() > MAX_LEN {
            return Err(VersionError::TooLong { begin: one_line(text, 40) });
        }
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) if is_digits(epoch) => (epoch, rest),
            _ => ("", text),
        };
        if !rest.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(VersionError::Begin { text: shown() });
        }
        let is_wrong = |c: &char| !(c.is_ascii_alphanumeric() || ".-+~_".contains(*c));
        if let Some(wrong) = rest.chars().find(is_wrong) {
            let wrong = one_line(&wrong.to_string(), 10);
            return Err(VersionError::Character { text: shown(), wrong });
        }
        Ok(Self { text: text.into(), epoch: number(epoch), pieces: pieces(rest) })
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(digits: &str) -> Number {
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits.into())
}

/// The pieces of a version without its epoch, the end included.
fn pieces(text: &str) -> Box<[Piece]> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let same = |c: char| match first {
            '0'..='9' => c.is_ascii_digit(),
            _ => c.is_ascii_alphabetic(),
        };
        let len = match first.is_ascii_alphanumeric() {
            true => rest.find(|c| !same(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (piece, behind) = rest.split_at(len);
        match first {
            '0'..='9' => pieces.push(Piece::Number(number(piece))),
            '~' => before(&mut pieces),
            '-' => {
                drop_zeros(&mut pieces);
                pieces.push(Piece::Section);
            }
            _ if first.is_ascii_alphabetic() => {
                let word = piece.to_ascii_lowercase();
                match BEFORE.contains(&word.as_str()) {
                    true if pieces.last() != Some(&Piece::Before) => before(&mut pieces),
                    true => {}
                    false => drop_zeros(&mut pieces),
                }
                pieces.push(Piece::Word(word.into()));
            }
            _ => {}
        }
        rest = behind;
    }
    drop_empty(&mut pieces);
    pieces.push(Piece::End);
    pieces.into()
}

fn before(pieces: &mut Vec<Piece>) {
    drop_empty(pieces);
    pieces.push(Piece::Before);
}

fn drop_zeros(pieces: &mut Vec<Piece>) {
    while matches!(pieces.last(), Some(Piece::Number((0, _)))) {
        pieces.pop();
    }
}

/// Drops zeros and sections that have nothing in them.
fn drop_empty(pieces: &mut Vec<Piece>) {
    while matches!(pieces.last(), Some(Piece::Number((0, _)) | Piece::Section)) {
        pieces.pop();
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.epoch, &self.pieces).cmp(&(&other.epoch, &other.pieces))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

impl Hash for Version {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.epoch, &self.pieces).hash(state);
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// Each is older than those behind it.
    #[test]
    fn rows_in_their_order() {
        let rows: [&[&str]; 10] = [
            &["2", "3.9", "3.10", "3.10.1", "10"],
            &["6.1.0-rc3", "6.1", "6.1.0-55", "6.1.0-56", "6.1.5-1", "6.2"],
            &["6.1.0-56", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.1.0-560"],
            &["7", "7sp1", "7sp2", "7sp10", "7.1", "8"],
            &["2012-12-31", "2013-09-30", "2013-10", "2013-10-03", "2013-10-24", "2014-01-01"],
            &["1.0~~", "1.0~alpha1", "1.0~beta2", "1.0~rc1", "1.0~rc1-2", "1.0", "1.0+b1", "1.0.1"],
            &["1.0alpha", "1.0-beta", "1.0-beta-2", "1.0pre1", "1.0rc2", "1.0"],
            &["0", "0.0.1", "0.1", "1"],
            &["9", "1:0", "1:7.2+dfsg-7", "2:1"],
            &["18446744073709551615", "18446744073709551616", "99999999999999999999999"],
        ];
        for row in rows {
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    assert_eq!(version(a).cmp(&version(b)), i.cmp(&j), "{a} and {b}");
                }
            }
        }
    }

    #[test]
    fn spellings_of_the_same() {
        let same = [
            ["6.1", "6.1.0"],
            ["6.1", "6.1.0.0-0"],
            ["6", "006"],
            ["7SP1", "7sp1"],
            ["6.1-56", "6.1.0-56"],
            ["6.1-rc3", "6.1.0~rc3"],
            ["6.1rc3", "6.1.0-0-rc3"],
            ["0:1.2", "1.2"],
            ["6.12.0-rc3+", "6.12-rc3"],
            ["1_2", "1.2"],
        ];
        for [a, b] in same {
            assert_eq!(version(a), version(b));
            assert_eq!(version(a).as_str(), a);
        }
        for [a, b] in [["10", "1.0"], ["6.1", "6.01.1"], ["1-2", "1.2"], ["1.0.1", "1.1"]] {
            assert_ne!(version(a), version(b));
        }
    }

    #[test]
    fn the_reference_says_the_same() {
        let reference = include_str!("../../../../docs/requirements.md");
        let rows = reference.lines().skip_while(|line| !line.starts_with("| order |")).skip(2);
        let rows = rows.map_while(|line| line.strip_prefix("| ")?.split_once(" |"));
        let mut count = 0;
        for (row, _) in rows {
            let words: Vec<_> = row.split(' ').collect();
            for pair in words.windows(3).step_by(2) {
                let wanted = if pair[1] == "=" { Ordering::Equal } else { Ordering::Less };
                assert!(["=", "<"].contains(&pair[1]), "{row}");
                assert_eq!(version(pair[0]).cmp(&version(pair[2])), wanted, "{row}");
                count += 1;
            }
        }
        assert_eq!(count, 15);
    }

    #[test]
    fn what_is_no_version_is_told() {
        let why = |text: &str| text.parse::<Version>().unwrap_err().to_string();
        assert_eq!(
            why("banana"),
            "`banana` is no version: one begins with a digit, as 6.1, 7sp1 or 2013-10-24"
        );
        for wrong in ["", ".1", "-1", "~1", "v6", "x:1", "1:", "1:x", " 1", "é"] {
            assert!(why(wrong).contains("begins with a digit"), "{wrong}");
        }
        for (text, wrong) in
            [("1 ", " "), ("1.é", "é"), ("1:2:3", ":"), ("6.*", "*"), ("1\0", "\\u{0}")]
        {
            assert!(why(text).ends_with(&format!("not `{wrong}`")), "{}", why(text));
        }
        assert!("1".repeat(MAX_LEN).parse::<Version>().is_ok());
        let long = why(&"1".repeat(MAX_LEN + 1));
        assert!(long.contains("longer than 256 bytes") && long.len() < 120, "{long}");
        assert!(why(&"é".repeat(1 << 20)).len() < 200);
    }

    /// Texts in which much is alike, so that equal ones and beginnings of others come up.
    fn near() -> impl Strategy<Value = Version> {
        "(1:)?[0-2][0-1a.~+-]{0,6}(-?rc[01]?)?(\\.0)?".prop_map(|text| version(&text))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_text_is_too_much(text in any::<String>(), number in "[0-9]\\PC{0,40}") {
            let _ = text.parse::<Version>();
            let _ = number.parse::<Version>();
        }

        #[test]
        fn the_order_is_total(a in near(), b in near(), c in near()) {
            prop_assert_eq!(a.cmp(&a), Ordering::Equal);
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
            if a == b {
                prop_assert_eq!(a.cmp(&c), b.cmp(&c));
            }
        }

        #[test]
        fn numbers_count_as_numbers(a in any::<[u16; 3]>(), b in any::<[u16; 3]>()) {
            let dotted = |n: [u16; 3]| version(&format!("{}.{}.{}", n[0], n[1], n[2]));
            prop_assert_eq!(dotted(a).cmp(&dotted(b)), a.cmp(&b));
        }

        #[test]
        fn zeros_behind_are_none(a in near(), b in near()) {
            let longer = version(&format!("{a}.0"));
            prop_assert_eq!(&longer, &a);
            prop_assert_eq!(longer.cmp(&b), a.cmp(&b));
        }

        #[test]
        fn what_comes_before_is_older_and_more_is_newer(a in near(), n in 1..99u8) {
            for older in ["~", "-rc1", "~beta"] {
                prop_assert!(version(&format!("{a}{older}")) < a, "{}{}", a, older);
            }
            for newer in [format!("{a}.{n}"), format!("{a}-{n}")] {
                prop_assert!(version(&newer) > a, "{}", newer);
            }
        }
    }
}
