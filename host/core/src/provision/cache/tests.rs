//! The cache with templates and images that no machine ever saw.

use super::archive::{INDEX, Index};
use super::*;
use crate::digest::Digest;
use crate::image::{FileRecord, Ready};
use crate::provision::template::{Found, Making, TemplateKey};
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const GO: &dyn Fn() -> bool = &|| true;

fn cache(home: &Path) -> Cache {
    Cache::new(&Dirs::below(home))
}

fn manifest() -> Manifest {
    let file = |name: &str| FileRecord {
        name: name.to_owned(),
        size: name.len() as u64,
        sha256: Digest::of(name.as_bytes()),
    };
    Manifest {
        format: 4,
        name: "tiny".to_owned(),
        recipe: Digest::of(b"recipe"),
        agent: Digest::of(b"agent"),
        packages: Vec::new(),
        kernel_release: "6.1.0".to_owned(),
        cmdline: "quiet".to_owned(),
        memory_mib: 8,
        warm_up: None,
        ready: Ready::Agent,
        shell: "/bin/sh".to_owned(),
        provides: Vec::new(),
        owner: String::new(),
        licence: String::new(),
        disk: None,
        files: vec![file("initrd.cpio"), file("kernel")],
    }
}

fn record(image: Digest) -> TemplateRecord {
    let key = TemplateKey {
        format: 1,
        image,
        agent: Digest::of(b"agent"),
        kernel: None,
        modules: None,
        cmdline: "quiet".to_owned(),
        machine: "-m\n8M".to_owned(),
        host_cpu: None,
        qemu: Digest::of(b"qemu"),
        layers: Vec::new(),
    };
    let [image, kernel_release, qemu, guestline] =
        ["tiny", "6.1.0", "10.0", "0.1.0"].map(str::to_owned);
    TemplateRecord {
        key,
        image,
        kernel_release,
        qemu,
        memory_mib: 8,
        disks: 0,
        guestline,
        made_us: 1,
        ready_us: 2,
        quiet_us: 3,
        quiet: true,
        tty_link: false,
    }
}

/// A cache with an image and a template of it.
fn filled(home: &Path) -> Cache {
    let cache = cache(home);
    let place = cache.images.folder_of(&manifest());
    fs::create_dir_all(&place).unwrap();
    for FileRecord { name, .. } in manifest().files {
        fs::write(place.join(&name), name.as_bytes()).unwrap();
    }
    fs::write(place.join("manifest.json"), manifest().to_json()).unwrap();
    let record = record(manifest().digest());
    let making: Making = cache.templates.begin(&record.key).unwrap().unwrap();
    fs::write(making.state(), "state").unwrap();
    let ram = File::create(making.ram()).unwrap();
    ram.set_len(8 << 20).unwrap();
    for page in [0_u64, 7, 2000] {
        ram.write_all_at(&[u8::try_from(page % 200 + 1).unwrap(); 4096], page * 4096).unwrap();
    }
    making.publish(record, true).unwrap().unwrap();
    cache
}

fn export(cache: &Cache) -> Vec<u8> {
    let mut archive = Vec::new();
    let exported = cache.export(&[], &mut archive, GO).unwrap();
    assert_eq!((exported.templates.len(), exported.images), (1, vec!["tiny".to_owned()]));
    archive
}

/// The members of an archive: name and content.
fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(FrameDecoder::new(archive));
    let entries = tar.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        })
        .collect()
}

/// An archive with any names.
fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut to = FrameEncoder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o400);
        header.set_cksum();
        to.write_all(header.as_bytes()).unwrap();
        to.write_all(content).unwrap();
        to.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
    }
    to.write_all(&[0; 1024]).unwrap();
    to.finish().unwrap()
}

/// An archive whose index was changed.
fn with_index(whole: &[u8], change: impl FnOnce(&mut Index)) -> Vec<u8> {
    let mut all = members(whole);
    let mut index: Index = serde_json::from_slice(&all[0].1).unwrap();
    change(&mut index);
    all[0].1 = serde_json::to_vec(&index).unwrap();
    archive(&all)
}

/// All files below a folder but the locks.
fn files(folder: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => found.push(entry.file_name().into_string().unwrap()),
            }
        }
    }
    found.retain(|name| name != ".lock");
    found.sort();
    found
}

#[test]
fn what_comes_in_is_what_went_out() {
    let [home, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let from = filled(home.path());
    let whole = export(&from);
    assert!(whole.len() < 4096, "{}", whole.len());
    assert_eq!(whole, export(&from));
    let to = cache(other.path());
    let imported = to.import(&whole[..], None, GO).unwrap();
    assert_eq!(imported.images[0].1, Arrival::New);
    let (record, arrival, unused) = &imported.templates[0];
    assert_eq!((arrival, record), (&Arrival::New, &self::record(manifest().digest())));
    assert_eq!(unused.as_deref(), Some("made by QEMU 10.0, and this host has none"));
    assert!(to.entries().iter().all(|entry| entry.condition == Condition::Ready));
    assert_eq!(to.verify(GO, &mut |finding| panic!("{finding:?}")).right, 2);
    let Found::Ready(template) = to.templates.open(&record.key) else { panic!("no template") };
    assert_eq!(fs::metadata(template.ram()).unwrap().len(), 8 << 20);
    assert!(template.known_pages().is_some());
    // Again: all is there, also while it is in use.
    let imported = to.import(&whole[..], None, GO).unwrap();
    assert_eq!(
        (&imported.images[0].1, &imported.templates[0].1),
        (&Arrival::There, &Arrival::There)
    );
    // An image of the same recipe and agent from other packages stays.
    let third = tempfile::tempdir().unwrap();
    let to = filled(third.path());
    let another = with_index(&whole, |index| index.images[0].kernel_release = "6.2.0".to_owned());
    let mut all = members(&another);
    let digest = serde_json::from_slice::<Index>(&all[0].1).unwrap().images[0].digest();
    for (name, _) in &mut all {
        *name = name.replace(manifest().digest().short(), digest.short());
    }
    let imported = to.import(&archive(&all)[..], None, GO).unwrap();
    assert_eq!(imported.images[0].1, Arrival::OtherThere);
}

#[test]
fn one_variant_of_an_image_goes_and_the_others_stay() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache(home.path());
    let put = |name: &str, recipe: &str, agent: &str| {
        let (recipe, agent) = (Digest::of(recipe.as_bytes()), Digest::of(agent.as_bytes()));
        let manifest = Manifest { name: name.to_owned(), recipe, agent, ..manifest() };
        let place = cache.images.folder_of(&manifest);
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("manifest.json"), manifest.to_json()).unwrap();
        place
    };
    let (plain, other) = (put("tiny", "tiny", "agent"), put("other", "hello", "agent"));
    let variants = [put("tiny", "hello", "agent"), put("tiny", "hello", "older agent")];
    let torn = home.path().join("cache/images/tiny/torn");
    fs::create_dir_all(&torn).unwrap();
    assert!(torn.parent() == plain.parent(), "{plain:?}");
    assert_eq!(cache.remove_image("tiny", Some(&Digest::of(b"hello")), GO).len(), 2);
    assert!(variants.iter().all(|folder| !folder.exists()));
    assert!(plain.exists() && other.exists() && torn.exists());
    // All that is made under the name goes with it.
    put("tiny", "hello", "agent");
    assert_eq!(cache.remove_image("tiny", None, GO).len(), 3);
    assert!(!plain.exists() && !torn.exists() && other.exists());
}

#[test]
fn a_template_that_was_edited_is_not_exported() {
    let home = tempfile::tempdir().unwrap();
    let from = filled(home.path());
    from.verify(GO, &mut |_| ());
    let kept = from.templates.kept().pop().unwrap().0;
    let wrong = Digest::of(b"other");
    fs::write(kept.folder.join("ram.json"), format!("{{\"pages\":\"{wrong}\"}}")).unwrap();
    let said = |ids: &[String]| from.export(ids, Vec::new(), GO).unwrap_err().to_string();
    assert!(said(&[]).ends_with("is damaged: ram has another content"), "{}", said(&[]));
    assert_eq!(said(&["x".to_owned()]), "no template `x` in the cache");
    assert_eq!(said(&[String::new()]), "no template `` in the cache");
    fs::write(kept.folder.join("state"), "stale").unwrap_or_default();
    assert!(matches!(
        cache(&home.path().join("no")).export(&[], Vec::new(), GO),
        Err(ExportError::Empty)
    ));
    assert!(matches!(
        from.export(&[], Vec::new(), &|| false),
        Err(ExportError::Cancelled | ExportError::Empty)
    ));
}

#[test]
fn a_hostile_archive_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let whole = export(&filled(home.path()));
    let all = members(&whole);
    let renamed = |at: usize, name: &str| {
        let mut all = all.clone();
        all[at].0 = name.to_owned();
        archive(&all)
    };
    let content = |at: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut all = all.clone();
        change(&mut all[at].1);
        archive(&all)
    };
    let ram_of = |pages: &[u8]| {
        let mut all = all.clone();
        let stream = [&(8_u64 << 20).to_le_bytes()[..], pages].concat();
        let mut index: Index = serde_json::from_slice(&all[0].1).unwrap();
        index.templates[0].ram.size = stream.len() as u64;
        index.templates[0].ram.sha256 = Digest::of(&stream);
        all[0].1 = serde_json::to_vec(&index).unwrap();
        all[4].1 = stream;
        archive(&all)
    };
    let beyond = [&2048_u64.to_le_bytes()[..], &[1; 4096]].concat();
    let index = |change: &dyn Fn(&mut Index)| with_index(&whole, change);
    let said_of: Vec<(&str, Vec<u8>)> = vec![
        ("an absolute path", renamed(3, "/etc/passwd")),
        ("a path upwards", renamed(1, "../../kernel")),
        ("no index", archive(&all[1..])),
        ("less than the index says", archive(&all[..4])),
        ("more than the index says", archive(&[&all[..], &all[4..]].concat())),
        ("another state", content(3, &|state| state[0] ^= 1)),
        ("another kernel", content(2, &|kernel| kernel[0] ^= 1)),
        ("another byte of memory", content(4, &|ram| ram[3000] ^= 1)),
        ("memory that is cut", content(4, &|ram| ram.truncate(5000))),
        ("a page beyond the memory", ram_of(&beyond)),
        ("half a page", ram_of(&beyond[..100])),
        (
            "a name of an image that leads elsewhere",
            index(&|index| index.images[0].name = "../x".to_owned()),
        ),
        (
            "a file of an image that leads elsewhere",
            index(&|index| index.images[0].files[0].name = "../x".to_owned()),
        ),
        (
            "a file of an image twice",
            index(&|index| index.images[0].files[1].name = "initrd.cpio".to_owned()),
        ),
        ("an image of another format", index(&|index| index.images[0].format = 5)),
        ("a file without end", index(&|index| index.images[0].files[0].size = u64::MAX)),
        ("a template of another format", index(&|index| index.templates[0].record.key.format = 3)),
        (
            "a state file elsewhere",
            index(&|index| index.templates[0].state.name = "../state".to_owned()),
        ),
        (
            "more memory than there is",
            index(&|index| index.templates[0].record.memory_mib = u64::MAX),
        ),
        ("no memory", index(&|index| index.templates[0].record.memory_mib = 0)),
        ("another memory", index(&|index| index.templates[0].record.memory_mib = 16)),
        ("memory without end", index(&|index| index.templates[0].ram.size = u64::MAX)),
        ("a template twice", index(&|index| index.templates.push(index.templates[0].clone()))),
    ];
    let mut told = String::new();
    for (name, bytes) in said_of {
        let home = tempfile::tempdir().unwrap();
        let to = cache(home.path());
        let error = to.import(&bytes[..], None, GO).expect_err(name);
        assert!(matches!(error, ArchiveError::Damaged { .. }), "{name}: {error}");
        told += &format!("{name}: {error}\n");
        assert!(to.entries().is_empty(), "{name}");
        assert_eq!(files(home.path()), [""; 0], "{name}");
    }
    let told = told.replace("it is no archive of Guestline's, or damaged: ", "");
    let id = record(manifest().digest()).key.id();
    let told = told.replace(id.as_str(), "ID").replace(manifest().digest().short(), "DIGEST");
    insta::assert_snapshot!(told);
}

#[test]
fn an_archive_that_was_cut_anywhere_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let whole = export(&filled(home.path()));
    let other = tempfile::tempdir().unwrap();
    let to = cache(other.path());
    for at in 0..whole.len() {
        let error = to.import(&whole[..at], None, GO).expect_err("half an archive");
        assert!(matches!(error, ArchiveError::Damaged { .. }), "{at}: {error}");
        let mut edited = whole.clone();
        edited[at] ^= 0x10;
        match to.import(&edited[..], None, GO) {
            Err(ArchiveError::Damaged { .. }) => {}
            other => panic!("{at}: {other:?}"),
        }
    }
    assert_eq!(files(other.path()), [""; 0]);
    // Nor does one that was interrupted.
    assert!(matches!(to.import(&whole[..], None, &|| false), Err(ArchiveError::Cancelled)));
    assert_eq!(files(other.path()), [""; 0]);
    // What follows the end is no padding.
    let mut longer = FrameEncoder::new(Vec::new());
    let mut tar = Vec::new();
    FrameDecoder::new(&whole[..]).read_to_end(&mut tar).unwrap();
    longer.write_all(&tar).unwrap();
    longer.write_all(b"more").unwrap();
    let error = to.import(&longer.finish().unwrap()[..], None, GO).unwrap_err();
    assert!(error.to_string().ends_with("something follows its end"), "{error}");
}

#[test]
fn what_is_in_use_stays_whatever_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let cache = filled(home.path());
    let kept = cache.templates.kept().pop().unwrap().0;
    let all = PruneSpec { all: true, ..PruneSpec::default() };
    let Found::Ready(template) = cache.templates.inspect(&kept) else { panic!("no template") };
    let stays = |pruned: Vec<Pruned>| {
        let stay = pruned.into_iter().filter(|pruned| matches!(pruned.removal, Removal::InUse));
        stay.map(|pruned| pruned.entry.content.kind()).collect::<Vec<_>>()
    };
    assert_eq!(stays(cache.evict(0)), ["template"]);
    // The image went then, since nobody held it.
    assert!(!cache.images.folder_of(&manifest()).exists());
    assert_eq!(stays(cache.prune(&all, GO)), ["template"]);
    assert!(template.ram().exists());
    drop(template);
    assert!(stays(cache.prune(&all, GO)).is_empty());
    assert!(cache.entries().is_empty());
    assert_eq!(files(home.path()), [""; 0]);
}

#[test]
fn an_index_has_its_name_first() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(members(&export(&filled(home.path())))[0].0, INDEX);
}
