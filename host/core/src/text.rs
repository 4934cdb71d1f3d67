//! Text for people and for shells: quoting, escaping, times. What a guest says passes here before it is shown.

use std::time::Duration;

/// A word as a POSIX shell takes it; with control characters, as a shell of POSIX 2024 does (`$'…'`),
/// since they must neither be lost nor reach a terminal.
pub fn quote(word: &str) -> String {
    if word.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        let escape = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            '\n' => "\\n".to_owned(),
            c if c.is_ascii_control() => format!("\\{:03o}", u32::from(c)),
            c => c.to_string(),
        };
        return format!("$'{}'", word.chars().map(escape).collect::<String>());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Lower-case letters, digits, dots, dashes and underlines, 64 at most, beginning with a letter or digit: a name that leads
/// nowhere else.
pub fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 64
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || b"._-".contains(&byte))
}

/// Bytes of a guest as they may be shown: control characters but newline and tab, and bytes that are no
/// UTF-8, are escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                // Also what reverses the direction of text: it hides what is written.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    text.extend(c.escape_unicode())
                }
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().flat_map(|byte| byte.escape_ascii()).map(char::from));
    }
    text
}

/// How many bytes at the end begin a character of UTF-8 whose end is missing.
pub fn partial_len(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let incomplete = str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    if incomplete { last.len() } else { 0 }
}

/// One line of at most `limit` characters.
pub fn one_line(text: &str, limit: usize) -> String {
    let escaped = escape(text.as_bytes()).replace('\n', "\\n").replace('\t', " ");
    match escaped.char_indices().nth(limit) {
        Some((at, _)) => format!("{}…", &escaped[..at]),
        None => escaped,
    }
}

/// At most 300 characters of what a guest says, in one line, as it may be shown.
pub fn printable(text: &str) -> String {
    one_line(text, 300)
}

/// A command line as a shell takes it.
pub fn shell_line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// "0.24 s".
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// "60 s", "1.5 s", "300 ms": a limit that somebody set.
pub fn limit(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms if ms < 1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// "93.2 MiB": so much room.
pub fn size(bytes: u64) -> String {
    let of = |shift: u32| bytes as f64 / (1_u64 << shift) as f64;
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.0} KiB", of(10)),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", of(20)),
        _ => format!("{:.1} GiB", of(30)),
    }
}

/// An error and what it comes from, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Transparent errors say what their source says.
        if !text.ends_with(&cause) {
            text += ": ";
            text += &cause;
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote("/bin/ls"), "/bin/ls");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("\u{1b}[1m'"), r"$'\033[1m\''");
        for word in ["a b", "$(reboot)", "`x`", "a\nb", "~", "'", "-n", "é"] {
            let line = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn terminal_escapes_do_not_come_through() {
        assert_eq!(escape(b"a\x1b[2J\tb\r\n\xff"), "a\\u{1b}[2J\tb\\r\n\\xff");
        assert_eq!(escape("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        assert_eq!(one_line("a\nb", 9), "a\\nb");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }

    #[test]
    fn a_character_that_is_cut_is_found() {
        let word = "né€𝄞".as_bytes();
        for end in 0..word.len() {
            let whole = end - partial_len(&word[..end]);
            assert!(str::from_utf8(&word[..whole]).is_ok(), "{end}");
        }
        assert_eq!([partial_len(b"a\xff"), partial_len(b"\xe2\x82"), partial_len(b"")], [0, 2, 0]);
    }

    #[test]
    fn sizes_are_readable() {
        let sizes = [0, 1023, 4096, 97_700_000, 10 << 30].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "4 KiB", "93.2 MiB", "10.0 GiB"]);
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(limit(Duration::from_secs(60)), "60 s");
        assert_eq!(limit(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(limit(Duration::from_millis(300)), "300 ms");
    }
}
