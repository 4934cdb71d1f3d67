//! What one line of TAP or KTAP says.

use super::bounded;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing that tells of results.
    Nothing,
    /// The version of the format.
    Version,
    /// What follows is a part of this.
    Subtest(String),
    /// So many results.
    Plan { count: u64, skip: Option<String> },
    /// A result.
    Result(Result),
    /// It gives up.
    BailOut(String),
    /// Details of a result begin.
    Yaml,
    /// They end.
    YamlEnd,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Result {
    pub(super) is_ok: bool,
    pub(super) number: Option<u64>,
    pub(super) name: String,
    pub(super) directive: Option<Directive>,
}

/// What stands behind the `#` of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Directive {
    Skip(String),
    Todo,
}

/// How deep a line stands, and what it says.
pub(super) fn read(line: &str) -> (usize, Said) {
    let mut rest = without_log_prefix(line);
    let mut indent = 0;
    loop {
        let spaces = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let inner = &rest[spaces..];
        // Results of what a kselftest runs stand behind `# `, and those that they have behind another one.
        match inner.strip_prefix("# ").filter(|inner| is_nested(inner)) {
            Some(more) => {
                indent += spaces + 2;
                rest = more;
            }
            None => return (indent + spaces, said(inner)),
        }
    }
}

/// Without `<6>` and `[   12.345678] ` or `[   12.345678][    T1] `, as the kernel's log has them.
fn without_log_prefix(line: &str) -> &str {
    let mut rest = line;
    if let Some(level) = rest.strip_prefix('<')
        && let Some((digits, more)) = level.split_once('>')
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        rest = more;
    }
    let Some((time, more)) = rest.strip_prefix('[').and_then(|time| time.split_once(']')) else {
        return rest;
    };
    let is_time =
        time.contains('.') && time.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !is_time {
        return rest;
    }
    let more = match more.strip_prefix('[').and_then(|who| who.split_once(']')) {
        Some((who, more)) if who.trim().starts_with(['T', 'C']) => more,
        _ => more,
    };
    more.strip_prefix(' ').unwrap_or(more)
}

/// What stands behind `# ` is itself a line that tells of results: strictly so, since else it is only a remark.
fn is_nested(inner: &str) -> bool {
    let text = inner.trim_start_matches(' ');
    let behind = text.strip_prefix("# ").is_some_and(is_nested);
    let numbered = |rest: &str| rest.trim_start().starts_with(|c: char| c.is_ascii_digit());
    let is_result =
        text.strip_prefix("not ok ").or_else(|| text.strip_prefix("ok ")).is_some_and(numbered);
    behind || is_result || plan(text).is_some() || is_version(text)
}

fn is_version(text: &str) -> bool {
    let number = text.strip_prefix("TAP version ").or_else(|| text.strip_prefix("KTAP version "));
    number.is_some_and(|number| number.trim().bytes().all(|byte| byte.is_ascii_digit()))
}

fn said(text: &str) -> Said {
    if is_version(text) {
        return Said::Version;
    }
    if let Some(name) = text.strip_prefix("# Subtest:") {
        return Said::Subtest(bounded(name));
    }
    if let Some((count, rest)) = plan(text) {
        let skip = match directive(rest) {
            Some(Directive::Skip(why)) => Some(why),
            _ if count == 0 => Some(bounded(rest.trim_start_matches([' ', '#']))),
            _ => None,
        };
        return Said::Plan { count, skip };
    }
    if let Some(why) = text.strip_prefix("Bail out!") {
        return Said::BailOut(bounded(why));
    }
    match text {
        "---" => return Said::Yaml,
        "..." => return Said::YamlEnd,
        _ => {}
    }
    let (is_ok, rest) = match (text.strip_prefix("not ok"), text.strip_prefix("ok")) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return Said::Nothing,
    };
    // "okay" is a word like others.
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return Said::Nothing;
    }
    Said::Result(result(is_ok, rest.trim_start()))
}

/// `1..5`, with what stands behind it.
fn plan(text: &str) -> Option<(u64, &str)> {
    let rest = text.strip_prefix("1..")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let count = rest[..end].parse().ok()?;
    let rest = rest[end..].trim_start();
    (rest.is_empty() || rest.starts_with('#')).then_some((count, rest))
}

fn result(is_ok: bool, text: &str) -> Result {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let is_number = end > 0 && text[end..].chars().next().is_none_or(char::is_whitespace);
    let (number, rest) = match text[..end].parse().ok().filter(|_| is_number) {
        Some(number) => (Some(number), text[end..].trim_start()),
        None => (None, text),
    };
    let (name, behind) = split_directive(rest);
    let name = name.trim().trim_start_matches("- ").trim();
    let name = if name == "-" { "" } else { name };
    Result {
        is_ok,
        number,
        name: bounded(&name.replace("\\#", "#")),
        directive: behind.and_then(directive),
    }
}

/// At the first `#` that is a word's beginning and not escaped: a name ends there, whatever follows.
fn split_directive(text: &str) -> (&str, Option<&str>) {
    if text.starts_with('#') {
        return ("", Some(text));
    }
    match text.find(" #") {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn directive(text: &str) -> Option<Directive> {
    let text = text.trim_start_matches(['#', ' ', '\t']);
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (word, why) = text.split_at(end);
    let why = bounded(why.trim_start_matches([':', ' ', '\t']));
    match word.to_ascii_uppercase().as_str() {
        "SKIP" | "SKIPPED" => Some(Directive::Skip(why)),
        "TODO" | "XFAIL" => Some(Directive::Todo),
        _ => None,
    }
}
