//! Patterns with `*` and `?` in them.

/// The text is as the pattern says: `*` stands for any bytes, also none and also `/`; `?` for one character.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on when a star has to take one more.
    let mut star = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[from] => (at, from) = (at + 1, from + 1),
            _ => match &mut star {
                Some((position, taken)) => {
                    *taken += 1;
                    (at, from) = (*position + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("a*b*c", "axxbyybc"),
            ("net/*", "net/a/b"),
            ("?", "é"),
            ("*.sh", "a.sh"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("?", ""), ("a*b", "ac"), ("net/*", "net"), ("*.sh", "a.shx")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        let (pattern, text) = ("*a".repeat(30), "a".repeat(5000) + "b");
        assert!(!matches(&pattern, &text));
    }
}
