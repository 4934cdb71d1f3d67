use super::*;
use crate::suite::header::header;
use std::time::Duration;

/// What a header says.
fn settings(text: &str) -> Result<Settings, String> {
    let lines = header(text.as_bytes()).map_err(|error| error.to_string())?;
    lines.settings().map_err(|error| error.to_string())
}

#[test]
fn the_keys_are_those_that_serde_knows() {
    let error = toml::from_str::<Settings>("nope = 1").unwrap_err().to_string();
    let listed = error.split("expected one of").nth(1).unwrap();
    let serde: Vec<_> = listed.split('`').skip(1).step_by(2).collect();
    assert_eq!(serde, KEYS);
}

#[test]
fn the_reference_names_each_key() {
    let reference = include_str!("../../../../../docs/tests.md");
    for key in KEYS {
        assert!(reference.contains(&format!("\n| `{key}` |")), "{key}");
    }
}

#[test]
fn a_header_says_what_a_test_is() {
    let text = "#!/bin/sh
#: requires = ['kernel >= 6.1', 'root']
#: timeout = '90s'
#: memory = 512
#: disks = ['1G']
#: nics = ['10.1.0.5/24']
#: statuses = {pass = [0, 3]}
#: on = 'host'
#: matrix.cpu = ['qemu64', 'max']
#: flaky = {runs = 10, fail_above = 9}
";
    let settings = settings(text).unwrap();
    assert_eq!(settings.timeout, Some(Time(Duration::from_secs(90))));
    assert_eq!(settings.memory, Some(Memory { mib: 512 }));
    assert_eq!(settings.statuses, Some(Statuses { pass: vec![0, 3], skip: vec![77] }));
    assert_eq!(settings.on, Some(On::Host));
    assert_eq!(settings.matrix.unwrap().variants().unwrap().count(), 2);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let all = [
        "#: imgae = 'x'",
        "#: on = 'elsewhere'",
        "#: timeout = 'soon'",
        "#: memory = '3'",
        "#: requires = ['kernel > > 6']",
        "#: networks.lan = ['web']",
        "#: image = ''",
        "#: tags = ['Has Space']",
        "#: flaky = {runs = 10, fail_above = 10}",
        "#: flaky = {runs = 10, fail_above = 1}\n#: retries = 3",
        "#: known_issue = 'BUG-7'",
        "#: machines.web = {image = 'tiny', imgae = 1}",
        "#: machines.Web = {}",
        "#: image = 'tiny'\n#: machines.web = {}",
        "#: image = 'a'\n#: image = 'b'",
        "#: expect = ['crash']",
        "#: cpus = 0",
        "#: matrix.cpu = []",
    ];
    let told: Vec<_> =
        all.iter().map(|text| format!("{text}\n    {}", settings(text).unwrap_err())).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_test_has_what_its_suite_says() {
    let suite = settings("#: requires = ['root']\n#: image = 'debian-12'\n#: retries = 2\n#: tags = ['net']\n#: matrix.cpu = ['a', 'b']\n#: matrix.nic = ['x', 'y']").unwrap();
    let test = settings("#: requires = ['kvm', 'root']\n#: flaky = {runs = 3, fail_above = 1}\n#: matrix.cpu = ['c']").unwrap();
    let test = test.below(&suite);
    let requires: Vec<_> = test.requires.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(requires, ["root", "kvm"]);
    assert_eq!(test.image.unwrap().as_str(), "debian-12");
    assert_eq!(test.retries, None);
    let ids: Vec<_> = test.matrix.unwrap().variants().unwrap().map(|it| it.id()).collect();
    assert_eq!(ids, ["cpu=c,nic=x", "cpu=c,nic=y"]);
    let several = settings("#: machines.web = {}").unwrap().below(&suite);
    assert_eq!((several.image, several.tags.unwrap().len()), (None, 1));
}

#[test]
fn what_is_said_later_goes_in_the_place_of_what_was_said() {
    let before = settings("#: requires = ['root']\n#: timeout = 5").unwrap();
    let after = settings("#: requires = ['kvm']").unwrap().after(&before);
    assert_eq!(after.requires.unwrap()[0].to_string(), "kvm");
    assert_eq!(after.timeout, Some(Time(Duration::from_secs(5))));
}
