//! Images from one host to another: in a file, and published, by a folder and by the web.

use crate::cache::mounted;
use crate::static_web::{Asked, Fault, StaticWeb};
use guestline_tests::{Guestline, Ran, named_by, right, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Made of tiny in seconds, and known to no other host.
const MINE: &str = "name = \"mine\"\nsummary = \"Somebody's own\"\nextends = \"tiny\"\nowner = \"us\"\n\
    provides = [\"greeting\"]\n[files]\n\"etc/greeting\" = \"hello\\n\"\n";

fn host() -> Guestline {
    let guestline = Guestline::new();
    let cache = guestline.home().join("cache");
    guestline.with("XDG_CACHE_HOME", &cache)
}

fn own(guestline: &Guestline, name: &str, text: &str) {
    let folder = guestline.home().join("config/guestline/images");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{name}.toml")), text).unwrap();
}

#[track_caller]
fn wrong(ran: &Ran, status: i32, words: &str) {
    assert_eq!(ran.status, status, "{}\n{}", ran.stdout(), ran.stderr);
    assert!(ran.stderr.contains(words), "no `{words}` in:\n{}", ran.stderr);
}

fn made(guestline: &Guestline, name: &str) -> Value {
    let shown = right(&guestline.run(&["image", "show", name, "--json"]));
    serde_json::from_str::<Value>(&shown).unwrap()["made"].clone()
}

/// Nothing of an image is there, nor on its way.
fn assert_without_images(guestline: &Guestline) {
    let folder = guestline.home().join("cache/guestline/images");
    for name in fs::read_dir(folder).into_iter().flatten().flatten() {
        let left: Vec<_> = fs::read_dir(name.path()).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let received = guestline.home().join("state/guestline/images");
    assert_eq!(fs::read_dir(received).into_iter().flatten().count(), 0);
}

fn parts(guestline: &Guestline) -> Vec<PathBuf> {
    let folder = guestline.home().join("cache/guestline/downloads");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Another agent: the same program, with something behind it.
fn other_agent(home: &Path) -> String {
    let path = home.join("other-agent");
    let agent = fs::read(named_by("GUESTLINE_AGENT")).unwrap();
    fs::write(&path, [&agent[..], b"another"].concat()).unwrap();
    path.display().to_string()
}

#[test]
fn an_image_goes_to_another_host_in_a_file() {
    let (here, there) = (host(), host());
    own(&here, "mine", MINE);
    wrong(&here.run(&["image", "export", "mine"]), 2, "hint: make it: guestline image build mine");
    let agent = other_agent(here.home());
    right(&here.run(&["image", "build", "mine"]));
    right(&here.run(&["image", "export", "mine"]));
    let file = here.home().join("mine.tar.lz4").display().to_string();
    let piped = here.run(&["image", "export", "mine", "-o", "-"]);
    assert!(piped.status == 0 && piped.stdout == fs::read(&file).unwrap());

    // A host that has no manifest of that name uses it under it.
    let told = right(&there.run(&["image", "import", &file]));
    assert!(told.starts_with("new    image mine (") && told.contains("its manifest came with it"));
    assert_eq!(made(&there, "mine"), made(&here, "mine"));
    let ran = there.run(&["check", "--image", "mine", "cat /etc/greeting"]);
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "hello\n");
    let again = there.run_with(&["image", "import", "-"], &piped.stdout);
    assert!(right(&again).starts_with("there  image mine ("));
    right(&there.run(&["image", "rm", "mine"]));
    wrong(&there.run(&["image", "show", "mine"]), 2, "no image is called `mine`");

    // Its name is taken by a manifest of this host's user: it may have another.
    own(&there, "mine", &MINE.replace("hello", "good day"));
    wrong(&there.run(&["image", "import", &file]), 2, "hint: --as NAME gives it another name");
    assert_without_images(&there);
    right(&there.run(&["image", "import", &file, "--as", "theirs"]));
    right(&there.run(&["image", "verify", "theirs"]));
    wrong(&there.run(&["image", "import", &file, "--as", "../x"]), 1, "is no name of an image");

    // Another agent is in it: this host's takes its place, and the result is what this host makes itself.
    let (here, there) = (here.with("XDG_CACHE_HOME", there.home().join("cache2")), host());
    right(&here.run(&["image", "build", "tiny", "--agent", &agent]));
    right(&here.run(&["image", "export", "tiny", "--agent", &agent, "-o", "t"]));
    let file = here.home().join("t").display().to_string();
    let told = right(&there.run(&["image", "import", &file]));
    assert!(told.contains("another agent was in it"), "{told}");
    let imported = made(&there, "tiny");
    there.run(&["check", "true"]).assert_verdict(0, "passed");
    right(&there.run(&["image", "build", "tiny"]));
    assert_eq!(made(&there, "tiny"), imported);
    assert!(right(&there.run(&["image", "import", &file])).starts_with("there  image tiny ("));
    there.assert_nothing_left();
}

#[test]
fn a_file_that_is_no_image_is_not_taken() {
    let (here, there) = (Guestline::new(), host());
    right(&here.run(&["check", "true"]));
    right(&here.run(&["image", "export", "tiny", "-o", "tiny"]));
    let whole = fs::read(here.home().join("tiny")).unwrap();
    let import = |bytes: &[u8]| {
        fs::write(there.home().join("file"), bytes).unwrap();
        let ran = there.run(&["image", "import", "file"]);
        assert_without_images(&there);
        ran
    };
    wrong(&import(b"hello"), 2, "`file` is no image");
    wrong(&import(&whole[..whole.len() - 9]), 1, "it ends too early");
    wrong(&import(&whole[..whole.len() / 2]), 1, "it ends too early");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    wrong(&import(&flipped), 1, "or damaged");
    wrong(&import(&[&whole[..], b"x"].concat()), 1, "something follows its end");
    wrong(&there.run(&["image", "import", "none"]), 2, "cannot read `none`");
    // Archives of a cache go another way, and those of images do not go that way.
    right(&here.run(&["cache", "export", "cache"]));
    let cache = here.home().join("cache").display().to_string();
    wrong(
        &there.run(&["image", "import", &cache]),
        2,
        "hint: take it in by `guestline cache import`",
    );
    fs::write(there.home().join("file"), &whole).unwrap();
    wrong(
        &there.run(&["cache", "import", "file"]),
        2,
        "hint: take it in by `guestline image import`",
    );
    assert_without_images(&there);
    // No room, and what was asked for beside a manifest's packages.
    let cache = there.home().join("small");
    fs::create_dir(&cache).unwrap();
    let script = format!("mount -t tmpfs -o size=20m,mode=0700 none '{}'", cache.display());
    let small = mounted(there.with("XDG_CACHE_HOME", &cache), &script);
    wrong(&small.run(&["image", "import", "file"]), 125, "MiB are wanted\nhint: make room");
}

/// What `publish` printed as the key.
fn key_of(told: &str) -> String {
    told.trim_end().rsplit(' ').next().unwrap().to_owned()
}

/// tiny, published by another host.
struct Publisher {
    guestline: Guestline,
    folder: PathBuf,
    key: String,
    web: StaticWeb,
}

impl Publisher {
    fn new() -> Self {
        let guestline = Guestline::new();
        right(&guestline.run(&["check", "true"]));
        let folder = guestline.home().join("published");
        let told = right(&guestline.run(&["image", "publish", "published", "tiny"]));
        let web = StaticWeb::of(&folder);
        Self { folder, key: key_of(&told), web, guestline }
    }

    fn pull(&self, to: &Guestline, more: &[&str]) -> Ran {
        let url = self.web.url();
        to.run(&[&["image", "pull", "--from", &url, "--key", &self.key], more].concat())
    }

    /// A file of tiny, below the folder.
    fn file(&self, name: &str) -> String {
        let made = made(&self.guestline, "tiny");
        let files = made["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["name"] == name).unwrap();
        format!("files/{}", file["sha256"].as_str().unwrap())
    }
}

#[test]
fn what_is_published_is_pulled_by_the_web_and_used() {
    let publisher = Publisher::new();
    let there = host();
    let (url, key) = (publisher.web.url(), &publisher.key);
    // minisign(1) knows the signature, and the bill of materials lies beside the image.
    let folder = publisher.folder.display();
    let line = format!(
        "cd '{folder}' && minisign -Vm index.json -p minisign.pub && minisign -Vm index.json -P '{key}'"
    );
    right(&there.run_other("sh", &["-c", &line], Stdio::null()));
    let index = fs::read(publisher.folder.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let bill = index["images"][0]["sbom"]["sha256"].as_str().unwrap();
    let bill = fs::read_to_string(publisher.folder.join("files").join(bill)).unwrap();
    assert_eq!(bill, right(&publisher.guestline.run(&["image", "sbom", "tiny"])));
    let secret = publisher.guestline.home().join("state/guestline/keys/images.key");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(secret).unwrap().permissions().mode() & 0o777, 0o600);

    let listed = right(&publisher.pull(&there, &[]));
    assert!(
        listed.contains("NAME") && listed.contains("Debian's cloud kernel, busybox"),
        "{listed}"
    );
    let listed = right(&there.run(&["image", "list", "--from", &url, "--key", key, "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["name"], "tiny");
    wrong(&publisher.pull(&there, &["tinny"]), 2, "has no image called `tinny`; there is: tiny");
    let told = right(&publisher.pull(&there, &["tiny"]));
    assert!(
        told.starts_with("new    image tiny (") && told.contains("fetched from http"),
        "{told}"
    );
    assert_eq!(made(&there, "tiny"), made(&publisher.guestline, "tiny"));
    let ran = there.run(&["check", "true"]);
    ran.assert_verdict(0, "passed");
    assert!(!ran.stderr.contains("image tiny: made from"), "{}", ran.stderr);
    // It is there: nothing but words is fetched again.
    publisher.web.asked();
    let told = right(&publisher.pull(&there, &["tiny"]));
    assert!(told.starts_with("there  image tiny (") && !told.contains("fetched"), "{told}");
    let big = publisher.file("initrd.cpio");
    assert!(publisher.web.asked().iter().all(|asked| asked.path != big));
    assert_eq!(parts(&there), Vec::<PathBuf>::new());

    // Without a key nothing is trusted, and the one beside the images least of all.
    let nobody = there.run(&["image", "pull", "tiny", "--from", &url]);
    wrong(&nobody, 2, "no key is known");
    assert!(nobody.stderr.contains("`guestline image publish` prints it"), "{}", nobody.stderr);
    // As configured.
    let config = there.home().join("config/guestline");
    fs::create_dir_all(&config).unwrap();
    let text = format!("[images]\nfrom = \"{url}\"\nkeys = [\"{key}\"]\n");
    fs::write(config.join("guestline.toml"), text).unwrap();
    right(&there.run(&["image", "rm", "tiny"]));
    assert!(right(&there.run(&["image", "pull", "tiny"])).starts_with("new    image tiny ("));
    there.assert_nothing_left();
}

#[test]
fn publishing_again_adds_and_replaces_and_writes_nothing_twice() {
    let publisher = Publisher::new();
    let (here, folder) = (&publisher.guestline, publisher.folder.display().to_string());
    let listing = || {
        let mut files: Vec<_> = fs::read_dir(publisher.folder.join("files"))
            .unwrap()
            .flatten()
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = listing();
    let told = right(&here.run(&["image", "publish", &folder, "tiny"]));
    assert!(told.starts_with("there    image tiny\n0 files written"), "{told}");
    assert_eq!(listing(), before);
    own(here, "mine", MINE);
    right(&here.run(&["image", "build", "mine"]));
    let told = right(&here.run(&["image", "publish", &folder, "mine"]));
    assert!(told.starts_with("new      image mine\n"), "{told}");
    // The kernel was there.
    assert!(told.contains("\n4 files written"), "{told}");
    assert!(before.iter().all(|file| listing().contains(file)));

    // By the folder itself, and with what this host has of it already.
    let there = host();
    let pull = |name: &str| {
        let from = format!("file://{folder}");
        there.run(&["image", "pull", name, "--from", &from, "--key", &publisher.key])
    };
    right(&pull("tiny"));
    let told = right(&pull("mine"));
    assert!(told.contains("its manifest came with it"), "{told}");
    let ran = there.run(&["check", "--image", "mine", "cat /etc/greeting"]);
    assert_eq!((ran.status, &*ran.stdout()), (0, "hello\n"));
    // What it extends is here as well, and what extends it finds it.
    let child = "name = \"child\"\nsummary = \"x\"\nextends = \"mine\"\n";
    own(&there, "child", child);
    assert!(right(&there.run(&["image", "show", "child"])).contains("provides greeting"));

    // Another of its name: who pulls it again has that one.
    own(here, "mine", &MINE.replace("hello", "good day"));
    right(&here.run(&["image", "build", "mine"]));
    right(&here.run(&["image", "publish", &folder, "mine"]));
    assert!(right(&pull("mine")).starts_with("new    image mine ("));
    let ran = there.run(&["check", "--image", "mine", "cat /etc/greeting"]);
    assert_eq!(ran.stdout(), "good day\n");

    right(&here.run(&["image", "publish", &folder, "--remove", "mine"]));
    wrong(&pull("mine"), 2, "has no image called `mine`; there is: tiny");
    let ran = here.run(&["image", "publish", &folder, "--remove", "mine"]);
    wrong(&ran, 2, "no image called `mine` is published there; there is: tiny");
    // A folder that another key has signed is left alone.
    let other = Guestline::new();
    right(&other.run(&["check", "true"]));
    let signature = publisher.folder.join("index.json.minisig");
    let was = fs::read(&signature).unwrap();
    wrong(&other.run(&["image", "publish", &folder, "tiny"]), 2, "hint: sign with that key");
    assert_eq!(fs::read(&signature).unwrap(), was);
    // Packages that were asked for beside a manifest's do not travel.
    wrong(&here.run(&["image", "publish", &folder, "debian-12+hello"]), 2, "is not made");
    // No room: what was there is there as it was, and nothing else.
    let small = here.home().join("small");
    fs::create_dir(&small).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=16m,mode=0700 none '{0}'; \"$1\" image publish '{0}' tiny || echo status $?; \
         find '{0}' -type f; shift $#; set -- true",
        small.display()
    );
    let publisher = mounted(publisher.guestline, &script);
    let ran = publisher.run(&[]);
    assert_eq!(ran.stdout(), "status 125\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_ended() {
    let publisher = Publisher::new();
    let there = host();
    let big = publisher.file("initrd.cpio");
    let len = fs::metadata(publisher.folder.join(&big)).unwrap().len();
    let cut = 1_500_000;
    publisher.web.fault(&big, Fault { cut_at: Some(cut), ..Fault::default() });
    let ran = publisher.pull(&there, &["tiny"]);
    wrong(&ran, 125, "hint: what has come is kept: try again, and it goes on from there");
    assert_without_images(&there);
    let [part] = &parts(&there)[..] else { panic!("{:?}", parts(&there)) };
    assert_eq!(fs::metadata(part).unwrap().len(), cut as u64);
    let listed = right(&there.run(&["cache", "list"]));
    assert!(listed.contains("parts of files of images"), "{listed}");

    // A server that gives little at a time; what was there is not asked for again.
    publisher.web.asked();
    publisher.web.fault(&big, Fault { piece: Some(700_000), ..Fault::default() });
    right(&publisher.pull(&there, &["tiny"]));
    let asked = publisher.web.asked();
    let asked: Vec<usize> =
        asked.iter().filter(|asked| asked.path == big).map(|asked| asked.from).collect();
    assert!(asked.len() > 1 && asked[0] == cut, "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] == pair[0] + 700_000), "{asked:?}");
    assert!((*asked.last().unwrap() as u64) < len);
    assert_eq!(parts(&there), Vec::<PathBuf>::new());
    there.run(&["check", "true"]).assert_verdict(0, "passed");

    // Ended by a signal, and then there is a server without ranges: from the beginning.
    let there = host();
    publisher.web.fault(&big, Fault { cut_at: Some(cut), stall: true, ..Fault::default() });
    let url = publisher.web.url();
    let args = ["image", "pull", "tiny", "--from", &url, "--key", &publisher.key];
    let pulling = there.start(&args);
    let len = |part: &PathBuf| fs::metadata(part).map_or(0, |found| found.len());
    wait_for("a part", || parts(&there).iter().any(|part| len(part) == cut as u64).then_some(()));
    pulling.signal(Signal::SIGINT);
    let ran = pulling.wait();
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert_eq!(ran.stderr, "aborted  image tiny\n");
    assert_without_images(&there);
    publisher.web.fault(&big, Fault { no_ranges: true, ..Fault::default() });
    publisher.web.asked();
    right(&publisher.pull(&there, &["tiny"]));
    let from = |from: usize| Asked { path: big.clone(), from };
    let asked = publisher.web.asked();
    let asked: Vec<_> = asked.into_iter().filter(|asked| asked.path == big).collect();
    assert_eq!(asked, [from(cut), from(0)]);
    // A part that is wrong does no harm.
    let there = host();
    publisher.web.fault(&big, Fault { cut_at: Some(cut), ..Fault::default() });
    publisher.pull(&there, &["tiny"]);
    fs::write(&parts(&there)[0], vec![7; cut]).unwrap();
    publisher.web.fault(&big, Fault::default());
    right(&publisher.pull(&there, &["tiny"]));
    right(&there.run(&["image", "verify", "tiny"]));
}

#[test]
fn what_a_server_gives_is_not_believed() {
    let publisher = Publisher::new();
    let there = host();
    let big = publisher.file("initrd.cpio");
    let place = publisher.folder.join(&big);
    let pull = || {
        let ran = publisher.pull(&there, &["tiny"]);
        assert_without_images(&there);
        ran
    };
    // A flipped bit, a file that is too long, one that goes on and on, one that is missing.
    let whole = fs::read(&place).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&place, &flipped).unwrap();
    wrong(&pull(), 1, "has another content: its SHA-256 is ");
    assert_eq!(parts(&there), Vec::<PathBuf>::new());
    fs::write(&place, [&whole[..], b"x"].concat()).unwrap();
    wrong(&pull(), 1, &format!("is longer than {} bytes", whole.len()));
    fs::write(&place, &whole).unwrap();
    let endless = Fault { endless: true, ..Fault::default() };
    publisher.web.fault(&big, endless.clone());
    wrong(&pull(), 1, &format!("is longer than {} bytes", whole.len()));
    assert_eq!(parts(&there), Vec::<PathBuf>::new());
    publisher.web.fault(&big, Fault::default());
    for endless_file in ["index.json.minisig".to_owned(), index_file(&publisher.folder)] {
        publisher.web.fault(&endless_file, endless.clone());
        wrong(&pull(), 1, "is longer than ");
        publisher.web.fault(&endless_file, Fault::default());
    }
    fs::rename(&place, publisher.folder.join("away")).unwrap();
    wrong(&pull(), 125, "there is no `http");
    fs::rename(publisher.folder.join("away"), &place).unwrap();

    // Another's signature, an index that is not what was signed, no signature, nobody there.
    let other = Guestline::new();
    right(&other.run(&["check", "true"]));
    let other_key = key_of(&right(&other.run(&["image", "publish", "other", "tiny"])));
    let ran =
        there.run(&["image", "pull", "tiny", "--from", &publisher.web.url(), "--key", &other_key]);
    wrong(&ran, 1, "which is not among those that you trust: ");
    let index = publisher.folder.join(index_file(&publisher.folder));
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("\"tiny\"", "\"evil\"")).unwrap();
    wrong(&pull(), 1, "has another content");
    // One that is named right, and was not signed.
    let signature = publisher.folder.join("index.json.minisig");
    let signed = fs::read_to_string(&signature).unwrap();
    let evil = fs::read(&index).unwrap();
    let digest = guestline::digest::Digest::of(&evil);
    fs::write(publisher.folder.join(format!("files/{digest}")), &evil).unwrap();
    let was = index.file_name().unwrap().to_str().unwrap();
    fs::write(&signature, signed.replace(was, digest.as_str())).unwrap();
    wrong(&pull(), 1, "is not what the key ");
    fs::write(&signature, "hello").unwrap();
    wrong(&pull(), 1, "the signature of the index of ");
    fs::remove_file(&signature).unwrap();
    wrong(&pull(), 2, "has no published images");
    fs::write(&signature, &signed).unwrap();
    fs::write(&index, &text).unwrap();
    let ran =
        there.run(&["image", "pull", "tiny", "--from", "http://127.0.0.1:1", "--key", &other_key]);
    wrong(&ran, 125, "cannot be read to its end: ");
    for (from, key) in [("ftp://x", &*publisher.key), ("/x", "RWQ"), ("", &publisher.key)] {
        let ran = there.run(&["image", "pull", "tiny", "--from", from, "--key", key]);
        assert_eq!(ran.status, 2, "{}", ran.stderr);
    }
    right(&publisher.pull(&there, &["tiny"]));
    right(&there.run(&["image", "rm", "tiny"]));

    // No room.
    let cache = there.home().join("small");
    fs::create_dir(&cache).unwrap();
    let script = format!("mount -t tmpfs -o size=20m,mode=0700 none '{}'", cache.display());
    let small = mounted(there.with("XDG_CACHE_HOME", &cache), &script);
    wrong(&publisher.pull(&small, &["tiny"]), 125, "MiB are wanted\nhint: make room");
}

/// Where the index lies by its digest, below the folder.
fn index_file(folder: &Path) -> String {
    let digest = guestline::digest::Digest::of_file(&folder.join("index.json")).unwrap();
    format!("files/{digest}")
}

#[test]
fn an_index_that_was_put_back_is_noticed() {
    let publisher = Publisher::new();
    let (here, there) = (&publisher.guestline, host());
    let folder = publisher.folder.display().to_string();
    let backup = here.home().join("backup").display().to_string();
    let copy = |from: &str, to: &str| {
        let line = format!("rm -rf '{to}' && cp -r '{from}' '{to}'");
        right(&there.run_other("sh", &["-c", &line], Stdio::null()));
    };
    copy(&folder, &backup);
    right(&publisher.pull(&there, &[]));
    own(here, "mine", MINE);
    right(&here.run(&["image", "build", "mine"]));
    right(&here.run(&["image", "publish", &folder, "mine"]));
    right(&publisher.pull(&there, &[]));
    copy(&backup, &folder);
    let ran = publisher.pull(&there, &["tiny"]);
    wrong(&ran, 1, "is older than one that was there before: serial ");
    assert!(ran.stderr.contains("--allow-older takes it all the same"), "{}", ran.stderr);
    assert_without_images(&there);
    right(&publisher.pull(&there, &["tiny", "--allow-older"]));
    // From then on that is the one to compare with.
    right(&publisher.pull(&there, &["tiny"]));
}
