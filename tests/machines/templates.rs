//! Templates: machines that are restored are pristine and distinct, and no template is believed that is not what was made.

use guestline_tests::{Guestline, Ran, shared_cache, wait_for};
use nix::sys::signal::{Signal, kill};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A cache of its own, but for the images.
pub(crate) fn with_own_cache() -> Guestline {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    fs::create_dir_all(cache.join("guestline")).unwrap();
    // Made, should this be the first test that wants it.
    assert_eq!(guestline.run(&["check", "--fresh-reboot", "true"]).status, 0);
    symlink(shared_cache().join("guestline/images"), cache.join("guestline/images")).unwrap();
    guestline.with("XDG_CACHE_HOME", cache)
}

/// The folders of all templates of a cache, also of half ones.
pub(crate) fn folders(guestline: &Guestline) -> Vec<PathBuf> {
    let all = fs::read_dir(guestline.home().join("cache/guestline/templates/1"));
    all.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

pub(crate) fn only_template(guestline: &Guestline) -> PathBuf {
    let mut all = folders(guestline);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

pub(crate) fn event(ran: &Ran, name: &str) -> Vec<serde_json::Value> {
    ran.events().into_iter().filter(|event| event["event"] == name).collect()
}

const JSON: &[&str] = &["check", "--message-format", "json"];

pub(crate) fn json(guestline: &Guestline, lines: &[&str]) -> Ran {
    let ran = guestline.run(&[JSON, lines].concat());
    assert_eq!(ran.status, 0, "{}\n{}", ran.stderr, ran.stdout());
    ran
}

#[test]
fn the_first_check_makes_it_and_the_next_ones_are_restored() {
    let guestline = with_own_cache();
    let first = guestline.run(&["check", "echo mine > /mine"]);
    first.assert_verdict(0, "passed");
    assert!(first.stderr.contains("template: booted and saved in "), "{}", first.stderr);
    let template = only_template(&guestline);
    let mode = |name: &str| fs::metadata(template.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("ram"), mode("state"), mode("")], [0o400, 0o400, 0o700]);
    assert!(template.join("ram.json").is_file());
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // Nothing of the first one is in the second, and its time is now.
    let ran = json(&guestline, &["test ! -e /mine && date +%s"]);
    let said = event(&ran, "output")[0]["text"].as_str().unwrap().trim().parse::<u64>().unwrap();
    assert!((before..before + 60).contains(&said), "{said} {before}");
    let ready = &event(&ran, "machine-ready")[0];
    assert_eq!(ready["template"], template.file_name().unwrap().to_str().unwrap());
    assert!(ready["skew_us"].as_i64().unwrap() < 0, "{ready}");
    assert!(event(&ran, "template-made").is_empty());
    // Booted when that is wanted, and the template is as it was.
    let ran = json(&guestline, &["--fresh-reboot", "test ! -e /mine"]);
    assert!(event(&ran, "machine-ready")[0]["template"].is_null());
    assert_eq!(only_template(&guestline), template);
    guestline.assert_nothing_left();
}

#[test]
fn machines_of_one_template_share_no_name_and_no_random_number() {
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let line = "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id \
                /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | sha256sum; cut -d' ' -f1 /proc/uptime";
    let ran = json(&guestline, &["-j", "2", line, line, line, line]);
    let said: Vec<String> = event(&ran, "output")
        .iter()
        .map(|event| event["text"].as_str().unwrap().to_owned())
        .collect();
    let all = said.join("");
    let lines: Vec<&str> = all.lines().filter(|line| line.len() > 8).collect();
    // Name (twice, in kernel and file), machine id, boot id, two random numbers.
    assert_eq!(lines.len(), 4 * 6, "{all}");
    let mut distinct = lines.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 4 * 5, "{all}");
    guestline.assert_nothing_left();
}

#[test]
fn a_restored_machine_reboots_into_its_own_kernel() {
    let guestline = Guestline::new();
    assert_eq!(guestline.run(&["up", "again"]).status, 0);
    let exec = |line: &str| guestline.run(&["exec", "-n", "again", "--shell", "--", line]);
    let before = exec("hostname; uname -r; cat /proc/cmdline; echo x > /x").stdout();
    assert!(before.starts_with("again\n"), "{before}");
    let boots = exec("cat /proc/sys/kernel/random/boot_id").stdout();
    assert_eq!(guestline.run(&["power", "again", "reboot"]).status, 0);
    let after = exec("test ! -e /x && uname -r; cat /proc/cmdline").stdout();
    assert_eq!(format!("again\n{after}"), before);
    assert_ne!(exec("cat /proc/sys/kernel/random/boot_id").stdout(), boots);
    assert_eq!(guestline.run(&["down", "again"]).status, 0);
    guestline.assert_nothing_left();
}

/// Changes a byte in the middle and leaves the times as they were.
pub(crate) fn flip(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions();
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let file = writable(path);
    let (mut byte, at) = ([0], file.metadata().unwrap().len() / 2);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(modified).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// Opens a file that nobody is to write to.
fn writable(path: &Path) -> File {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn cut(path: &Path) {
    let file = writable(path);
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn replace_by_link(path: &Path) {
    let elsewhere = path.with_extension("elsewhere");
    fs::rename(path, &elsewhere).unwrap();
    symlink(&elsewhere, path).unwrap();
}

#[test]
fn what_is_damaged_is_dropped_and_made_anew() {
    type Damage = fn(&Path);
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let remove: Damage = |path| fs::remove_file(path).unwrap();
    let empty: Damage = |path| fs::write(path, "").unwrap();
    let damages: [(&str, Damage, &str); 14] = [
        ("state", flip, "state was written to"),
        ("state", cut, "state has "),
        ("state", remove, "state: No such file"),
        ("ram", flip, "ram was written to"),
        ("ram", cut, "ram has "),
        ("ram", remove, "ram: No such file"),
        ("ram", replace_by_link, "ram is no file"),
        (
            "ram",
            |path| fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap(),
            "ram has another owner or mode",
        ),
        ("template.json", flip, "template.json"),
        ("template.json", empty, "template.json"),
        ("seal.json", flip, ""),
        ("seal.json", empty, "seal.json: "),
        ("seal.json", remove, "seal.json: No such file"),
        ("lock", remove, "lock is missing"),
    ];
    for (name, damage, why) in damages {
        let template = only_template(&guestline);
        damage(&template.join(name));
        let ran = guestline.run(&["check", "true"]);
        ran.assert_verdict(0, "passed");
        let told = format!("template: dropped ({why}");
        assert!(ran.stderr.contains(&told), "{name}: {told} in {}", ran.stderr);
        let ran = json(&guestline, &["true"]);
        assert!(
            event(&ran, "template-made").is_empty() && event(&ran, "template-dropped").is_empty()
        );
        assert!(!event(&ran, "machine-ready")[0]["template"].is_null());
    }
    guestline.assert_nothing_left();
}

/// Seals what lies there now, as if it had been made so.
pub(crate) fn seal_again(template: &Path) {
    let path = template.join("seal.json");
    let mut seal: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let state = fs::read(template.join("state")).unwrap();
    seal["state"] = guestline::digest::Digest::of(&state).as_str().into();
    for file in seal["files"].as_array_mut().unwrap() {
        let found = fs::metadata(template.join(file["name"].as_str().unwrap())).unwrap();
        file["size"] = found.len().into();
        file["mode"] = found.mode().into();
        file["mtime"] = serde_json::json!([found.mtime(), found.mtime_nsec()]);
        file["ctime"] = serde_json::json!([found.ctime(), found.ctime_nsec()]);
    }
    fs::write(&path, seal.to_string()).unwrap();
}

/// As if QEMU or the disk had lied: the seal is right, and no machine comes of it.
#[test]
fn a_template_from_which_nothing_comes_up_is_made_anew() {
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let no_memory = |path: &Path| {
        let file = writable(path);
        let len = file.metadata().unwrap().len();
        file.set_len(0).unwrap();
        file.set_len(len).unwrap();
    };
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>, &str); 2] =
        [("state", &cut, "QEMU exited with status 1"), ("ram", &no_memory, "")];
    for (name, damage, why) in damages {
        let template = only_template(&guestline);
        damage(&template.join(name));
        seal_again(&template);
        let ran = guestline.run(&["check", "true"]);
        ran.assert_verdict(0, "passed");
        let told = format!("template: dropped ({why}");
        assert!(ran.stderr.contains(&told), "{}", ran.stderr);
        let ran = json(&guestline, &["true"]);
        assert!(event(&ran, "template-made").is_empty());
    }
    guestline.assert_nothing_left();
}

#[test]
fn where_none_can_be_kept_machines_boot() {
    let guestline = with_own_cache();
    let templates = guestline.home().join("cache/guestline/templates/1");
    // A file in the way.
    fs::create_dir_all(templates.parent().unwrap()).unwrap();
    fs::write(&templates, "").unwrap();
    let ran = guestline.run(&["check", "true", "true", "true"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("template: none (cannot use `").count(), 1, "{}", ran.stderr);
    fs::remove_file(&templates).unwrap();
    // A template of the future is not touched.
    json(&guestline, &["true"]);
    let record = only_template(&guestline).join("template.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    let told = "` was made by a newer Guestline); machines boot instead";
    assert!(
        ran.stderr.contains("template: none (`") && ran.stderr.contains(told),
        "{}",
        ran.stderr
    );
    assert!(fs::read_to_string(record).unwrap().contains("\"format\": 2"));
    guestline.assert_nothing_left();
}

#[test]
fn a_disk_without_room_costs_the_template_and_not_the_test() {
    let guestline = with_own_cache();
    let templates = guestline.home().join("cache/guestline/templates");
    fs::create_dir_all(&templates).unwrap();
    let mount = |kib: u32| {
        format!(
            "mount -t tmpfs -o size={kib}k,mode=0755 none '{}' && exec \"$@\"",
            templates.display()
        )
    };
    let user = if nix::unistd::Uid::effective().is_root() { "-m" } else { "-Urm" };
    let guestline = guestline.under(&["unshare", user, "sh", "-c", &mount(200_000), "sh"]);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("MiB are wanted to save the machine)"), "{}", ran.stderr);
    // Room is there when it is looked at, and is taken by somebody else while the guest boots.
    let greedy = mount(350_000).replace(
        "exec \"$@\"",
        &format!("(sleep 1.2; head -c 300M /dev/zero > '{}/greedy') & \"$@\"", templates.display()),
    );
    let guestline = guestline.under(&["unshare", user, "sh", "-c", &greedy, "sh"]);
    let ran = guestline.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("template: none ("), "{}", ran.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn two_that_want_it_make_it_once() {
    let guestline = with_own_cache();
    let [one, two] = [0, 1].map(|_| guestline.start(&[JSON, &["true"]].concat()));
    let ran = [one.wait(), two.wait()];
    assert_eq!([ran[0].status, ran[1].status], [0, 0]);
    let made: usize = ran.iter().map(|ran| event(ran, "template-made").len()).sum();
    assert_eq!(made, 1);
    only_template(&guestline);
    guestline.assert_nothing_left();
}

#[test]
fn a_maker_that_is_killed_leaves_nothing_in_the_way() {
    let guestline = with_own_cache();
    // In the boot, when it is saved, just before and after it is there.
    for after in [300, 1200, 1800, 2000, 2100, 2200, 2300, 2500] {
        let running = guestline.start(&["check", "true"]);
        std::thread::sleep(Duration::from_millis(after));
        let _ = kill(running.pid(), Signal::SIGKILL);
        running.wait();
        wait_for("the end of its QEMU", || guestline.qemus().is_empty().then_some(()));
        if let [template] = &folders(&guestline)[..]
            && template.join("seal.json").exists()
            && !template.file_name().unwrap().to_string_lossy().starts_with('.')
        {
            fs::remove_dir_all(template).unwrap();
        }
    }
    json(&guestline, &["true"]);
    let ran = json(&guestline, &["true"]);
    assert!(event(&ran, "template-made").is_empty());
    only_template(&guestline);
    guestline.assert_nothing_left();
}

#[test]
fn a_qemu_that_is_killed_while_it_restores_is_no_fault_of_the_template() {
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let template = only_template(&guestline);
    let mut killed = 0;
    for _ in 0..10 {
        let running = guestline.start(&["check", "true"]);
        let _ = kill(guestline.wait_for_qemu(), Signal::SIGKILL);
        let ran = running.wait();
        assert!([0, 125].contains(&ran.status), "{}", ran.stderr);
        if ran.status == 125 {
            assert!(ran.stderr.contains("host: QEMU was killed by SIGKILL"), "{}", ran.stderr);
            killed += 1;
        }
    }
    assert!(killed > 0);
    assert_eq!(only_template(&guestline), template);
    guestline.assert_nothing_left();
}

#[test]
fn a_named_template_is_a_machine_that_is_set_up() {
    let guestline = with_own_cache();
    let template = |words: &[&str]| guestline.run(&[&["template"], words].concat());
    let made = template(&[
        "create",
        "web",
        "-e",
        "mkdir /srv && echo hello > /srv/page",
        "-e",
        "httpd -h /srv",
    ]);
    assert_eq!(made.status, 0, "{}", made.stderr);
    assert!(made.stdout().starts_with("template web: made in "), "{}", made.stdout());
    let again = template(&[
        "create",
        "web",
        "-e",
        "mkdir /srv && echo hello > /srv/page",
        "-e",
        "httpd -h /srv",
    ]);
    assert!(again.stdout().contains(": is there already ("), "{}", again.stdout());
    let other = template(&["create", "web", "-e", "true"]);
    assert_eq!(other.status, 2);
    assert!(other.stderr.contains("hint: --force"), "{}", other.stderr);
    // The service is up in each machine, and none sees what another did to it.
    let get = "wget -qO- http://localhost/page && ! test -e /srv/mine && touch /srv/mine";
    let ran = json(&guestline, &["--template", "web", get, get]);
    let said = event(&ran, "output");
    assert!(said.iter().all(|event| event["text"] == "hello\n"), "{said:?}");
    assert!(event(&ran, "template-made").is_empty());
    // Upon another, and without templates at all.
    let over = ["create", "two", "--from", "web", "-e", "echo more > /srv/more"];
    assert_eq!(template(&over).status, 0);
    let both = "wget -qO- http://localhost/page http://localhost/more";
    for words in [&["--template", "two"][..], &["--template", "two", "--fresh-reboot"]] {
        let ran = guestline.run(&[&["check"], words, &[both]].concat());
        assert_eq!(ran.stdout(), "hello\nmore\n", "{}", ran.stderr);
    }
    // What was saved may go: the name stands for what is done.
    fs::remove_dir_all(guestline.home().join("cache/guestline/templates")).unwrap();
    let listed = template(&["list"]).stdout();
    assert_eq!(listed.matches("when it is wanted next").count(), 2, "{listed}");
    guestline.run(&["check", "--template", "two", both]).assert_verdict(0, "passed");
    let shown = template(&["show", "two"]).stdout();
    assert!(shown.contains("layer 1 httpd -h /srv\n  layer 2 echo more"), "{shown}");
    // One that is in use stays.
    let used = guestline.start(&["check", "--template", "two", "sleep 5"]);
    wait_for("the machine", || guestline.qemus().first().copied());
    std::thread::sleep(Duration::from_millis(500));
    let busy = template(&["rm", "two"]);
    assert!(busy.status == 2 && busy.stderr.contains("`two` is in use"), "{}", busy.stderr);
    used.wait().assert_verdict(0, "passed");
    assert_eq!(template(&["rm", "two", "web"]).status, 0);
    let gone = guestline.run(&["check", "--template", "web", "true"]);
    assert_eq!(gone.status, 2);
    assert!(gone.stderr.contains("there is no template `web`"), "{}", gone.stderr);
    guestline.assert_nothing_left();
}

#[test]
fn a_set_up_that_fails_is_the_fixtures_and_leaves_nothing() {
    let guestline = with_own_cache();
    let cases = [
        ("echo one; echo two >&2; exit 4", "ended with status 4: two\n  one\n"),
        ("kill -9 $$", "was killed by signal 9"),
        ("reboot -f; sleep 9", "took the guest down: it reset"),
        ("poweroff -f; sleep 9", "took the guest down: it powered off"),
        ("echo c > /proc/sysrq-trigger", "took the guest down: it panicked"),
        ("sleep 60", "did not end within 2 s"),
    ];
    for (line, why) in cases {
        let ran = guestline.run(&["template", "create", "bad", "--timeout", "2", "-e", line]);
        assert_eq!(ran.status, 125, "{}", ran.stderr);
        let told = format!("errored  template bad: fixture: set-up `{line}` {why}");
        assert!(ran.stderr.contains(&told), "{told} in {}", ran.stderr);
        // The one below it is whole, and nothing else is there.
        only_template(&guestline);
    }
    let listed = guestline.run(&["template", "list"]).stdout();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    for wrong in ["", "Web", "a/b", "-x"] {
        let ran = guestline.run(&["template", "create", "--", wrong]);
        assert_eq!(ran.status, 2, "{wrong}");
    }
    guestline.assert_nothing_left();
}

/// Makes what is in a folder an ordinary user's, and gives the words that run a program as that user; root only.
fn give_to_nobody(folder: &Path) -> [&'static str; 6] {
    let all = ["-h", "-R", "65534:65534", folder.to_str().unwrap()];
    assert!(std::process::Command::new("chown").args(all).status().unwrap().success());
    ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
}

#[test]
fn two_users_with_one_cache_folder_do_not_touch_each_others_templates() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: only root can be two users");
        return;
    }
    let owner = with_own_cache();
    json(&owner, &["true"]);
    let template = only_template(&owner);
    let opened =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    opened(owner.home(), 0o755);
    let other = Guestline::new();
    fs::create_dir_all(other.home().join("run")).unwrap();
    let nobody = give_to_nobody(other.home());
    let other = other.with("XDG_CACHE_HOME", owner.home().join("cache")).under(&nobody);
    let check = |why: &str| {
        let ran = other.run(&["check", "true"]);
        ran.assert_verdict(0, "passed");
        let told = ran.stderr.lines().find(|line| line.starts_with("template: none ("));
        assert!(told.unwrap_or_default().contains(why), "{why} in {}", ran.stderr);
        other.assert_nothing_left();
    };
    // Closed, as it is made; and opened by somebody who means well.
    check("Permission denied");
    let templates = template.parent().unwrap();
    for folder in [templates, &template] {
        opened(folder, 0o777);
    }
    for file in ["lock", "template.json", "seal.json", "state", "ram"] {
        opened(&template.join(file), 0o666);
    }
    check("belongs to another user");
    // The owner uses nothing that others may have written to, and keeps nothing where they may.
    let ran = owner.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    for told in ["template: dropped (", "template: none (cannot use `"] {
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    opened(templates, 0o700);
    let ran = owner.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(ran.stderr.contains("template: booted and saved in "), "{}", ran.stderr);
    only_template(&owner);
    owner.assert_nothing_left();
}

#[test]
fn a_maker_of_a_layer_that_is_killed_leaves_nothing_in_the_way() {
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let create = ["template", "create", "web", "--force", "-e", "echo set > /up"];
    // While the one below is copied and restored, in its line, when it is saved and published.
    for after in [30, 80, 130, 180, 230, 280, 330, 380, 450] {
        let running = guestline.start(&create);
        std::thread::sleep(Duration::from_millis(after));
        let _ = kill(running.pid(), Signal::SIGKILL);
        running.wait();
        wait_for("the end of its QEMU", || guestline.qemus().is_empty().then_some(()));
    }
    let ran = guestline.run(&create);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    json(&guestline, &["--template", "web", "grep set /up"]);
    let hidden = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    let all = folders(&guestline);
    assert_eq!((all.len(), all.iter().filter(|path| hidden(path)).count()), (2, 0), "{all:?}");
    guestline.assert_nothing_left();
}

/// A memory file is opened for writing by QEMU 7.2, though not written to: root would not notice its mode.
#[test]
fn an_ordinary_user_has_templates_with_every_qemu() {
    for qemu in [None, Some(guestline_tests::oldest_qemu())] {
        let mut guestline = with_own_cache();
        if let Some(qemu) = &qemu {
            guestline = guestline.with("GUESTLINE_QEMU", qemu);
        }
        if nix::unistd::Uid::effective().is_root() {
            let nobody = give_to_nobody(guestline.home());
            guestline = guestline.under(&nobody);
        }
        for _ in 0..2 {
            let ran = guestline.run(&["check", "true"]);
            ran.assert_verdict(0, "passed");
            assert!(!ran.stderr.contains("template: none"), "{}", ran.stderr);
        }
        let ran = json(&guestline, &["true"]);
        assert!(!event(&ran, "machine-ready")[0]["template"].is_null());
        let template = only_template(&guestline);
        let mode = fs::metadata(template.join("ram")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if qemu.is_some() { 0o600 } else { 0o400 });
        guestline.assert_nothing_left();
    }
}

#[test]
fn a_name_for_what_all_checks_share_goes_without_it() {
    let guestline = with_own_cache();
    json(&guestline, &["true"]);
    let template = only_template(&guestline);
    assert_eq!(guestline.run(&["template", "create", "plain"]).status, 0);
    assert_eq!(guestline.run(&["template", "rm", "plain"]).status, 0);
    assert_eq!(only_template(&guestline), template);
    // A folder in the place of the lock: it is made anew, and whole.
    fs::remove_file(template.join("lock")).unwrap();
    fs::create_dir(template.join("lock")).unwrap();
    let ran = json(&guestline, &["true"]);
    assert_eq!(event(&ran, "template-dropped")[0]["why"], "lock is missing");
    assert!(only_template(&guestline).join("lock").is_file());
    let nothing = guestline.with("GUESTLINE_QEMU", "/bin/true");
    let ran = nothing.run(&["template", "create", "web", "-e", "true"]);
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("errored  template web: host: ")
            && ran.stderr.contains("guestline doctor")
    );
    nothing.assert_nothing_left();
}
