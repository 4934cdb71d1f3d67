//! Checks that pass, fail and skip, alone and together.

use crate::web::Web;
use guestline_tests::Guestline;
use std::fs;

#[test]
fn a_passing_check_prints_its_output_and_then_its_verdict() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "echo out; echo err >&2; grep -q sse2 /proc/cpuinfo"]);
    ran.assert_verdict(0, "passed  echo out");
    assert_eq!(ran.stdout(), "out\n");
    let lines: Vec<_> = ran.stderr.lines().collect();
    let [.., said, verdict] = lines[..] else { panic!("{}", ran.stderr) };
    assert_eq!(said, "err");
    assert!(verdict.contains("(machine ") && verdict.contains("check "), "{verdict}");
    guestline.assert_nothing_left();
}

#[test]
fn a_failing_check_gives_its_status_evidence_and_the_command_to_run_it_again() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "exit 3"]);
    ran.assert_verdict(1, "status 3");
    assert!(ran.stderr.contains("  evidence: ~/state/guestline/runs/"), "{}", ran.stderr);
    assert!(ran.stderr.contains("  again:    guestline check 'exit 3'"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn the_tool_that_an_image_lacks_is_named() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "systemctl is-active nginx"]);
    ran.assert_verdict(1, "status 127");
    assert!(ran.stderr.contains("the image `tiny` has no `systemctl`"), "{}", ran.stderr);
    let ran = guestline.run(&["check", "--", "nginx", "-t"]);
    ran.assert_verdict(1, "status 127");
    assert!(ran.stderr.contains("the image `tiny` has no `nginx`"), "{}", ran.stderr);
    let ran = guestline.run(&["check", "--", "/etc/passwd"]);
    ran.assert_verdict(1, "status 126");
    assert!(ran.stderr.contains("cannot execute `/etc/passwd`"), "{}", ran.stderr);
}

#[test]
fn argv_is_passed_without_a_shell() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "--", "printf", "%s|", "$HOME", "a  b", ""]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "$HOME|a  b||");
}

#[test]
fn status_77_skips_and_nothing_was_judged() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "echo no vlan here; exit 77"]);
    ran.assert_verdict(4, "no vlan here");
    assert!(ran.verdicts()[0].starts_with("skipped"));
    let ran = guestline.run(&["check", "--allow-none", "exit 77"]);
    ran.assert_verdict(0, "skipped");
    let ran = guestline.run(&["check", "--bisect", "exit 77"]);
    ran.assert_verdict(125, "skipped");
}

#[test]
fn eight_at_once_each_have_a_pristine_machine() {
    let guestline = Guestline::new();
    let lines: Vec<String> = (1..=8)
        .map(|number| format!("test ! -e /tmp/mark && touch /tmp/mark && echo I am {number}"))
        .collect();
    let mut args = vec!["check", "-j", "4"];
    args.extend(lines.iter().map(String::as_str));
    let ran = guestline.run(&args);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.verdicts().len(), 8, "{}", ran.stderr);
    assert!(ran.stdout.is_empty());
    for number in 1..=8 {
        // The output stands right before its verdict.
        let block = format!("I am {number}\npassed   {}", lines[number - 1]);
        assert!(ran.stderr.contains(&block), "{}", ran.stderr);
    }
    assert!(ran.stderr.contains("8 tests in") && ran.stderr.contains("8 passed"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn the_worst_of_several_sets_the_status() {
    let guestline = Guestline::new();
    let ran = guestline.run(&["check", "true", "false", "exit 77"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("3 tests in"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 passed, 1 failed, 1 skipped"), "{}", ran.stderr);
}

#[test]
fn wrong_usage_is_told_before_anything_runs() {
    let guestline = Guestline::new();
    std::fs::write(guestline.home().join("mtu.sh"), "true").unwrap();
    for (args, piece) in [
        (&["check", "./mtu.sh"][..], "`./mtu.sh` is a file of this host"),
        (&["check", "mtu.sh"], "is a file of this host"),
        (&["check", "--image", "windows", "true"], "no image is called `windows`"),
        (&["check", "--kernel", "/none", "true"], "cannot read the kernel `/none`"),
        (&["check", "--agent", "/etc/passwd", "true"], "is no static x86-64 program"),
        (&["check", "--timeout", "soon", "true"], "invalid value 'soon'"),
        (&["check", ""], "an empty command line"),
        (&["check"], "required"),
        (&["image", "build", "windows"], "no image is called `windows`"),
    ] {
        let ran = guestline.run(args);
        assert_eq!(ran.status, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(piece), "{args:?}: {}", ran.stderr);
        assert!(ran.verdicts().is_empty());
    }
    let ran = guestline.run(&["check", "--bisect", "--image", "windows", "true"]);
    assert_eq!(ran.status, 128, "{}", ran.stderr);
    // An absolute path is the guest's.
    guestline.run(&["check", "/bin/true"]).assert_verdict(0, "passed");
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let guestline = Guestline::new();
    let line = "nproc; id -un; echo $LANG $TZ $HOME; pwd; hostname; cat /proc/1/comm; \
                ls /sys/class/net; ls /sys/class/virtio-ports; free -m | awk '/Mem/{print ($2 > 180 && $2 < 260)}'";
    let ran = guestline.run(&["check", line]);
    ran.assert_verdict(0, "passed");
    let said = ran.stdout();
    let (name, rest) = said
        .strip_prefix("1\nroot\nC.UTF-8 UTC /root\n/\ntiny-")
        .and_then(|rest| rest.split_once('\n'))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{said}");
    assert_eq!(rest, "init\nlo\nvport0p1\nvport0p2\n1\n");
    // Nothing of what the agent has for itself: nice value, policy (proc_pid_stat(5)), blocked signals. The shell's own folder.
    let line = "read -r stat </proc/self/stat; set -- ${stat##*) }; echo ${17} ${39}; \
                while read -r key value; do case $key in SigBlk:) echo $value;; esac; done </proc/self/status; \
                readlink /proc/$$/cwd";
    let ran = guestline.run(&["check", line]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "0 0\n0000000000000000\n/\n");
    let ran = guestline.run(&[
        "check",
        "--cpus",
        "2",
        "--memory",
        "400M",
        "nproc; free -m | awk '/Mem/{print ($2 > 300)}'",
    ]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "2\n1\n");
}

/// Two runs at once have the host's cores together, not each for itself.
#[test]
fn two_runs_share_the_hosts_cores() {
    let guestline = Guestline::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    let lines = vec!["echo began; sleep 0.4; echo ended"; cores + 1];
    let words = [&["check", "--message-format", "json"], &lines[..]].concat();
    let runs = [0, 1].map(|_| guestline.start(&words)).map(guestline_tests::Running::wait);
    let mut changes = Vec::new();
    for run in &runs {
        assert_eq!(run.status, 0, "{}", run.stderr);
        for event in run.events().iter().filter(|event| event["event"] == "output") {
            let change = if event["text"].as_str().unwrap().contains("began") { 1 } else { -1 };
            changes.push((event["time_us"].as_u64().unwrap(), change));
        }
    }
    changes.sort_unstable();
    assert_eq!(changes.len(), 2 * 2 * (cores + 1));
    let (mut running, mut most) = (0_i32, 0);
    for (_, change) in changes {
        running += change;
        most = most.max(running);
    }
    assert!(usize::try_from(most).unwrap() <= cores, "{most} tests at once on {cores} cores");
    guestline.assert_nothing_left();
}

/// Files of this host in the machine, as they are when it begins; its template is without them.
#[test]
fn files_of_the_host_are_in_the_machine_for_this_once() {
    let guestline = Guestline::new();
    let data = guestline.home().join("data");
    fs::create_dir_all(data.join("below")).unwrap();
    fs::write(data.join("below/one"), "1\n").unwrap();
    fs::write(guestline.home().join("file"), "alone\n").unwrap();
    let line = "cat /mnt/data/below/one /opt/x/below/one /opt/name";
    let with = ["--with", "data", "--with", "data:/opt/x", "--with", "file:/opt/name"];
    let check = |line: &str| guestline.run(&[&["check"], &with[..], &[line]].concat());
    for one in ["1\n", "another\n"] {
        fs::write(data.join("below/one"), one).unwrap();
        let ran = check(line);
        ran.assert_verdict(0, "passed");
        assert_eq!(ran.stdout(), format!("{one}{one}alone\n"));
    }
    // What is written there never comes back, and the next machine has none of it.
    check("echo changed > /mnt/data/below/one").assert_verdict(0, "passed");
    assert_eq!(fs::read_to_string(data.join("below/one")).unwrap(), "another\n");
    guestline.run(&["check", "! ls -d /mnt/data /opt/x"]).assert_verdict(0, "passed");
    // It belongs to the command that runs a check again.
    let ran = check("false");
    ran.assert_verdict(1, "status 1");
    let again = format!("--with={}:/opt/x", data.canonicalize().unwrap().display());
    assert!(ran.stderr.contains(&again), "{}", ran.stderr);
    for (wrong, said) in
        [("none", "`"), ("data:/a/../b", "has `..` in it"), ("/dev/null:/x", "neither a file")]
    {
        let ran = guestline.run(&["check", "--with", wrong, "true"]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    guestline.assert_nothing_left();
}

#[test]
fn files_of_the_host_are_in_a_named_machine() {
    let guestline = Guestline::new();
    let data = guestline.home().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("one"), "1\n").unwrap();
    let web = Web::up_with(guestline, &["--with", "data:/srv/data", "--with", "data/one"]);
    assert_eq!(web.line("cat /srv/data/one /mnt/one && echo 2 > /srv/data/one"), "1\n1");
    assert_eq!(fs::read_to_string(data.join("one")).unwrap(), "1\n");
    assert_eq!(web.0.run(&["up", "other", "--with", "none"]).status, 2);
    web.down();
}
