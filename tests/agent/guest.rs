//! The host's API against the real agent: processes, files, logs, facts, sockets.

use crate::raw;
use guestline::guest::{ExecEvent, Guest, HostTarget, Log, PullOptions, PushOptions};
use guestline::link::{Lane, Link, LinkError, Transport, TransportKind};
use guestline_protocol::{
    Command, EnvChange, ErrorKind, ExecRequest, ExitStatus, FileKind, Resource, ResourceLimit,
    SocketAddress, StdinSource, Stream, TerminalSize,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Child;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A guest that is this host, and its agent's process.
struct Rig {
    guest: Guest,
    child: Child,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn rig() -> Rig {
    let (child, stream) = raw::spawn();
    stream.set_nonblocking(true).unwrap();
    let stream = UnixStream::from_std(stream).unwrap();
    let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(stream));
    let (link, hello) = Link::open(transport).await.unwrap();
    Rig { guest: Guest::new(link, hello), child }
}

fn sh(line: &str) -> ExecRequest {
    ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()))
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

async fn stdout(guest: &Guest, request: ExecRequest) -> String {
    let output = guest.run(request, &[], 1 << 20).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_gets_its_environment_folder_mask_and_limits() {
    let rig = rig().await;
    let mut request = sh("printf %s \"$X-${HOME-none}\"; pwd; umask; ulimit -n");
    request.env = vec![
        EnvChange { name: b"X".to_vec().into(), value: Some(b"1".to_vec().into()) },
        EnvChange { name: b"HOME".to_vec().into(), value: None },
    ];
    request.cwd = Some(b"/usr".to_vec().into());
    request.umask = Some(0o027);
    request.limits = vec![ResourceLimit { resource: Resource::OpenFiles, soft: 99, hard: 100 }];
    assert_eq!(stdout(&rig.guest, request).await, "1-none/usr\n0027\n99\n");
    let mut request = sh("id -u; id -g");
    request.user = Some("nobody".to_owned());
    assert_eq!(stdout(&rig.guest, request).await, "65534\n65534\n");
    let mut request = sh("true");
    request.user = Some("no-such-user".to_owned());
    let error = rig.guest.run(request, &[], 0).await.unwrap_err();
    assert!(matches!(error, LinkError::Refused(error) if error.kind == ErrorKind::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_go_in_and_out_of_a_process_in_order() {
    let rig = rig().await;
    let input: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = rig.guest.run(sh("cat"), &input, 10_000_000).await.unwrap();
    assert_eq!(output.exited.status, ExitStatus::Exited(0));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_nobody_reads_waits_and_hinders_nobody() {
    let rig = rig().await;
    let mut flood = rig.guest.exec(sh("yes")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(rig.guest.ping().await.unwrap() < Duration::from_secs(5));
    assert_eq!(stdout(&rig.guest, sh("echo beside")).await, "beside\n");
    flood.cancel();
    loop {
        if let ExecEvent::Exited(exited) = flood.next().await.unwrap() {
            assert!(exited.cancelled);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_is_dropped_takes_its_process_with_it() {
    let rig = rig().await;
    let mut process = rig.guest.exec(sh("sleep 1000 & echo $!; wait")).await.unwrap();
    let pid = loop {
        if let ExecEvent::Output { data, .. } = process.next().await.unwrap() {
            break String::from_utf8(data).unwrap().trim().to_owned();
        }
    };
    drop(process);
    tokio::task::spawn_blocking(move || raw::wait_until_gone(&pid)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_takes_signals() {
    let rig = rig().await;
    let mut request = sh(
        "stty size; trap 'echo resized; stty size' WINCH; echo ready; read -r line; echo got $line; read -r line; echo never",
    );
    request.terminal = Some(TerminalSize { columns: 77, rows: 33 });
    request.stdin = StdinSource::Channel;
    let mut process = rig.guest.exec(request).await.unwrap();
    let mut input = process.take_input().unwrap();
    let mut said = String::new();
    let mut step = 0;
    let exited = loop {
        match process.next().await.unwrap() {
            ExecEvent::Output { data, stream } => {
                assert_eq!(stream, Stream::Stdout);
                said += &String::from_utf8(data).unwrap();
            }
            ExecEvent::Exited(exited) => break exited,
            _ => {}
        }
        if step == 0 && said.contains("ready") {
            step = 1;
            input.write(b"hello\n").await.unwrap();
        } else if step == 1 && said.contains("got hello") {
            step = 2;
            input.resize(TerminalSize { columns: 100, rows: 40 });
            input.signal(2, true);
        }
    };
    assert!(said.starts_with("33 77"), "{said}");
    assert!(said.contains("got hello") && !said.contains("never"), "{said}");
    assert_eq!(exited.status, ExitStatus::Signaled { signal: 2, core_dumped: false });
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_come_and_go_with_all_that_they_are() {
    let rig = rig().await;
    let home = tempfile::tempdir().unwrap();
    let (from, there, back) =
        (home.path().join("from"), home.path().join("there"), home.path().join("back"));
    std::fs::create_dir_all(from.join("sub/empty")).unwrap();
    std::fs::write(from.join("sub/file"), vec![5; 3_000_000]).unwrap();
    std::fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::hard_link(from.join("sub/file"), from.join("twin")).unwrap();
    std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
    let sparse = std::fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    let pushed = rig.guest.push(&from, bytes(&there), PushOptions::default()).await.unwrap();
    assert_eq!((pushed.counts.troubles, pushed.troubles.len()), (0, 0), "{pushed:?}");
    let pulled = rig.guest.pull(bytes(&there), &back, PullOptions::default()).await.unwrap();
    assert_eq!(pulled.counts.troubles, 0, "{pulled:?}");
    for copy in [&there, &back] {
        let diff =
            std::process::Command::new("diff").arg("-r").args([&from, copy]).output().unwrap();
        assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
        let (file, twin) = (copy.join("sub/file"), copy.join("twin"));
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(file.metadata().unwrap().ino(), twin.metadata().unwrap().ino());
        assert_eq!(
            file.metadata().unwrap().mtime_nsec(),
            from.join("sub/file").metadata().unwrap().mtime_nsec()
        );
        assert_eq!(copy.join("link").read_link().unwrap(), Path::new("sub/file"));
        assert!(copy.join("sparse").metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_looked_at_written_read_and_removed() {
    let rig = rig().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a/b/file");
    rig.guest.make_folder(bytes(file.parent().unwrap()), 0o750, true).await.unwrap();
    rig.guest.write(bytes(&file), b"content", 0o600).await.unwrap();
    assert_eq!(rig.guest.read(bytes(&file), 100).await.unwrap(), b"content");
    assert!(rig.guest.read(bytes(&file), 6).await.is_err());
    assert!(rig.guest.read(bytes(home.path()), 100).await.is_err());
    let info = rig.guest.stat(bytes(&file), false).await.unwrap();
    assert_eq!((info.kind, info.mode, info.len), (FileKind::File, 0o600, 7));
    let entries = rig.guest.list(bytes(file.parent().unwrap())).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(&entries[0].name[..], b"file");
    for number in 0..1000 {
        std::fs::write(home.path().join(format!("{number:04}")), "").unwrap();
    }
    let entries = rig.guest.list(bytes(home.path())).await.unwrap();
    assert_eq!((entries.len(), &entries[7].name[..]), (1001, &b"0007"[..]));
    assert!(rig.guest.remove(bytes(&home.path().join("a")), false, false).await.is_err());
    rig.guest.remove(bytes(&home.path().join("a")), true, false).await.unwrap();
    let error = rig.guest.stat(bytes(&file), false).await.unwrap_err();
    assert!(matches!(error, LinkError::Refused(error) if error.kind == ErrorKind::NotFound));
    assert!(rig.guest.remove(bytes(&file), false, false).await.is_err());
    rig.guest.remove(bytes(&file), false, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_into_a_full_file_system_says_so() {
    let rig = rig().await;
    let home = tempfile::tempdir().unwrap();
    let small = home.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=1m", "none"];
    let mounted = std::process::Command::new("mount").args(mount).arg(&small).status().unwrap();
    if !mounted.success() {
        eprintln!("left out: tmpfs cannot be mounted here");
        return;
    }
    let file = home.path().join("file");
    std::fs::write(&file, vec![1; 5_000_000]).unwrap();
    let pushed = rig.guest.push(&file, bytes(&small.join("file")), PushOptions::default()).await;
    let left = std::fs::read_dir(&small).unwrap().count();
    let _ = std::process::Command::new("umount").arg(&small).status();
    let pushed = pushed.unwrap();
    assert_eq!(pushed.troubles.len(), 1);
    assert_eq!(pushed.troubles[0].error.errno, Some(28), "{pushed:?}");
    assert_eq!(left, 0);
    assert!(rig.guest.ping().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_followed_over_its_rotation_with_both_clocks() {
    let rig = rig().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("log");
    std::fs::write(&file, "old\n").unwrap();
    let log = Log::File(bytes(&file).to_vec());
    let mut lines = rig.guest.log(&log, true, true).await.unwrap();
    let line = lines.next().await.unwrap().unwrap();
    assert_eq!(line.to_text(), "old");
    assert!(line.host_us.abs_diff(line.guest_us) < 60_000_000);
    std::fs::rename(&file, home.path().join("log.1")).unwrap();
    std::fs::write(&file, "new\x1b[2J\nlast").unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().to_text(), "new\\u{1b}[2J");
    drop(lines);
    let mut whole = rig.guest.log(&log, true, false).await.unwrap();
    let mut all = Vec::new();
    while let Some(line) = whole.next().await.unwrap() {
        all.push(line.to_text());
    }
    assert_eq!(all, ["new\\u{1b}[2J", "last"]);
    let mut none = rig.guest.log(&Log::File(b"/no/such".to_vec()), true, false).await.unwrap();
    assert!(
        matches!(none.next().await, Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_and_samples_are_of_this_machine() {
    let rig = rig().await;
    let facts = rig.guest.facts().await.unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts.kernel, release.trim());
    assert!(facts.memory.total_kib > 0 && !facts.cpu.flags.is_empty());
    assert!(facts.nics.iter().any(|nic| nic.name == "lo"), "{facts:?}");
    let mut samples = rig.guest.samples(Duration::from_millis(20)).await.unwrap();
    let (first, second) = (samples.next().await.unwrap(), samples.next().await.unwrap());
    let time = |sample: guestline_protocol::SampleEvent| sample.cpu_busy_us + sample.cpu_idle_us;
    assert!(time(second) >= time(first) && second.clock_us > first.clock_us);
    assert!(rig.guest.skew().await.unwrap().micros.abs() < 10_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_forwarded_both_ways() {
    let rig = rig().await;
    let home = tempfile::tempdir().unwrap();
    // To the guest: an echo server there, a TCP and a unix listener here.
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(echo_all(server));
    let inside = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port };
    let here = HostTarget::Tcp("127.0.0.1:0".parse().unwrap());
    let forwarding = rig.guest.forward(&here, inside.clone()).await.unwrap();
    let HostTarget::Tcp(address) = forwarding.address().clone() else { panic!() };
    let (a, b) = tokio::join!(through_tcp(address), through_tcp(address));
    assert!(a && b);
    let path = home.path().join("here.sock");
    let unix = rig.guest.forward(&HostTarget::Unix(path.clone()), inside).await.unwrap();
    assert!(through(UnixStream::connect(&path).await.unwrap()).await);
    drop(unix);
    assert!(!path.exists());
    // From the guest: a listener there, an echo server here.
    let server = UnixListener::bind(home.path().join("echo.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = server.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    let inside = SocketAddress::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    let target = HostTarget::Unix(home.path().join("echo.sock"));
    let listening = rig.guest.listen(inside, target).await.unwrap();
    let port = listening.port.unwrap();
    assert!(through_tcp(([127, 0, 0, 1], port).into()).await);
    drop(listening);
    // Nobody there.
    let nobody = SocketAddress::Unix(bytes(&home.path().join("none")).to_vec().into());
    assert!(matches!(rig.guest.connect(nobody).await, Err(LinkError::Refused(_))));
}

async fn echo_all(server: TcpListener) {
    while let Ok((stream, _)) = server.accept().await {
        tokio::spawn(echo(stream));
    }
}

async fn echo(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
    let (mut from, mut to) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

async fn through_tcp(address: std::net::SocketAddr) -> bool {
    through(TcpStream::connect(address).await.unwrap()).await
}

/// Two megabytes there and back, then the end both ways.
async fn through(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
) -> bool {
    let out: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 253) as u8).collect();
    let (mut from, mut to) = tokio::io::split(stream);
    let sent = out.clone();
    let writing = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), from.read_to_end(&mut back)).await;
    writing.await.unwrap();
    read.is_ok() && back == out
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_agent_ends_every_wait() {
    let mut rig = rig().await;
    let mut process = rig.guest.exec(sh("sleep 1000")).await.unwrap();
    assert!(matches!(process.next().await, Ok(ExecEvent::Started { .. })));
    rig.child.kill().unwrap();
    assert!(matches!(process.next().await, Err(LinkError::Closed)));
    assert!(matches!(rig.guest.ping().await, Err(LinkError::Closed)));
}
