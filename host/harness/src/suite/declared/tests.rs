use super::*;
use crate::suite::name::Side;
use crate::suite::requirement::Requirement;

const FULL: &str = r#"
[provides]
lab-network = true
virtiowin = "2013-10-24"
"host.licences" = 5
scratch = "100G"
site = "Dell Inc."
memory = "16G"

[provides.gpu]
pci = ["0000:01:00.0", "0000:02:00.0"]
owner = "lab@example.org"
doc = "A card that nothing else uses."

[provides."device.nvme-spare"]
block = "/dev/nvme1n1"

[provides.san]
value = "1.2"
owner = "storage"

[tags]
destructive = "The test may leave the machine unusable."
"host.san" = "The storage network."
"#;

fn parse(text: &str) -> Result<Declared, DeclaredError> {
    Declared::parse(Path::new("lab.toml"), text)
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn what_is_declared_is_provided() {
    let declared = parse(FULL).unwrap();
    assert_eq!((declared.provides.len(), declared.tags.iter().count()), (9, 2));
    let mut environment = Environment::new("this host", "tiny");
    declared.provide(&mut environment);
    let met = [
        "lab-network",
        "virtiowin-2013-10-01+",
        "host.licences >= 5",
        "scratch >= 64G",
        "site = \"Dell Inc.\"",
        "host.memory >= 8G",
        "gpu >= 2",
        "host.device.nvme-spare",
        "san < 2",
    ];
    let met = met.map(|text| text.parse::<Requirement>().unwrap());
    assert_eq!(environment.missing(&met, Side::Guest), []);
    let needs = environment.device_needs(&met, Side::Guest);
    let needs: Vec<_> = needs.iter().map(|need| (need.name.path(), need.count)).collect();
    assert_eq!(needs, [("device.nvme-spare", 1), ("gpu", 2)]);
    let gpu = environment.get(&"gpu".parse().unwrap(), Side::Host).unwrap();
    assert_eq!(gpu.owner.as_deref(), Some("lab@example.org"));
    let documented = ["destructive", "san", "gpu"].map(|text| text.parse::<Requirement>().unwrap());
    assert_eq!(environment.undocumented(&documented, Side::Host), []);
    assert_eq!(parse("").unwrap(), Declared::default());
}

#[test]
fn the_example_of_the_reference_is_one() {
    let reference = include_str!("../../../../../docs/requirements.md");
    let example = reference.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let declared = parse(example.unwrap()).unwrap();
    let names: Vec<_> = declared.provides.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["gpu0", "lab-network", "san", "spare-disk", "virtiowin", "host.licences"]);
}

#[test]
fn a_fault_is_told_with_file_line_and_the_way_out() {
    let faults = [
        "[provides]\nx = 1\nx = 2",
        "[provides]\nx = [",
        "provides = 1",
        "\n[provide]\nx = true",
        "api = 1",
        "[provides]\n\n'a b' = true",
        "[provides]\nx = false",
        "[provides]\nx = 1.2",
        "[provides]\nx = 2013-10-24",
        "[provides]\nx = -5",
        "[provides]\nx = 0x10",
        "[provides]\nx = []",
        "[provides]\nx = \"\"",
        "[provides]\nx = \"a\\nb\"",
        "[provides]\nroot = 1",
        "[provides]\nkernel = true",
        "[provides]\nkernel = \"banana\"",
        "[provides]\nmemory = \"lots\"",
        "[provides]\nhost.lab = true",
        "[provides]\ncpu.avx2 = true",
        "[provides.device.spare]\nblock = '/dev/sdb'",
        "[provides.gpu]\npcii = '0000:01:00.0'",
        "[provides.gpu]\nowner = 'me'",
        "[provides.gpu]\nowner = ''\npci = 'x'",
        "[provides.gpu]\nowner = 5\npci = 'x'",
        "[provides.gpu]\npci = 'x'",
        "[provides.gpu]\npci = 5",
        "[provides.gpu]\npci = []",
        "[provides.gpu]\nvalue = 1\n\npci = '0000:01:00.0'",
        "[provides.gpu]\npci = '0000:01:00.0'\nblock = '/dev/sdb'",
        "[provides.kvm]\npci = '0000:01:00.0'",
        "[provides.disk]\nblock = '../etc/passwd'",
        "[provides.b]\nserial = '/dev/ttyS0'\n[provides.a]\nserial = '/dev/ttyS0'",
        "[provides.b]\npci = ['0000:0a:00.0', '0000:0A:00.0']",
        "[tags]\nx = true",
        "[tags]\nx = ' '",
        "[tags]\nhost.x = 'A tag.'",
        "[tags]\na.x = 'A tag.'",
        "[tags]\n'' = 'A tag.'",
    ];
    insta::assert_snapshot!(faults.map(error).join("\n"));
}

#[test]
fn what_is_endless_is_refused_shortly() {
    assert!(error(&"#\n".repeat(MAX_LEN)).contains("longer than 1024 KiB"));
    let long = "x".repeat(MAX_LEN / 2);
    for text in [
        format!("[provides]\n{long} = true"),
        format!("[provides]\nx = '{long}'"),
        format!("[provides.x]\n{long} = 1"),
        format!("[provides.x]\npci = '{long}'"),
        format!("[tags]\nx = '{long}'"),
        format!("{long} = 1"),
        format!("x = {}", "[".repeat(MAX_LEN / 2)),
    ] {
        assert!(error(&text).len() < 400, "{}", error(&text));
    }
}

#[test]
fn a_suite_has_the_same_tags() {
    let tags = |text: &str| toml::from_str::<Tags>(text);
    let same = parse("[tags]\nx = 'A tag.'\n'host.y' = 'B.'").unwrap().tags;
    assert_eq!(tags("x = 'A tag.'\n'host.y' = 'B.'"), Ok(same));
    assert!(tags("x = ''").unwrap_err().message().contains("x: want one line of text"));
    assert!(tags("'a b' = 'x'").unwrap_err().message().contains("`a b` is no name"));
    assert!(tags("x = 5").is_err());
}
