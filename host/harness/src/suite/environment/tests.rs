use super::*;
use crate::suite::device::Bus;
use proptest::prelude::*;

fn name(text: &str) -> CapabilityName {
    text.parse().unwrap()
}

fn requirement(text: &str) -> Requirement {
    text.parse().unwrap()
}

fn disks(count: usize) -> Capability {
    let device = |index| Device::new(Bus::Block, &format!("/dev/sd{index}")).unwrap();
    Capability::of(Provided::Devices((0..count).map(device).collect()))
}

fn environment() -> Environment {
    let mut environment = Environment::new("this host", "debian-12");
    for (said, value) in [
        ("host.qemu", "9.0.2"),
        ("host.kernel", "6.12.48"),
        ("host.memory", "16G"),
        ("guest.kernel", "6.1.0-56"),
        ("guest.memory", "256M"),
        ("image.os", "debian"),
        ("guest.kconfig.NR_CPUS", "64"),
        ("guest.kconfig.KASAN", "y"),
    ] {
        environment.provide(name(said), Capability::fact(value));
    }
    for flag in ["guest.root", "guest.cpu.avx2", "guest.cpu.sse2", "host.kvm", "lab-network"] {
        environment.provide(name(flag), Capability::flag());
    }
    environment.provide(name("gpu"), disks(2).with_owner("lab@example.org"));
    environment.leave_guest_open();
    environment
}

fn missing(requirements: &[&str], side: Side) -> String {
    let requirements: Vec<_> = requirements.iter().map(|it| requirement(it)).collect();
    let missing = environment().missing(&requirements, side);
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_there_is_met() {
    let met = [
        "root",
        "kernel >= 6.1",
        "guest.kernel < 6.2",
        "host.kernel >= 6.12",
        "host.qemu >= 9",
        "memory <= 512M",
        "host.memory > 1G",
        "image.os = debian",
        "image.os != alpine",
        "kconfig.NR_CPUS >= 64",
        "kconfig.KASAN",
        "cpu.avx2",
        "lab-network",
        "host.lab-network",
        "gpu",
        "gpu >= 2",
        "!windows",
        "!cpu.avx512f",
    ];
    assert_eq!(missing(&met, Side::Guest), "");
    assert_eq!(missing(&["kernel >= 6.12", "qemu", "guest.root", "kvm"], Side::Host), "");
    assert_eq!(missing(&[], Side::Guest), "");
}

#[test]
fn what_is_not_names_the_nearest() {
    insta::assert_snapshot!(missing(
        &[
            "kernel >= 6.5",
            "kernel = 6.1.0",
            "host.memory >= 64G",
            "memory >= 512M",
            "image.os = alpine",
            "cpu.avx512",
            "qemu >= 9",
            "host.qemo",
            "lab-netwrok",
            "windows >= 7sp1",
            "kconfig.KASN",
            "kconfig.KASAN >= 2",
            "root2",
            "lab-network >= 2",
            "!root",
            "!kernel",
            "gpu > 2",
            "pristine",
        ],
        Side::Guest
    ));
}

#[test]
fn a_bare_name_speaks_of_the_side_of_the_test() {
    let environment = environment();
    let kernel = requirement("kernel >= 6.12");
    assert_eq!(environment.answer(&kernel, Side::Host), Answer::Met);
    assert!(matches!(environment.answer(&kernel, Side::Guest), Answer::Unmet(_)));
    assert!(matches!(environment.answer(&requirement("root"), Side::Host), Answer::Unmet(_)));
    // What is said of one side goes before what is said of both.
    let mut both = environment.clone();
    both.provide(name("kernel"), Capability::fact("1"));
    assert_eq!(both.answer(&kernel, Side::Host), Answer::Met);
}

#[test]
fn what_the_guest_alone_knows_is_open_until_it_runs() {
    let mut environment = environment();
    let [tool, absent, on_host] =
        ["tool.iperf3", "!tool.iperf3", "host.tool.iperf3"].map(requirement);
    let all = [tool.clone(), absent.clone(), on_host.clone(), requirement("root")];
    assert_eq!(environment.unknown(&all, Side::Guest), [&tool, &absent]);
    // The manifest says it of one.
    environment.provide(name("guest.tool.iperf3"), Capability::fact("3.12"));
    assert_eq!(environment.answer(&tool, Side::Guest), Answer::Met);
    assert_eq!(environment.answer(&requirement("tool.nft"), Side::Guest), Answer::Unknown);
    assert!(matches!(environment.answer(&absent, Side::Guest), Answer::Unmet(_)));
    assert!(matches!(environment.answer(&on_host, Side::Guest), Answer::Unmet(_)));
    // The guest ran.
    environment.settle(&name("guest.tool"));
    assert!(matches!(environment.answer(&requirement("tool.nft"), Side::Guest), Answer::Unmet(_)));
    assert_eq!(environment.answer(&requirement("!tool.nft"), Side::Guest), Answer::Met);
    assert_eq!(environment.answer(&requirement("module.dummy"), Side::Guest), Answer::Unknown);
    assert!(environment.open().eq([&name("guest.module")]));
}

#[test]
fn devices_are_needed_once_by_the_largest_need() {
    let environment = environment();
    let needs = |texts: &[&str]| {
        let requirements: Vec<_> = texts.iter().map(|text| requirement(text)).collect();
        let needs = environment.device_needs(&requirements, Side::Guest);
        needs
            .iter()
            .map(|need| (need.name.to_string(), need.count, need.devices.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(needs(&["gpu", "host.gpu >= 2", "root"]), [("gpu".to_owned(), 2, 2)]);
    assert_eq!(needs(&["root", "!gpu", "gpu > 2", "tool.x"]), []);
}

#[test]
fn what_nobody_documented_is_listed_once() {
    let mut environment = environment();
    environment.document(name("nvme-spare"), "An NVMe disk that may be reset.");
    environment.document(name("host.san"), "The storage network.");
    environment.provide(name("quiet"), Capability::flag().with_doc("Nobody else is here."));
    let listed = |texts: &[&str]| {
        let requirements: Vec<_> = texts.iter().map(|text| requirement(text)).collect();
        let undocumented = environment.undocumented(&requirements, Side::Guest);
        undocumented.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        listed(&["kernel > 5", "cpu.avx2", "nvme-spare", "host.nvme-spare", "host.san", "quiet"]),
        [""; 0]
    );
    assert_eq!(
        listed(&["lab-network", "!lab-network", "nvme-spar >= 2", "san"]),
        [
            "nobody says what `lab-network` means: document it below [tags]",
            "nobody says what `nvme-spar` means; is `nvme-spare` meant?",
            "nobody says what `san` means; is `host.san` meant?",
        ]
    );
}

proptest! {
    /// What is provided is present and not absent, whatever it is; what is neither provided nor open the other way.
    #[test]
    fn presence_and_absence_are_opposites(
        provided in prop::collection::btree_set("(host\\.|guest\\.)?[ab](\\.[ab])?", 0..4),
        open in prop::collection::btree_set("(host\\.|guest\\.)?[ab]", 0..2),
        asked in "(host\\.|guest\\.)?[ab](\\.[ab])?",
        is_host in any::<bool>(),
    ) {
        let mut environment = Environment::new("h", "g");
        provided.iter().for_each(|it| environment.provide(name(it), Capability::flag()));
        open.iter().for_each(|it| environment.leave_open(name(it)));
        let side = if is_host { Side::Host } else { Side::Guest };
        let there = environment.answer(&requirement(&asked), side);
        let absent = environment.answer(&requirement(&format!("!{asked}")), side);
        match there {
            Answer::Met => prop_assert!(matches!(absent, Answer::Unmet(_))),
            Answer::Unmet(_) => prop_assert_eq!(absent, Answer::Met),
            Answer::Unknown => prop_assert_eq!(absent, Answer::Unknown),
        }
        let is_there = environment.get(&name(&asked), side).is_some();
        prop_assert_eq!(is_there, environment.answer(&requirement(&asked), side) == Answer::Met);
    }
}
