//! The Python module, its launcher and its exit statuses.

use crate::rig::{Rig, rig};
use guestline_harness::lab::{Side, Verdict};
use guestline_tests::Ran;
use std::path::{Path, PathBuf};
use std::process::Command;

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).canonicalize().unwrap()
}

async fn launch(rig: &Rig, socket: &Path, words: &[&str]) -> Ran {
    let mut command = Command::new("python3");
    command.arg("-B").arg(tree("scripts/lib/guestline.py")).args(words);
    command.current_dir(rig.folder.path()).env("GUESTLINE_SOCKET", socket);
    let running = tokio::task::spawn_blocking(move || command.output());
    Ran::from(running.await.unwrap().expect("python3 is there"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_module_has_every_verb() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    let test = tree("tests/guest/everything.py").display().to_string();
    for (phase, status) in [("setup", 0), ("run", 0), ("teardown", 77)] {
        let ran = launch(&rig, &socket, &[&test, phase]).await;
        assert_eq!(ran.status, status, "{phase}: {}{}", ran.stdout(), ran.stderr);
    }
    for text in ["set up", "web: hello"] {
        assert_eq!(rig.lines.recv().await.unwrap().text, text);
    }
    let skip = Verdict::Skip { reason: "not here".to_owned() };
    assert_eq!(rig.lab.verdict(), Some((Side::Host, skip)));
}

#[tokio::test(flavor = "multi_thread")]
async fn exceptions_become_exit_statuses() {
    let mut rig = rig(&["web"]).await;
    let socket = rig.serve(Side::Host);
    for (body, status, said) in [
        ("m.exec('exit 5')", 1, "status 5: 'exit 5'"),
        ("assert 1 == 2", 1, "AssertionError"),
        ("raise guestline.Skip('x')", 77, ""),
        ("m.wait('false', timeout=0.1)", 1, "not within 100 ms"),
        ("guestline.Machine('db').exec('true')", 255, "no machine `db`"),
        ("guestline.fail('broken')", 1, "broken"),
        ("raise SystemExit(9)", 9, ""),
    ] {
        let test = rig.path("case.py");
        std::fs::write(&test, format!("import guestline\ndef run(m):\n    {body}\n")).unwrap();
        let ran = launch(&rig, &socket, &["case.py"]).await;
        assert_eq!(ran.status, status, "{body}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{body}: {}", ran.stderr);
        // What it does not have is nothing to do, but for the test itself.
        assert_eq!(launch(&rig, &socket, &["case.py", "teardown"]).await.status, 0);
    }
    std::fs::write(rig.path("empty.py"), "").unwrap();
    for (words, said) in [
        (&["empty.py"][..], "has no function run(m)"),
        (&["none.py"], "there is no Python module `none.py`"),
        (&["empty.py", "never"], "usage: "),
        (&[], "usage: "),
    ] {
        let ran = launch(&rig, &socket, words).await;
        assert_eq!(ran.status, 255, "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{words:?}: {}", ran.stderr);
    }
    let ran = launch(&rig, Path::new("/no/such"), &["empty.py"]).await;
    assert_eq!(ran.status, 255);
    assert!(ran.stderr.contains("nobody answers at `/no/such`"), "{}", ran.stderr);
}

#[test]
fn the_module_is_python_3_7() {
    let check = "import ast, sys; how = {'feature_version': (3, 7)} if sys.version_info >= (3, 8) else {}; \
                 ast.parse(open(sys.argv[1]).read(), **how)";
    let module = tree("scripts/lib/guestline.py");
    let ran = Command::new("python3").args(["-c", check]).arg(module).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
