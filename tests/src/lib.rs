//! What the end-to-end tests share: the program as a user runs it, with folders of its own, and what it leaves behind.
//!
//! `make test` names the program and the agent in `GUESTLINE_PROGRAM` and `GUESTLINE_AGENT`, and the oldest QEMU that
//! is promised to work in `GUESTLINE_OLDEST_QEMU`.

use guestline::dirs::Dirs;
use guestline::image::{Agent, BuildTerms, Image, LockPolicy, PackageSource, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// The file that a variable of the environment names.
///
/// # Panics
/// When it names none: the tests are to be run by `make test`.
pub fn named_by(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    path.unwrap_or_else(|| panic!("{variable} names no file: run the tests with `make test`"))
}

/// The oldest QEMU that is promised to work.
///
/// # Panics
/// When the environment names none: `make test` goes on without it, so that only what needs it fails.
pub fn oldest_qemu() -> PathBuf {
    let path = std::env::var_os("GUESTLINE_OLDEST_QEMU").map(PathBuf::from);
    path.filter(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "GUESTLINE_OLDEST_QEMU names no file: `setup/qemu-7.2.sh` fetches that QEMU and prints its path, or says \
             why it cannot"
        )
    })
}

/// The program with state, evidence and work folders of this test; images are shared by all tests.
pub struct Guestline {
    home: tempfile::TempDir,
    variables: Vec<(String, String)>,
    /// Program and arguments that run it, such as a shell that limits something.
    wrapper: Vec<String>,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit status, 128 and the number for a signal.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, lossy.
    pub stderr: String,
}

impl Default for Guestline {
    fn default() -> Self {
        Self::new()
    }
}

impl Guestline {
    /// With folders of its own.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("gl").tempdir().expect("a temporary folder");
        Self { home, variables: Vec::new(), wrapper: Vec::new() }
    }

    /// With a variable of the environment.
    pub fn with(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.variables.push((name.to_owned(), value.as_ref().display().to_string()));
        self
    }

    /// Run by another program.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The folder of this test.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let program = named_by("GUESTLINE_PROGRAM");
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        let home = self.home.path();
        command.args(args).current_dir(home).env_remove("GUESTLINE_HOME");
        command.env("HOME", home).env("XDG_CACHE_HOME", shared_cache());
        command
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CONFIG_HOME", home.join("config"));
        std::fs::create_dir_all(home.join("run")).expect("a folder of our own");
        command.env("XDG_RUNTIME_DIR", home.join("run"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("the program can be run");
        Ran::from(output)
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn start(&self, args: &[&str]) -> Running {
        Running { child: self.command(args).spawn().expect("the program can be run") }
    }

    /// Starts it with standard output going elsewhere.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_onto(&self, args: &[&str], stdout: Stdio) -> Ran {
        let output = self.command(args).stdout(stdout).output().expect("the program can be run");
        Ran::from(output)
    }

    /// Runs it with something to read.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the program can be run");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::thread::scope(|scope| {
            // It may not want to read it all.
            scope.spawn(move || stdin.write_all(input));
            Ran::from(child.wait_with_output().expect("a child"))
        })
    }

    /// Runs it with standard input coming from elsewhere.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_from(&self, args: &[&str], stdin: Stdio) -> Ran {
        let output = self.command(args).stdin(stdin).output().expect("the program can be run");
        Ran::from(output)
    }

    /// Runs another program with the environment of this test.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_other(&self, program: &str, args: &[&str], stdin: Stdio) -> Ran {
        let ours = self.command(&[]);
        let mut command = Command::new(program);
        for (name, value) in ours.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(args).current_dir(self.home.path()).stdin(stdin);
        Ran::from(command.output().expect("the program can be run"))
    }

    /// QEMU processes that belong to this test: their working folder is a work folder of it.
    pub fn qemus(&self) -> Vec<Pid> {
        let run = self.home.path().join("run");
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let folder = std::fs::read_link(entry.path().join("cwd")).ok()?;
                folder.starts_with(&run).then_some(Pid::from_raw(pid))
            })
            .collect()
    }

    /// Waits until a machine of this test runs.
    ///
    /// # Panics
    /// When none comes.
    pub fn wait_for_qemu(&self) -> Pid {
        wait_for("a QEMU", || self.qemus().first().copied())
    }

    /// Nothing is left: no QEMU, no work folder.
    ///
    /// # Panics
    /// When something is left for longer than a moment.
    pub fn assert_nothing_left(&self) {
        wait_for("the end of every QEMU", || self.qemus().is_empty().then_some(()));
        let folder = self.home.path().join("run/guestline");
        wait_for("an empty runtime folder", || {
            let left = std::fs::read_dir(&folder).map_or(0, Iterator::count);
            (left == 0).then_some(())
        });
    }

    /// The evidence of the latest run.
    pub fn evidence(&self, number: u32) -> PathBuf {
        self.home.path().join(format!("state/guestline/runs/latest/{number}"))
    }
}

/// A cache that tests share, so that the image is made once: below the target folder.
pub fn shared_cache() -> PathBuf {
    match std::env::var_os("GUESTLINE_TEST_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-cache"),
    }
}

/// Folders of a test that leases machines by itself; what is made once is shared.
pub fn dirs_of(home: &Path) -> Dirs {
    Dirs { cache: shared_cache().join("guestline"), ..Dirs::below(home) }
}

/// The image `tiny`, made first when it is not there.
///
/// # Panics
/// When it cannot be made.
pub async fn tiny(dirs: &Dirs) -> Image {
    image(dirs, "tiny").await
}

/// An image, by its name or the path of its manifest, made first when it is not there.
///
/// # Panics
/// When it cannot be made.
pub async fn image(dirs: &Dirs, reference: &str) -> Image {
    let reference = reference.to_owned();
    let agent = Agent::from_file(&named_by("GUESTLINE_AGENT")).expect("an agent");
    let store = Store::new(dirs, PackageSource::Apt);
    let made = tokio::task::spawn_blocking(move || {
        let recipe = store.catalogue().get(&reference).expect("a manifest");
        let cancel = CancellationToken::new();
        let terms = BuildTerms { lock: LockPolicy::default(), cancel: &cancel, tell: &|_| () };
        store.get(&recipe, &agent, &terms, &|_| Ok(()))
    });
    made.await.expect("it does not panic").expect("an image")
}

/// Polls until there is a value.
///
/// # Panics
/// When none comes.
pub fn wait_for<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A run that goes on.
pub struct Running {
    child: Child,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// The next line of its standard output.
    ///
    /// # Panics
    /// When that cannot be read.
    pub fn next_line(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte).expect("a pipe") == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that does not come.
    pub fn wait(mut self) -> Ran {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ran::from(self.child.wait_with_output().expect("a child"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status: status(output.status), stdout: output.stdout, stderr }
    }
}

fn status(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Standard output of what ended well.
///
/// # Panics
/// When it did not.
pub fn right(ran: &Ran) -> String {
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout(), ran.stderr);
    ran.stdout()
}

impl Ran {
    /// Standard output, lossy.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The verdict lines.
    pub fn verdicts(&self) -> Vec<&str> {
        let words = ["passed ", "failed ", "skipped ", "errored ", "aborted ", "incompatible "];
        self.stderr.lines().filter(|line| words.iter().any(|word| line.starts_with(word))).collect()
    }

    /// Checks status and a piece of the one verdict line.
    ///
    /// # Panics
    /// When they are others.
    #[track_caller]
    pub fn assert_verdict(&self, status: i32, piece: &str) {
        let verdicts = self.verdicts();
        assert_eq!(verdicts.len(), 1, "{}", self.stderr);
        assert!(verdicts[0].contains(piece), "no `{piece}` in:\n{}", self.stderr);
        assert_eq!(self.status, status, "{}", self.stderr);
    }

    /// Standard output as JSON lines.
    ///
    /// # Panics
    /// When a line is no JSON.
    pub fn events(&self) -> Vec<Value> {
        let text = self.stdout();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}
