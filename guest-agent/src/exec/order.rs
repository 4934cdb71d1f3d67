//! From a request to what the kernel is given: words, environment, programs to try, limits; and back from what
//! failed to an error.

use super::account::{Account, AccountFiles};
use super::{Base, invalid, shown, system};
use crate::sys::spawn::{HasNul, Limit, SpawnFailure, Step, Strings};
use guestline_files::describe;
use guestline_protocol::{Command, ErrorKind, ExecRequest, RemoteError, Resource, ResourceLimit};
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where programs are looked for when the environment has no `PATH`, as in musl's execvp(3).
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/bin:/usr/bin";

/// At most so many folders of `PATH` are tried.
const MAX_FOLDERS: usize = 512;

/// The longest name in a folder, and the longest path (`linux/limits.h`).
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;

/// The terminal that is said to be there when the request names none.
const TERMINAL_NAME: &[u8] = b"xterm";

/// A command's words. The memory of the last one's serves the next: asked for anew, it is mapped and unmapped each time.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) programs: Strings,
    pub(super) argv: Strings,
    pub(super) envp: Strings,
}

/// All of a command but its descriptors.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) words: Words,
    pub(super) cwd: CString,
    pub(super) account: Account,
    pub(super) umask: Option<u32>,
    pub(super) limits: Vec<Limit>,
}

impl Order {
    /// Checks a request and makes it ready.
    ///
    /// # Errors
    /// `Invalid` for what makes no sense, `NotFound` for an unknown user or group.
    pub(super) fn new(
        request: &ExecRequest,
        base: &Base,
        accounts: &AccountFiles,
        last: Words,
    ) -> Result<Self, RemoteError> {
        let words = words(&request.command, &base.shell);
        let Some(program) = words.first().filter(|program| !program.is_empty()) else {
            return Err(invalid("the command is empty".to_owned()));
        };
        let mut argv = last.argv.emptied();
        for word in &words {
            let nul = |HasNul| invalid(format!("a NUL byte is in argument `{}`", shown(word)));
            argv.push(&[word]).map_err(nul)?;
        }
        let (user, group) = (request.user.as_deref(), request.group.as_deref());
        let account = accounts.resolve(user, group, request.groups.as_deref())?;
        let environment = environment(request, base, &account)?;
        let path = environment.get(b"PATH".as_slice()).copied().unwrap_or(DEFAULT_PATH);
        let programs = programs(program, path, last.programs.emptied())?;
        let mut envp = last.envp.emptied();
        for (name, value) in environment {
            let nul = |HasNul| invalid(format!("a NUL byte is in variable `{}`", shown(name)));
            envp.push(&[name, b"=", value]).map_err(nul)?;
        }
        let cwd: &[u8] = request.cwd.as_ref().map_or(b"/", |cwd| cwd);
        let cwd = CString::new(cwd).map_err(|_| {
            invalid(format!("a NUL byte is in the name of working folder `{}`", shown(cwd)))
        })?;
        if let Some(umask) = request.umask.filter(|umask| *umask > 0o777) {
            return Err(invalid(format!("{umask:#o} is no file mode creation mask")));
        }
        let limits = request.limits.iter().map(limit).collect::<Result<_, _>>()?;
        let words = Words { programs, argv, envp };
        Ok(Self { words, cwd, account, umask: request.umask, limits })
    }

    /// Says what failed.
    pub(super) fn failure(&self, failure: SpawnFailure) -> RemoteError {
        let SpawnFailure { step, errno } = failure;
        let account = &self.account;
        match step {
            Step::Clone => system(errno, "cannot start a process"),
            Step::Cgroup => system(errno, "cannot enter a cgroup"),
            Step::Terminal => system(errno, "cannot open a session"),
            Step::Stdio => system(errno, "cannot connect input and output"),
            Step::Limits => system(errno, "cannot set the resource limits"),
            Step::Identity => {
                let (uid, gid) = (account.uid, account.gid);
                let number = |id: Option<u32>| id.map_or("as before".into(), |id| id.to_string());
                system(errno, &format!("cannot become user {}, group {}", number(uid), number(gid)))
            }
            Step::Folder => {
                let folder = shown(self.cwd.as_bytes());
                let message = format!("working folder `{folder}`: {}", describe(errno));
                RemoteError { kind: ErrorKind::Invalid, errno: Some(errno as i32), message }
            }
            Step::Program => self.program_failure(errno),
        }
    }

    fn program_failure(&self, errno: Errno) -> RemoteError {
        let program = self.words.argv.iter().next().map(shown).unwrap_or_default();
        let (kind, message) = match errno {
            // The kernel says the same of a program whose interpreter or loader is missing.
            Errno::ENOENT if self.has_program() => {
                let what = "its interpreter (`#!` line or dynamic loader) is not there";
                (ErrorKind::NotExecutable, format!("{program}: {what}"))
            }
            Errno::ENOENT | Errno::ENOTDIR => {
                (ErrorKind::NotFound, format!("{program}: not found"))
            }
            Errno::EACCES => (ErrorKind::NotExecutable, format!("{program}: may not be executed")),
            Errno::ENOEXEC => (ErrorKind::NotExecutable, format!("{program}: no executable file")),
            other => (ErrorKind::System, format!("{program}: {}", describe(other))),
        };
        RemoteError { kind, errno: Some(errno as i32), message }
    }

    fn has_program(&self) -> bool {
        let cwd = Path::new(OsStr::from_bytes(self.cwd.as_bytes()));
        self.words.programs.iter().any(|program| cwd.join(OsStr::from_bytes(program)).exists())
    }
}

fn words<'a>(command: &'a Command, shell: &'a [u8]) -> Vec<&'a [u8]> {
    match command {
        Command::Shell(line) => vec![shell, b"-c", line],
        Command::Argv(words) => words.iter().map(|word| word.as_slice()).collect(),
    }
}

/// Adds the programs that execvp(3) would try: what names a file stands for itself, the rest is looked up in `path`.
fn programs(program: &[u8], path: &[u8], mut programs: Strings) -> Result<Strings, RemoteError> {
    let nul = |HasNul| invalid("a NUL byte is in variable `PATH`".to_owned());
    // The kernel says of a name that is too long that it is.
    if program.contains(&b'/') || program.len() > NAME_MAX {
        programs.push(&[program]).map_err(nul)?;
        return Ok(programs);
    }
    for folder in path.split(|byte| *byte == b':').take(MAX_FOLDERS) {
        if folder.is_empty() {
            // The working folder; said so, since a bare name is a path as well.
            programs.push(&[b"./", program]).map_err(nul)?;
        } else if folder.len() < PATH_MAX {
            programs.push(&[folder, b"/", program]).map_err(nul)?;
        }
    }
    Ok(programs)
}

/// The base or nothing; what the user and the terminal set; then what the request changes.
fn environment<'a>(
    request: &'a ExecRequest,
    base: &'a Base,
    account: &'a Account,
) -> Result<BTreeMap<&'a [u8], &'a [u8]>, RemoteError> {
    let mut environment = BTreeMap::new();
    if !request.clear_env {
        environment.extend(
            base.environment.iter().map(|(name, value)| (name.as_slice(), value.as_slice())),
        );
    }
    environment.extend(account.variables.iter().map(|(name, value)| (*name, value.as_slice())));
    if request.terminal.is_some() {
        environment.entry(b"TERM".as_slice()).or_insert(TERMINAL_NAME);
    }
    for change in &request.env {
        let name = change.name.as_slice();
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return Err(invalid(format!("`{}` is no name of a variable", shown(name))));
        }
        match &change.value {
            Some(value) => environment.insert(name, value.as_slice()),
            None => environment.remove(name),
        };
    }
    Ok(environment)
}

fn limit(limit: &ResourceLimit) -> Result<Limit, RemoteError> {
    if limit.soft > limit.hard {
        let (resource, soft, hard) = (limit.resource, limit.soft, limit.hard);
        return Err(invalid(format!("soft limit {soft} of {resource:?} is above hard {hard}")));
    }
    let resource = match limit.resource {
        Resource::AddressSpace => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    };
    Ok(Limit { resource: resource.into(), values: [limit.soft, limit.hard] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestline_protocol::{ByteBuf, EnvChange, TerminalSize};

    fn change(name: &str, value: Option<&str>) -> EnvChange {
        EnvChange {
            name: name.as_bytes().to_vec().into(),
            value: value.map(|v| v.as_bytes().to_vec().into()),
        }
    }

    fn request(words: &[&str]) -> ExecRequest {
        let words = words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect();
        ExecRequest::new(Command::Argv(words))
    }

    fn base() -> Base {
        let variable = |name: &str, value: &str| (name.into(), value.into());
        let environment = vec![variable("PATH", "/a:/b"), variable("HOME", "/root")];
        Base { environment, shell: b"/bin/x".to_vec() }
    }

    #[test]
    fn a_line_is_for_the_shell() {
        let order = order(&ExecRequest::new(Command::Shell(b"a b".to_vec().into()))).unwrap();
        assert_eq!(texts(&order.words.argv), ["/bin/x", "-c", "a b"]);
        assert_eq!(texts(&order.words.programs), ["/bin/x"]);
    }

    fn order(request: &ExecRequest) -> Result<Order, RemoteError> {
        Order::new(request, &base(), &AccountFiles::default(), Words::default())
    }

    fn texts(strings: &Strings) -> Vec<String> {
        strings.iter().map(|string| String::from_utf8_lossy(string).into_owned()).collect()
    }

    #[test]
    fn a_name_is_looked_up_in_the_path_of_the_new_environment() {
        let mut wanted = request(&["x", "y"]);
        assert_eq!(texts(&order(&wanted).unwrap().words.programs), ["/a/x", "/b/x"]);
        wanted.env = vec![change("PATH", Some(":/c:"))];
        assert_eq!(texts(&order(&wanted).unwrap().words.programs), ["./x", "/c/x", "./x"]);
        wanted.env = vec![change("PATH", None)];
        let default = ["/usr/local/bin/x", "/bin/x", "/usr/bin/x"];
        assert_eq!(texts(&order(&wanted).unwrap().words.programs), default);
        assert_eq!(texts(&order(&request(&["./x"])).unwrap().words.programs), ["./x"]);
        let long = "x".repeat(256);
        assert_eq!(texts(&order(&request(&[&long])).unwrap().words.programs), [long]);
        wanted.env = vec![change("PATH", Some(&"a:".repeat(100_000)))];
        assert_eq!(order(&wanted).unwrap().words.programs.iter().count(), MAX_FOLDERS);
    }

    #[test]
    fn changes_come_after_what_user_and_terminal_set() {
        let mut wanted = request(&["x"]);
        wanted.user = Some("root".to_owned());
        wanted.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        wanted.clear_env = true;
        wanted.env = vec![
            change("HOME", Some("/h")),
            change("SHELL", None),
            change("A", Some("1")),
            change("A", Some("2=3")),
            change("E", Some("")),
        ];
        let expected = ["A=2=3", "E=", "HOME=/h", "LOGNAME=root", "TERM=xterm", "USER=root"];
        assert_eq!(texts(&order(&wanted).unwrap().words.envp), expected);
        assert_eq!(
            texts(&order(&request(&["x"])).unwrap().words.envp),
            ["HOME=/root", "PATH=/a:/b"]
        );
    }

    #[test]
    fn nonsense_is_invalid() {
        let cases: [fn(&mut ExecRequest); 13] = [
            |r| r.command = Command::Argv(vec![]),
            |r| r.command = Command::Argv(vec![ByteBuf::new(), ByteBuf::from("x")]),
            |r| r.command = Command::Argv(vec![ByteBuf::from("a\0b")]),
            |r| r.command = Command::Argv(vec![ByteBuf::from("a"), ByteBuf::from("\0")]),
            |r| r.command = Command::Shell(ByteBuf::from("a\0")),
            |r| r.cwd = Some(ByteBuf::from("/\0")),
            |r| r.env = vec![change("", Some("x"))],
            |r| r.env = vec![change("a=b", Some("x"))],
            |r| r.env = vec![change("a\0", None)],
            |r| r.env = vec![change("a", Some("\0"))],
            |r| r.env = vec![change("PATH", Some("/a\0:/b"))],
            |r| r.umask = Some(0o1000),
            |r| r.limits = vec![ResourceLimit { resource: Resource::Core, soft: 2, hard: 1 }],
        ];
        for (number, spoil) in cases.into_iter().enumerate() {
            let mut wanted = request(&["x"]);
            spoil(&mut wanted);
            let error = order(&wanted).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{number}: {error}");
        }
    }

    #[test]
    fn a_great_many_changes_take_no_time() {
        let mut wanted = request(&["x"]);
        wanted.env = (0..60_000).map(|n| change(&n.to_string(), Some(""))).collect();
        assert_eq!(order(&wanted).unwrap().words.envp.iter().count(), 60_002);
    }
}
