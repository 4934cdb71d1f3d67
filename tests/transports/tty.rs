//! The real agent behind a serial line that does what serial lines do.
//!
//! ```text
//! host ── slave B │ master B ── cable ── master A │ slave A ── agent
//! ```

use crate::rig::{Agent, Random, exercise, shell, soon};
use guestline::guest::Guest;
use guestline::link::{Endpoint, EndpointError, LinkError};
use guestline_protocol::{Command, ExecRequest};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::ttyname;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the cable does to what it carries.
#[derive(Clone, Default)]
struct Faults {
    /// Something comes in between, once in so many bytes; 0 for never.
    noise_every: u64,
    /// A byte is turned or lost, once in so many; 0 for never.
    damage_every: u64,
    /// What the host sends comes back to it.
    echo: bool,
    /// Nothing passes.
    cut: Arc<AtomicBool>,
    /// The test is over.
    over: Arc<AtomicBool>,
}

/// Two pseudo terminals and what is between them.
struct Line {
    host: PathBuf,
    agent: OpenptyResult,
    agent_path: PathBuf,
    faults: Faults,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.faults.over.store(true, Ordering::Relaxed);
    }
}

impl Line {
    fn new(faults: Faults) -> Self {
        // The host's slave is not kept: its lock ends when nobody has it open.
        let (host, agent) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let agent_path = ttyname(&agent.slave).unwrap();
        let line = Self { host: ttyname(&host.slave).unwrap(), agent, agent_path, faults };
        line.pump(&host.master, &line.agent.master, 1, line.faults.echo);
        line.pump(&line.agent.master, &host.master, 2, false);
        line
    }

    /// A thread for one direction; ends with the pseudo terminals.
    fn pump(&self, from: &OwnedFd, to: &OwnedFd, seed: u64, echo: bool) {
        let file = |master: &OwnedFd| File::from(master.try_clone().unwrap());
        let (mut back, mut from, mut to) = (file(from), file(from), file(to));
        let (faults, mut random) = (self.faults.clone(), Random(seed * 0x9e37_79b9));
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                let len = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(len) => len,
                    // Nobody has the other side open: somebody may again.
                    Err(_) if !faults.over.load(Ordering::Relaxed) => {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    Err(_) => return,
                };
                if faults.cut.load(Ordering::Relaxed) {
                    continue;
                }
                let mut bytes = Vec::new();
                for &byte in &buffer[..len] {
                    match faults.noise_every {
                        0 => {}
                        every if random.next() % every == 0 => bytes.extend(noise(&mut random)),
                        _ => {}
                    }
                    match faults.damage_every {
                        0 => bytes.push(byte),
                        every => match random.next() % every {
                            0 => bytes.push(byte ^ 0x10),
                            1 => {}
                            _ => bytes.push(byte),
                        },
                    }
                }
                if echo && back.write_all(&bytes).is_err() {
                    return;
                }
                if to.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
    }

    fn start_agent(&self) -> Agent {
        Agent::start(&format!("tty:{},115200", self.agent_path.display()))
    }

    fn endpoint(&self) -> Endpoint {
        format!("tty:{}", self.host.display()).parse().unwrap()
    }

    async fn open(&self) -> Guest {
        let opening = async {
            loop {
                match Guest::open(&self.endpoint()).await {
                    // Whoever had it before lets go of it a little later.
                    Err(EndpointError::InUse { .. }) => tokio::task::yield_now().await,
                    opened => return opened.unwrap(),
                }
            }
        };
        soon("a session", opening).await
    }

    /// As `stty sane` does on the agent's side.
    fn cook(&self) {
        let mut stty = std::process::Command::new("stty");
        assert!(stty.arg("-F").arg(&self.agent_path).arg("sane").status().unwrap().success());
        assert!(self.is_cooked());
    }

    fn is_cooked(&self) -> bool {
        let settings = tcgetattr(self.agent.slave.as_fd()).unwrap();
        settings.local_flags.contains(LocalFlags::ICANON)
    }
}

/// What a kernel, a getty, a boot loader or a loose plug put on a line.
fn noise(random: &mut Random) -> Vec<u8> {
    match random.next() % 6 {
        0 => b"[   12.345678] usb 1-1: new high-speed USB device number 2 using xhci_hcd\r\n"
            .to_vec(),
        1 => b"\r\nDebian GNU/Linux 12 tiny ttyS0\r\n\r\ntiny login: ".to_vec(),
        2 => vec![0; 1 + random.next() as usize % 5],
        3 => vec![0xff, 0x00, 0x1b, b'[', b'2', b'J', 0x04, 0x03, 0x11, 0x13],
        4 => b"\x00\x01\x01\x01\x00login incorrect\x00".to_vec(),
        _ => {
            let len = 1 + random.next() as usize % 200;
            random.bytes(len)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_line() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults::default());
    let _agent = line.start_agent();
    let guest = line.open().await;
    exercise(&guest, there.path(), 1_000_000, 11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_between_and_within_frames_costs_time_only() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults { noise_every: 9_000, ..Faults::default() });
    let _agent = line.start_agent();
    let guest = line.open().await;
    exercise(&guest, there.path(), 60_000, 12).await;
    assert_eq!(shell(&guest, "seq 3000").await.lines().count(), 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_turned_or_lost_come_again() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults { damage_every: 10_000, ..Faults::default() });
    let _agent = line.start_agent();
    let guest = line.open().await;
    exercise(&guest, there.path(), 60_000, 13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_line_echoes_is_no_answer() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults { echo: true, noise_every: 20_000, ..Faults::default() });
    let _agent = line.start_agent();
    let guest = line.open().await;
    exercise(&guest, there.path(), 60_000, 14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_getty_talks_before_the_agent_does() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults::default());
    // Cooked, with echo, and a prompt before there is an agent; the hello is echoed at first.
    let mut slave = File::from(line.agent.slave.try_clone().unwrap());
    slave.write_all(b"\r\nDebian GNU/Linux 12 tiny ttyS0\r\n\r\ntiny login: ").unwrap();
    let endpoint = line.endpoint();
    let opening = tokio::spawn(async move { Guest::open(&endpoint).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!opening.is_finished());
    let _agent = line.start_agent();
    let guest = soon("a session", opening).await.unwrap().unwrap();
    exercise(&guest, there.path(), 60_000, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_somebody_sets_back_is_raw_again() {
    let there = tempfile::tempdir().unwrap();
    let line = Line::new(Faults::default());
    let _agent = line.start_agent();
    let guest = line.open().await;
    exercise(&guest, there.path(), 20_000, 16).await;
    for round in 0..3 {
        line.cook();
        // A short frame may hold nothing that ends a line: the agent does not even see it.
        assert_eq!(shell(&guest, &format!("echo {round}")).await, format!("{round}\n"));
        guestline_tests::wait_for("a raw line", || (!line.is_cooked()).then_some(()));
    }
    let path = line.agent_path.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let vandal = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(700));
            let _ = std::process::Command::new("stty").arg("-F").arg(&path).arg("sane").status();
        }
    });
    exercise(&guest, there.path(), 3_000_000, 17).await;
    stop.store(true, Ordering::Relaxed);
    vandal.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_a_getty_hangs_up_is_opened_again() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("only root may hang up a line: nothing is tried");
        return;
    }
    let line = Line::new(Faults::default());
    let _agent = line.start_agent();
    let guest = line.open().await;
    // What a getty does first (vhangup(2), number 153 on x86-64), on a terminal of its own session.
    let mut getty = std::process::Command::new("setsid");
    getty.args([
        "-w",
        "perl",
        "-e",
        "open(F, '+<', $ARGV[0]) or die; $SIG{HUP} = 'IGNORE'; syscall(153) == 0 or die",
    ]);
    assert!(getty.arg(&line.agent_path).status().unwrap().success());
    // What ran before is lost, by name; the next session is as good as any.
    let request = ExecRequest::new(Command::Shell(b"true".to_vec().into()));
    let error = soon("an end", guest.run(request, &[], 10)).await.unwrap_err();
    assert!(matches!(error, LinkError::Restarted), "{error:?}");
    soon("a session", guest.reconnect()).await.unwrap();
    assert_eq!(shell(&guest, "echo again").await, "again\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cable_that_is_pulled_and_put_back() {
    let line = Line::new(Faults::default());
    let _agent = line.start_agent();
    let guest = line.open().await;
    line.faults.cut.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn(async move { (shell(&guest, "echo back").await, guest) });
    tokio::time::sleep(Duration::from_millis(2500)).await;
    line.faults.cut.store(false, Ordering::Relaxed);
    let (said, guest) = soon("an answer", waiting).await.unwrap();
    assert_eq!(said, "back\n");
    // A second controller, after the first one went without a word.
    drop(guest);
    let guest = line.open().await;
    assert_eq!(shell(&guest, "echo again").await, "again\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_in_use_is_locked() {
    let line = Line::new(Faults::default());
    let _agent = line.start_agent();
    let _guest = line.open().await;
    let error = line.endpoint().open().await.unwrap_err();
    assert!(matches!(error, EndpointError::InUse { .. }), "{error:?}");
    let endpoint: Endpoint = "tty:/dev/null".parse().unwrap();
    let error = endpoint.open().await.unwrap_err();
    assert!(matches!(error, EndpointError::Open { .. }), "{error:?}");
}
