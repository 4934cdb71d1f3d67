use super::*;

fn words(line: &[&str]) -> Vec<OsString> {
    line.iter().map(OsString::from).collect()
}

fn parsed(line: &[&str]) -> Result<Parsed, UsageError> {
    parse(&words(line), Path::new("/home/me"))
}

fn request(line: &[&str]) -> Request {
    match parsed(line) {
        Ok(Parsed::Do(invocation)) => invocation.request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_help_is_complete() {
    let all = words(&["", "exec", "push", "wait", "reboot", "skip", "sync", "send", "await"]);
    let mut texts = String::new();
    for verb in all {
        let line = if verb.is_empty() { words(&["--help"]) } else { vec![verb, "--help".into()] };
        let Ok(Parsed::Show(text)) = parse(&line, Path::new("/")) else { panic!("{line:?}") };
        texts += &format!("────\n{text}");
    }
    insta::assert_snapshot!(texts);
    for verb in VERBS {
        let Ok(Parsed::Show(text)) = parsed(&["help", verb.word()]) else { panic!() };
        assert!(text.contains(&format!("guest {}", verb.word())) || text.contains("[-m NAME]"));
        for option in verb.options().values.iter().chain(verb.options().flags) {
            assert!(text.contains(&format!("--{option}")), "{option} in {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 106), "{text}");
    }
}

#[test]
fn what_cannot_be_meant_is_told_with_the_way_out() {
    let mut texts = String::new();
    for line in [
        &[][..],
        &["--json"],
        &["frobnicate"],
        &["--", "exec"],
        &["-m"],
        &["-x", "exec"],
        &["exec"],
        &["exec", "ls", "-l"],
        &["exec", "--frob", "ls"],
        &["exec", "-t", "soon", "ls"],
        &["exec", "-e", "=x", "ls"],
        &["exec", "--stdin=yes", "ls"],
        &["push", "only"],
        &["push", "", "b"],
        &["wait"],
        &["wait", "true", "--port", "80"],
        &["wait", "--port", "0"],
        &["wait", "a", "b"],
        &["log"],
        &["-m", "web", "log", "x"],
        &["reboot", "web"],
        &["skip", " "],
        &["sync"],
        &["sync", "a", "b"],
        &["send", "novalue"],
        &["send", "=value"],
        &["await", ""],
    ] {
        let error = parsed(line).unwrap_err();
        texts += &format!("guest {}\n    guest: {error}\n", line.join(" "));
    }
    insta::assert_snapshot!(texts);
}

#[test]
fn commands() {
    let plain = ExecRequest {
        machine: None,
        command: Command::Line("ls -l".into()),
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        stdin: false,
        timeout_ms: None,
    };
    assert_eq!(request(&["exec", "ls -l"]), Request::Exec(plain.clone()));
    let argv = Command::Argv(vec!["ls".into(), "-l".into(), "--".into()]);
    assert_eq!(
        request(&["exec", "--", "ls", "-l", "--"]),
        Request::Exec(ExecRequest { command: argv, ..plain.clone() })
    );
    let all =
        ["-mweb", "exec", "-iu", "me", "-C/tmp", "-e", "A=b=c", "--env=D", "--timeout", "2m", "x"];
    let env = [("A".to_owned(), Some("b=c".into())), ("D".to_owned(), None)];
    assert_eq!(
        request(&all),
        Request::Exec(ExecRequest {
            machine: Some("web".to_owned()),
            command: Command::Line("x".into()),
            env: env.into(),
            cwd: Some("/tmp".into()),
            user: Some("me".to_owned()),
            stdin: true,
            timeout_ms: Some(120_000),
        })
    );
}

#[test]
fn paths_of_the_host_begin_where_the_script_is() {
    let copy = |from: &[&str], to: &str| CopyRequest {
        machine: None,
        from: from.iter().map(|&path| path.into()).collect(),
        to: to.into(),
    };
    assert_eq!(
        request(&["push", "a", "/b", "sub/", "etc"]),
        Request::Push(copy(&["/home/me/a", "/b", "/home/me/sub/"], "/etc"))
    );
    assert_eq!(request(&["pull", "etc/a", "."]), Request::Pull(copy(&["/etc/a"], "/home/me/.")));
    let odd = [OsString::from("push"), OsString::from_vec(b"\xff".to_vec()), "x".into()];
    let Ok(Parsed::Do(odd)) = parse(&odd, Path::new("/")) else { panic!() };
    assert!(matches!(odd.request, Request::Push(copy) if copy.from[0].0 == b"/\xff"));
}

#[test]
fn the_rest() {
    let wait = |until| Request::Wait(WaitRequest { machine: None, until, timeout_ms: None });
    assert_eq!(request(&["wait", "--unit", "sshd"]), wait(Until::Unit("sshd".to_owned())));
    assert_eq!(request(&["wait", "--file=run/x"]), wait(Until::File("/run/x".into())));
    assert_eq!(request(&["wait", "test -e /x"]), wait(Until::Line("test -e /x".into())));
    let text = |text: &str| Request::Log { text: text.to_owned() };
    assert_eq!(request(&["log", "value", "is", "-1", "--json"]), text("value is -1 --json"));
    assert_eq!(request(&["log", "--", "-1"]), text("-1"));
    let sync = Request::Sync { name: "here".to_owned(), timeout_ms: Some(500) };
    assert_eq!(request(&["sync", "here", "--timeout", "500ms"]), sync);
    let send = Request::Send { key: "a".to_owned(), value: "b=c".into() };
    assert_eq!(request(&["send", "a=b=c"]), send);
    let reboot = Request::Reboot { machine: Some("db".to_owned()), timeout_ms: None };
    assert_eq!(request(&["reboot", "--machine", "db"]), reboot);
    let Ok(Parsed::Do(invocation)) = parsed(&["--json", "-m", "a", "facts", "-m", "b"]) else {
        panic!()
    };
    assert!(invocation.json);
    assert_eq!(invocation.request, Request::Facts { machine: Some("b".to_owned()) });
    assert!(wants_json(&words(&["--json", "x"])) && !wants_json(&words(&["log", "--json"])));
}
