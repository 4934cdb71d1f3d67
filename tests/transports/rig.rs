//! The real agent on one end of anything, and what every transport has to carry.

use guestline::guest::{Guest, PullOptions, PushOptions};
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Nothing of these tests takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The agent as a service.
pub(crate) struct Agent(pub(crate) Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    pub(crate) fn start(link: &str) -> Self {
        Self::with_stdin(link, Stdio::null())
    }

    pub(crate) fn with_stdin(link: &str, stdin: Stdio) -> Self {
        let mut command = std::process::Command::new(guestline_tests::named_by("GUESTLINE_AGENT"));
        Self(command.args(["--link", link]).stdin(stdin).spawn().unwrap())
    }
}

/// Bytes that look like nothing.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Waits for something of a test that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A shell line's output.
pub(crate) async fn shell(guest: &Guest, line: &str) -> String {
    let request = ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()));
    let output = soon(line, guest.run(request, &[], 1 << 20)).await.unwrap();
    assert_eq!(output.exited.status, ExitStatus::Exited(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Files of `len` bytes go in and come back as they were; the guest's own sum agrees. `there` is a folder in the guest.
pub(crate) async fn exercise(
    guest: &Guest,
    there: &Path,
    len: usize,
    seed: u64,
) -> (Duration, Duration) {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(shell(guest, "echo one; echo two").await, "one\ntwo\n");
    let ping = soon("a ping", guest.ping()).await.unwrap();
    let content = Random(seed).bytes(len);
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    std::fs::write(&from, &content).unwrap();
    let inside = there.join("pushed");
    let name = inside.to_str().unwrap();
    let began = Instant::now();
    let pushed =
        soon("a push", guest.push(&from, name.as_bytes(), PushOptions::default())).await.unwrap();
    let push = began.elapsed();
    assert_eq!((pushed.counts.bytes, pushed.troubles.as_slice()), (len as u64, &[][..]));
    let sums = shell(guest, &format!("sha256sum < {name}")).await;
    let ours = {
        let mut command = std::process::Command::new("sha256sum");
        let output = command.stdin(std::fs::File::open(&from).unwrap()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(sums.trim(), ours.trim());
    let began = Instant::now();
    let options = PullOptions::default();
    let pulled = soon("a pull", guest.pull(name.as_bytes(), &to, options)).await.unwrap();
    let pull = began.elapsed();
    assert_eq!((pulled.counts.bytes, pulled.troubles.as_slice()), (len as u64, &[][..]));
    assert!(std::fs::read(&to).unwrap() == content, "what came back is something else");
    let rate = |took: Duration| len as f64 / 1e3 / took.as_secs_f64();
    eprintln!(
        "{}: ping {ping:.1?}, {len} bytes pushed at {:.0} kB/s, pulled at {:.0} kB/s",
        guest.transport(),
        rate(push),
        rate(pull)
    );
    (push, pull)
}
