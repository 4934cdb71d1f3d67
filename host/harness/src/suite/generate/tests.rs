use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const SCHEMA: &str = include_str!("../../../../../docs/tests.schema.json");

fn names(text: &str) -> Vec<String> {
    parse(text.as_bytes()).unwrap().into_iter().map(|test| test.name).collect()
}

fn why(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err().to_string()
}

/// One test with this in it.
fn with(inner: &str) -> String {
    format!(r#"{{"api": 1, "tests": [{{"name": "a", "line": "true"}}, {{{inner}}}]}}"#)
}

const TAKEN: [&str; 5] = [
    r#"{"api": 1, "tests": []}"#,
    r#"{"tests": [{"line": "true", "name": "a"}], "api": 1}"#,
    r#"{"api": 1, "tests": [{"name": "net/mtu-1500", "file": "mtu.sh", "args": ["1500", ""]}]}"#,
    r#"{"api": 1, "tests": [{"name": "a.b_c", "file": "./b/c.sh"}, {"name": "b", "line": "x"}]}"#,
    r#"{"api": 1, "tests": [{"name": "0", "line": "x", "requires": ["root"], "timeout": "5s"}]}"#,
];

#[test]
fn tests_are_lines_and_files() {
    assert_eq!(names(TAKEN[0]), [""; 0]);
    assert_eq!(names(TAKEN[1]), ["a"]);
    let file = parse(TAKEN[2].as_bytes()).unwrap().remove(0);
    assert_eq!(file.run, Run::File { path: "mtu.sh".into(), args: vec!["1500".into(), "".into()] });
    let settings = parse(TAKEN[4].as_bytes()).unwrap().remove(0).settings;
    assert_eq!(settings.keys().collect::<Vec<_>>(), ["requires", "timeout"]);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let all: Vec<_> = [
        "",
        "no tests",
        "{\"api\": 1,\n \"tests\": [{\"name\": }]}",
        "[]",
        r#"{"api": 2, "tests": 7}"#,
        r#"{"api": "1", "tests": []}"#,
        r#"{"tests": []}"#,
        r#"{"api": 1}"#,
        r#"{}"#,
        r#"{"api": 1, "tests": [], "more": 1}"#,
        r#"{"api": 1, "tests": []} x"#,
        r#"{"api": 1, "tests": [1]}"#,
        r#"{"api": 1, "tests": [], "tests": []}"#,
        &with(""),
        &with(r#""name": "b""#),
        &with(r#""name": 5, "line": "x""#),
        &with(r#""name": "A b", "line": "x""#),
        &with(r#""name": "a", "line": "x""#),
        &with(r#""name": "b", "line": "x", "file": "y""#),
        &with(r#""name": "b", "line": "x", "args": []"#),
        &with(r#""name": "b", "line": " ""#),
        &with(r#""name": "b", "file": "../x""#),
        &with(r#""name": "b", "file": "/x""#),
        &with(r#""name": "b", "file": "x", "args": "y""#),
        &with(r#""name": "b", "file": "x", "args": [1]"#),
        &with(r#""name": "b", "line": "x\u0000""#),
        &with(r#""name": "b", "line": "x", "line": "y""#),
    ]
    .iter()
    .map(|text| why(text))
    .collect();
    insta::assert_snapshot!(all.join("\n"));
    let deep = format!("{{\"api\": 1, \"tests\": [{}", "[".repeat(100_000));
    assert!(why(&deep).len() < 300);
    let many: Vec<_> = (0..=MAX_TESTS).map(|n| format!(r#"{{"name":"{n}","line":"x"}}"#)).collect();
    let many = |count: usize| format!(r#"{{"api":1,"tests":[{}]}}"#, many[..count].join(","));
    assert_eq!(names(&many(MAX_TESTS)).len(), MAX_TESTS);
    assert_eq!(why(&many(MAX_TESTS + 1)), "there are more than 100000 tests");
}

#[test]
fn the_schema_says_the_same() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let known = ["name", "line", "file", "args"];
    let properties = schema["$defs"]["test"]["properties"].as_object().unwrap();
    assert!(properties.keys().all(|key| known.contains(&key.as_str())) && properties.len() == 4);
    assert_eq!(schema["$defs"]["test"]["properties"]["name"]["maxLength"], MAX_NAME_LEN);
    assert_eq!(schema["properties"]["tests"]["maxItems"], MAX_TESTS);
    let wrong = [
        with(""),
        with(r#""name": "b""#),
        with(r#""name": "A b", "line": "x""#),
        with(r#""name": "b/", "line": "x""#),
        with(r#""name": "b", "line": "x", "args": []"#),
        with(r#""name": "b", "line": "  ""#),
        with(r#""name": "b", "file": "a/../../x""#),
        with(r#""name": "b", "file": "/x""#),
        with(r#""name": "b", "file": "./""#),
        with(r#""name": "b", "file": "x", "args": [1]"#),
        with(r#""name": "b", "line": "x\u0000""#),
        r#"{"api": 2, "tests": []}"#.to_owned(),
        r#"{"api": 1}"#.to_owned(),
    ];
    let right = [with(r#""name": "b", "file": "./x..y/z", "args": ["", "é"], "image": "tiny""#)];
    let taken = TAKEN.iter().map(|text| (*text).to_owned());
    for text in taken.chain(wrong).chain(right) {
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(validator.is_valid(&value), parse(text.as_bytes()).is_ok(), "{text}");
    }
}

/// A suite with a program that does this.
fn generate(script: &str, limit: Duration) -> Result<Vec<Generated>, GenerateError> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("make");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let generator = Generator { program: "./make", folder: folder.path(), limit };
    // Another test that forks meanwhile has the file open for writing for a moment.
    loop {
        match generator.run(&CancellationToken::new()) {
            Err(GenerateError::Start { source, .. })
                if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
            made => return made,
        }
    }
}

#[test]
fn a_program_makes_them() {
    let minute = Duration::from_secs(60);
    let script = r#"test -x make && echo '{"api": '$GUESTLINE_API', "tests": [{"name": "a", "line": "x"}]}'"#;
    assert_eq!(generate(script, minute).unwrap()[0].name, "a");
    let why = |script: &str, limit| text::chain(&generate(script, limit).unwrap_err());
    assert_eq!(
        why("echo a >&2; echo 'no b' >&2; exit 3", minute),
        "`./make` made no tests: status 3: a; no b"
    );
    assert_eq!(why("kill -9 $$", minute), "`./make` made no tests: killed by signal 9");
    assert_eq!(
        why("echo waits >&2; sleep 1000", Duration::from_millis(300)),
        "`./make` made no tests within 300 ms: waits"
    );
    assert_eq!(why("yes", minute), "`./make` printed more than 16.0 MiB");
    assert!(
        why("echo '{'", minute).starts_with("what `./make` printed are no tests: line 2, column")
    );
    let run = |program| {
        let generator = Generator { program, folder: Path::new("/"), limit: minute };
        let cancel = CancellationToken::new();
        cancel.cancel();
        generator.run(&cancel).unwrap_err()
    };
    assert!(matches!(run("./none/at-all"), GenerateError::Start { .. }));
    assert!(matches!(run("../x"), GenerateError::Program { .. }));
    assert!(matches!(run("true"), GenerateError::Cancelled));
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in "\\PC{0,40}|[\\[\\]{}:,\"a1 ]{0,30}", cut in 0..200_usize) {
        let _ = parse(text.as_bytes());
        let whole = TAKEN[2].as_bytes();
        let _ = parse(&whole[..cut.min(whole.len())]);
    }
}
