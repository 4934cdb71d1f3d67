use super::*;
use crate::suite::test::Test;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// A folder with files; what ends with `*` is executable.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let (name, mode) = name.strip_suffix('*').map_or((*name, 0o644), |name| (name, 0o755));
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    folder
}

/// No repository is fetched here.
fn means() -> Means<'static> {
    static CANCEL: std::sync::LazyLock<CancellationToken> =
        std::sync::LazyLock::new(CancellationToken::new);
    Means { cache: Path::new("/nonexistent"), cancel: &CANCEL }
}

fn names(found: &Found) -> Vec<String> {
    found.tests.iter().map(|test| format!("{} {}", test.kind, test.name)).collect()
}

fn faults(root: &Path, path: &str) -> String {
    let errors = find(&root.join(path), None, means()).unwrap_err();
    let root = format!("{}/", root.canonicalize().unwrap().display());
    let told: Vec<_> = errors.iter().map(|it| it.to_string().replace(&root, "")).collect();
    told.join("\n")
}

const SH: &str = "#!/bin/sh\n";

#[test]
fn each_kind_of_file_is_told() {
    let folder = folder(&[
        ("cpu.checks", "a: true\nb: false\n"),
        ("net/mtu.sh*", SH),
        ("net/mtu.sh.setup*", SH),
        ("net/plain*", "\x7fELF\0"),
        ("host.py", "# about\ndef run(m):\n    pass\n"),
        ("lib.py", "def helper(): pass\n"),
        ("README.md", "text"),
        ("forgotten.sh", "#!/bin/sh\n#: on = 'host'\n"),
        ("later.rhai", ""),
        ("orphan.teardown*", SH),
        (".hidden*", SH),
        ("empty*", ""),
    ]);
    let found = find(folder.path(), None, means()).unwrap();
    assert_eq!(
        names(&found),
        ["check cpu/a", "check cpu/b", "python host.py", "script net/mtu.sh", "script net/plain"]
    );
    let setup = found.tests[3].setup.clone();
    assert_eq!(setup, Some(crate::suite::test::Step::file("net/mtu.sh.setup")));
    let root = folder.path().canonicalize().unwrap();
    let none: Vec<_> = found
        .none
        .iter()
        .map(|it| {
            format!(
                "{} ({}) {}",
                it.file.strip_prefix(&root).unwrap().display(),
                it.is_meant,
                it.why
            )
        })
        .collect();
    insta::assert_snapshot!(none.join("\n"));
}

#[test]
fn a_path_means_a_folder_a_file_or_a_test_by_its_name() {
    let folder = folder(&[
        ("guestline.toml", "api = 1\nname = 'all'\nimage = 'debian-12'\n"),
        ("cpu.checks", "a: true\nab: false\n"),
        ("net/mtu.sh*", SH),
        ("net/other*", SH),
        ("inner/guestline.toml", "api = 1\n"),
        ("inner/x*", SH),
    ]);
    let of = |path: &str| names(&find(&folder.path().join(path), None, means()).unwrap());
    assert_eq!((of("").len(), of("guestline.toml").len()), (5, 5));
    assert_eq!(of("net"), ["script net/mtu.sh", "script net/other"]);
    assert_eq!(of("net/mtu.sh"), ["script net/mtu.sh"]);
    assert_eq!(of("cpu.checks"), ["check cpu/a", "check cpu/ab"]);
    assert_eq!(of("cpu/a"), ["check cpu/a"]);
    assert_eq!(of("cpu"), ["check cpu/a", "check cpu/ab"]);
    assert_eq!(of("net/../net/./other"), ["script net/other"]);
    assert_eq!(of("inner"), ["script x"]);
    let found = find(folder.path(), None, means()).unwrap();
    let suites: Vec<_> = found.suites.iter().map(|suite| suite.name.as_str()).collect();
    assert_eq!(suites, ["all", "inner"]);
    let image = |test: &Test| test.settings.image.as_ref().map(ToString::to_string);
    assert_eq!(image(&found.tests[0]).as_deref(), Some("debian-12"));
    assert_eq!(image(&found.tests[4]), None);
    let path = |path| faults(folder.path(), path);
    insta::assert_snapshot!([path("cpu/b"), path("nat/mtu.sh"), path("net/mtu.sh/x")].join("\n"));
}

#[test]
fn what_a_suite_names_for_another_purpose_is_no_test() {
    let folder = folder(&[
        (
            "guestline.toml",
            "api = 1\ngenerate = './make'\nexclude = ['lib/*']\n[fixtures.site]\nrun = './deploy.sh now'\n",
        ),
        ("make*", "#!/bin/sh\necho '{\"api\": 1, \"tests\": []}'\n"),
        ("deploy.sh*", SH),
        ("lib/helper*", SH),
        ("t/test*", "#!/bin/sh\n#: files = ['tool', '../common']\n"),
        ("t/tool*", SH),
        ("common/x", ""),
    ]);
    assert_eq!(names(&find(folder.path(), None, means()).unwrap()), ["script t/test"]);
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let folder = folder(&[
        ("guestline.toml", "api = 1\n[fixtures.base]\nrun = 'true'\n"),
        ("a.checks", "x: true\nx: false\n"),
        ("b*", "#!/bin/sh\n\n#: imgae = 'tiny'\n"),
        ("c*", "#!/bin/sh\n#: fixtures = ['bse']\n"),
        ("d*", "#!/bin/sh\n#: files = ['/etc/passwd']\n"),
        ("e*", "#!/bin/sh\n#: files = ['nope']\n"),
        ("f*", "#!/bin/sh\n#: files = ['../../x']\n"),
        ("g/h*", SH),
        ("g.checks", "h: true\n"),
        ("i*", "#!/bin/sh\n#: matrix.cpu = ['a']\n#: matrix.exclude = [{cpu = 'a'}]\n"),
    ]);
    insta::assert_snapshot!(faults(folder.path(), ""));
    fs::write(folder.path().join("guestline.toml"), "api = 7\n").unwrap();
    assert_eq!(
        faults(folder.path(), ""),
        "guestline.toml:1: test API 7 is not known: this version knows 1"
    );
}

#[test]
fn links_do_not_lead_in_circles() {
    let folder = folder(&[("t*", SH)]);
    std::os::unix::fs::symlink(".", folder.path().join("circle")).unwrap();
    std::os::unix::fs::symlink("t", folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
    assert_eq!(names(&find(folder.path(), None, means()).unwrap()), ["script link", "script t"]);
}

#[test]
fn a_program_makes_tests() {
    let json = r#"{"api": 1, "tests": [{"name": "a", "line": "true", "timeout": "5s"}, {"name": "sub/b", "file": "x.sh", "args": ["1"]}]}"#;
    let toml = "api = 1\ngenerate = './make'\nimage = 'debian-12'\n";
    let folder = folder(&[
        ("guestline.toml", toml),
        ("make*", &format!("#!/bin/sh\ncat <<'X'\n{json}\nX\n")),
        ("x.sh*", SH),
    ]);
    let found = find(folder.path(), None, means()).unwrap();
    assert_eq!(names(&found), ["script x.sh", "check a", "script sub/b"]);
    let made = &found.tests[1];
    assert_eq!(made.settings.image.as_ref().map(ToString::to_string).as_deref(), Some("debian-12"));
    assert_eq!(names(&find(&folder.path().join("a"), None, means()).unwrap()), ["check a"]);
    let wrong = |json: &str| {
        fs::write(folder.path().join("make"), format!("#!/bin/sh\ncat <<'X'\n{json}\nX\n"))
            .unwrap();
        faults(folder.path(), "")
    };
    let all = [
        wrong("garbage"),
        wrong(r#"{"api": 1, "tests": [{"name": "a", "line": "true", "imgae": "x"}]}"#),
        wrong(r#"{"api": 1, "tests": [{"name": "a", "line": "true", "timeout": []}]}"#),
        wrong(
            r#"{"api": 1, "tests": [{"name": "x.sh", "line": "true"}, {"name": "c", "file": "none"}]}"#,
        ),
        wrong(r#"{"api": 2, "tests": []}"#),
    ];
    insta::assert_snapshot!(all.join("\n"));
    fs::write(folder.path().join("guestline.toml"), format!("{toml}generate_timeout = '200ms'\n"))
        .unwrap();
    fs::write(folder.path().join("make"), "#!/bin/sh\nsleep 600\n").unwrap();
    assert!(faults(folder.path(), "").contains("made no tests within 200 ms"));
}
