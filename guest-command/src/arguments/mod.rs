//! The words of the command line, as one request.

mod help;
mod words;

use crate::Data;
use crate::protocol::{Command, CopyRequest, ExecRequest, Request, Until, WaitRequest};
use crate::time::parse_ms;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use words::{Given, Options};

/// What the words ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Help, or the version.
    Show(String),
    /// A request.
    Do(Invocation),
}

/// A request, and how its answer is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// As one JSON object.
    pub json: bool,
    /// What is asked.
    pub request: Request,
}

/// The words make no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    what: String,
    verb: Option<&'static str>,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verb {
            Some(verb) => write!(f, "{verb}: {}; see `guest {verb} --help`", self.what),
            None => write!(f, "{}; see `guest --help`", self.what),
        }
    }
}

impl std::error::Error for UsageError {}

/// The verbs, in the order of the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Exec,
    Push,
    Pull,
    Wait,
    Reboot,
    Poweroff,
    Facts,
    Log,
    Skip,
    Fail,
    Sync,
    Send,
    Await,
}

const VERBS: [Verb; 13] = [
    Verb::Exec,
    Verb::Push,
    Verb::Pull,
    Verb::Wait,
    Verb::Reboot,
    Verb::Poweroff,
    Verb::Facts,
    Verb::Log,
    Verb::Skip,
    Verb::Fail,
    Verb::Sync,
    Verb::Send,
    Verb::Await,
];

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Wait => "wait",
            Self::Reboot => "reboot",
            Self::Poweroff => "poweroff",
            Self::Facts => "facts",
            Self::Log => "log",
            Self::Skip => "skip",
            Self::Fail => "fail",
            Self::Sync => "sync",
            Self::Send => "send",
            Self::Await => "await",
        }
    }

    fn options(self) -> Options {
        match self {
            Self::Exec => Options { values: &["user", "cwd", "env", "timeout"], flags: &["stdin"] },
            Self::Wait => Options { values: &["timeout", "port", "file", "unit"], flags: &[] },
            Self::Reboot | Self::Sync | Self::Await => Options { values: &["timeout"], flags: &[] },
            _ => Options { values: &[], flags: &[] },
        }
    }

    /// Whether what follows the first word that is no option is text, whatever it looks like.
    fn takes_text(self) -> bool {
        matches!(self, Self::Exec | Self::Log | Self::Skip | Self::Fail)
    }

    fn names_a_machine(self) -> bool {
        !matches!(self, Self::Log | Self::Skip | Self::Fail | Self::Sync | Self::Send | Self::Await)
    }
}

/// Whether an error in these words is to be told as JSON.
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    words.iter().take_while(|word| word.as_bytes().starts_with(b"-")).any(|word| word == "--json")
}

/// Takes the words apart; relative paths of the host begin at `folder`.
///
/// # Errors
/// [`UsageError`].
pub fn parse(words: &[OsString], folder: &Path) -> Result<Parsed, UsageError> {
    let wrong = |what: String| UsageError { what, verb: None };
    let before = words::split(words, Options { values: &[], flags: &["version"] }, true);
    let before = before.map_err(wrong)?;
    if before.has("version") {
        return Ok(Parsed::Show(format!("guest {}\n", env!("CARGO_PKG_VERSION"))));
    }
    if before.has("help") {
        return Ok(Parsed::Show(help::all()));
    }
    let Some((name, rest)) = before.words.split_first() else {
        return Err(wrong("a verb is wanted".to_owned()));
    };
    if before.dashes == Some(0) {
        return Err(wrong("a verb is wanted before `--`".to_owned()));
    }
    let Some(verb) = VERBS.into_iter().find(|verb| name == verb.word()) else {
        return Err(match name.as_bytes() {
            b"help" => return help_of(rest),
            _ => wrong(format!("there is no verb `{}`", name.to_string_lossy())),
        });
    };
    let wrong = |what: String| UsageError { what, verb: Some(verb.word()) };
    // What stood before the verb ended there, so the rest is as it was typed, `--` included.
    let rest = &words[words.len() - before.rest..];
    let mut given = words::split(rest, verb.options(), verb.takes_text()).map_err(wrong)?;
    if given.has("help") {
        return Ok(Parsed::Show(help::of(verb)));
    }
    given.globals(before);
    let json = given.has("json");
    let request = request(verb, given, folder).map_err(wrong)?;
    Ok(Parsed::Do(Invocation { json, request }))
}

fn help_of(words: &[OsString]) -> Result<Parsed, UsageError> {
    let Some(name) = words.first() else { return Ok(Parsed::Show(help::all())) };
    match VERBS.into_iter().find(|verb| name == verb.word()) {
        Some(verb) => Ok(Parsed::Show(help::of(verb))),
        None => Err(UsageError {
            what: format!("there is no verb `{}`", name.to_string_lossy()),
            verb: None,
        }),
    }
}

fn request(verb: Verb, given: Given, folder: &Path) -> Result<Request, String> {
    let machine = given.text("machine")?;
    if machine.is_some() && !verb.names_a_machine() {
        return Err("this is not about a machine: leave out -m".to_owned());
    }
    let timeout_ms = match given.text("timeout")? {
        None => None,
        Some(text) => Some(parse_ms(&text).ok_or_else(|| {
            format!("`{text}` is no time: a number is wanted, perhaps with ms, s, m, h or d")
        })?),
    };
    Ok(match verb {
        Verb::Exec => Request::Exec(exec(machine, timeout_ms, given)?),
        Verb::Wait => Request::Wait(WaitRequest { machine, until: until(&given)?, timeout_ms }),
        Verb::Push | Verb::Pull => {
            let [from @ .., to] = &given.words[..] else {
                return Err("what to copy, and where to, are wanted".to_owned());
            };
            if from.is_empty() {
                return Err("what to copy, and where to, are wanted".to_owned());
            }
            if given.words.iter().any(|path| path.is_empty()) {
                return Err("a path is empty".to_owned());
            }
            let host = |path: &OsString| absolute(folder, path);
            let guest = |path: &OsString| absolute(Path::new("/"), path);
            if verb == Verb::Push {
                let from = from.iter().map(host).collect();
                Request::Push(CopyRequest { machine, from, to: guest(to) })
            } else {
                let from = from.iter().map(guest).collect();
                Request::Pull(CopyRequest { machine, from, to: host(to) })
            }
        }
        Verb::Reboot | Verb::Poweroff | Verb::Facts => {
            if let Some(word) = given.words.first() {
                let word = word.to_string_lossy();
                return Err(format!("`{word}` is one word too many (a machine is named with -m)"));
            }
            match verb {
                Verb::Reboot => Request::Reboot { machine, timeout_ms },
                Verb::Poweroff => Request::Poweroff { machine },
                _ => Request::Facts { machine },
            }
        }
        Verb::Log => Request::Log { text: sentence(&given, "what to say")? },
        Verb::Skip => Request::Skip { reason: sentence(&given, "a reason")? },
        Verb::Fail => Request::Fail { reason: sentence(&given, "a reason")? },
        Verb::Sync => Request::Sync { name: name(one(&given, "NAME")?, "NAME")?, timeout_ms },
        Verb::Await => Request::Await { key: name(one(&given, "KEY")?, "KEY")?, timeout_ms },
        Verb::Send => {
            let word = one(&given, "KEY=VALUE")?.as_bytes();
            let Some(at) = word.iter().position(|&byte| byte == b'=') else {
                return Err("KEY=VALUE is wanted".to_owned());
            };
            let key = name(OsStr::from_bytes(&word[..at]), "KEY")?;
            Request::Send { key, value: Data(word[at + 1..].to_vec()) }
        }
    })
}

fn exec(
    machine: Option<String>,
    timeout_ms: Option<u64>,
    given: Given,
) -> Result<ExecRequest, String> {
    let mut env = BTreeMap::new();
    for change in given.all("env") {
        let change = change.as_bytes();
        let (key, value) = match change.iter().position(|&byte| byte == b'=') {
            Some(at) => (&change[..at], Some(Data(change[at + 1..].to_vec()))),
            None => (change, None),
        };
        env.insert(name(OsStr::from_bytes(key), "-e NAME=VALUE, or NAME to take it out,")?, value);
    }
    let (cwd, user, stdin) =
        (given.value("cwd").map(data), given.text("user")?, given.has("stdin"));
    let command = match (given.dashes, &given.words[..]) {
        (_, []) => return Err("a line, or `--` and a program, is wanted".to_owned()),
        (Some(0), argv) => Command::Argv(argv.iter().map(data).collect()),
        (_, [line]) => Command::Line(data(line)),
        (_, words) => {
            return Err(format!(
                "one line is wanted, not {} words: quote it, or put `--` before a program and its arguments",
                words.len()
            ));
        }
    };
    Ok(ExecRequest { machine, command, env, cwd, user, stdin, timeout_ms })
}

fn until(given: &Given) -> Result<Until, String> {
    let one_of = || "one is wanted of a line, --port, --file and --unit".to_owned();
    let port = match given.text("port")? {
        None => None,
        Some(text) => {
            let port = text.parse().ok().filter(|&port: &u16| port > 0);
            Some(Until::Port(port.ok_or_else(|| format!("`{text}` is no port"))?))
        }
    };
    let file = given.value("file").map(|path| Until::File(absolute(Path::new("/"), path)));
    let unit = given.text("unit")?.map(Until::Unit);
    let line = match &given.words[..] {
        [] => None,
        [line] => Some(Until::Line(data(line))),
        words => return Err(format!("one line is wanted, not {} words: quote it", words.len())),
    };
    let mut all = [port, file, unit, line].into_iter().flatten();
    match (all.next(), all.next()) {
        (Some(until), None) => Ok(until),
        _ => Err(one_of()),
    }
}

fn data(word: &OsString) -> Data {
    Data(word.clone().into_vec())
}

/// A path from `/`; what ends with a slash still does.
fn absolute(folder: &Path, path: &OsString) -> Data {
    data(&folder.join(path).into_os_string())
}

fn one<'a>(given: &'a Given, what: &str) -> Result<&'a OsStr, String> {
    match &given.words[..] {
        [word] => Ok(word),
        words => Err(format!("one {what} is wanted, not {} words", words.len())),
    }
}

fn name(word: &OsStr, what: &str) -> Result<String, String> {
    match word.to_str() {
        Some("") => Err(format!("{what} is wanted; the name is empty")),
        Some(name) => Ok(name.to_owned()),
        None => Err(format!("`{}` is no text", word.to_string_lossy())),
    }
}

fn sentence(given: &Given, what: &str) -> Result<String, String> {
    let words: Vec<_> = given.words.iter().map(|word| word.to_string_lossy()).collect();
    match words.join(" ") {
        empty if empty.trim().is_empty() => Err(format!("{what} is wanted")),
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests;
