//! Lossless streams: a child's standard input and output, ssh, a unix socket, an inherited socket, a vsock that is faked.

use crate::rig::{Agent, exercise, shell, soon};
use guestline::guest::Guest;
use guestline::link::{Endpoint, EndpointError, Lane, Link, LinkError, Transport, TransportKind};
use guestline_protocol::{Command, ExecRequest};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

const LEN: usize = 4_000_000;

async fn open(endpoint: &str) -> Result<Guest, EndpointError> {
    soon(endpoint, Guest::open(&endpoint.parse().unwrap())).await
}

fn agent() -> String {
    guestline_tests::named_by("GUESTLINE_AGENT").display().to_string()
}

fn is_gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.is_empty() || status.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_carries_a_link_and_ends_with_it() {
    let there = tempfile::tempdir().unwrap();
    // Two of them: the whole group ends.
    let guest = open(&format!("exec:cat | {} --link stdio | cat", agent())).await.unwrap();
    assert_eq!(guest.transport(), TransportKind::Stdio);
    exercise(&guest, there.path(), LEN, 1).await;
    let parent: u32 = shell(&guest, "echo $PPID").await.trim().parse().unwrap();
    assert!(!is_gone(parent));
    drop(guest);
    guestline_tests::wait_for("the end of the agent", || is_gone(parent).then_some(()));
}

#[tokio::test]
async fn a_child_that_fails_says_why() {
    let error = open("exec:echo first >&2; echo no route >&2; exit 3").await.unwrap_err();
    let EndpointError::Session { source, .. } = &error else { panic!("{error:?}") };
    let LinkError::ProgramEnded { how, stderr, .. } = &**source else { panic!("{source:?}") };
    assert_eq!((how.as_str(), stderr.as_str()), ("exited with status 3", "first\nno route"));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.ends_with("exited with status 3: no route"), "{source}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_ends_every_wait_with_the_reason() {
    let guest = open(&format!("exec:exec {} --link stdio", agent())).await.unwrap();
    let request = ExecRequest::new(Command::Shell(b"kill -9 $PPID; sleep 60".to_vec().into()));
    let error = soon("the end", guest.run(request, &[], 10)).await.unwrap_err();
    let LinkError::ProgramEnded { how, .. } = error else { panic!("{error:?}") };
    assert_eq!(how, "was killed by SIGKILL");
}

/// Run by the test below, with an `ssh` of its own on `PATH`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn inner_ssh() {
    let there = tempfile::tempdir().unwrap();
    let guest = open(&format!("ssh:me@there:2222,{}", agent())).await.unwrap();
    exercise(&guest, there.path(), LEN, 2).await;
    let error = open("ssh:nowhere").await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    let wanted = "the link is gone: `ssh nowhere` exited with status 255: ssh: no nowhere";
    assert_eq!(source, wanted);
}

#[test]
fn ssh_starts_the_agent_over_there() {
    let folder = tempfile::tempdir().unwrap();
    let ssh = folder.path().join("ssh");
    // What ssh does with its last argument: the other end's shell runs it.
    let script = "#!/bin/sh\ncase \"$*\" in\n\
        '-T -o BatchMode=yes -p 2222 -- me@there exec '*) shift 6; exec sh -c \"$2\" ;;\n\
        *) echo 'ssh: no nowhere' >&2; exit 255 ;;\nesac\n";
    std::fs::write(&ssh, script).unwrap();
    std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut inner = std::process::Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", "streams::inner_ssh", "--ignored"]).env("PATH", path);
    let output = inner.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_takes_one_controller_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let _agent = Agent::start(&format!("unix:{}", socket.display()));
    guestline_tests::wait_for("the socket", || socket.exists().then_some(()));
    let endpoint = format!("unix:{}", socket.display());
    for seed in 3..6 {
        let guest = open(&endpoint).await.unwrap();
        assert_eq!(guest.transport(), TransportKind::UnixSocket);
        exercise(&guest, folder.path(), LEN, seed).await;
        // Left running: the next controller finds it gone.
        let sleeper = ExecRequest::new(Command::Shell(b"exec sleep 1000".to_vec().into()));
        let _process = guest.exec(sleeper).await.unwrap();
    }
    let missing = open("unix:/nonexistent/socket").await.unwrap_err();
    assert_eq!(missing.to_string(), "cannot open `unix:/nonexistent/socket`");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_stream_socket_will_do_as_a_vsock_would() {
    let there = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let agent = Agent::with_stdin("fd:0", Stdio::from(OwnedFd::from(theirs)));
    let lane = Lane::fd(OwnedFd::from(ours)).unwrap();
    let (link, hello) =
        soon("a hello", Link::open(Transport::stream(TransportKind::Vsock, lane))).await.unwrap();
    let guest = Guest::new(link, hello);
    assert_eq!(guest.transport(), TransportKind::Vsock);
    exercise(&guest, there.path(), LEN, 7).await;
    drop(guest);
    let pid = agent.0.id();
    guestline_tests::wait_for("the end of the agent", || is_gone(pid).then_some(()));
}

#[tokio::test]
async fn a_vsock_that_cannot_be_is_refused_by_name() {
    // Where there is a vsock, nobody listens on this port of the host.
    let endpoint: Endpoint = "vsock:2:4294967294".parse().unwrap();
    let error = soon("a refusal", endpoint.open()).await.unwrap_err();
    let named = matches!(error, EndpointError::NoVsock { .. } | EndpointError::Open { .. });
    assert!(named, "{error:?}");
    assert!(error.to_string().starts_with("cannot open `vsock:2:4294967294`"), "{error}");
}

#[tokio::test]
async fn a_qemu_guest_agent_carries_no_link() {
    let error = "qga:/x".parse::<Endpoint>().unwrap().open().await.unwrap_err();
    assert_eq!(error.to_string(), "`qga:/x` is a qemu-guest-agent's, which carries no link");
}
