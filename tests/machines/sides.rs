//! Tests with a part on the host: scripts that drive machines with `guest`, two-sided tests, roles, Python.

use crate::suites::{outcomes, suite};
use std::fs;

const JSON: [&str; 4] = ["run", "--message-format", "json", "t"];

#[test]
fn a_script_on_the_host_drives_its_machine() {
    let script = "#!/bin/sh
#: on = 'host'
#: files = ['data']
set -eu
test \"$GUESTLINE_SIDE\" = host
guest push data /tmp/data
test \"$(guest exec 'cat /tmp/data; uname -s')\" = 'content
Linux'
guest exec 'exit 3' && exit 1 || test $? = 3
guest log \"half way\"
guest exec 'echo made > /tmp/made'
guest pull /tmp/made \"$GUESTLINE_ARTIFACTS/\"
guest reboot
guest exec 'test ! -e /tmp/made'
guest wait 'true'
";
    let guestline = suite(&[("drive*", script), ("data", "content\n")]);
    let ran = guestline.run(&["run", "t"]);
    ran.assert_verdict(0, "passed  drive");
    assert!(ran.stderr.contains("half way\n"), "{}", ran.stderr);
    assert_eq!(fs::read(guestline.evidence(1).join("artifacts/made")).unwrap(), b"made\n");
    guestline.assert_nothing_left();
}

#[test]
fn what_becomes_of_the_machine_counts_whatever_the_script_makes_of_it() {
    let host = |body: &str| format!("#!/bin/sh\n#: on = 'host'\n{body}\n");
    let panics = host("guest exec 'echo c > /proc/sysrq-trigger; sleep 5'; exit 0");
    let idle = host("guest exec 'echo c > /proc/sysrq-trigger' & sleep 60; exit 0");
    let reboots = host("guest exec 'echo b > /proc/sysrq-trigger; sleep 5'; sleep 20; exit 0");
    let off = host("guest exec 'poweroff -f; sleep 5'; exit 3");
    let told = host("guest poweroff; exit 0");
    let skip = host("guest skip 'no vlan here'; exit 0");
    let fail = host("guest fail 'as told'; exit 0");
    let nobody = host("guest -m web exec true; exit $?");
    let guestline = suite(&[
        ("panics*", &panics),
        ("idle*", &idle),
        ("reboots*", &reboots),
        ("off*", &off),
        ("told*", &told),
        ("skip*", &skip),
        ("fail*", &fail),
        ("nobody*", &nobody),
    ]);
    let ran = guestline.run(&JSON);
    let all = outcomes(&ran);
    let all: Vec<_> = all.iter().map(|(name, outcome)| (name.as_str(), outcome.as_str())).collect();
    assert_eq!(
        all,
        [
            ("fail", "failed (as told)"),
            ("idle", "failed (guest panicked)"),
            ("nobody", "failed (status 255)"),
            ("off", "failed (guest powered off)"),
            ("panics", "failed (guest panicked)"),
            ("reboots", "failed (guest rebooted)"),
            ("skip", "skipped (no vlan here)"),
            ("told", "passed"),
        ],
        "{}",
        ran.stderr
    );
    guestline.assert_nothing_left();
}

#[test]
fn both_sides_of_a_test_meet() {
    let both = "#!/bin/sh
#: on = 'both'
set -eu
guest sync start
case $GUESTLINE_SIDE in
    host) guest send port=4711; test \"$(guest await answer)\" = 'got 4711' ;;
    guest) guest send \"answer=got $(guest await port)\"; echo from > \"$GUESTLINE_ARTIFACTS/guest\" ;;
esac
guest sync end
";
    let roles = "#!/bin/sh
#: machines.web = {image = 'tiny'}
#: machines.db = {image = 'tiny', memory = '192M'}
set -eu
test \"$(hostname)\" = \"$GUESTLINE_MACHINE\"
guest sync up
case $GUESTLINE_MACHINE in
    web) guest send url=web:80 ;;
    db) test \"$(guest await url)\" = web:80 ;;
esac
";
    let one_fails = "#!/bin/sh
#: on = 'both'
test $GUESTLINE_SIDE = host && exit 4
sleep 60
";
    let statuses = "#!/bin/sh
#: on = 'both'
#: statuses = {pass = [3]}
test $GUESTLINE_SIDE = host && sleep 1 && echo late > \"$GUESTLINE_ARTIFACTS/late\"
exit 3
";
    let several = "#!/bin/sh
#: on = 'host'
#: machines.a = {}
#: machines.b = {}
set -eu
test \"$(guest -m a exec hostname) $(guest -m b exec hostname)\" = 'a b'
guest exec true && exit 1 || test $? = 255
";
    let guestline = suite(&[
        ("both*", both),
        ("roles*", roles),
        ("one-fails*", one_fails),
        ("several*", several),
        ("statuses*", statuses),
    ]);
    let ran = guestline.run(&JSON);
    let all = outcomes(&ran);
    let all: Vec<_> = all.iter().map(|(name, outcome)| (name.as_str(), outcome.as_str())).collect();
    assert_eq!(
        all,
        [
            ("both", "passed"),
            ("one-fails", "failed (status 4)"),
            ("roles", "passed"),
            ("several", "passed"),
            ("statuses", "passed")
        ],
        "{}",
        ran.stderr
    );
    // The side that ended first, and well, has not ended the other.
    let late = ran.events().into_iter().any(|event| {
        let folder = event["folder"].as_str().unwrap_or_default();
        event["test"] == "statuses" && std::path::Path::new(folder).join("artifacts/late").exists()
    });
    assert!(late);
    guestline.assert_nothing_left();
}

#[test]
fn a_function_in_python_is_a_test() {
    let python = "
def setup(m):
    m.exec('echo ready > /tmp/state')

def run(m):
    assert m.exec('cat /tmp/state').stdout.strip() == 'ready', 'not set up'
    assert m.try_exec('exit 3').status == 3

def teardown(m):
    m.exec('rm /tmp/state')
";
    let fails = "#: owner = 'me'\ndef run(m):\n    assert 1500 == 1492, 'mtu'\n";
    let guestline = suite(&[("good.py", python), ("bad.py", fails)]);
    let ran = guestline.run(&["run", "t"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("failed   bad.py") && ran.stderr.contains("AssertionError: mtu"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("2 tests in ") && ran.stderr.contains("1 passed, 1 failed"),
        "{}",
        ran.stderr
    );
    guestline.assert_nothing_left();
}

#[test]
fn what_a_script_leaves_running_on_the_host_is_ended() {
    let stays = "#!/bin/sh
#: on = 'host'
#: timeout = '2s'
setsid sh -c 'echo $$ > \"$GUESTLINE_ARTIFACTS/pid\"; exec sleep 600' > /dev/null 2>&1 < /dev/null &
while ! test -s \"$GUESTLINE_ARTIFACTS/pid\"; do sleep 0.05; done
";
    let hangs = format!("{stays}sleep 600\n");
    let guestline = suite(&[("a*", stays), ("b*", &hangs)]);
    let ran = guestline.run(&JSON);
    let all: Vec<_> = outcomes(&ran).into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(all, ["passed", "failed (timed out after 2 s)"], "{}", ran.stderr);
    for number in [1, 2] {
        let pid = fs::read_to_string(guestline.evidence(number).join("artifacts/pid")).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    guestline.assert_nothing_left();
}
