use super::super::Matrix;
use super::*;
use proptest::prelude::*;

struct Test {
    name: &'static str,
    tags: Vec<String>,
    kind: &'static str,
    owner: Option<&'static str>,
    variant: Option<Variant>,
}

fn tests() -> Vec<Test> {
    let test = |name, tags: &[&str], kind, owner| Test {
        name,
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        kind,
        owner,
        variant: None,
    };
    let mut tests = vec![
        test("net/mtu", &["slow", "net.core"], "script", Some("web-team@example.org")),
        test("net/deep/vlan", &[], "check", None),
        test("cpu/avx-512", &["fast"], "check", Some("cpu")),
        test("and", &[], "rhai", None),
    ];
    tests[0].variant = Matrix::from_words(&["nic=e1000"]).unwrap().variants().unwrap().next();
    tests
}

/// Which of them are meant, by their first letters.
fn meant(text: &str) -> String {
    let filter: Filter = text.parse().unwrap_or_else(|error| panic!("{error}"));
    let tests = tests();
    let meant = tests.iter().filter(|test| {
        filter.matches(&Candidate {
            name: test.name,
            tags: &test.tags,
            kind: test.kind,
            owner: test.owner,
            variant: test.variant.as_ref(),
        })
    });
    let short = |test: &Test| match test.name {
        "net/mtu" => 'm',
        "net/deep/vlan" => 'v',
        "cpu/avx-512" => 'c',
        _ => 'a',
    };
    meant.map(short).collect()
}

#[test]
fn words_and_predicates() {
    for (text, wanted) in [
        ("all()", "mvca"),
        ("none( )", ""),
        ("net", "mv"),
        ("net/*", "mv"),
        ("*/avx-???", "c"),
        ("avx-512", "c"),
        ("vla", "v"),
        ("vla*", ""),
        ("name(net/*)", "mv"),
        ("name(=net/mtu)", "m"),
        ("name(=net)", ""),
        ("name(=and)", "a"),
        ("tag(slow)", "m"),
        ("tag(slo)", ""),
        ("tag(net.*)", "m"),
        ("kind(check)", "vc"),
        ("owner(web-team*)", "m"),
        ("owner(*)", "mc"),
        ("variant([nic=e1000])", "m"),
        ("variant(nic=virtio)", ""),
        ("net[nic=e1000]", "m"),
        ("net/vlan[nic=e1000]", ""),
        ("name( \\a\\v\\x )", "c"),
    ] {
        assert_eq!(meant(text), wanted, "{text}");
    }
}

#[test]
fn operators_and_their_order() {
    for (text, wanted) in [
        ("net and kind(check)", "v"),
        ("net & kind(check)", "v"),
        ("net&&kind(check)", "v"),
        ("mtu or avx", "mc"),
        ("mtu|avx", "mc"),
        ("mtu || avx", "mc"),
        ("tag(slow)+avx", "mc"),
        ("not net", "ca"),
        ("!net", "ca"),
        ("not not net", "mv"),
        ("not(net)", "ca"),
        ("net - mtu", "v"),
        ("all()-(mtu or avx)", "va"),
        ("mtu or net and kind(check)", "mv"),
        ("(mtu or net) and kind(check)", "v"),
        ("not mtu and net", "v"),
        ("all() - mtu - avx", "va"),
        ("mtu + all() - net", "mca"),
        (" ( ( mtu ) ) ", "m"),
        ("(mtu)and(net)", "m"),
    ] {
        assert_eq!(meant(text), wanted, "{text}");
    }
}

fn error(text: &str) -> FilterError {
    text.parse::<Filter>().unwrap_err()
}

#[test]
fn the_place_of_a_fault_is_shown() {
    let all: Vec<_> = [
        "name(net/*) and",
        "net mtu",
        "(net or (mtu)",
        "net)",
        "nmae(x)",
        "regex(x)",
        "name(/net.*/)",
        "name(net",
        "tag()",
        "all(x)",
        "variant([cpu])",
        "mtu[nic=a,nic=b]",
        "mtu[nic=a",
        "[nic=e1000]",
        "or net",
        "-net",
        "é & \u{1b}",
        "",
    ]
    .iter()
    .map(|text| error(text).to_string())
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn what_is_too_much_is_refused() {
    let deep = format!("{}net{}", "(".repeat(100), ")".repeat(100));
    assert_eq!((error(&deep).why(), error(&deep).column()), ("it is nested deeper than 64", 65));
    assert!(error(&"!".repeat(1000)).why().contains("deeper"));
    let wide = vec!["a"; 1365].join("+ ");
    assert!(wide.len() <= MAX_LEN && wide.parse::<Filter>().is_ok());
    let long = error(&"é".repeat(MAX_LEN));
    assert!(long.to_string().len() < 400, "{long}");
    let far = error(&format!("{} %", vec!["net"; 100].join(" or "))).to_string();
    assert!(far.contains("\n  …") && far.len() < 300, "{far}");
}

/// A filter, and what it means of these four.
fn expressions() -> impl Strategy<Value = (String, [bool; 4])> {
    let leaf = prop::sample::select(vec![
        ("net", [true, true, false, false]),
        ("kind(check)", [false, true, true, false]),
        ("tag(slow)", [true, false, false, false]),
        ("all()", [true; 4]),
        ("none()", [false; 4]),
    ]);
    let leaf = leaf.prop_map(|(text, meant)| (text.to_owned(), meant));
    leaf.prop_recursive(5, 40, 2, |inner| {
        let two = (inner.clone(), inner.clone(), 0..3_usize, any::<bool>());
        let two = two.prop_map(|((a, x), (b, y), operator, is_word)| {
            let of = |at: usize| match operator {
                0 => x[at] && y[at],
                1 => x[at] || y[at],
                _ => x[at] && !y[at],
            };
            let words = if is_word { [" and ", " or ", " - "] } else { ["&", "|", "-"] };
            (format!("({a}){}({b})", words[operator]), [of(0), of(1), of(2), of(3)])
        });
        let one = inner.prop_map(|(a, x)| (format!("not ({a})"), x.map(|it| !it)));
        prop_oneof![2 => two, 1 => one]
    })
}

/// As plain as it can be.
fn slow_glob(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((&'*', rest)), _) => (0..=text.len()).any(|at| slow_glob(rest, &text[at..])),
        (Some((&'?', rest)), Some((_, behind))) => slow_glob(rest, behind),
        (Some((want, rest)), Some((c, behind))) => want == c && slow_glob(rest, behind),
        _ => false,
    }
}

proptest! {
    #[test]
    fn it_means_what_its_parts_mean((text, wanted) in expressions()) {
        let letters: String = "mvca".chars().zip(wanted).filter(|(_, is)| *is).map(|(c, _)| c).collect();
        prop_assert_eq!(meant(&text), letters, "{}", text);
    }

    #[test]
    fn globs_are_as_the_plain_way_has_them(pattern in "[ab*?]{0,7}\\*", text in "[ab]{0,8}") {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let got = Pattern::of(&pattern, true).matches(&text);
        prop_assert_eq!(got, slow_glob(&chars(&pattern), &chars(&text)));
    }

    #[test]
    fn no_words_panic(text in "\\PC{0,30}|[a-c()&|!+ \\[\\]=*\\\\-]{0,30}|(name|not|and|variant|\\(|\\)| |\\[|=){0,12}") {
        if let Err(error) = text.parse::<Filter>() {
            let shown = error.to_string();
            prop_assert_eq!(shown.lines().count(), 3);
        }
    }
}
