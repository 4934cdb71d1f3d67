//! Real processes, as root, in each way of holding a tree: cgroups, cgroups entered by the child itself, `/proc`.
//!
//! Children are reaped whosever they are, so these tests take turns.

use super::*;
use guestline_protocol::{
    ByteBuf, Command, EnvChange, ExitStatus, HEADROOM, Resource, ResourceLimit, StdinSource,
};
use nix::poll::{PollTimeout, poll};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cgroup,
    Join,
    Walk,
}

/// What a command said.
#[derive(Debug, Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    credit: u64,
    exit: Option<ExecExitedEvent>,
}

struct Bed {
    processes: Processes,
    heard: HashMap<u32, Heard>,
    /// Give credit for what came?
    is_granting: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    fn new(way: Way) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
        let parent = test_cgroup().filter(|_| way != Way::Walk);
        let mut processes = Processes::new(None, parent);
        processes.spawner.into_cgroup = way == Way::Cgroup;
        if processes.cgroups.is_none() && way != Way::Walk {
            eprintln!("no cgroups here: {way:?} is not tried");
            return None;
        }
        Some(Self { processes, heard: HashMap::new(), is_granting: true, _turn: turn })
    }

    /// Runs a test in each way that this machine has.
    fn each(test: impl Fn(&mut Bed)) {
        for way in [Way::Cgroup, Way::Join, Way::Walk] {
            if let Some(mut bed) = Self::new(way) {
                eprintln!("{way:?}");
                test(&mut bed);
            }
        }
    }

    fn one(test: impl FnOnce(&mut Bed)) {
        test(&mut Self::new(Way::Walk).unwrap());
    }

    /// One turn of a poll loop.
    fn turn(&mut self) {
        let (mut fds, mut keys) = (Vec::new(), Vec::new());
        self.processes.poll_fds(true, &mut fds, &mut keys);
        poll(&mut fds, PollTimeout::from(5_u8)).unwrap();
        let events = fds.iter().map(|fd| fd.revents().unwrap());
        let ready: Vec<_> = keys.into_iter().zip(events).collect();
        let heard = &mut self.heard;
        let mut granted = Vec::new();
        let mut spent = Vec::new();
        let mut say = |channel, said| {
            let heard = heard.entry(channel).or_default();
            match said {
                Said::Data { stream, buffer } => {
                    assert_eq!(buffer[..HEADROOM], [0; HEADROOM]);
                    assert!(buffer.len() > HEADROOM);
                    match stream {
                        Stream::Stdout => heard.stdout.extend(&buffer[HEADROOM..]),
                        Stream::Stderr => heard.stderr.extend(&buffer[HEADROOM..]),
                    }
                    granted.push((channel, buffer.len() - HEADROOM));
                    spent.push(buffer);
                }
                Said::Credit(credit) => heard.credit += u64::from(credit.bytes),
                Said::Exited(exited) => {
                    assert_eq!(exited.total as usize, heard.stdout.len() + heard.stderr.len());
                    assert!(heard.exit.replace(exited).is_none());
                }
            }
        };
        self.processes.on_ready(&ready, 512 * 1024, &mut say);
        self.processes.reap();
        self.processes.finish(&mut say);
        for (channel, len) in granted.into_iter().filter(|_| self.is_granting) {
            self.processes.credit(channel, len as u32);
        }
        spent.into_iter().for_each(|buffer| self.processes.recycle(buffer));
    }

    fn until(&mut self, what: &str, is_done: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_done(self) {
            assert!(Instant::now() < deadline, "waited for {what}: {:?}", self.heard);
            self.turn();
        }
    }

    fn start(&mut self, channel: u32, request: &ExecRequest) -> u32 {
        self.heard.insert(channel, Heard::default());
        self.processes.spawn(channel, request).unwrap().pid
    }

    fn exit(&mut self, channel: u32) -> Heard {
        self.until("an exit", |bed| bed.heard[&channel].exit.is_some());
        assert!(!self.processes.has(channel));
        self.heard.remove(&channel).unwrap()
    }

    fn run(&mut self, request: &ExecRequest) -> Heard {
        self.start(1, request);
        self.exit(1)
    }

    fn says(&mut self, channel: u32, text: &str) {
        let has = |bed: &mut Self| bed.heard[&channel].text().contains(text);
        self.until(text, has);
    }

    fn refused(&mut self, request: &ExecRequest) -> RemoteError {
        self.processes.spawn(1, request).unwrap_err()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.processes.end_session();
        // What died is gone from its cgroup a little later: they are to be removed with the others.
        let parent = test_cgroup().filter(|_| !std::thread::panicking());
        if let Some(parent) = parent.filter(|parent| parent.exists()) {
            fs::write(parent.join("cgroup.kill"), "1").unwrap();
            let events = parent.join("cgroup.events");
            self.until("an empty cgroup", |_| {
                fs::read_to_string(&events).unwrap().contains("populated 0")
            });
        }
    }
}

/// Where the cgroups of these tests are.
fn test_cgroup() -> Option<PathBuf> {
    let name = format!("guestline-test-{}", std::process::id());
    Some(cgroup_parent(true)?.with_file_name(name))
}

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn exited(&self) -> ExecExitedEvent {
        self.exit.clone().unwrap()
    }

    fn status(&self) -> ExitStatus {
        self.exited().status
    }
}

fn shell(line: &str) -> ExecRequest {
    let mut request = ExecRequest::new(Command::Shell(ByteBuf::from(line)));
    request.credit = 1 << 20;
    request
}

fn argv(words: &[&str]) -> ExecRequest {
    let words = words.iter().map(|word| ByteBuf::from(word.as_bytes())).collect();
    ExecRequest { command: Command::Argv(words), ..shell("") }
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    state.flatten().is_some_and(|state| !"ZX".contains(state))
}

/// Waits until the processes that are named by number are gone.
fn die(bed: &mut Bed, pids: &[&str]) {
    assert!(
        !pids.is_empty() && pids.iter().all(|pid| pid.trim().parse::<i32>().is_ok()),
        "{pids:?}"
    );
    bed.until("a death", |_| !pids.iter().any(|pid| is_alive(pid)));
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("exec-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn program(path: &Path, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn output_status_and_usage_are_told() {
    Bed::each(|bed| {
        let heard = bed.run(&shell("echo out; echo err >&2; pwd; exit 7"));
        assert_eq!(heard.text(), "out\n/\n");
        assert_eq!(heard.stderr, b"err\n");
        let exit = heard.exited();
        assert_eq!(exit.status, ExitStatus::Exited(7));
        assert_eq!((exit.output_held, exit.cancelled, exit.total), (false, false, 10));
        assert!(exit.elapsed_us > 0 && exit.usage.max_rss_kib > 0);
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(bed.run(&shell(busy)).exited().usage.user_us > 1000);
        assert_eq!(bed.run(&argv(&["true"])).status(), ExitStatus::Exited(0));
        assert_eq!(bed.run(&shell("cat")).status(), ExitStatus::Exited(0));
    });
}

#[test]
fn a_command_has_its_own_descriptors_only_and_default_signals() {
    Bed::each(|bed| {
        let heard = bed.run(&shell("ls /proc/self/fd; grep -E '^Sig(Ign|Blk)' /proc/self/status"));
        // ls itself opens the folder.
        let expected = "0\n1\n2\n3\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
        assert_eq!(heard.text(), expected);
        let heard =
            bed.run(&shell("echo $$; cut -d' ' -f1,5 /proc/$$/stat; readlink /proc/$$/fd/0"));
        let text = heard.text();
        let [pid, stat, null] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!((stat, null), (format!("{pid} {pid}").as_str(), "/dev/null"));
    });
}

#[test]
fn programs_are_found_as_execvp_does() {
    Bed::each(|bed| {
        let folder = folder("path");
        let (a, b) = (folder.join("a"), folder.join("b"));
        fs::create_dir_all(&a).unwrap();
        fs::create_dir_all(&b).unwrap();
        program(&a.join("x"), "#!/bin/sh\necho never\n", 0o644);
        program(&b.join("x"), "#!/bin/sh\necho b\n", 0o755);
        program(&b.join("text"), "just text\n", 0o755);
        program(&b.join("orphan"), "#!/nowhere/interpreter\n", 0o755);
        program(&b.join("closed"), "#!/bin/sh\n", 0o600);
        fs::create_dir_all(b.join("folder")).unwrap();
        let in_path = |word: &str, path: &str| {
            let path = Some(ByteBuf::from(path));
            let env = vec![EnvChange { name: ByteBuf::from("PATH"), value: path }];
            let cwd = Some(ByteBuf::from(b.to_str().unwrap()));
            ExecRequest { env, cwd, ..argv(&[word]) }
        };
        let path = format!("/nowhere:{}:{}", a.display(), b.display());
        assert_eq!(bed.run(&in_path("x", &path)).text(), "b\n");
        assert_eq!(bed.run(&in_path("x", "")).text(), "b\n");
        assert_eq!(bed.run(&in_path("./x", "/nowhere")).text(), "b\n");
        let mut refused = |word: &str, path: &str| {
            let error = bed.refused(&in_path(word, path));
            (error.kind, error.errno.unwrap(), error.message)
        };
        let denied = (ErrorKind::NotExecutable, 13, "x: may not be executed".to_owned());
        assert_eq!(refused("x", &format!("{}:/nowhere", a.display())), denied);
        let missing = (ErrorKind::NotFound, 2, "x: not found".to_owned());
        assert_eq!(refused("x", "/nowhere"), missing);
        assert_eq!(refused("./x/y", &path).0, ErrorKind::NotFound);
        let text = (ErrorKind::NotExecutable, 8, "text: no executable file".to_owned());
        assert_eq!(refused("text", &path), text);
        assert_eq!(refused("folder", &path).0, ErrorKind::NotExecutable);
        let orphan = refused("orphan", &path);
        assert_eq!((orphan.0, orphan.1), (ErrorKind::NotExecutable, 2));
        assert!(orphan.2.contains("interpreter"), "{}", orphan.2);
        assert_eq!(refused(&"n".repeat(300), &path).1, 36);
        fs::remove_dir_all(folder).unwrap();
    });
}

#[test]
fn the_folder_is_judged_by_the_kernel() {
    Bed::one(|bed| {
        bed.processes.reap();
        let mut request = argv(&["pwd"]);
        for (cwd, errno) in [("/nowhere/at/all", 2), ("/etc/passwd", 20), ("", 2)] {
            request.cwd = Some(ByteBuf::from(cwd));
            let error = bed.refused(&request);
            assert_eq!((error.kind, error.errno), (ErrorKind::Invalid, Some(errno)));
            assert!(error.message.starts_with(&format!("working folder `{cwd}`: ")), "{error}");
        }
        request.cwd = Some(ByteBuf::from("/usr/bin"));
        assert_eq!(bed.run(&request).text(), "/usr/bin\n");
        // Nothing is left of those that failed.
        assert!(wait_any().is_none());
    });
}

#[test]
fn the_environment_is_exactly_what_was_asked_for() {
    Bed::each(|bed| {
        bed.processes.base.environment =
            vec![(b"PATH".into(), b"/usr/bin:/bin".into()), (b"B".into(), b"1".into())];
        let mut request = argv(&["env"]);
        assert_eq!(bed.run(&request).text(), "B=1\nPATH=/usr/bin:/bin\n");
        request.clear_env = true;
        assert_eq!(bed.run(&request).text(), "");
        let value = Some(ByteBuf::from(" x\n"));
        request.env = vec![EnvChange { name: ByteBuf::from("A"), value }];
        assert_eq!(bed.run(&request).text(), "A= x\n\n");
    });
}

#[test]
fn identity_mask_and_limits_are_the_commands_own() {
    Bed::each(|bed| {
        let folder = folder("accounts");
        let (passwd, group) = (folder.join("passwd"), folder.join("group"));
        fs::write(&passwd, "anna:x:1234:1235::/home/anna:/bin/x\n").unwrap();
        fs::write(&group, "video:x:44:anna\nanna:x:1235:\n").unwrap();
        bed.processes.accounts = AccountFiles { passwd, group };
        let ids = "grep -E '^(Uid|Gid|Groups)' /proc/self/status; echo $HOME $USER $LOGNAME $SHELL";
        let mut request = shell(ids);
        request.user = Some("anna".to_owned());
        let text = bed.run(&request).text();
        let expected = "Uid:\t1234\t1234\t1234\t1234\nGid:\t1235\t1235\t1235\t1235\n\
                        Groups:\t44 1235 \n/home/anna anna anna /bin/x\n";
        assert_eq!(text, expected);
        request.user = Some("77".to_owned());
        request.groups = Some(vec![]);
        let text = bed.run(&request).text();
        assert!(text.contains("Uid:\t77\t") && text.contains("Gid:\t65534\t"), "{text}");
        assert!(text.contains("Groups:\t \n"), "{text:?}");
        for user in ["nobody-there".to_owned(), "x".repeat(200_000), "9".repeat(200_000)] {
            request.user = Some(user);
            let error = bed.refused(&request);
            assert!(error.kind == ErrorKind::NotFound && error.message.len() < 1000, "{error}");
        }

        let mut request = argv(&["cat", "/root/secret"]);
        request.user = Some("anna".to_owned());
        request.cwd = Some(ByteBuf::from(folder.to_str().unwrap()));
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let error = bed.refused(&request);
        assert_eq!((error.kind, error.errno), (ErrorKind::Invalid, Some(13)), "{error}");

        let mut request = shell("umask; ulimit -n; ulimit -Hn; ulimit -c; ulimit -s");
        request.umask = Some(0o27);
        let limit = |resource, soft, hard| ResourceLimit { resource, soft, hard };
        request.limits = vec![
            limit(Resource::OpenFiles, 50, 60),
            limit(Resource::Core, 0, u64::MAX),
            limit(Resource::Stack, u64::MAX, u64::MAX),
        ];
        assert_eq!(bed.run(&request).text(), "0027\n50\n60\n0\nunlimited\n");
        fs::remove_dir_all(folder).unwrap();
    });
}

#[test]
fn signals_reach_the_process_or_its_group() {
    Bed::each(|bed| {
        let line = "trap 'echo got; exit 3' USR1; sleep 30 & echo $!; while :; do wait; done";
        bed.start(1, &shell(line));
        bed.says(1, "\n");
        bed.processes.signal(1, &SignalEvent { signal: 10, group: false });
        let heard = bed.exit(1);
        assert_eq!(heard.status(), ExitStatus::Exited(3));
        let sleeper = heard.text().lines().next().unwrap().to_owned();
        assert!(is_alive(&sleeper));
        bed.processes.signal(1, &SignalEvent { signal: 9, group: true });
        assert!(is_alive(&sleeper), "its command is gone");

        bed.start(1, &shell("sleep 30 & echo $!; wait"));
        bed.says(1, "\n");
        for signal in [0, 65, 200, 255] {
            bed.processes.signal(1, &SignalEvent { signal, group: true });
        }
        bed.processes.signal(1, &SignalEvent { signal: 15, group: true });
        let heard = bed.exit(1);
        assert_eq!(heard.status(), ExitStatus::Signaled { signal: 15, core_dumped: false });
        assert!(!heard.exited().cancelled && !heard.exited().output_held);
        die(bed, &[&heard.text()]);

        let real_time = "import signal,time; print('up',flush=True); time.sleep(30)";
        bed.start(1, &argv(&["python3", "-c", real_time]));
        bed.says(1, "up");
        bed.processes.signal(1, &SignalEvent { signal: 64, group: false });
        let status = ExitStatus::Signaled { signal: 64, core_dumped: false };
        assert_eq!(bed.exit(1).status(), status);
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(sleeper.parse().unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
    });
}

/// Everything that a command may do to be forgotten.
const WILD: &str = "
    sleep 101 & echo $!
    (sleep 102 & echo $!)
    setsid sh -c 'echo $$; sleep 103 & echo $!; wait' &
    setsid sh -c '(sleep 104 & echo $!) & wait; exit 0' &
    (setsid env -i /bin/sh -c '(/bin/sleep 105 & echo $!) & wait; exit 0' &)
    python3 -c '
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.execve(\"/bin/sleep\", [\"sleep\", \"106\"], {})
    os._exit(0)
os.wait()'
    trap '' TERM HUP INT
    sleep 0.3
    echo up
";

#[test]
fn cancel_kills_all_that_was_started() {
    Bed::each(|bed| {
        let line = format!("{WILD} sleep 107");
        bed.start(1, &shell(&line));
        let bystander = bed.start(2, &shell("sleep 60 & wait"));
        bed.says(1, "up");
        let text = bed.heard[&1].text();
        let pids: Vec<&str> = text.lines().filter(|line| *line != "up").collect();
        assert_eq!(pids.len(), 7, "{text}");
        assert!(pids.iter().all(|pid| is_alive(pid)));
        bed.processes.cancel(1);
        let exit = bed.exit(1).exited();
        assert_eq!(exit.status, ExitStatus::Signaled { signal: 9, core_dumped: false });
        assert!(exit.cancelled && !exit.output_held);
        die(bed, &pids);
        assert!(is_alive(&bystander.to_string()));
        bed.processes.end_session();
        die(bed, &[&bystander.to_string()]);
        assert!(!bed.processes.has(2));
    });
}

#[test]
fn older_kernels_kill_a_cgroup_one_by_one() {
    let Some(mut bed) = Bed::new(Way::Cgroup) else { return };
    let leaf = test_cgroup().unwrap().join("0");
    let below = leaf.join("below");
    let line = format!(
        "{WILD} mkdir {0}; sh -c 'echo $$ > {0}/cgroup.procs; sleep 108 & echo $!; wait' & sleep 0.1; echo end; wait",
        below.display()
    );
    let pid = bed.start(1, &shell(&line)).to_string();
    bed.says(1, "end");
    bed.processes.list[0].tree.leaf.as_ref().unwrap().kill_by_hand();
    let heard = bed.exit(1);
    assert!(!heard.exited().cancelled);
    let text = heard.text();
    let pids: Vec<&str> = text.lines().filter(|line| !["up", "end"].contains(line)).collect();
    assert_eq!(pids.len(), 8, "{text}");
    die(&mut bed, &pids);
    die(&mut bed, &[&pid]);
    // Thawed, and used again.
    bed.until("an empty leaf", |_| {
        fs::read_to_string(leaf.join("cgroup.events")).unwrap() == "populated 0\nfrozen 0\n"
    });
    let own = bed.run(&shell("grep ^0: /proc/self/cgroup")).text();
    assert!(own.ends_with("/0\n"), "{own}");
}

#[test]
fn a_command_that_moves_to_another_cgroup_dies_too() {
    let Some(mut bed) = Bed::new(Way::Cgroup) else { return };
    let root = cgroup_parent(true).unwrap();
    let other = root.with_file_name(format!("guestline-other-{}", std::process::id()));
    let line = format!(
        "mkdir {0}; echo $$ > {0}/cgroup.procs; sleep 50 & echo $!; setsid sleep 51 & echo $!; wait",
        other.display()
    );
    let pid = bed.start(1, &shell(&line)).to_string();
    bed.until("two", |bed| bed.heard[&1].text().lines().count() == 2);
    bed.processes.cancel(1);
    let text = bed.exit(1).text();
    let pids: Vec<&str> = text.lines().chain([pid.as_str()]).collect();
    die(&mut bed, &pids);
    bed.until("an empty cgroup", |_| fs::remove_dir(&other).is_ok());
}

#[test]
fn a_fork_bomb_dies() {
    Bed::each(|bed| {
        let bomb = "import os,time
print('up', flush=True)
for n in range(200):
    if os.fork() == 0: os.setsid()
    if n % 20 == 0: time.sleep(0.001)
    if n > 6: time.sleep(30)";
        bed.start(1, &argv(&["python3", "-c", bomb]));
        bed.says(1, "up");
        bed.processes.cancel(1);
        assert!(bed.exit(1).exited().cancelled);
        let is_gone = |_: &mut Bed| {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            !lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains("n % 20 == 0"))
        };
        bed.until("an end of all", is_gone);
    });
}

#[test]
fn daemons_that_were_left_on_purpose_live_on() {
    Bed::each(|bed| {
        let line = "setsid sleep 61 </dev/null >/dev/null 2>&1 & echo $!";
        let heard = bed.run(&shell(line));
        assert!(!heard.exited().output_held);
        let daemon = heard.text();
        for _ in 0..5 {
            bed.run(&argv(&["true"]));
        }
        bed.start(2, &shell("sleep 62"));
        bed.processes.cancel(2);
        bed.exit(2);
        bed.processes.end_session();
        bed.turn();
        assert!(is_alive(&daemon));
        let pid = nix::unistd::Pid::from_raw(daemon.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        // Its remains are taken, although it was no command.
        bed.until("its remains", |_| !Path::new(&format!("/proc/{pid}")).exists());
    });
}

#[test]
fn an_output_that_is_held_is_dropped_after_the_grace() {
    Bed::each(|bed| {
        let began = Instant::now();
        let heard = bed.run(&shell("(sleep 1; echo late) & echo $!; echo now"));
        let exit = heard.exited();
        assert!(exit.output_held && !exit.cancelled);
        assert!(heard.text().ends_with("now\n"));
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert!(exit.elapsed_us < 150_000, "the exit, not the drain: {}", exit.elapsed_us);
        // Within the grace it is still told.
        let heard = bed.run(&shell("(sleep 0.05; echo late) & echo now"));
        assert_eq!((heard.text().as_str(), heard.exited().output_held), ("now\nlate\n", false));
    });
}

#[test]
fn a_command_that_drains_is_killed_with_its_tree() {
    Bed::each(|bed| {
        let pid = bed.start(1, &shell("setsid sleep 63 & echo $!; exec true")).to_string();
        bed.until("its exit", |_| !Path::new(&format!("/proc/{pid}")).exists());
        assert!(bed.processes.has(1));
        bed.until("its output", |bed| bed.heard[&1].text().contains('\n'));
        let holder = bed.heard[&1].text();
        assert!(is_alive(&holder));
        bed.processes.cancel(1);
        let exit = bed.exit(1).exited();
        assert_eq!((exit.status, exit.cancelled), (ExitStatus::Exited(0), true));
        die(bed, &[&holder]);
    });
}

#[test]
fn output_that_was_owed_waits_for_credit_however_long() {
    Bed::each(|bed| {
        bed.is_granting = false;
        let mut request = shell("head -c 50000 /dev/zero");
        request.credit = 100;
        bed.start(1, &request);
        let later = Instant::now() + Duration::from_millis(400);
        bed.until("a while", |_| Instant::now() > later);
        assert_eq!(bed.heard[&1].stdout.len(), 100);
        assert!(bed.processes.has(1) && bed.processes.deadline().is_none());
        bed.processes.credit(1, 10_000);
        bed.until("more", |bed| bed.heard[&1].stdout.len() == 10_100);
        bed.processes.credit(1, u32::MAX);
        let heard = bed.exit(1);
        assert_eq!(heard.stdout.len(), 50_000);
        assert!(!heard.exited().output_held);

        // No credit at all, and nothing to say.
        request = shell("true");
        request.credit = 0;
        let began = Instant::now();
        assert!(!bed.run(&request).exited().output_held);
        assert!(began.elapsed() < Duration::from_millis(150));

        // Cancelled, it does not wait for credit.
        request = shell("head -c 50000 /dev/zero; sleep 30");
        request.credit = 100;
        bed.start(1, &request);
        bed.until("some", |bed| bed.heard[&1].stdout.len() == 100);
        bed.processes.cancel(1);
        let heard = bed.exit(1);
        assert_eq!((heard.stdout.len(), heard.exited().cancelled), (100, true));
    });
}

#[test]
fn output_that_a_command_takes_back_is_not_waited_for() {
    Bed::each(|bed| {
        let thief = "import os, time
os.write(1, b'x' * 30000)
if os.fork() == 0:
    pipe = os.open('/proc/self/fd/1', os.O_RDONLY)
    time.sleep(0.1)
    os.read(pipe, 30000)
    time.sleep(3)";
        bed.is_granting = false;
        let mut request = argv(&["python3", "-c", thief]);
        request.credit = 100;
        bed.start(1, &request);
        bed.until("some", |bed| bed.heard[&1].stdout.len() == 100);
        let later = Instant::now() + Duration::from_millis(500);
        bed.until("a while", |_| Instant::now() > later);
        bed.processes.credit(1, 1_000_000);
        let heard = bed.exit(1);
        assert!(heard.exited().output_held);
        assert_eq!(heard.stdout.len(), 100);
    });
}

#[test]
fn megabytes_come_whole_and_in_order() {
    Bed::each(|bed| {
        let line = "seq 1 1000000; seq 1 300000 >&2";
        let heard = bed.run(&shell(line));
        let expected = |last: u32| (1..=last).map(|n| format!("{n}\n")).collect::<String>();
        assert!(heard.stdout == expected(1_000_000).into_bytes());
        assert!(heard.stderr == expected(300_000).into_bytes());
    });
}

#[test]
fn input_is_taken_as_fast_as_it_is_read() {
    Bed::each(|bed| {
        let mut request = argv(&["cat"]);
        request.stdin = StdinSource::Channel;
        bed.heard.insert(1, Heard::default());
        let credit = bed.processes.spawn(1, &request).unwrap().credit;
        assert_eq!(credit, INPUT_WINDOW);
        let data: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        // The end is told first: it takes another way than data.
        bed.processes.end_input(1, data.len() as u64);
        let (mut sent, mut granted) = (0, u64::from(credit));
        while sent < data.len() {
            let most = (granted as usize - sent).min(30_001).min(data.len() - sent);
            bed.processes.input(1, &data[sent..sent + most]).unwrap();
            sent += most;
            bed.turn();
            granted = u64::from(credit) + bed.heard[&1].credit;
        }
        let heard = bed.exit(1);
        assert!(heard.stdout == data);
        assert_eq!(heard.status(), ExitStatus::Exited(0));
    });
}

#[test]
fn input_that_nobody_reads_is_dropped_and_credited() {
    Bed::each(|bed| {
        let mut request = shell("exec <&-; echo up; sleep 30");
        request.stdin = StdinSource::Channel;
        bed.start(1, &request);
        bed.says(1, "up");
        for _ in 0..10 {
            bed.processes.input(1, &[b'x'; 100_000]).unwrap();
            bed.turn();
        }
        assert!(bed.heard[&1].credit >= 800_000);
        bed.processes.end_input(1, 1_000_000);
        bed.processes.cancel(1);
        bed.exit(1);
        bed.processes.input(1, b"to nobody").unwrap();
        bed.processes.end_input(1, 0);
        bed.processes.resize(1, TerminalSize { columns: 1, rows: 1 });
        bed.processes.credit(1, 1);
        bed.processes.cancel(1);
        bed.processes.signal(1, &SignalEvent { signal: 9, group: true });
    });
}

#[test]
fn a_host_that_overdraws_loses_its_command() {
    Bed::each(|bed| {
        let mut request = shell("sleep 64 & echo $!; wait");
        request.stdin = StdinSource::Channel;
        let pid = bed.start(1, &request).to_string();
        bed.says(1, "\n");
        bed.processes.input(1, &[0; INPUT_WINDOW as usize]).unwrap();
        let error = bed.processes.input(1, &[0; 80_000]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        assert!(!bed.processes.has(1));
        let child = bed.heard[&1].text();
        die(bed, &[&pid, &child]);

        bed.start(1, &shell("sleep 30"));
        assert_eq!(bed.processes.input(1, b"x").unwrap_err().kind, ErrorKind::Protocol);
        bed.start(1, &request);
        bed.processes.end_input(1, 3);
        bed.processes.input(1, b"abc").unwrap();
        assert_eq!(bed.processes.input(1, b"d").unwrap_err().kind, ErrorKind::Protocol);
    });
}

#[test]
fn a_terminal_is_one() {
    Bed::each(|bed| {
        let line = "tty -s && [ -t 1 ] && [ -t 2 ] && stty size && echo $TERM >&2; ps -o tty= $$ | grep pts; \
                    trap 'stty size; exit 5' WINCH; echo up; read x; echo x=$x; while :; do sleep 0.05; done";
        let mut request = shell(line);
        request.stdin = StdinSource::Channel;
        request.terminal = Some(TerminalSize { columns: 101, rows: 33 });
        bed.start(1, &request);
        bed.says(1, "up");
        assert!(bed.heard[&1].text().starts_with("33 101\r\nxterm\r\npts/"));
        bed.processes.input(1, b"hello\n").unwrap();
        bed.says(1, "x=hello");
        bed.processes.resize(1, TerminalSize { columns: 50, rows: 20 });
        let heard = bed.exit(1);
        assert_eq!(heard.status(), ExitStatus::Exited(5));
        assert!(heard.text().contains("20 50"), "{}", heard.text());
        assert!(heard.stderr.is_empty());

        // Its input ends with a line, in a line, and at once.
        let mut request = argv(&["sh", "-c", "stty -echo; echo up; cat; echo over"]);
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        assert!(bed.run(&request).text().ends_with("over\r\n"));
        request.stdin = StdinSource::Channel;
        for (input, output) in
            [("a\nb\n", "up\r\na\r\nb\r\nover\r\n"), ("a\nb", "up\r\na\r\nbover\r\n")]
        {
            bed.start(1, &request);
            bed.says(1, "up");
            bed.processes.input(1, input.as_bytes()).unwrap();
            bed.processes.end_input(1, input.len() as u64);
            assert_eq!(bed.exit(1).text(), output);
        }

        // All that was written before the exit comes, and a background job does not hold it.
        let mut request = shell("(trap '' HUP; sleep 20) & seq 1 5000");
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        let heard = bed.run(&request);
        assert_eq!(heard.text().lines().count(), 5000);
        assert!(heard.text().ends_with("5000\r\n"));

        // ^C goes to what runs in front.
        // Also when there is no credit to read it to its end.
        request.credit = 0;
        request.command = Command::Shell(ByteBuf::from("true"));
        let exit = bed.run(&request).exited();
        assert!(!exit.output_held && exit.total == 0);

        // One that nobody has open any more takes no input, and costs no time.
        let mut request = shell("exec <&- >&- 2>&-; sleep 0.3");
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        request.stdin = StdinSource::Channel;
        bed.start(1, &request);
        for _ in 0..10 {
            bed.processes.input(1, &[b'x'; 20_000]).unwrap();
        }
        assert_eq!(bed.exit(1).status(), ExitStatus::Exited(0));

        let mut request = shell("echo up; sleep 30");
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        request.stdin = StdinSource::Channel;
        bed.start(1, &request);
        bed.says(1, "up");
        // Again and again: a shell that is about to start something may miss one.
        bed.until("an exit", |bed| {
            bed.processes.input(1, b"\x03").unwrap();
            bed.heard[&1].exit.is_some()
        });
        assert!(matches!(bed.exit(1).status(), ExitStatus::Signaled { signal: 2, .. }));

        bed.start(1, &request);
        bed.says(1, "up");
        bed.processes.cancel(1);
        assert!(bed.exit(1).exited().cancelled);
    });
}

#[test]
fn a_users_terminal_is_the_users() {
    Bed::one(|bed| {
        let mut request = shell("stat -c %u $(tty); : > $(tty) && echo open");
        request.user = Some("4321".to_owned());
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        assert_eq!(bed.run(&request).text(), "4321\r\nopen\r\n");
    });
}

#[test]
fn sixty_four_run_at_once_and_no_more() {
    Bed::each(|bed| {
        for channel in 1..=64 {
            bed.start(channel, &shell("echo $0; sleep 0.2; echo $$; seq 1 20000"));
        }
        assert_eq!(bed.processes.spawn(99, &argv(&["true"])).unwrap_err().kind, ErrorKind::Busy);
        for channel in 1..=64 {
            assert_eq!(bed.exit(channel).text().lines().count(), 20_002);
        }
        bed.start(1, &shell("sleep 30"));
        let twice = bed.processes.spawn(1, &argv(&["true"])).unwrap_err();
        assert_eq!(twice.kind, ErrorKind::Protocol);
    });
}

#[test]
fn a_leaf_that_refuses_processes_is_replaced() {
    let Some(mut bed) = Bed::new(Way::Cgroup) else { return };
    let root = cgroup_parent(true).unwrap();
    let parent = test_cgroup().unwrap();
    fs::write(parent.join("0/cgroup.type"), "threaded").unwrap();
    assert_eq!(bed.run(&shell("cat /proc/self/cgroup | grep ^0:")).text().lines().count(), 1);
    // A frozen one as well.
    let line = "grep ^0: /proc/self/cgroup | cut -d: -f3";
    let own = bed.run(&shell(line)).text();
    let own = root.with_file_name(own.trim().trim_start_matches('/'));
    fs::write(own.join("cgroup.freeze"), "1").unwrap();
    let next = bed.run(&shell(line)).text();
    assert_ne!(root.with_file_name(next.trim().trim_start_matches('/')), own);
    // A leaf is used again when it is empty, and not while a daemon is in it.
    assert_eq!(bed.run(&shell(line)).text(), next);
    let daemon = bed.run(&shell("setsid sleep 20 >/dev/null 2>&1 & echo $!")).text();
    assert_ne!(bed.run(&shell(line)).text(), next);
    assert!(bed.processes.spawner.into_cgroup);
    let pid = nix::unistd::Pid::from_raw(daemon.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    die(&mut bed, &[&daemon]);
    let events = parent.join("cgroup.events");
    let is_empty = |_: &mut Bed| fs::read_to_string(&events).unwrap().contains("populated 0");
    bed.until("an empty cgroup", is_empty);
    bed.processes = Processes::new(None, None);
    assert!(!parent.exists(), "it is tidied up");
}

#[test]
fn no_more_descriptors_is_an_error_and_no_more() {
    Bed::one(|bed| {
        bed.run(&argv(&["true"]));
        let mut hoard = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            hoard.push(file);
        }
        let error = bed.refused(&argv(&["true"]));
        assert_eq!((error.kind, error.errno), (ErrorKind::System, Some(24)), "{error}");
        let mut request = argv(&["true"]);
        request.terminal = Some(TerminalSize { columns: 80, rows: 24 });
        assert_eq!(bed.refused(&request).kind, ErrorKind::System);
        drop(hoard);
        assert_eq!(bed.run(&argv(&["true"])).status(), ExitStatus::Exited(0));
    });
}

#[test]
fn no_more_processes_is_an_error_and_no_more() {
    Bed::each(|bed| {
        // Root is not limited by number; the program that became another user is, at its execve.
        let mut request = shell("sleep 30");
        request.user = Some("54321".to_owned());
        bed.start(2, &request);
        request.limits = vec![ResourceLimit { resource: Resource::Processes, soft: 0, hard: 0 }];
        let error = bed.refused(&request);
        assert_eq!((error.kind, error.errno), (ErrorKind::System, Some(11)), "{error}");
        assert_eq!(bed.run(&argv(&["true"])).status(), ExitStatus::Exited(0));
    });
}
