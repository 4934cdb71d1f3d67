//! Snapshots inside a test: what is put back, what is told to whom, and that nothing is left.

use guestline::guest::{
    ExecHandle, Guest, Log, LogStream, PullOptions, PushOptions, SnapshotError,
};
use guestline::link::LinkError;
use guestline::machine::{Accel, Ending, OLDEST_QEMU, Qemu};
use guestline::provision::pool::{self, PoolSpec, PoolStatus};
use guestline::provision::{
    DiskWanted, Lease, LinkChoice, MachineRequest, NicWanted, Provisioner, WorkRoot,
};
use guestline_protocol::{Command, ExecRequest, ExitStatus, StdinSource};
use guestline_tests::{dirs_of, oldest_qemu, tiny};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Nothing of these tests takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A machine, and the folder that its own is in.
pub(crate) struct Leased {
    lease: Lease,
    home: tempfile::TempDir,
}

/// How a machine is wanted.
#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) qemu: Option<PathBuf>,
    pub(crate) disks: Vec<DiskWanted>,
    pub(crate) nics: Vec<NicWanted>,
    pub(crate) fresh_reboot: bool,
    pub(crate) link: LinkChoice,
}

pub(crate) async fn lease(wanted: Wanted) -> Leased {
    let home = tempfile::Builder::new().prefix("gl").tempdir().unwrap();
    let dirs = dirs_of(home.path());
    let image = tiny(&dirs).await;
    let qemu = match wanted.qemu {
        Some(path) => Qemu::at(&dirs, &path).unwrap(),
        None => Qemu::find(&dirs).unwrap(),
    };
    let root = WorkRoot::create(&dirs, false).unwrap();
    let provisioner = Provisioner::new(qemu, Accel::Tcg, root, &dirs);
    let request = MachineRequest {
        fresh_reboot: wanted.fresh_reboot,
        link: wanted.link,
        disks: wanted.disks,
        nics: wanted.nics,
        ..MachineRequest::new(image, Duration::from_secs(120))
    };
    match provisioner.lease(&request, &CancellationToken::new()).await {
        Ok(lease) => {
            assert_eq!(lease.template.is_none(), wanted.fresh_reboot);
            Leased { lease, home }
        }
        Err(failed) => panic!("{:?} {:?}", failed.error, failed.console),
    }
}

impl Leased {
    pub(crate) fn guest(&self) -> Guest {
        self.lease.guest.clone()
    }

    /// Gives the machine back; nothing of it is left.
    pub(crate) async fn end(self) {
        let Self { lease, home } = self;
        drop(lease.end().await);
        let left: Vec<_> = std::fs::read_dir(home.path().join("run")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

fn line_of(line: &str) -> ExecRequest {
    ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()))
}

pub(crate) async fn shell(guest: &Guest, line: &str) -> String {
    let output = soon(line, guest.run(line_of(line), &[], 1 << 20)).await.unwrap();
    assert_eq!(output.exited.status, ExitStatus::Exited(0), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) async fn number(guest: &Guest, line: &str) -> f64 {
    shell(guest, line).await.parse().unwrap()
}

/// Saves, and tells how long that took.
pub(crate) async fn snapshot(guest: &Guest, name: &str) {
    let began = Instant::now();
    soon("a snapshot", guest.snapshot(name)).await.unwrap();
    eprintln!("snapshot {name}: {:.0?}", began.elapsed());
}

pub(crate) async fn restore(guest: &Guest, name: &str) -> i64 {
    let began = Instant::now();
    let skew = soon("a restore", guest.restore(name)).await.unwrap();
    eprintln!("restore {name}: {:.0?}, clock {} us off", began.elapsed(), skew.micros);
    skew.micros
}

/// What ran ends by name.
async fn assert_lost(mut process: ExecHandle) {
    let error = loop {
        if let Err(error) = soon("an end", process.next()).await {
            break error;
        }
    };
    assert!(matches!(error, LinkError::Restarted), "{error:?}");
}

async fn assert_log_lost(mut log: LogStream) {
    let error = loop {
        match soon("an end", log.next()).await {
            Ok(line) => assert!(line.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LinkError::Restarted), "{error:?}");
}

const RANDOM: &str = "head -c 16 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid";
const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";

/// What holds on every QEMU, in a machine that was restored and in one that has booted.
async fn all_is_put_back(wanted: Wanted) {
    let leased = lease(wanted).await;
    let guest = leased.guest();
    let names = shell(&guest, "hostname; cat /etc/machine-id").await;
    shell(&guest, "echo before > /tmp/file; modprobe dummy").await;
    // Its command ends, and it goes on.
    let counter = "(n=0; while :; do n=$((n + 1)); echo $n > /tmp/count; sleep 0.02; done) \
                   > /dev/null 2>&1 < /dev/null & echo $! > /tmp/pid";
    shell(&guest, counter).await;
    let early = guest.exec(line_of("exec tail -f /dev/null")).await.unwrap();
    let log = guest.log(&Log::Kernel, false, true).await.unwrap();

    snapshot(&guest, "first").await;
    let saved_at = number(&guest, UPTIME).await;
    // The session goes on, and what runs in it.
    assert_eq!(shell(&guest, "pidof tail | wc -w").await, "1");
    shell(&guest, "echo after > /tmp/file; echo new > /tmp/new; rmmod dummy").await;
    snapshot(&guest, "second").await;
    shell(&guest, "kill $(cat /tmp/pid); rm /tmp/file /tmp/new").await;
    let late = guest.exec(line_of("exec tail -f /dev/null")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended_at = number(&guest, UPTIME).await;
    assert!(ended_at > saved_at + 1.9, "{saved_at} {ended_at}");

    let restored = Instant::now();
    let skew = restore(&guest, "first").await;
    assert!(skew < -2_000_000, "{skew}");
    assert_lost(early).await;
    assert_lost(late).await;
    assert_log_lost(log).await;
    let uptime = number(&guest, UPTIME).await;
    // No time has gone by for the guest: its kernel would take it for a stall.
    let elapsed = restored.elapsed().as_secs_f64();
    assert!(uptime < saved_at + elapsed, "{saved_at} {ended_at} {uptime} {elapsed}");
    let drawn = shell(&guest, RANDOM).await;
    let skew = guest.skew().await.unwrap();
    assert!(skew.micros.abs() < 1_000_000, "{skew:?}");
    assert_eq!(shell(&guest, "kill -0 $(cat /tmp/pid); cat /tmp/file").await, "before");
    assert_eq!(shell(&guest, "test ! -e /tmp/new; grep -c ^dummy /proc/modules").await, "1");
    let count = number(&guest, "cat /tmp/count").await;
    shell(&guest, "sleep 0.2").await;
    assert!(number(&guest, "cat /tmp/count").await > count);
    assert_eq!(shell(&guest, "hostname; cat /etc/machine-id").await, names);
    // What the session ran when the snapshot was made was ended by the agent.
    shell(&guest, "for n in 1 2 3 4 5 6 7 8 9; do pidof tail || exit 0; sleep 0.1; done; exit 1")
        .await;

    // Another one, and the first again.
    restore(&guest, "second").await;
    assert_eq!(
        shell(&guest, "cat /tmp/file /tmp/new; grep -c ^dummy /proc/modules || true").await,
        "after\nnew\n0"
    );
    restore(&guest, "first").await;
    let drawn_again = shell(&guest, RANDOM).await;
    for line in drawn.lines() {
        assert!(!drawn_again.contains(line), "{drawn}\n{drawn_again}");
    }

    // What is not there is told, and nothing else happens.
    let mut running = guest.exec(line_of("read line; echo $line")).await.unwrap();
    for _ in 0..2 {
        let error = soon("an error", guest.restore("third")).await.unwrap_err();
        let text = "there is no snapshot `third`: there is `first`, `second`";
        assert_eq!(error.to_string(), text);
    }
    assert!(soon("its start", running.next()).await.is_ok());
    drop(running);

    // A name is used again, or given up.
    shell(&guest, "echo third > /tmp/file").await;
    snapshot(&guest, "first").await;
    shell(&guest, "echo fourth > /tmp/file").await;
    guest.delete_snapshot("second").await.unwrap();
    assert_eq!(guest.snapshots().await.unwrap(), ["first"]);
    let error = guest.restore("second").await.unwrap_err();
    assert!(matches!(error, SnapshotError::Unknown { .. }), "{error:?}");
    restore(&guest, "first").await;
    assert_eq!(shell(&guest, "cat /tmp/file").await, "third");

    // Both ports carry what they did.
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    soon("a write", guest.write(b"/tmp/bytes", &content, 0o644)).await.unwrap();
    assert!(soon("a read", guest.read(b"/tmp/bytes", 4_000_000)).await.unwrap() == content);
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_machine_is_put_back() {
    all_is_put_back(Wanted::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_booted_machine_is_put_back() {
    all_is_put_back(Wanted { fresh_reboot: true, ..Wanted::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_machine_of_the_oldest_qemu_is_put_back() {
    all_is_put_back(Wanted { qemu: Some(oldest_qemu()), ..Wanted::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_booted_machine_of_the_oldest_qemu_is_put_back() {
    let wanted = Wanted { qemu: Some(oldest_qemu()), fresh_reboot: true, ..Wanted::default() };
    all_is_put_back(wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_serial_line_too() {
    let leased = lease(Wanted { link: LinkChoice::Serial, ..Wanted::default() }).await;
    let guest = leased.guest();
    shell(&guest, "echo before > /tmp/file").await;
    snapshot(&guest, "one").await;
    shell(&guest, "echo after > /tmp/file").await;
    for _ in 0..2 {
        restore(&guest, "one").await;
        assert_eq!(shell(&guest, "cat /tmp/file").await, "before");
    }
    leased.end().await;
}

/// Saved and put back in the midst of transfers, when half a frame may be anywhere.
async fn in_the_midst_of_transfers(qemu: Option<PathBuf>) {
    let leased = lease(Wanted { qemu, ..Wanted::default() }).await;
    let guest = leased.guest();
    for round in 0..4 {
        let (pusher, puller) = (guest.clone(), guest.clone());
        let pushing = tokio::spawn(async move {
            let request =
                ExecRequest { stdin: StdinSource::Channel, ..line_of("exec cat > /dev/null") };
            let mut process = pusher.exec(request).await.unwrap();
            let mut input = process.take_input().unwrap();
            let feeding = async {
                let piece = vec![b'x'; 200_000];
                while input.write(&piece).await.is_ok() {}
                std::future::pending::<()>().await
            };
            let reading = async {
                loop {
                    if let Err(error) = process.next().await {
                        break error;
                    }
                }
            };
            tokio::select! { () = feeding => unreachable!(), error = reading => error }
        });
        let pulling = tokio::spawn(async move {
            let mut process = puller.exec(line_of("exec cat /dev/zero")).await.unwrap();
            loop {
                if let Err(error) = process.next().await {
                    break error;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        snapshot(&guest, "midst").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        restore(&guest, "midst").await;
        for transfer in [pushing, pulling] {
            let error = soon("the end of a transfer", transfer).await.unwrap();
            assert!(matches!(error, LinkError::Restarted), "{error:?}");
        }
        assert_eq!(shell(&guest, "echo here").await, "here");
        // Nothing of the transfers is left in the guest.
        shell(
            &guest,
            "for n in 1 2 3 4 5 6 7 8 9; do pidof cat || exit 0; sleep 0.1; done; exit 1",
        )
        .await;
    }
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_streams_run() {
    in_the_midst_of_transfers(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_streams_run_on_the_oldest_qemu() {
    in_the_midst_of_transfers(Some(oldest_qemu())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_on_their_way_end_by_name() {
    let leased = lease(Wanted::default()).await;
    let guest = leased.guest();
    let from = leased.home.path().join("from");
    std::fs::write(&from, vec![7; 150_000_000]).unwrap();
    soon("a push", guest.write(b"/tmp/there", &vec![9; 30_000_000], 0o644)).await.unwrap();
    let (pusher, puller, home) = (guest.clone(), guest.clone(), leased.home.path().to_owned());
    let pushing =
        tokio::spawn(
            async move { pusher.push(&from, b"/tmp/pushed", PushOptions::default()).await },
        );
    tokio::time::sleep(Duration::from_millis(200)).await;
    snapshot(&guest, "midst").await;
    let pulling = tokio::spawn(async move {
        puller.pull(b"/tmp/there", &home.join("to"), PullOptions::default()).await
    });
    restore(&guest, "midst").await;
    let error = soon("the end of a push", pushing).await.unwrap().unwrap_err();
    assert!(format!("{error:?}").contains("Restarted"), "{error:?}");
    // It may have been quicker.
    if let Err(error) = soon("the end of a pull", pulling).await.unwrap() {
        assert!(format!("{error:?}").contains("Restarted"), "{error:?}");
    }
    // Nothing of what was half there.
    let left = "for n in 1 2 3 4 5 6 7 8 9; do [ \"$(ls -A /tmp)\" = there ] && exit 0; sleep 0.1; done; ls -A /tmp; exit 1";
    shell(&guest, left).await;
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_any_more_is_put_back() {
    let leased = lease(Wanted::default()).await;
    let guest = leased.guest();
    snapshot(&guest, "alive").await;
    // The agent itself does not run any more (cgroups(7), the freezer of version 2).
    let freeze = "cd $(sed -n 's/^cgroup2 \\([^ ]*\\) .*/\\1/p' /proc/mounts) && mkdir frozen && echo 1 > frozen/cgroup.procs && \
                  echo 1 > frozen/cgroup.freeze; exec tail -f /dev/null";
    let running = guest.exec(line_of(freeze)).await.unwrap();
    let hangs =
        async { while tokio::time::timeout(Duration::from_secs(1), guest.ping()).await.is_ok() {} };
    soon("a guest that hangs", hangs).await;
    restore(&guest, "alive").await;
    assert_lost(running).await;
    assert_eq!(shell(&guest, "echo here").await, "here");
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_at_once_are_done_one_after_the_other() {
    let leased = lease(Wanted::default()).await;
    let guest = leased.guest();
    snapshot(&guest, "a").await;
    let all = async {
        tokio::join!(
            guest.snapshot("b"),
            guest.restore("a"),
            guest.snapshot("c"),
            guest.restore("a")
        )
    };
    let (b, again, c, last) = soon("all", all).await;
    assert!(
        b.is_ok() && again.is_ok() && c.is_ok() && last.is_ok(),
        "{b:?} {again:?} {c:?} {last:?}"
    );
    // Who does not wait for it, has it done all the same.
    let _ = tokio::time::timeout(Duration::from_millis(1), guest.restore("b")).await;
    assert!(soon("names", guest.snapshots()).await.unwrap() == ["a", "b", "c"]);
    restore(&guest, "c").await;
    assert_eq!(shell(&guest, "echo here").await, "here");
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_has_ended_says_so() {
    let leased = lease(Wanted::default()).await;
    let guest = leased.guest();
    for name in ["", "a b", "../a", ".a"] {
        let error = guest.snapshot(name).await.unwrap_err();
        assert!(matches!(error, SnapshotError::NotAllowed { .. }), "{error:?}");
    }
    let error = guest.restore("none").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no snapshot `none`: none has been saved");
    snapshot(&guest, "a").await;
    let _resets = guest.exec(line_of("echo b > /proc/sysrq-trigger")).await;
    assert_eq!(soon("the end", leased.lease.machine.ended()).await, Ending::Reset);
    for error in [
        soon("an error", guest.restore("a")).await.unwrap_err(),
        soon("an error", guest.snapshot("b")).await.unwrap_err(),
    ] {
        let SnapshotError::Ended { how, .. } = error else { panic!("{error:?}") };
        assert_eq!(how, "reset");
    }
    leased.end().await;

    let leased = lease(Wanted { qemu: Some(oldest_qemu()), ..Wanted::default() }).await;
    let guest = leased.guest();
    assert!(OLDEST_QEMU.to_string().starts_with("7."));
    snapshot(&guest, "a").await;
    let pid = nix::unistd::Pid::from_raw(leased.lease.machine.pid().cast_signed());
    let (ended, ()) = tokio::join!(soon("an error", guest.snapshot("b")), async {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    });
    let SnapshotError::Ended { how, .. } = ended.unwrap_err() else { panic!() };
    assert_eq!(how, "lost its QEMU, which was killed by SIGKILL");
    leased.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_out_of_a_pool_is_put_back() {
    let home = tempfile::Builder::new().prefix("gl").tempdir().unwrap();
    let dirs = dirs_of(home.path());
    let request = MachineRequest::new(tiny(&dirs).await, Duration::from_secs(120));
    let provisioner = |root: &WorkRoot| {
        Provisioner::new(Qemu::find(&dirs).unwrap(), Accel::Tcg, root.clone(), &dirs)
    };
    let (over, (begin, begun)) = (CancellationToken::new(), tokio::sync::oneshot::channel());
    let keeping = tokio::spawn({
        let root = WorkRoot::create(&dirs, false).unwrap();
        let (provisioner, over, dirs) = (provisioner(&root), over.clone(), dirs.clone());
        let spec = PoolSpec { request: request.clone(), size: 1 };
        async move {
            let begun = |_: &PoolStatus| begin.send(()).is_ok();
            pool::keep(&provisioner, &dirs, &root, spec, &over, begun).await
        }
    });
    soon("a pool", begun).await.unwrap();
    let root = WorkRoot::create(&dirs, false).unwrap();
    let leased = provisioner(&root).lease(&request, &CancellationToken::new()).await.unwrap();
    assert_eq!(leased.pooled.as_ref().unwrap().warm_up.as_deref(), Some("true"));
    drop(root);
    let guest = leased.guest.clone();
    shell(&guest, "echo one > /mine").await;
    snapshot(&guest, "one").await;
    shell(&guest, "echo two > /mine").await;
    restore(&guest, "one").await;
    assert_eq!(shell(&guest, "cat /mine").await, "one");
    over.cancel();
    // Its QEMU is ours now, and the pool can go.
    soon("the end of the pool", keeping).await.unwrap().unwrap();
    assert_eq!(shell(&guest, "cat /mine").await, "one");
    drop(guest);
    let leased = Leased { lease: leased, home };
    leased.end().await;
}
