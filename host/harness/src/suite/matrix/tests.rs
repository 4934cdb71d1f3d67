//! Tests of matrices: as they are read, replaced and expanded.

use super::super::header::{HeaderError, header};
use super::{Strategy, *};
use proptest::prelude::*;
use proptest::strategy::Strategy as Strategic;

fn parse(toml: &str) -> Result<Matrix, String> {
    toml::from_str(toml).map_err(|error: toml::de::Error| error.message().to_owned())
}

fn matrix(toml: &str) -> Matrix {
    parse(toml).unwrap()
}

fn ids(matrix: &Matrix) -> Vec<String> {
    matrix.variants().unwrap().map(|variant| variant.id()).collect()
}

fn words(words: &[&str]) -> Matrix {
    Matrix::from_words(words).unwrap()
}

#[test]
fn the_product_of_the_axes() {
    let some = matrix("mode = ['a', 'b']\ncpu = ['qemu64', 'max']\nimage = ['tiny']\n");
    assert_eq!(
        ids(&some),
        [
            "image=tiny,cpu=qemu64,mode=a",
            "image=tiny,cpu=qemu64,mode=b",
            "image=tiny,cpu=max,mode=a",
            "image=tiny,cpu=max,mode=b",
        ]
    );
    assert_eq!(some.variants().unwrap().chosen().to_string(), "4 of 4");
    assert_eq!(ids(&Matrix::default()), [""]);
    assert_eq!(Matrix::default().variants().unwrap().chosen().to_string(), "1 of 1");
    assert!(matrix("").is_empty() && matrix("").variants().unwrap().all(|v| v.is_plain()));
}

#[test]
fn values_may_be_strings_integers_and_booleans() {
    let some = matrix("cpus = [1, '2']\nmemory = [512, '1GiB']\nfast = [true, false]\nn = [-1]");
    assert_eq!(ids(&some)[0], "cpus=1,memory=512M,fast=true,n=-1");
    assert_eq!(ids(&some)[7], "cpus=2,memory=1G,fast=false,n=-1");
    let json: Matrix = serde_json::from_str(r#"{"cpus": [1, 2], "mode": ["a", true]}"#).unwrap();
    assert_eq!(ids(&json).len(), 4);
}

#[test]
fn exclude_takes_away_and_include_adds() {
    let some = matrix(
        "image = ['tiny', 'debian-12']\nmode = ['a', 'b']\n\
         include = [{ image = 'debian-13', cpu = 'max' }, { image = 'tiny', mode = 'a' }]\n\
         exclude = [{ image = 'tiny', mode = 'b' }, { image = 'debian-12' }]\n",
    );
    assert_eq!(ids(&some), ["image=tiny,mode=a", "image=debian-13,cpu=max"]);
    assert_eq!(some.variants().unwrap().chosen().to_string(), "2 of 2");
    // What a line of `exclude` takes away, one of `include` brings back.
    let back = "mode = ['a', 'b']\nexclude = [{ mode = 'b' }]\ninclude = [{ mode = 'b' }]";
    assert_eq!(ids(&matrix(back)), ["mode=a", "mode=b"]);
    assert_eq!(ids(&matrix("include = [{ cpu = 'max' }]")), ["cpu=max"]);
    let alone = "mode = ['a']\nexclude = [{ mode = 'a' }]\ninclude = [{ cpu = 'max' }]";
    assert_eq!(ids(&matrix(alone)), ["cpu=max"]);
}

#[test]
fn pairwise_gives_few_and_says_how_many() {
    let axes = "cpu = ['a', 'b', 'c', 'd']\nx = [1, 2, 3, 4]\ny = [1, 2, 3]\nz = [1, 2]\n";
    let few = matrix(&format!("{axes}strategy = 'pairwise'"));
    let chosen = few.variants().unwrap().chosen();
    assert_eq!((chosen.of, few.variants().unwrap().count()), (96, chosen.chosen));
    assert!((16..=20).contains(&chosen.chosen), "{chosen}");
    assert_eq!(ids(&few), ids(&few));
    assert_eq!((few.strategy(), matrix(axes).strategy()), (Strategy::Pairwise, Strategy::All));
    // A further point counts once, whether it was chosen or not.
    for variant in matrix(axes).variants().unwrap() {
        let point: Vec<_> = variant.values().map(|(axis, v)| format!("{axis} = '{v}'")).collect();
        let include = format!("include = [{{ {} }}]", point.join(", "));
        let more = matrix(&format!("{axes}strategy = 'pairwise'\n{include}"));
        let all: std::collections::BTreeSet<_> = ids(&more).into_iter().collect();
        let counted = more.variants().unwrap().chosen();
        assert!(all.contains(&variant.id()));
        assert_eq!((counted.chosen, counted.of), (all.len(), 96));
    }
}

#[test]
fn a_value_has_its_requirements() {
    let some = matrix(
        "cpu = ['qemu64', 'max']\nmemory = ['512', '1G']\n\
         include = [{ image = 'debian-13', cpu = 'max' }]\n\
         [requires]\n'cpu=max' = ['host.qemu >= 9', 'root']\n'memory=512' = ['root']\n\
         'image=debian-13' = ['x']\n",
    );
    let requires = |id: &str| {
        let found = some.variants().unwrap().find(|variant| variant.id() == id).unwrap();
        found.requires().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(requires("cpu=max,memory=512M"), ["host.qemu >= 9", "root"]);
    assert_eq!(requires("cpu=qemu64,memory=512M"), ["root"]);
    assert!(requires("cpu=qemu64,memory=1G").is_empty());
    assert_eq!(requires("image=debian-13,cpu=max"), ["x", "host.qemu >= 9", "root"]);
}

#[test]
fn words_of_the_command_line() {
    assert_eq!(ids(&words(&["cpu=qemu64,max", "mode=a"])), ["cpu=qemu64,mode=a", "cpu=max,mode=a"]);
    let commas = words(&[r"cpu=max\,-avx2,qemu64", r"cmdline=,a=b\c"]);
    assert_eq!(
        ids(&commas)[..2],
        ["cpu=max%2C-avx2,cmdline=", "cpu=max%2C-avx2,cmdline=a%3Db%5Cc"]
    );
    let error = |words: &[&str]| Matrix::from_words(words).unwrap_err().to_string();
    assert_eq!(error(&["cpu"]), "`cpu` is no axis with values: write AXIS=VALUE,VALUE…");
    assert_eq!(error(&["cpu=a", "cpu=b"]), "`cpu` stands twice: put both into one");
    assert_eq!(error(&["cpu="]), "axis `cpu` has no value: give it one, or leave the axis away");
    assert_eq!(error(&["cpu=a,,b"]), "axis `cpu` cannot be ``: want a text that is not empty");
    assert_eq!(error(&["mode=a,b,a"]), "axis `mode` has the value `a` twice: leave one away");
    assert_eq!(
        error(&["memory=512,512M"]),
        "axis `memory` has the value `512M` twice: leave one away"
    );
    assert_eq!(error(&["cpus=0"]), "axis `cpus` cannot be `0`: want a number from 1 to 255");
    assert!(error(&["strategy=pairwise"]).contains("has another meaning"));
    assert!(error(&["=a"]).contains("begins with a letter"));
    assert!(error(&["images=tiny"]).contains("write `image`"));
}

#[test]
fn a_word_replaces_the_axis_of_its_name() {
    let file = matrix(
        "image = ['tiny', 'debian-12']\nmode = ['a', 'b']\n\
         include = [{ image = 'debian-13', mode = 'a' }, { cpu = 'max' }]\n\
         exclude = [{ image = 'tiny', mode = 'b' }]\n\
         requires = { 'image=tiny' = ['x'] }\n",
    );
    // The further point with an image that was not asked for is gone; nothing is said of the other's.
    let tiny = file.clone().replaced_by(&words(&["image=tiny"]));
    assert_eq!(ids(&tiny), ["image=tiny,mode=a", "cpu=max"]);
    assert_eq!(tiny.variants().unwrap().next().unwrap().requires(), ["x"]);
    // Exclusions of what was replaced mean nothing, and a new axis multiplies.
    let other = file.clone().replaced_by(&words(&["image=mine", "cpus=1,2"]));
    assert_eq!(
        ids(&other),
        [
            "image=mine,cpus=1,mode=a",
            "image=mine,cpus=1,mode=b",
            "image=mine,cpus=2,mode=a",
            "image=mine,cpus=2,mode=b",
            "cpu=max"
        ]
    );
    let none = file.replaced_by(&words(&["image=tiny", "mode=b", "cpu=qemu64"]));
    assert_eq!(
        none.variants().unwrap_err().to_string(),
        "`exclude` leaves no point of the matrix (image 1 × cpu 1 × mode 1): exclude less"
    );
}

#[test]
fn more_than_a_million_points_are_refused_before_any_is_made() {
    let axis = |name: &str, size: usize| {
        let values: Vec<_> = (0..size).map(|value| value.to_string()).collect();
        format!("{name}={}", values.join(","))
    };
    let just = words(&[&axis("a", 1000), &axis("b", 1000)]);
    assert_eq!(just.variants().unwrap().take(2).last().unwrap().id(), "a=0,b=1");
    let over = words(&[&axis("a", 1000), &axis("b", 1001)]);
    assert_eq!(
        over.variants().unwrap_err().to_string(),
        "the matrix has more than 1000000 points (a 1000 × b 1001): give an axis fewer values, \
         here or with --matrix AXIS=VALUE,…"
    );
    // Also when their number is longer than a number can be, and for few of them.
    let many: Vec<_> = (0..MAX_AXES).map(|number| axis(&format!("a{number}"), 100)).collect();
    let many = Matrix::from_words(&many).unwrap();
    assert!(matches!(many.variants(), Err(MatrixError::TooLarge { .. })));
    let few = Matrix { strategy: Strategy::Pairwise, ..many };
    assert!(matches!(few.variants(), Err(MatrixError::TooLarge { .. })));
    let axes: Vec<_> = (0..=MAX_AXES).map(|number| axis(&format!("a{number}"), 1)).collect();
    assert_eq!(Matrix::from_words(&axes), Err(MatrixError::TooManyAxes { axes: 65 }));
    let values = "'a', ".repeat(2) + "'b'";
    assert!(parse(&format!("mode = [{values}]")).unwrap_err().contains("`a` twice"));
}

#[test]
fn ten_thousand_variants_have_ten_thousand_ids() {
    let ten = "1,2,3,4,5,6,7,8,9,10";
    let axes = ["a", "b", "c", "d"].map(|name| format!("{name}={ten}"));
    let some = Matrix::from_words(&axes).unwrap();
    let all: BTreeSet<_> = ids(&some).into_iter().collect();
    assert_eq!(all.len(), 10_000);
}

#[test]
fn what_is_wrong_is_named() {
    for (toml, wanted) in [
        ("mode = []", "axis `mode` has no value: give it one, or leave the axis away"),
        ("mode = ['a', 'a']", "axis `mode` has the value `a` twice: leave one away"),
        ("mode = [1, '1']", "axis `mode` has the value `1` twice: leave one away"),
        ("memory = ['1G', 1024]", "axis `memory` has the value `1G` twice: leave one away"),
        ("memory = ['lots']", "axis `memory` cannot be `lots`: want a number, perhaps with M or G"),
        ("cpus = [256]", "axis `cpus` cannot be `256`: want a number from 1 to 255"),
        (
            "mode = 'a'",
            "invalid type: string \"a\", expected a list of values of the axis `mode`, in brackets",
        ),
        (
            "mode = [1.5]",
            "invalid type: floating point `1.5`, expected a string, an integer or a boolean as a \
             value of the axis `mode`",
        ),
        ("mode = [['a']]", "invalid type: sequence, expected a string, an integer or a boolean"),
        ("mode = [{ a = 1 }]", "invalid type: map, expected a string, an integer or a boolean"),
        ("Mode = ['a']", "`Mode` is no axis: a name has a-z, 0-9 and _, begins with a letter"),
        ("includes = [{ cpu = 'a' }]", "unknown axis `includes`: write `include`"),
        ("images = ['tiny']", "unknown axis `images`: write `image`, or give a free axis"),
        ("strategy = 'some'", "no strategy `some`: write \"all\" or \"pairwise\""),
        ("strategy = 1", "invalid type: integer `1`, expected \"all\" or \"pairwise\""),
        ("include = { cpu = 'a' }", "invalid type: map, expected a list of points"),
        ("include = ['cpu=a']", "invalid type: string \"cpu=a\", expected a point {"),
        ("include = [{}]", "`include` has an entry that names no axis: write { AXIS = VALUE, … }"),
        (
            "mode = ['a']\ninclude = [{ mod = 'a' }]",
            "`include` names axis `mod`, which the matrix has not: it has mode",
        ),
        ("include = [{ memory = 'x' }]", "axis `memory` cannot be `x`"),
        ("include = [{ cpu = 'a' }, { cpu = 'a' }]", "`include` has `cpu=a` twice"),
        ("include = [{ cpu = ['a'] }]", "invalid type: sequence, expected a string"),
        ("mode = ['a']\nexclude = [{}]", "`exclude` has an entry that names no axis"),
        (
            "mode = ['a', 'b']\nexclude = [{ mode = 'c' }]",
            "`exclude` names `mode=c`, which the matrix has not: `mode` has a, b",
        ),
        (
            "mode = ['a']\nexclude = [{ cpu = 'max' }]",
            "`exclude` names axis `cpu`, which the matrix has not: it has mode",
        ),
        (
            "exclude = [{ cpu = 'max' }]",
            "`exclude` names axis `cpu`, which the matrix has not: it has none",
        ),
        (
            "mode = ['a']\nexclude = [{ mode = 'a' }, { mode = 'a' }]",
            "`exclude` has `mode=a` twice",
        ),
        ("requires = { cpu = ['x'] }", "`requires` has the key `cpu`: write \"AXIS=VALUE\""),
        (
            "requires = { 'cpu=max' = ['x'] }",
            "`requires` names axis `cpu`, which the matrix has not",
        ),
        (
            "cpu = ['max']\nrequires = { 'cpu=mx' = ['x'] }",
            "`requires` names `cpu=mx`, which the matrix has not: `cpu` has max",
        ),
        (
            "memory = [512]\nrequires = { 'memory=512' = ['x'], 'memory=512M' = ['y'] }",
            "`memory=512M` stands twice: put both into one",
        ),
        (
            "cpu = ['max']\nrequires = { 'cpu=max' = 'x' }",
            "invalid type: string \"x\", expected a sequence",
        ),
        ("cpu = ['max']\nrequires = { 'cpu=max' = [9] }", "invalid type: integer `9`"),
        ("cpu = ['a']\ncpu = ['b']", "duplicate key"),
    ] {
        let error = parse(toml).expect_err(toml);
        assert!(error.contains(wanted), "{toml}\n{error}\n{wanted}");
    }
    for json in [
        r#"{"cpu": ["a"], "cpu": ["b"]}"#,
        r#"{"strategy": "all", "strategy": "all"}"#,
        r#"{"include": [{"cpu": "a", "cpu": "b"}]}"#,
    ] {
        let error = serde_json::from_str::<Matrix>(json).unwrap_err().to_string();
        assert!(error.contains("stands twice"), "{error}");
    }
    assert!(
        serde_json::from_str::<Matrix>("[]").unwrap_err().to_string().contains("table of axes")
    );
    assert!(parse("mode = ['a']\nexclude = [{ mode = 'a' }]").unwrap().variants().is_err());
}

#[test]
fn a_long_list_is_not_shown_whole() {
    let values: Vec<_> = (0..100).map(|value| value.to_string()).collect();
    let error =
        parse(&format!("n = [{}]\nexclude = [{{ n = 'x' }}]", values.join(","))).unwrap_err();
    assert!(error.ends_with("`n` has 0, 1, 2, 3, 4, 5, 6, 7, 92 more"), "{error}");
    let error = Matrix::from_words(&[format!("memory={}", "9".repeat(5000))]).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn an_error_has_its_line_in_the_header() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Test {
        matrix: Matrix,
    }
    let read =
        |text: &str| -> Result<Test, HeaderError> { header(text.as_bytes()).unwrap().read() };
    let good = "#!/bin/sh\n#: [matrix]\n#: mode = ['a']\n#: cpus = [1, 2]\n";
    assert_eq!(ids(&read(good).unwrap().matrix), ["cpus=1,mode=a", "cpus=2,mode=a"]);
    let line = |lines: &str| read(&format!("#!/bin/sh\n#: [matrix]\n{lines}")).unwrap_err().line;
    assert_eq!(line("#: mode = ['a']\n#: cpus = [1,\n#:  1000]\n"), 5);
    assert_eq!(line("#: mode = ['a']\n# why\n#: images = ['tiny']\n"), 5);
    assert_eq!(line("#: mode = ['a']\n#: include = [{ cpu = 1.5 }]\n"), 4);
    assert_eq!(line("#: mode = ['a']\n#: strategy = 'x'\n"), 4);
}

fn tomls() -> impl Strategic<Value = String> {
    let key = "image|cpu|memory|mode|strategy|include|exclude|requires|[a-z'=]{0,6}";
    let scalar = "'[a-z0-9=]{0,3}'|[0-9]{1,3}|true|1\\.5";
    let value = prop_oneof![
        prop::collection::vec(scalar, 0..4).prop_map(|list| format!("[{}]", list.join(", "))),
        (key, scalar).prop_map(|(key, value)| format!("[{{ {key} = {value} }}]")),
        (key, scalar).prop_map(|(key, value)| format!("{{ {key} = [{value}] }}")),
        scalar.prop_map(|value| value),
    ];
    let line = (key, value).prop_map(|(key, value)| format!("{key} = {value}\n"));
    prop::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn no_text_panics_and_ids_are_stable(toml in tomls()) {
        if let Ok(matrix) = parse(&toml) && let Ok(variants) = matrix.variants() {
            let all: Vec<_> = variants.clone().map(|variant| variant.id()).collect();
            prop_assert_eq!(all.len(), variants.chosen().chosen);
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            prop_assert_eq!(ids(&parse(&toml).unwrap()), all);
        }
    }
}
