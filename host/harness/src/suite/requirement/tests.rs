use super::*;
use proptest::prelude::*;

fn canonical(text: &str) -> String {
    let parsed: Requirement = text.parse().unwrap();
    let again = parsed.to_string();
    assert_eq!(again.parse::<Requirement>(), Ok(parsed), "{text}");
    again
}

fn why(text: &str) -> String {
    text.parse::<Requirement>().unwrap_err().why.to_string()
}

#[test]
fn every_spelling_and_its_canonical_one() {
    for same in [
        "root",
        "!root",
        "fresh_reboot",
        "cpu.avx2",
        "debian-12",
        "kernel >= 6.1",
        "host.qemu >= 9",
        "guest.kernel < 6.1-rc3",
        "image.os = debian",
        "image.os != debian",
        "tool.iperf3",
        "kconfig.KASAN",
        "kconfig.HZ <= 250",
        "kconfig.KASAN = m",
        "dmi.sys_vendor = \"Dell Inc.\"",
        "lab = \"12\"",
        "lab = \"512M\"",
        "lab > 1G",
    ] {
        assert_eq!(canonical(same), same);
    }
    for (text, wanted) in [
        (" kernel>=6.1 ", "kernel >= 6.1"),
        ("kernel == 6.1", "kernel = 6.1"),
        ("! root", "!root"),
        ("memory >= 512", "memory >= 512M"),
        ("memory >= 1024M", "memory >= 1G"),
        ("memory>2GiB", "memory > 2G"),
        ("image.os = \"debian\"", "image.os = debian"),
        ("kernel-3.3.10+", "kernel >= 3.3.10"),
        ("windows-7sp1+", "windows >= 7sp1"),
        ("virtiowin-2013-10-24+", "virtiowin >= 2013-10-24"),
        ("host.qemu-7.2+", "host.qemu >= 7.2"),
        ("virtio-win-0.1-2+", "virtio-win >= 0.1-2"),
        ("memory-512+", "memory >= 512M"),
    ] {
        assert_eq!(canonical(text), wanted);
    }
}

#[test]
fn one_that_is_none_says_the_way_out() {
    insta::assert_snapshot!(
        [
            "",
            "  ",
            "!",
            "!kernel >= 6.1",
            "!!root",
            "kernel >=",
            "kernel >= banana",
            "kernel = banana",
            "kernel >= 6.1, kernel < 7",
            "kernel >= 6.1 < 7",
            "kernel => 6.1",
            "kernel ~ 6.1",
            ">= 6.1",
            "kernel 6.1",
            "image.os debian",
            "two words here",
            "kernel+",
            "-3.3+",
            "c++",
            "kernel-6.1 +",
            "root = true",
            "memory >= 6.1",
            "memory-5T+",
            "memory > 99999999999999999999G",
            "image.os > debian",
            "image.name >= 12",
            "lab >= \"12\"",
            "dmi.sys_vendor = Dell Inc.",
            "dmi.sys_vendor = \"Dell",
            "host",
            "host. = 1",
            "host.guest.kernel",
            "kconfig.CONFIG_KASAN",
            "caf\u{e9}",
            "a\u{1b}[31m",
        ]
        .map(|text| text.parse::<Requirement>().unwrap_err().to_string())
        .join("\n")
    );
}

#[test]
fn what_is_endless_is_refused_shortly() {
    for text in ["x".repeat(1 << 20), format!("kernel >= {}", "1".repeat(1 << 20))] {
        let error = text.parse::<Requirement>().unwrap_err().to_string();
        assert!(error.contains("longer than 512 bytes") && error.len() < 200, "{error}");
    }
    assert!(why(&format!("kernel >= {}", "1".repeat(300))).contains("longer than 256 bytes"));
    assert!(why(&"x".repeat(300)).contains("longer than 128 bytes"));
}

#[test]
fn operators_hold_as_they_say() {
    use Ordering::{Equal, Greater, Less};
    let holding =
        |operator: Operator| [Less, Equal, Greater].map(|order| u8::from(operator.holds(order)));
    let all = OPERATORS.map(|(operator, written)| (written, holding(operator)));
    let wanted = [
        ("=", [0, 1, 0]),
        ("!=", [1, 0, 1]),
        ("<", [1, 0, 0]),
        ("<=", [1, 1, 0]),
        (">", [0, 0, 1]),
        (">=", [0, 1, 1]),
    ];
    assert_eq!(all, wanted);
}

#[test]
fn it_travels_as_text() {
    let parsed: Vec<Requirement> = serde_json::from_str(r#"["kernel-6.1+", "root"]"#).unwrap();
    assert_eq!(serde_json::to_string(&parsed).unwrap(), r#"["kernel >= 6.1","root"]"#);
    let error = serde_json::from_str::<Vec<Requirement>>(r#"["kernel >= x"]"#).unwrap_err();
    assert!(
        error.to_string().contains("`kernel >= x` is no requirement: kernel: `x` is no version")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_text_is_too_much(text in any::<String>()) {
        let _ = text.parse::<Requirement>();
    }

    /// What reads at all, reads as the same again in its canonical spelling.
    #[test]
    fn canonical_is_the_same(
        text in "!?(host\\.|guest\\.)?(kernel|memory|cpus|lab|image\\.os|x-[0-9])[-.a-z0-9]{0,4}\
            ( ?(=|==|!=|<|<=|>|>=) ?\"?[0-9a-zMG.:~+-]{0,6}\"?|-[0-9.a-z-]{1,5}\\+)?"
    ) {
        if let Ok(parsed) = text.parse::<Requirement>() {
            let again = parsed.to_string();
            let read = again.parse::<Requirement>();
            prop_assert!(read.as_ref() == Ok(&parsed), "{}", again);
            prop_assert_eq!(read.unwrap().to_string(), again);
        }
    }

    #[test]
    fn comparisons_agree_with_numbers(have in any::<u32>(), want in any::<u32>(), which in 0..6usize) {
        let (operator, written) = OPERATORS[which];
        let requirement: Requirement = format!("lab {written} {want}").parse().unwrap();
        let holds = requirement.condition().holds(&Value::of(&have.to_string()));
        prop_assert_eq!(holds, Some(operator.holds(have.cmp(&want))));
    }
}
