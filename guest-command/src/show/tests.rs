use super::*;
use crate::arguments::{Parsed, parse};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// What the command shows for these words, when the controller answers with these lines.
fn shown(words: &[&str], answers: &'static [&'static str]) -> (u8, String, String) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let socket = std::env::temp_dir().join(format!("gl-show-{}-{number}", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next();
        let hello = r#"{"reply":"hello","version":1,"side":"host","machines":[],"sides":[]}"#;
        writeln!(stream, "{hello}").unwrap();
        lines.next();
        for answer in answers {
            writeln!(stream, "{answer}").unwrap();
        }
    });
    let words: Vec<_> = words.iter().map(Into::into).collect();
    let Ok(Parsed::Do(invocation)) = parse(&words, Path::new("/")) else { panic!("{words:?}") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let connection = Connection::open(&socket).unwrap();
    let status = perform(&invocation, connection, &mut out, &mut err);
    answering.join().unwrap();
    std::fs::remove_file(socket).unwrap();
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn answers_are_shown_as_a_program_shows_them_and_as_json() {
    type Case = (&'static [&'static str], &'static [&'static str]);
    let cases: [Case; 9] = [
        (
            &["exec", "x"],
            &[
                r#"{"reply":"output","stream":"stdout","data":"out\n"}"#,
                r#"{"reply":"output","stream":"stderr","data":{"base64":"ZXJy"}}"#,
                r#"{"reply":"exited","status":137,"signal":9}"#,
            ],
        ),
        (&["exec", "x"], &[r#"{"reply":"error","kind":"not-found","message":"no `x`"}"#]),
        (
            &["wait", "-t", "1", "x"],
            &[
                r#"{"reply":"output","stream":"stdout","data":"not yet\n"}"#,
                r#"{"reply":"error","kind":"timeout","message":"not within 1 s"}"#,
            ],
        ),
        (
            &["push", "a", "b"],
            &[
                r#"{"reply":"copied","items":2,"bytes":5,"troubles":[{"path":"a\u001b","error":"no"}],"trouble_count":3}"#,
            ],
        ),
        (&["facts"], &[r#"{"reply":"facts","facts":{"kernel":"6.1"}}"#]),
        (&["await", "k"], &[r#"{"reply":"value","value":"v"}"#]),
        (&["skip", "why"], &[r#"{"reply":"done"}"#]),
        (&["fail", "why"], &[r#"{"reply":"done"}"#]),
        (&["log", "x"], &[]),
    ];
    let mut texts = String::new();
    for (words, answers) in cases {
        for json in [false, true] {
            let head: &[&str] = if json { &["--json"] } else { &[] };
            let words = [head, words].concat();
            let (status, out, err) = shown(&words, answers);
            let err = hide_socket(&err);
            let out = hide_socket(&out);
            texts += &format!("guest {} -> {status}\n{out}stderr: {err}\n", words.join(" "));
        }
    }
    insta::assert_snapshot!(texts);
}

fn hide_socket(text: &str) -> String {
    match (text.find('`'), text.rfind('`')) {
        (Some(from), Some(to)) if text.contains("gl-show-") => {
            format!("{}SOCKET{}", &text[..=from], &text[to..])
        }
        _ => text.to_owned(),
    }
}

#[test]
fn what_is_no_controller_is_told() {
    let error = Connection::open(Path::new("/no/such/socket")).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"nobody answers at `/no/such/socket`: No such file or directory (os error 2); has its test ended?");
    insta::assert_snapshot!(ConnectionError::NoTest.to_string(), @"GUESTLINE_SOCKET is not set: this runs only within a test: guestline run …");
}
