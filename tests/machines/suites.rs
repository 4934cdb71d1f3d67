//! Suites in real machines: `guestline run` and `guestline list`.

use guestline_tests::{Guestline, Ran, right};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Files below a folder; what ends with `*` is executable.
pub(crate) fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let (name, mode) = name.strip_suffix('*').map_or((*name, 0o644), |name| (name, 0o755));
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// A test's own folders, with a suite `t` in them.
pub(crate) fn suite(files: &[(&str, &str)]) -> Guestline {
    let guestline = Guestline::new();
    write(&guestline.home().join("t"), files);
    guestline
}

/// The outcome of each test of a run, by its name.
pub(crate) fn outcomes(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = ran.events();
    let ends = events.iter().filter(|event| event["event"] == "test-finished");
    let outcome = |event: &Value| match text(&event["reason"]).as_str() {
        "" => text(&event["outcome"]),
        reason => format!("{} ({reason})", text(&event["outcome"])),
    };
    let mut all: Vec<_> = ends.map(|event| (text(&event["test"]), outcome(event))).collect();
    all.sort();
    all
}

const JSON: [&str; 4] = ["run", "--message-format", "json", "t"];

#[test]
fn each_kind_of_test_is_run_and_judged() {
    let guestline = suite(&[
        (
            "cpu.checks",
            "yes: grep -q sse2 /proc/cpuinfo\nno: echo got 1492; false\nskip: echo no vlan; exit 77\n",
        ),
        ("net/program*", "#!/bin/sh\n#: statuses = {pass = [3], skip = [4]}\nexit 3\n"),
        ("net/killed*", "#!/bin/sh\nkill -SEGV $$\n"),
        ("slow*", "#!/bin/sh\n#: timeout = '3s'\nsleep 100\n"),
        ("panics*", "#!/bin/sh\n#: expect = ['panic']\necho c > /proc/sysrq-trigger; sleep 10\n"),
        ("calm*", "#!/bin/sh\n#: expect = ['panic', 'reboot']\ntrue\n"),
        ("README", "text"),
    ]);
    let ran = guestline.run(&JSON);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let all = outcomes(&ran);
    let all: Vec<_> = all.iter().map(|(name, outcome)| (name.as_str(), outcome.as_str())).collect();
    assert_eq!(
        all,
        [
            ("calm", "failed (status 0, and the guest was to panic or reboot)"),
            ("cpu/no", "failed (status 1)"),
            ("cpu/skip", "skipped (no vlan)"),
            ("cpu/yes", "passed"),
            ("net/killed", "failed (killed by SIGSEGV (11))"),
            ("net/program", "passed"),
            ("panics", "passed"),
            ("slow", "failed (timed out after 3 s)"),
        ]
    );
    let schema = serde_json::from_str(include_str!("../../docs/events.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for event in ran.events() {
        let wrong: Vec<_> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{event:#}: {wrong:?}");
    }
    // What did not pass is told, with the end of its output and the line that runs it again.
    let ran = guestline.run(&["run", "t/cpu"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("  | got 1492\n"), "{}", ran.stderr);
    assert!(ran.stderr.contains("again:    guestline run t/cpu/no\n"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("cpu/yes"), "{}", ran.stderr);
    assert!(ran.stderr.contains("3 tests in "), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_test_has_its_files_folders_and_variables_and_its_artifacts_come_back() {
    let test = "#!/bin/sh
#: files = ['data', '../lib/common.sh']
#: setup = 'echo set up > $GUESTLINE_SCRATCH/before'
#: matrix.mode = ['a b', 'c']
set -eu
. ../lib/common.sh
cat data/x \"$GUESTLINE_SCRATCH/before\" > \"$GUESTLINE_ARTIFACTS/seen\"
printf '\\377' > \"$GUESTLINE_ARTIFACTS/bytes\"
mkdir \"$GUESTLINE_ARTIFACTS/more\"; echo deep > \"$GUESTLINE_ARTIFACTS/more/x\"
echo \"$GUESTLINE_API $GUESTLINE_SUITE $GUESTLINE_TEST [$GUESTLINE_VARIANT] $GUESTLINE_VARIANT_MODE $GUESTLINE_SIDE $GUESTLINE_ATTEMPT $COMMON\"
";
    let guestline = suite(&[
        ("guestline.toml", "api = 1\nname = 'mine'\n"),
        ("net/test*", test),
        (
            "net/test.teardown*",
            "#!/bin/sh\necho down; cp \"$GUESTLINE_SCRATCH/before\" \"$GUESTLINE_ARTIFACTS/down\"\n",
        ),
        ("net/data/x", "data\n"),
        ("lib/common.sh", "COMMON=common\n"),
    ]);
    let ran = guestline.run(&["run", "t/net/test[mode=a b]"]);
    ran.assert_verdict(0, "passed  net/test[mode=a%20b]");
    assert_eq!(ran.stdout(), "1 mine net/test [mode=a%20b] a b guest 1 common\n");
    let evidence = guestline.evidence(1);
    let artifact = |name: &str| fs::read(evidence.join("artifacts").join(name)).unwrap();
    assert_eq!(artifact("seen"), b"data\nset up\n");
    assert_eq!((artifact("bytes"), artifact("more/x")), (vec![0xff], b"deep\n".to_vec()));
    assert_eq!(artifact("down"), b"set up\n");
    assert_eq!(fs::read(evidence.join("tear-down")).unwrap(), b"down\n");
    guestline.assert_nothing_left();
}

#[test]
fn a_broken_set_up_is_no_failed_test_and_tear_down_always_runs() {
    let guestline = suite(&[
        (
            "setup*",
            "#!/bin/sh\n#: setup = 'echo no disk; exit 3'\n#: teardown = 'touch $GUESTLINE_ARTIFACTS/down'\ntrue\n",
        ),
        ("teardown*", "#!/bin/sh\n#: teardown = 'echo still mounted; exit 1'\ntrue\n"),
        (
            "slow*",
            "#!/bin/sh\n#: timeout = '3s'\n#: teardown = 'touch $GUESTLINE_ARTIFACTS/down'\nsleep 100\n",
        ),
        ("dies*", "#!/bin/sh\n#: setup = 'echo c > /proc/sysrq-trigger; sleep 10'\ntrue\n"),
    ]);
    let ran = guestline.run(&JSON);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let all = outcomes(&ran);
    assert_eq!(all[0].1, "errored (set-up: guest panicked)");
    assert_eq!(all[1].1, "errored (set-up: status 3: no disk)");
    assert_eq!(all[2].1, "failed (timed out after 3 s)");
    assert_eq!(all[3].1, "errored (tear-down: status 1: still mounted)");
    let events = ran.events();
    let folder = |name: &str| {
        let end = events
            .iter()
            .find(|event| event["event"] == "attempt-finished" && event["test"] == name);
        Path::new(end.unwrap()["folder"].as_str().unwrap()).to_owned()
    };
    assert!(folder("setup").join("artifacts/down").exists());
    assert!(folder("slow").join("artifacts/down").exists());
    guestline.assert_nothing_left();
}

#[test]
fn fixtures_are_set_up_once_and_one_that_fails_errs_what_needs_it() {
    let toml = "api = 1
[fixtures.base]
run = './base.sh'
inputs = ['data']
[fixtures.site]
run = 'echo site of $(cat /srv/base) > /srv/site; echo once >> /srv/count'
needs = ['base']
[fixtures.broken]
run = 'echo about to; echo no space left >&2; exit 3'
owner = 'web@example.org'
needs = ['site']
";
    // Templates are shared with earlier runs.
    let unique = format!("DATA {}\n", std::process::id());
    let guestline = suite(&[
        ("guestline.toml", toml),
        ("base.sh*", "#!/bin/sh\nmkdir -p /srv; cat data/x > /srv/base\n"),
        ("data/x", &unique),
        (
            "good.checks",
            "#: fixtures = ['site']\na: grep -q 'site of DATA' /srv/site\nb: test $(wc -l < /srv/count) = 1\n",
        ),
        ("bad.checks", "#: fixtures = ['broken']\nc: true\nd: true\n"),
    ]);
    let ran = guestline.run(&JSON);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    let all = outcomes(&ran);
    let why =
        "errored (fixture `broken` (owner: web@example.org) ended with status 3: no space left)";
    assert_eq!((all[0].1.as_str(), all[1].1.as_str()), (why, why));
    assert_eq!((all[2].1.as_str(), all[3].1.as_str()), ("passed", "passed"));
    let made =
        |ran: &Ran| ran.events().iter().filter(|event| event["event"] == "template-made").count();
    // Base and site; the boot's may be there from other tests.
    assert!((2..=3).contains(&made(&ran)), "{}", made(&ran));
    assert_eq!(made(&guestline.run(&["run", "--message-format", "json", "t/good"])), 0);
    // Its files are others, so it is set up again, and what stands upon it.
    write(&guestline.home().join("t"), &[("data/x", &unique.replace("DATA", "OTHER"))]);
    let ran = guestline.run(&["run", "--message-format", "json", "t/good"]);
    assert_eq!((made(&ran), outcomes(&ran)[0].1.as_str()), (2, "failed (status 1)"));
    guestline.assert_nothing_left();
}

#[test]
fn fixtures_of_the_host_keep_a_folder_and_are_torn_down() {
    let toml = "api = 1
[fixtures.certificate]
on = 'host'
run = './make.sh'
inputs = ['seed']
[fixtures.server]
on = 'host'
run = 'cp \"$GUESTLINE_FIXTURE_CERTIFICATE/key\" \"$GUESTLINE_FIXTURE_FOLDER/\"; sleep 1000 > /dev/null 2>&1 & echo $! > \"$HOME/server.pid\"'
needs = ['certificate']
teardown = 'echo down >> \"$HOME/down\"; test -e \"$GUESTLINE_FIXTURE_FOLDER/key\"'
[fixtures.broken]
on = 'host'
run = 'echo no such lab >&2; exit 4'
owner = 'lab@example.org'
";
    let unique = format!("{}\n", std::process::id());
    let guestline = suite(&[
        ("guestline.toml", toml),
        (
            "make.sh*",
            "#!/bin/sh\necho made >> \"$HOME/made\"; cp seed \"$GUESTLINE_FIXTURE_FOLDER/key\"\n",
        ),
        ("seed", &unique),
        (
            "guest.checks",
            "#: fixtures = ['certificate']\na: test -s \"$GUESTLINE_FIXTURE_CERTIFICATE/key\"\nb: test -s \"$GUESTLINE_FIXTURE_CERTIFICATE/key\"\n",
        ),
        (
            "host*",
            "#!/bin/sh\n#: on = 'host'\n#: fixtures = ['server']\nkill -0 $(cat \"$HOME/server.pid\") && test -s \"$GUESTLINE_FIXTURE_SERVER/key\"\n",
        ),
        ("bad.checks", "#: fixtures = ['broken']\nc: true\nd: true\n"),
    ]);
    let lines = |name: &str| {
        fs::read_to_string(guestline.home().join(name)).unwrap_or_default().lines().count()
    };
    let ran = guestline.run(&JSON);
    let why =
        "errored (fixture `broken` (owner: lab@example.org) ended with status 4: no such lab)";
    let all: Vec<_> = outcomes(&ran).into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(all, [why, why, "passed", "passed", "passed"], "{}", ran.stderr);
    assert_eq!((lines("made"), lines("down")), (1, 1), "{}", ran.stderr);
    let pid = fs::read_to_string(guestline.home().join("server.pid")).unwrap();
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    // What has no tear-down is there for the next run.
    let ran = guestline.run(&["run", "t/guest", "t/host"]);
    assert_eq!((ran.status, lines("made"), lines("down")), (0, 1, 2), "{}", ran.stderr);
    write(&guestline.home().join("t"), &[("seed", &format!("other {unique}"))]);
    let ran = guestline.run(&["run", "t/guest"]);
    assert_eq!((ran.status, lines("made")), (0, 2), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_test_has_the_files_of_its_suites_libs() {
    let guestline = suite(&[
        ("guestline.toml", "api = 1\n[libs]\nshared-code = '../common'\n"),
        ("x*", "#!/bin/sh\n. \"$GUESTLINE_LIB_SHARED_CODE/sub/lib.sh\"\nsay\n"),
    ]);
    write(guestline.home(), &[("common/sub/lib.sh", "say() { echo from the lib; }\n")]);
    let ran = guestline.run(&["run", "t"]);
    ran.assert_verdict(0, "passed  x");
    assert_eq!(ran.stdout(), "from the lib\n");
    write(guestline.home(), &[("t/guestline.toml", "api = 1\n[libs]\ncommon = '../nowhere'\n")]);
    let ran = guestline.run(&["run", "t"]);
    assert_eq!(
        (ran.status, ran.stderr.contains("lib `common`, `../nowhere`")),
        (2, true),
        "{}",
        ran.stderr
    );
}

#[test]
fn tests_that_share_a_machine_get_another_one_after_what_is_left_behind() {
    let guestline = suite(&[(
        "many.checks",
        "#: isolation = 'suite'
one: touch /tmp/mark
two: test -e /tmp/mark
process: sleep 100 &
no-process: ! pgrep sleep && ! test -e /tmp/mark
mount: mount -t tmpfs none /mnt
no-mount: ! mountpoint -q /mnt
name: hostname other
no-name: test $(hostname) != other
fails: touch /tmp/mark; false
after: ! test -e /tmp/mark
",
    )]);
    let ran = guestline.run(&["run", "--jobs", "1", "--message-format", "json", "t"]);
    let failed: Vec<_> =
        outcomes(&ran).into_iter().filter(|(_, outcome)| outcome != "passed").collect();
    assert_eq!(failed, [("many/fails".to_owned(), "failed (status 1)".to_owned())]);
    let ready = ran.events().iter().filter(|event| event["event"] == "machine-ready").count();
    assert_eq!(ready, 5);
    guestline.assert_nothing_left();
}

#[test]
fn retries_repeats_and_known_failures_are_said() {
    let guestline = suite(&[
        ("flaky*", "#!/bin/sh\n#: retries = 2\ntest $GUESTLINE_ATTEMPT = 3\n"),
        (
            "sometimes*",
            "#!/bin/sh\n#: flaky = {runs = 3, fail_above = 1}\ntest $GUESTLINE_ATTEMPT != 2\n",
        ),
        ("known*", "#!/bin/sh\n#: known_issue = 'https://example.org/7'\nfalse\n"),
        ("mended*", "#!/bin/sh\n#: known_issue = 'https://example.org/8'\ntrue\n"),
    ]);
    let ran = guestline.run(&["run", "t"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    for said in [
        "(flaky: failed 2 times)",
        "(1 of 3 failed)",
        "(known: https://example.org/7)",
        "(unexpected pass: https://example.org/8 says that it fails)",
        "4 tests in ",
        "3 passed, 1 failed as known; 2 of them flaky",
    ] {
        assert!(ran.stderr.contains(said), "{said}\n{}", ran.stderr);
    }
    let ran = guestline.run(&["run", "--repeat", "3", "t/sometimes"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("1 of 3 failed: status 1"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn results_in_the_output_are_told_one_by_one() {
    let tap = |body: &str| format!("#!/bin/sh\n#: format = 'tap'\n{body}");
    let good = tap("echo 1..2; echo 'ok 1 - a'; echo 'not ok 2 - b # TODO later'");
    let bad = tap(
        "echo 1..3; echo 'ok 1 - a'; echo 'not ok 2 - b'; echo 'ok 3 # SKIP no device'; exit 1",
    );
    let cut = tap("echo 1..3; echo 'ok 1 - a'");
    let guestline = suite(&[("good*", &good), ("bad*", &bad), ("cut*", &cut)]);
    let ran = guestline.run(&JSON);
    let all: Vec<_> = outcomes(&ran).into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(
        all,
        [
            "failed (1 of 3 results failed: b)",
            "failed (3 results were planned, and 1 came)",
            "passed"
        ]
    );
    let subtests = ran.events().iter().filter(|event| event["event"] == "subtest").count();
    assert_eq!(subtests, 6);
    let ran = guestline.run(&["run", "t/bad"]);
    assert!(ran.stderr.contains("  1 of 3 results failed:\n    b: not ok\n"), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_job_of_a_plan_is_run_by_another_process() {
    let guestline = suite(&[
        ("x*", "#!/bin/sh\n#: files = ['data']\ncat data\n"),
        ("data", "content\n"),
        ("c.checks", "a: true\n"),
    ]);
    assert_eq!(
        right(&guestline.run(&["run", "--plan-only", "--out", "plan", "t"])),
        "2 jobs in plan/jobs\n"
    );
    fs::remove_dir_all(guestline.home().join("t")).unwrap();
    let ran = guestline.run(&["job", "plan/jobs/0002.json"]);
    ran.assert_verdict(0, "passed  x");
    assert_eq!(ran.stdout(), "content\n");
    let object =
        fs::read_dir(guestline.home().join("plan/objects")).unwrap().flatten().next().unwrap();
    fs::write(object.path(), "other").unwrap();
    guestline
        .run(&["job", "plan/jobs/0002.json"])
        .assert_verdict(125, "changed after the run was planned");
    let text = fs::read_to_string(guestline.home().join("plan/jobs/0001.json")).unwrap();
    fs::write(guestline.home().join("9.json"), text.replace("\"format\": 1", "\"format\": 9"))
        .unwrap();
    let ran = guestline.run(&["job", "9.json"]);
    assert_eq!(
        (ran.status, ran.stderr.contains("has format 9, and this version knows 1")),
        (2, true),
        "{}",
        ran.stderr
    );
    guestline.assert_nothing_left();
}

#[test]
fn a_suite_in_a_repository_is_pinned_to_its_commit() {
    let guestline = suite(&[
        ("guestline.toml", "api = 1\nname = 'far'\n"),
        ("sub/x*", "#!/bin/sh\necho first; false\n"),
    ]);
    let git = |words: &[&str]| {
        let config = ["-C", "t", "-c", "user.name=x", "-c", "user.email=x@example.org"];
        right(&guestline.run_other(
            "git",
            &[&config[..], words].concat(),
            std::process::Stdio::null(),
        ))
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "first"]);
    git(&["tag", "v1"]);
    let commit = git(&["rev-parse", "HEAD"]).trim().to_owned();
    write(&guestline.home().join("t"), &[("sub/x*", "#!/bin/sh\necho second\n")]);
    git(&["commit", "-qam", "second"]);
    let url = format!("git+file://{}/t", guestline.home().canonicalize().unwrap().display());
    let ran = guestline.run(&["run", &format!("{url}#sub/x")]);
    ran.assert_verdict(0, "passed  sub/x");
    let ran = guestline.run(&["run", &format!("{url}@v1#sub")]);
    ran.assert_verdict(1, "failed  sub/x");
    let again = format!("again:    guestline run '{url}@{commit}#sub/x'\n");
    let bare = again.replace('\'', "");
    assert!(ran.stderr.contains(&again) || ran.stderr.contains(&bare), "{}", ran.stderr);
    let ran = guestline.run(&["run", "--message-format", "json", &format!("{url}@{commit}#sub/x")]);
    let events = ran.events();
    let started = events.iter().find(|event| event["event"] == "attempt-started").unwrap();
    assert_eq!(started["job"]["tests"][0]["of"]["origin"]["commit"], commit.as_str());
    let ran = guestline.run(&["run", &format!("{url}@v9")]);
    assert_eq!((ran.status, ran.stderr.contains("v9")), (2, true), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_change_is_run_again() {
    let guestline = suite(&[("a.checks", "x: false\n")]);
    let mut running = guestline.start(&["run", "--watch", "--message-format", "json", "t"]);
    let mut outcome = || loop {
        let line = running.next_line();
        if line.contains("\"test-finished\"") {
            return serde_json::from_str::<Value>(&line).unwrap()["outcome"].clone();
        }
    };
    assert_eq!(outcome(), "failed");
    // It may still be on its way to look.
    std::thread::sleep(std::time::Duration::from_secs(2));
    write(&guestline.home().join("t"), &[("a.checks", "x: true\n")]);
    assert_eq!(outcome(), "passed");
    running.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(running.wait().status, 130);
    guestline.assert_nothing_left();
}

#[test]
fn what_is_wrong_with_a_suite_is_told_before_anything_boots() {
    let guestline =
        suite(&[("a.checks", "x: true\nx: false\n"), ("b*", "#!/bin/sh\n#: imgae = 'x'\n")]);
    write(guestline.home(), &[("ok/c.checks", "x: true\n")]);
    let ran = guestline.run(&["run", "t"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("t/a.checks:2: `x` is the name of line 1 already"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("t/b:2: unknown key `imgae`: write `image`"), "{}", ran.stderr);
    for (args, said) in [
        (&["run", "nowhere"][..], "there is no such file or folder"),
        (&["list", "t/b"], "unknown key"),
        (&["run", "ok", "--matrix", "cpus=0"], "want a number from 1 to 255"),
        (&["run", "ok", "--require", "a b c"], "is no name"),
    ] {
        let ran = guestline.run(args);
        assert_eq!((ran.status, ran.stderr.contains(said)), (2, true), "{args:?} {}", ran.stderr);
    }
    let bad = suite(&[("a.checks", "#: image = 'nope'\nx: true\n")]);
    let ran = bad.run(&["run", "t"]);
    assert_eq!((ran.status, ran.stderr.contains("`nope`")), (2, true), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_test_that_lacks_something_is_not_run() {
    let guestline = suite(&[(
        "a.checks",
        "#: requires = ['cpus >= 4']\nfew: true\n#: requires = ['lab']\nlab: true\n#: requires = ['cpus >= 4']\n#: cpus = 4\nmany: test $(nproc) = 4\n",
    )]);
    let ran = guestline.run(&["run", "t"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("warning: t/a.checks:4: nobody says what `lab` means"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("needs cpus >= 4: tiny has 1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("needs lab: nobody provides it"), "{}", ran.stderr);
    fs::write(
        guestline.home().join("lab.toml"),
        "[provides.lab]\nvalue = true\ndoc = 'The lab.'\n",
    )
    .unwrap();
    let ran = guestline.run(&["run", "--environment", "lab.toml", "t/a/lab"]);
    ran.assert_verdict(0, "passed");
    let listed = right(&guestline.run(&["list", "t", "--incompatible"]));
    assert!(listed.contains("a/few") && !listed.contains("a/many"), "{listed}");
    let why = right(&guestline.run(&["list", "t", "--why", "a/few"]));
    assert!(why.contains("incompatible here\n  needs cpus >= 4: tiny has 1"), "{why}");
    assert_eq!(guestline.run(&["run", "t/a/lab"]).status, 4);
}
