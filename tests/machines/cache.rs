//! `guestline cache`: what is in use is never removed, what is damaged is found, what is carried works on another host.

use super::templates::{flip, seal_again};
use guestline_tests::{Guestline, Ran, named_by, shared_cache};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// A cache of its own, with a copy of the image.
fn with_own_cache() -> Guestline {
    let guestline = Guestline::new();
    // Made, should this be the first test that wants it, and used now.
    assert_eq!(guestline.run(&["check", "--fresh-reboot", "true"]).status, 0);
    let images = shared_cache().join("guestline/images/tiny");
    let used = |folder: &PathBuf| {
        let lock = fs::metadata(folder.join("lock"));
        lock.and_then(|lock| lock.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let all = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path());
    let image = all.max_by_key(used).unwrap();
    let place = guestline.home().join("cache/guestline/images/tiny");
    fs::create_dir_all(&place).unwrap();
    let copied = Command::new("cp").arg("-r").arg(image).arg(&place).status().unwrap();
    assert!(copied.success());
    let cache = guestline.home().join("cache");
    guestline.with("XDG_CACHE_HOME", cache)
}

fn cache(guestline: &Guestline) -> PathBuf {
    guestline.home().join("cache/guestline")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn templates(guestline: &Guestline) -> Vec<String> {
    names(&cache(guestline).join("templates/1"))
}

fn images(guestline: &Guestline) -> Vec<String> {
    names(&cache(guestline).join("images/tiny"))
}

fn list(guestline: &Guestline) -> Vec<Value> {
    let ran = guestline.run(&["cache", "list", "--json"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    ran.events()
}

/// Runs a check, and says whether it was restored and whether a template was made.
fn check(guestline: &Guestline, args: &[&str]) -> (bool, bool) {
    let ran = guestline.run(&[&["check", "--message-format", "json"], args].concat());
    assert_eq!(ran.status, 0, "{}\n{}", ran.stderr, ran.stdout());
    let events = ran.events();
    let of = |name: &str| events.iter().find(|event| event["event"] == name);
    (!of("machine-ready").unwrap()["template"].is_null(), of("template-made").is_some())
}

fn configure(guestline: &Guestline, text: &str) {
    let folder = guestline.home().join("config/guestline");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("guestline.toml"), text).unwrap();
}

fn assert_lines(ran: &Ran, status: i32, beginnings: &[&str]) {
    let text = ran.stdout();
    assert_eq!(ran.status, status, "{text}\n{}", ran.stderr);
    // Columns are as wide as what is in them.
    let narrow = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.lines().map(|line| narrow(line) + "\n").collect::<String>();
    for beginning in beginnings {
        assert!(
            text.lines().any(|line| line.starts_with(&narrow(beginning))),
            "{beginning} in:\n{text}"
        );
    }
    assert_eq!(text.lines().count(), beginnings.len(), "{text}");
}

#[test]
fn what_is_in_use_is_not_pruned_and_all_else_is() {
    let guestline = with_own_cache();
    assert_eq!(check(&guestline, &["--memory", "200M", "true"]), (true, true));
    assert_eq!(guestline.run(&["up", "web"]).status, 0);
    let listed = list(&guestline);
    let of = |memory: u64| listed.iter().find(|entry| entry["memory_mib"] == memory).unwrap();
    assert_eq!([&of(256)["in_use"], &of(200)["in_use"]], [true, false]);
    assert!(of(256)["bytes"].as_u64().unwrap() > 20 << 20);
    // A check that goes on uses the same.
    let mut running = guestline.start(&["check", "echo on; sleep 3"]);
    running.next_line();
    let used = of(256)["id"].as_str().unwrap();
    let (stays, goes) = (format!("stays    template {used}"), of(200)["id"].as_str().unwrap());
    let goes = format!("removed  template {goes}");
    let pruned = guestline.run(&["cache", "prune", "--all"]);
    assert_lines(
        &pruned,
        0,
        &[&goes, &stays, "stays    image tiny/", "stays    kernel ", "freed "],
    );
    running.wait().assert_verdict(0, "passed");
    assert_eq!(templates(&guestline), [used]);
    // Neither is it removed by a limit.
    let pruned = guestline.run(&["cache", "prune", "--limit", "0"]);
    assert_lines(&pruned, 0, &[&stays, "stays    image tiny/", "stays    kernel ", "freed 0 B, "]);
    assert_eq!(guestline.run(&["power", "web", "reboot"]).status, 0);
    assert_eq!(guestline.run(&["exec", "-n", "web", "--", "true"]).status, 0);
    assert_eq!(guestline.run(&["down", "web"]).status, 0);
    let pruned = guestline.run(&["cache", "prune", "--all"]);
    let gone = ["removed  template ", "removed  image tiny/", "removed  kernel ", "freed "];
    assert_lines(&pruned, 0, &gone);
    assert!(templates(&guestline).is_empty() && images(&guestline).is_empty());
    guestline.assert_nothing_left();
}

#[test]
fn what_the_dead_left_goes_and_what_is_newer_stays() {
    let guestline = with_own_cache();
    assert_eq!(check(&guestline, &["true"]), (true, true));
    let cache = cache(&guestline);
    let dead = ["templates/1/.making-x", "templates/1/.dropped-x", "images/tiny/.making-x"];
    for dead in dead {
        fs::create_dir_all(cache.join(dead)).unwrap();
        fs::write(cache.join(dead).join("ram"), "x").unwrap();
    }
    fs::create_dir_all(cache.join("templates/2/abc")).unwrap();
    fs::write(cache.join("templates/2/abc/file"), "x").unwrap();
    let ours = templates(&guestline).pop().unwrap();
    let record = cache.join("templates/1").join(&ours).join("template.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let state = |id: &str| {
        let entry = list(&guestline).into_iter().find(|entry| entry["id"] == id).unwrap();
        entry["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        [state("templates/2"), state(&ours), state(".making-x")],
        ["newer", "newer", "left-over"]
    );
    let pruned = guestline.run(&["cache", "prune"]);
    let template = "removed  template .";
    assert_lines(&pruned, 0, &[template, template, "removed  image tiny/.making-x", "freed "]);
    let verified = guestline.run(&["cache", "verify"]);
    assert_lines(&verified, 0, &["2 right, 0 damaged, 2 left alone"]);
    let pruned = guestline.run(&["cache", "prune", "--all"]);
    assert_lines(&pruned, 0, &["removed  image tiny/", "removed  kernel ", "freed "]);
    assert!(cache.join("templates/2/abc/file").exists());
    assert_eq!(templates(&guestline), [ours]);
    fs::write(&record, text).unwrap();
    // What is damaged goes without being asked for.
    flip(&record.with_file_name("state"));
    let pruned = guestline.run(&["cache", "prune"]);
    assert!(pruned.stdout().contains("damaged: state was written to"), "{}", pruned.stdout());
    assert!(templates(&guestline).is_empty());
}

#[test]
fn verify_finds_what_a_seal_does_not_show() {
    let guestline = with_own_cache();
    check(&guestline, &["true"]);
    assert_lines(&guestline.run(&["cache", "verify"]), 0, &["3 right, 0 damaged"]);
    let folder = |guestline: &Guestline| {
        let id = templates(guestline).pop().unwrap();
        cache(guestline).join("templates/1").join(id)
    };
    // The seal tells of a plain edit, the digest of one that the seal was made anew for.
    let damages =
        [("state", false, "state was written to"), ("ram", true, "ram has another content")];
    for (name, sealed, why) in damages {
        let template = folder(&guestline);
        flip(&template.join(name));
        if sealed {
            seal_again(&template);
            assert_eq!(list(&guestline)[0]["state"], "ready");
        }
        let verified = guestline.run(&["cache", "verify"]);
        assert_lines(&verified, 1, &["damaged  template ", "2 right, 1 damaged"]);
        let told = format!(": {why}; removed");
        assert!(verified.stdout().contains(&told), "{}", verified.stdout());
        assert!(templates(&guestline).is_empty());
        assert_lines(&guestline.run(&["cache", "verify"]), 0, &["2 right, 0 damaged"]);
        assert_eq!(check(&guestline, &["true"]), (true, true));
    }
    // A digest that was never taken is taken.
    let digest = folder(&guestline).join("ram.json");
    fs::remove_file(&digest).unwrap();
    assert_lines(&guestline.run(&["cache", "verify"]), 0, &["3 right, 0 damaged"]);
    assert!(digest.exists());
    // A damaged image is removed, unless somebody uses it.
    let image = cache(&guestline).join("images/tiny").join(images(&guestline).pop().unwrap());
    assert_eq!(guestline.run(&["up", "web"]).status, 0);
    flip(&image.join("kernel"));
    let verified = guestline.run(&["cache", "verify"]);
    assert_lines(&verified, 1, &["damaged  image tiny/", "2 right, 1 damaged"]);
    assert!(verified.stdout().contains("; stays, since it is in use"), "{}", verified.stdout());
    assert_eq!(guestline.run(&["down", "web"]).status, 0);
    let verified = guestline.run(&["cache", "verify"]);
    assert_lines(&verified, 1, &["damaged  image tiny/", "2 right, 1 damaged"]);
    assert!(verified.stdout().contains(": kernel has another content; removed"));
    assert!(images(&guestline).is_empty());
    guestline.assert_nothing_left();
}

#[test]
fn what_was_used_least_recently_goes_when_there_is_too_much() {
    let guestline = with_own_cache();
    let memory_of = |guestline: &Guestline| {
        let mut memory: Vec<u64> =
            list(guestline).iter().filter_map(|entry| entry["memory_mib"].as_u64()).collect();
        memory.sort_unstable();
        memory
    };
    // The kernel is unpacked once.
    assert_eq!(check(&guestline, &["--fresh-reboot", "true"]), (false, false));
    let used = list(&guestline).iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum::<u64>();
    check(&guestline, &["true"]);
    let both = list(&guestline).iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum::<u64>();
    // Room for two templates.
    configure(&guestline, &format!("[cache]\nlimit = \"{}\"\n", used + (both - used) * 5 / 2));
    check(&guestline, &["--memory", "200M", "true"]);
    assert_eq!(check(&guestline, &["true"]), (true, false));
    assert_eq!(memory_of(&guestline), [200, 256]);
    check(&guestline, &["--memory", "220M", "true"]);
    assert_eq!(memory_of(&guestline), [220, 256]);
    // Not even room for one: the test runs, and what was just made stays.
    configure(&guestline, "[cache]\nlimit = \"1M\"\n");
    let ran = guestline.run(&["check", "--memory", "240M", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.lines().count() <= 3, "{}", ran.stderr);
    assert_eq!(memory_of(&guestline), [240]);
    assert_eq!(check(&guestline, &["--memory", "240M", "true"]), (true, false));
    assert_eq!(images(&guestline).len(), 1);
    // What is in use stays, though all else was used later.
    assert_eq!(guestline.run(&["up", "web", "--memory", "200M"]).status, 0);
    check(&guestline, &["--memory", "220M", "true"]);
    assert_eq!(memory_of(&guestline), [200, 220]);
    assert_eq!(guestline.run(&["down", "web"]).status, 0);
    let du = guestline.run(&["cache", "du"]);
    assert!(du.stdout().contains("over the limit: `guestline cache prune`"), "{}", du.stdout());
    configure(&guestline, "[cache]\nlimit = \"ten\"\n");
    let ran = guestline.run(&["check", "true"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("guestline.toml") && ran.stderr.contains("cache.limit: want"));
    guestline.assert_nothing_left();
}

#[test]
fn an_image_of_an_older_build_gets_its_lock() {
    let guestline = with_own_cache();
    let image = cache(&guestline).join("images/tiny").join(images(&guestline).pop().unwrap());
    let _ = fs::remove_file(image.join("lock"));
    assert_eq!(list(&guestline)[0]["state"], "ready");
    assert!(!image.join("lock").exists());
    assert_eq!(check(&guestline, &["true"]), (true, true));
    assert!(image.join("lock").exists());
    assert_eq!(images(&guestline).len(), 1);
}

#[test]
fn an_archive_is_carried_to_another_host() {
    let from = with_own_cache();
    check(&from, &["true"]);
    check(&from, &["--memory", "200M", "true"]);
    let archive = from.home().join("cache.tar.lz4");
    let path = archive.to_str().unwrap();
    let first = list(&from).into_iter().find(|entry| entry["memory_mib"] == 256).unwrap();
    let id = first["id"].as_str().unwrap();
    let ran = from.run(&["cache", "export", path, &id[..6]]);
    assert_eq!((ran.status, &*ran.stderr), (0, "exported 1 template and 1 image\n"));
    // Pages of zeros cost nothing: what the guest wrote to is a third of its memory.
    assert!(fs::metadata(&archive).unwrap().len() < 80 << 20);
    // Standard output gives the same, to the byte.
    let again = from.run(&["cache", "export", "-", id]);
    assert!(again.status == 0 && again.stdout == fs::read(&archive).unwrap());
    let to = Guestline::new();
    let home = to.home().join("home");
    let to = to.with("GUESTLINE_HOME", &home);
    let imported = to.run(&["cache", "import", path]);
    let template = format!("new    template {id}  tiny, 256M, QEMU ");
    assert_lines(&imported, 0, &["new    image tiny (", &template]);
    assert_eq!(check(&to, &["true"]), (true, false));
    assert_lines(&to.run(&["cache", "verify"]), 0, &["3 right, 0 damaged"]);
    let imported = to.run(&["cache", "import", path]);
    assert_lines(&imported, 0, &["there  image tiny (", "there  template "]);
    // What is of another QEMU is told.
    let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", qemu().display());
    let other = to.home().join("qemu");
    fs::write(&other, script).unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let to = to.with("GUESTLINE_QEMU", other);
    let imported = to.run(&["cache", "import", path]);
    assert!(imported.stdout().contains("; not used here: made by another build of QEMU "));
    let unknown = from.run(&["cache", "export", path, "ffff"]);
    assert_eq!(unknown.status, 2);
    assert!(
        unknown.stderr.contains("error: no template `ffff` in the cache"),
        "{}",
        unknown.stderr
    );
    from.assert_nothing_left();
}

fn qemu() -> PathBuf {
    let found = Command::new("sh").args(["-c", "command -v qemu-system-x86_64"]).output().unwrap();
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

#[test]
fn an_archive_that_was_cut_or_edited_leaves_nothing() {
    let from = with_own_cache();
    check(&from, &["true"]);
    let archive = from.home().join("cache.tar.lz4");
    assert_eq!(from.run(&["cache", "export", archive.to_str().unwrap()]).status, 0);
    let whole = fs::read(&archive).unwrap();
    let to = Guestline::new();
    let home = to.home().join("home");
    let to = to.with("GUESTLINE_HOME", &home);
    let mut others: Vec<Vec<u8>> = vec![Vec::new(), b"hello".repeat(1000)];
    for share in [1, 30, 60, 95] {
        let at = whole.len() * share / 100;
        others.push(whole[..at].to_vec());
        let mut edited = whole.clone();
        edited[at] ^= 1;
        others.push(edited);
    }
    others.push(whole[..whole.len() - 4].to_vec());
    others.push(whole[..whole.len() - 1].to_vec());
    for other in others {
        let path = from.home().join("other");
        fs::write(&path, other).unwrap();
        let ran = to.run(&["cache", "import", path.to_str().unwrap()]);
        assert_eq!(ran.status, 1, "{}{}", ran.stdout(), ran.stderr);
        assert!(ran.stderr.starts_with("error: cannot import `"), "{}", ran.stderr);
        assert!(ran.stderr.contains("hint: nothing of it came in"), "{}", ran.stderr);
        assert!(list(&to).is_empty(), "{:?}", list(&to));
    }
    let missing = to.run(&["cache", "import", "no-such-file"]);
    assert_eq!(missing.status, 2);
    // Through a pipe.
    let mut child = Command::new(named_by("GUESTLINE_PROGRAM"))
        .args(["cache", "import", "-"])
        .env("GUESTLINE_HOME", &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&whole).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(list(&to).len(), 2);
}

/// Runs the program where a script has changed what is mounted, in a mount namespace of its own; `"$1"` is the program.
pub(crate) fn mounted(guestline: Guestline, script: &str) -> Guestline {
    let user = if nix::unistd::Uid::effective().is_root() { "-m" } else { "-Urm" };
    let script = format!("set -e; {script}; exec \"$@\"");
    guestline.under(&["unshare", user, "sh", "-c", &script, "sh"])
}

/// As [`mounted`], with what is in its cache on a disk of so many MiB.
pub(crate) fn with_cache_of(guestline: Guestline, mib: u32, script: &str) -> Guestline {
    let (cache, seed) = (guestline.home().join("cache"), guestline.home().join("seed"));
    fs::rename(&cache, &seed).unwrap();
    fs::create_dir(&cache).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={mib}m,mode=0700 none '{0}'; cp -r '{1}'/. '{0}'; {script}",
        cache.display(),
        seed.display()
    );
    mounted(guestline, &script)
}

#[test]
fn a_cache_that_cannot_be_written_to_is_used_all_the_same() {
    let guestline = with_own_cache();
    check(&guestline, &["true"]);
    let cache = guestline.home().join("cache");
    let script =
        format!("mount --bind '{0}' '{0}'; mount -o remount,bind,ro '{0}'", cache.display());
    let guestline = mounted(guestline, &script);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(!ran.stderr.contains("template: "), "{}", ran.stderr);
    assert_eq!(check(&guestline, &["true"]), (true, false));
    // No template of this kind: it boots, and says so in one line.
    let ran = guestline.run(&["check", "--memory", "200M", "true"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stderr.matches("template: none (cannot use `").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
    assert_lines(&guestline.run(&["cache", "verify"]), 0, &["3 right, 0 damaged"]);
    let pruned = guestline.run(&["cache", "prune", "--all"]);
    assert_lines(
        &pruned,
        125,
        &["stays    template ", "stays    image ", "stays    kernel ", "freed 0 B"],
    );
    assert!(pruned.stdout().contains("cannot be removed: Read-only"), "{}", pruned.stdout());
    // Held for reading, but held.
    let mut running = guestline.start(&["check", "echo on; sleep 2"]);
    running.next_line();
    assert!(list(&guestline).iter().all(|entry| entry["in_use"] == true));
    running.wait().assert_verdict(0, "passed");
    guestline.assert_nothing_left();
}

#[test]
fn a_cache_on_a_full_disk_is_used_all_the_same() {
    let guestline = with_own_cache();
    let script = format!(
        "\"$1\" check true 2>&1 | grep -q '^template: booted'; \
         head -c 1G /dev/zero > '{}/greedy' 2>&- || true",
        guestline.home().join("cache").display(),
    );
    let guestline = with_cache_of(guestline, 450, &script);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(!ran.stderr.contains("template: "), "{}", ran.stderr);
    let ran = guestline.run(&["check", "--memory", "200M", "true"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stderr.matches("template: none (").count(), 1, "{}", ran.stderr);
    assert_lines(&guestline.run(&["cache", "verify"]), 0, &["3 right, 0 damaged"]);
    guestline.assert_nothing_left();
}

#[test]
fn an_archive_goes_into_what_is_no_file_and_to_where_a_link_leads() {
    let guestline = with_own_cache();
    check(&guestline, &["true"]);
    let [pipe, link, target] = ["pipe", "link", "target"].map(|name| guestline.home().join(name));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    fs::write(&target, "").unwrap();
    let reading = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    for file in [&pipe, &link] {
        let ran = guestline.run(&["cache", "export", file.to_str().unwrap()]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
    }
    assert!(reading.join().unwrap() == fs::read(&target).unwrap());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!fs::symlink_metadata(&pipe).unwrap().is_file());
}

#[test]
fn an_archive_that_finds_no_room_leaves_nothing() {
    let from = with_own_cache();
    check(&from, &["true"]);
    let archive = from.home().join("cache.tar.lz4");
    assert_eq!(from.run(&["cache", "export", archive.to_str().unwrap()]).status, 0);
    let cache = from.home().join("small");
    fs::create_dir(&cache).unwrap();
    let script = format!("mount -t tmpfs -o size=40m,mode=0700 none '{}'", cache.display());
    let to = mounted(from.with("XDG_CACHE_HOME", &cache), &script);
    let ran = to.run(&["cache", "import", archive.to_str().unwrap()]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(ran.stderr.contains("MiB are wanted\nhint: make room"), "{}", ran.stderr);
}
