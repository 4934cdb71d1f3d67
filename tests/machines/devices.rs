//! Disks and network cards: private, pristine and distinct in each machine, however it came to be.

use crate::cache::with_cache_of;
use crate::pool::Pool;
use crate::snapshots::{PATIENCE, Wanted, lease, number, restore, shell, snapshot};
use crate::templates::{event, flip, folders, json, only_template, with_own_cache};
use crate::web::Web;
use guestline::machine::{MAX_DISKS, MAX_NICS};
use guestline::provision::{DiskWanted, NicWanted};
use guestline_tests::{Guestline, Ran, oldest_qemu};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::process::Command;

/// What each of its tests printed.
fn outputs(ran: &Ran) -> Vec<String> {
    let mut all = BTreeMap::<String, String>::new();
    for event in event(ran, "output") {
        let [attempt, text] = ["attempt", "text"].map(|name| event[name].as_str().unwrap());
        *all.entry(attempt.to_owned()).or_default() += text;
    }
    all.into_values().collect()
}

#[test]
fn a_disk_is_empty_in_each_machine_however_much_the_last_one_wrote() {
    let guestline = with_own_cache();
    // From a boot, from the draft of a template, and from a template.
    let dirty = "dd if=/dev/urandom of=/dev/vda bs=1M count=8 2>/dev/null && sync && head -c 9 /dev/vda | wc -c";
    let clean = "test $(cat /sys/block/vda/size) = 32768 && cmp -n 16777216 /dev/vda /dev/zero";
    let line = format!("{clean} && {dirty}");
    for options in [&["--fresh-reboot"][..], &[], &[], &[]] {
        json(&guestline, &[options, &["--disk", "16M", &line]].concat());
    }
    let template = only_template(&guestline);
    assert!(fs::metadata(template.join("disk0")).unwrap().len() < 1 << 20);
    // What the machines wrote is gone with them.
    let cache = guestline.home().join("cache/guestline");
    let used = Command::new("du").args(["-sm", "--exclude=images"]).arg(cache).output().unwrap();
    let used = String::from_utf8(used.stdout).unwrap();
    assert!(used.split_whitespace().next().unwrap().parse::<u64>().unwrap() < 200, "{used}");
    guestline.assert_nothing_left();
}

#[test]
fn what_a_template_has_on_its_disk_is_in_each_machine_and_stays_as_it_was() {
    let guestline = with_own_cache();
    let create = |words: &[&str]| {
        let ran = guestline.run(&[&["template", "create"], words].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
    };
    create(&["base", "--disk", "32M", "--disk", "1G", "--exec", "echo one > /dev/vda"]);
    create(&["more", "--from", "base", "--exec", "printf two > /dev/vdb"]);
    let shown = guestline.run(&["template", "show", "more"]).stdout();
    assert!(shown.contains("disk    32 MiB\n") && shown.contains("disk    1024 MiB\n"), "{shown}");
    let has = |of: &str, vda: &str, vdb: &str| {
        format!(
            "test $(head -c 3 /dev/vda) = {vda} && test \"$(head -c 3 /dev/vdb | tr -d '\\0')\" = '{vdb}' && {of}"
        )
    };
    let spoil = "echo bad > /dev/vda && echo bad > /dev/vdb && sync";
    for _ in 0..2 {
        json(&guestline, &["--template", "more", &has(spoil, "one", "two")]);
        json(&guestline, &["--template", "base", &has(spoil, "one", "")]);
    }
    // A template's disk that was written to is not believed.
    let ran = guestline.run(&["cache", "verify"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let of_more = |folder: &std::path::PathBuf| {
        fs::read_to_string(folder.join("template.json")).is_ok_and(|text| text.contains("two"))
    };
    let more = folders(&guestline).into_iter().find(of_more).unwrap();
    flip(&more.join("disk1"));
    let ran = json(&guestline, &["--template", "more", &has("true", "one", "two")]);
    assert!(event(&ran, "template-dropped")[0]["why"].as_str().unwrap().starts_with("disk1 "));
    guestline.assert_nothing_left();
}

#[test]
fn templates_travel_with_their_disks() {
    let (from, to) = (with_own_cache(), with_own_cache());
    let create = ["template", "create", "data", "--disk", "32M", "--exec", "seq 99999 > /dev/vda"];
    assert_eq!(from.run(&create).status, 0);
    let archive = from.home().join("archive");
    let archive = archive.to_str().unwrap();
    let ran = from.run(&["cache", "export", archive]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let ran = to.run(&["cache", "import", archive]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(to.run(&["cache", "verify"]).status, 0);
    // Made of the same, it is not made again.
    let ran = to.run(&create);
    assert!(ran.stdout().contains("is there already"), "{}\n{}", ran.stdout(), ran.stderr);
    json(&to, &["--template", "data", "seq 99999 > /tmp/seq && cmp -n 588888 /tmp/seq /dev/vda"]);
}

#[test]
fn cards_are_distinct_and_have_the_addresses_that_were_given() {
    let guestline = with_own_cache();
    let line = "cat /sys/class/net/eth0/address /sys/class/net/eth1/address; ip addr show dev eth0; ls /sys/class/net | wc -l";
    let nics = ["--nic", "--nic=10.1.0.5/24,fd00::5/64"];
    let mut macs = HashSet::new();
    for options in [&["--fresh-reboot"][..], &[], &["-j", "2"]] {
        let ran = json(&guestline, &[options, &nics, &[line, line]].concat());
        for said in outputs(&ran) {
            let mut lines = said.lines();
            macs.extend([lines.next().unwrap().to_owned(), lines.next().unwrap().to_owned()]);
            assert!(said.ends_with("\n3\n"), "{said}");
        }
    }
    assert_eq!(macs.len(), 12, "{macs:?}");
    assert!(macs.iter().all(|mac| mac.starts_with("52:54:")), "{macs:?}");
    assert_eq!(folders(&guestline).len(), 1);
    let line = "ip -o addr show dev eth1 | grep -q 'inet 10.1.0.5/24' && ip -o addr show dev eth1 | grep -q 'inet6 fd00::5/64'";
    json(&guestline, &[&nics[..], &[line]].concat());
    // One that is given is kept.
    let line = "test $(cat /sys/class/net/eth0/address) = 02:00:00:00:00:01";
    json(&guestline, &["--nic=02:00:00:00:00:01", line, line]);
    guestline.assert_nothing_left();
}

#[test]
fn a_reboot_keeps_a_disk_and_a_mac_address() {
    let web = Web::up_with(Guestline::new(), &["--disk", "32M", "--nic=10.1.0.5/24"]);
    let mac = web.line("cat /sys/class/net/eth0/address");
    web.line("echo kept > /dev/vda && sync");
    assert_eq!(web.0.run(&["power", "web", "reboot"]).status, 0);
    assert_eq!(web.line("head -n 1 /dev/vda"), "kept");
    assert_eq!(web.line("cat /sys/class/net/eth0/address"), mac);
    web.down();
}

#[test]
fn a_machine_of_a_pool_has_a_disk_and_a_card_of_its_own() {
    let guestline = Guestline::new();
    let devices = ["--disk", "32M", "--nic=10.1.0.5/24"];
    let pool = Pool::start(&guestline, &[&["--size", "1"], &devices[..]].concat());
    let mut macs = HashSet::new();
    for _ in 0..3 {
        pool.wait_for(1);
        let line = "cat /sys/class/net/eth0/address; cmp -n 4096 /dev/vda /dev/zero && echo bad > /dev/vda && sync";
        let ran = json(&guestline, &[&devices[..], &[line]].concat());
        assert!(event(&ran, "machine-ready")[0]["pool"].is_object());
        macs.insert(outputs(&ran).concat());
    }
    assert_eq!(macs.len(), 3, "{macs:?}");
}

#[tokio::test]
async fn a_snapshot_has_what_is_on_the_disk() {
    snapshots_have_disks(Wanted::default()).await;
}

#[tokio::test]
async fn a_snapshot_has_what_is_on_the_disk_of_the_oldest_qemu() {
    snapshots_have_disks(Wanted { qemu: Some(oldest_qemu()), ..Wanted::default() }).await;
}

async fn snapshots_have_disks(wanted: Wanted) {
    let (disk, nic) = (DiskWanted::new(64).unwrap(), NicWanted::default());
    let leased = lease(Wanted { disks: vec![disk], nics: vec![nic], ..wanted }).await;
    let guest = leased.guest();
    let first = "head -c 3 /dev/vda | tr -d '\\0'";
    shell(
        &guest,
        "printf one > /dev/vda; sync; seq 300000 | dd of=/dev/vda bs=1M seek=1 2>/dev/null",
    )
    .await;
    let mac = shell(&guest, "cat /sys/class/net/eth0/address").await;
    snapshot(&guest, "one").await;
    for _ in 0..2 {
        // What was not written to the disk yet is in the guest's memory.
        shell(
            &guest,
            "printf two > /dev/vda; dd if=/dev/zero of=/dev/vda bs=1M seek=1 count=9 2>/dev/null",
        )
        .await;
        snapshot(&guest, "two").await;
        shell(&guest, "echo 3 > /proc/sys/vm/drop_caches").await;
        assert_eq!(shell(&guest, first).await, "two");
        restore(&guest, "one").await;
        shell(&guest, "sync; echo 3 > /proc/sys/vm/drop_caches").await;
        assert_eq!(shell(&guest, first).await, "one");
        let line = "dd if=/dev/vda bs=1M skip=1 2>/dev/null | head -n 300000 | tail -n 1";
        assert_eq!(number(&guest, line).await, 300_000.0);
        assert_eq!(shell(&guest, "cat /sys/class/net/eth0/address").await, mac);
        restore(&guest, "two").await;
        assert_eq!(shell(&guest, first).await, "two");
    }
    tokio::time::timeout(PATIENCE, guest.delete_snapshot("one")).await.unwrap().unwrap();
    leased.end().await;
}

#[test]
fn the_oldest_qemu_has_disks_and_cards_as_well() {
    let guestline = with_own_cache().with("GUESTLINE_QEMU", oldest_qemu());
    let line = "cmp -n 4096 /dev/vda /dev/zero && echo bad > /dev/vda && sync && cat /sys/class/net/eth0/address";
    let options = ["--disk", "32M", "--nic", line];
    let macs: HashSet<String> = (0..3).flat_map(|_| outputs(&json(&guestline, &options))).collect();
    assert_eq!(macs.len(), 3, "{macs:?}");
    assert_eq!(folders(&guestline).len(), 1);
}

#[test]
fn a_guest_that_fills_the_hosts_disk_has_not_failed() {
    let guestline = with_own_cache();
    let script = "\"$1\" check --disk 1G true 2>&1 | grep -q '^template: booted'";
    let guestline = with_cache_of(guestline, 400, script);
    let fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=200 oflag=direct";
    let ran = guestline.run(&["check", "--disk", "1G", fill]);
    ran.assert_verdict(125, "errored");
    let reason = "a disk of the guest cannot be written: No space left on device";
    assert!(ran.stderr.contains(reason), "{}", ran.stderr);
    // Room for what is little.
    guestline
        .run(&["check", "--disk", "1G", "echo 1 > /dev/vda && sync"])
        .assert_verdict(0, "passed");
    guestline.assert_nothing_left();
}

#[test]
fn devices_that_cannot_be_are_refused_at_once() {
    let guestline = Guestline::new();
    let wrong = |option: &str, words: &str| {
        let ran = guestline.run(&["check", option, "true"]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    };
    wrong("--disk=0", "a disk has 1 MiB to 16 TiB");
    wrong("--disk=17000G", "a disk has 1 MiB to 16 TiB");
    wrong("--disk=/dev/sda", "want a number, perhaps with M or G");
    wrong("--nic=eth0", "`eth0` is no ADDRESS/LENGTH");
    wrong("--nic=10.0.0.1/33", "no interface can have `10.0.0.1/33`");
    let many = |option: &'static str, count: usize, words: &str| {
        for command in [
            &["check", "true"][..],
            &["up", "web"],
            &["pool", "start"],
            &["template", "create", "x"],
        ] {
            let ran = guestline.run(&[command, &vec![option; count][..]].concat());
            assert_eq!(ran.status, 2, "{}", ran.stderr);
            assert!(ran.stderr.contains(words), "{}", ran.stderr);
        }
    };
    many("--disk=1M", MAX_DISKS + 1, "a machine has at most 8 disks, and 9 are wanted");
    many("--nic", MAX_NICS + 1, "a machine has at most 8 network cards, and 9 are wanted");
    json(
        &guestline,
        &[
            &["--disk=1M"; MAX_DISKS][..],
            &["--nic"; MAX_NICS],
            &["test -e /dev/vdh && ip link show dev eth7"],
        ]
        .concat(),
    );
    guestline.assert_nothing_left();
}
