//! Roots of several kinds in folders: embedded, again, taken out.

use super::super::{FolderRoot, Work, copy_folder};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn agent(version: u8) -> Agent {
    Agent::for_tests(vec![version; 2000])
}

/// A root of these: a name and what is in it; `-> TARGET` is a link, `NAME/` a folder.
fn root(items: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in items {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => symlink(target, path).unwrap(),
            None if name.ends_with('/') => fs::create_dir_all(path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    folder
}

fn unembed(root: &mut FolderRoot, really: bool) -> Result<Vec<Change>, EmbedError> {
    Work::Unembed.run(root, really).map(|worked| worked.changes)
}

const SYSTEMD: &[(&str, &str)] = &[
    ("usr/lib/os-release", "PRETTY_NAME=\"Some Linux 1\"\n"),
    ("etc/os-release", "-> ../usr/lib/os-release"),
    ("usr/bin/sh", "\x7fELF"),
    ("usr/lib/systemd/systemd", "x"),
    ("usr/sbin/init", "-> /lib/systemd/systemd"),
    ("etc/systemd/system/", ""),
    ("bin", "-> usr/bin"),
    ("sbin", "-> usr/sbin"),
    ("lib", "-> usr/lib"),
    (
        "usr/lib/modules/6.1/modules.dep",
        "kernel/a/virtio_pci.ko: x\nkernel/b/virtio-console.ko.xz:\n",
    ),
    ("usr/lib/modules/6.1/modules.builtin", "kernel/virtio_blk.ko\n"),
];

/// All that is in a root: what each thing is, its mode and its content.
fn content(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let found = path.symlink_metadata().unwrap();
            let bytes = match () {
                () if found.is_dir() => Vec::new(),
                () if found.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                }
                () => fs::read(&path).unwrap(),
            };
            if found.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path.strip_prefix(folder).unwrap().to_owned(), (found.mode(), bytes));
        }
    }
    all
}

fn embed(folder: &Path, agent: &Agent) -> Result<Plan, EmbedError> {
    let mut root = FolderRoot::new(folder);
    let plan = Plan::make(&mut root, agent, Boots::Disk)?;
    plan.apply(&mut root)?;
    Ok(plan)
}

fn told(changes: &[Change]) -> String {
    changes.iter().map(|change| format!("{change}\n")).collect()
}

/// Embeds, again, and takes out: all is as it was.
fn there_and_back(items: &[(&str, &str)]) -> String {
    let folder = root(items);
    let before = content(folder.path());
    let plan = embed(folder.path(), &agent(1)).unwrap();
    let embedded = content(folder.path());
    assert_ne!(embedded, before);
    let again = embed(folder.path(), &agent(1)).unwrap();
    assert!(again.is_done() && again.changes.is_empty(), "{:?}", again.changes);
    assert_eq!(content(folder.path()), embedded);
    let mut text = format!("{}\n{}", plan.system, told(&plan.changes));
    for note in &plan.notes {
        text += &format!("note: {note}\n");
    }
    let shown = unembed(&mut FolderRoot::new(folder.path()), false).unwrap();
    assert_eq!(content(folder.path()), embedded);
    let gone = unembed(&mut FolderRoot::new(folder.path()), true).unwrap();
    assert_eq!(shown, gone);
    assert_eq!(content(folder.path()), before);
    assert_eq!(unembed(&mut FolderRoot::new(folder.path()), true).unwrap(), []);
    text + &told(&gone)
}

#[test]
fn each_kind_of_system_is_as_it_was_when_the_agent_is_taken_out() {
    let openrc = [
        ("etc/os-release", "NAME=Alpine\n"),
        ("bin/busybox", "x"),
        ("sbin/init", "-> /bin/busybox"),
        ("sbin/openrc", "x"),
        ("sbin/openrc-run", "x"),
        ("etc/inittab", "::sysinit:/sbin/openrc sysinit\n"),
        ("etc/init.d/", ""),
        ("etc/runlevels/boot/", ""),
    ];
    let busybox = [
        ("bin/busybox", "x"),
        ("bin/sh", "-> busybox"),
        ("sbin/init", "-> ../bin/busybox"),
        ("lib/modules/6/modules.dep", "virtio_pci.ko:\nvirtio_console.ko:\n"),
    ];
    let with_inittab = [busybox[0], busybox[1], busybox[2], ("etc/inittab", "::sysinit:/x\n::y")];
    let sysv = [("sbin/init", "x"), ("etc/inittab", "id:2:initdefault:\n"), ("bin/sh", "x")];
    let none = [("bin/sh", "x"), ("usr/bin/x", "x")];
    let all = [SYSTEMD, &openrc, &busybox, &with_inittab, &sysv, &none];
    insta::assert_snapshot!(all.map(there_and_back).join("────\n"));
}

#[test]
fn what_others_have_is_not_touched() {
    let folder = root(SYSTEMD);
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("usr/local/sbin")).unwrap();
    fs::write(path("usr/local/sbin/guestline-agent"), "theirs").unwrap();
    let before = content(folder.path());
    let error = embed(folder.path(), &agent(1)).unwrap_err();
    assert!(matches!(error, EmbedError::Taken { .. }), "{error}");
    assert_eq!(content(folder.path()), before);
    let left = unembed(&mut FolderRoot::new(folder.path()), true).unwrap();
    assert!(matches!(left[..], [Change { verb: Verb::Leave, .. }]), "{left:?}");
    // The very same agent is theirs as well, and stays.
    fs::write(path("usr/local/sbin/guestline-agent"), agent(1).bytes()).unwrap();
    embed(folder.path(), &agent(1)).unwrap();
    unembed(&mut FolderRoot::new(folder.path()), true).unwrap();
    assert!(path("usr/local/sbin/guestline-agent").exists());
    assert!(!path("etc/systemd/system/guestline-agent.service").exists());
}

#[test]
fn another_agent_takes_its_place_and_what_was_changed_stays() {
    let folder = root(SYSTEMD);
    let path = |name: &str| folder.path().join(name);
    let before = content(folder.path());
    embed(folder.path(), &agent(1)).unwrap();
    let mode = path("usr/local/sbin/guestline-agent").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    let plan = embed(folder.path(), &agent(2)).unwrap();
    assert_eq!(told(&plan.changes), "replaced /usr/local/sbin/guestline-agent (2 kB)\n");
    assert_eq!(fs::read(path("usr/local/sbin/guestline-agent")).unwrap(), agent(2).bytes());
    // A unit that somebody has changed.
    let unit = path("etc/systemd/system/guestline-agent.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.clone() + "# more\n").unwrap();
    let plan = embed(folder.path(), &agent(2)).unwrap();
    insta::assert_snapshot!(told(&plan.changes), @"left /etc/systemd/system/guestline-agent.service (it was changed since it was embedded)");
    let left = unembed(&mut FolderRoot::new(folder.path()), true).unwrap();
    assert_eq!(left.iter().filter(|change| change.verb == Verb::Leave).count(), 1);
    assert!(fs::read_to_string(&unit).unwrap().ends_with("# more\n"));
    fs::remove_file(&unit).unwrap();
    assert_eq!(content(folder.path()), before);
}

#[test]
fn folders_that_others_use_by_then_stay() {
    let folder = root(SYSTEMD);
    embed(folder.path(), &agent(1)).unwrap();
    fs::write(folder.path().join("usr/local/sbin/other"), "x").unwrap();
    unembed(&mut FolderRoot::new(folder.path()), true).unwrap();
    assert!(folder.path().join("usr/local/sbin/other").exists());
    assert!(!folder.path().join("etc/guestline").exists());
}

#[test]
fn what_an_interrupt_leaves_is_gone_on_with_or_taken_out() {
    for agents in [[1, 1], [1, 2]] {
        let folder = root(SYSTEMD);
        let before = content(folder.path());
        if agents[0] != agents[1] {
            embed(folder.path(), &agent(agents[0])).unwrap();
        }
        let mut holder = FolderRoot::new(folder.path());
        let plan = Plan::make(&mut holder, &agent(agents[1]), Boots::Disk).unwrap();
        for steps in 0..=plan.steps.len() {
            let part = Plan { steps: plan.steps[..steps].to_vec(), ..plan.clone() };
            let copy = tempfile::tempdir().unwrap();
            let at = copy.path().join("root");
            copy_folder(folder.path(), &at, &CancellationToken::new()).unwrap();
            let mut holder = FolderRoot::new(&at);
            let (provisional, _) = part.records.clone().unwrap();
            Plan { records: Some((provisional.clone(), provisional)), ..part }
                .apply(&mut holder)
                .unwrap();
            embed(&at, &agent(agents[1])).unwrap();
            unembed(&mut FolderRoot::new(&at), true).unwrap();
            assert_eq!(content(&at), before, "{steps} steps");
        }
    }
}

#[test]
fn links_that_lead_out_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let folder = root(&[
        ("etc/os-release", "ID=x\n"),
        ("usr/lib/systemd/systemd", "x"),
        ("sbin/init", "-> ../../../../usr/lib/systemd/systemd"),
    ]);
    symlink(outside.path(), folder.path().join("etc/systemd")).unwrap();
    symlink("../../../../../..", folder.path().join("usr/local")).unwrap();
    embed(folder.path(), &agent(1)).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(folder.path().join("sbin/guestline-agent").exists());
    let inside = outside.path().strip_prefix("/").unwrap().join("system/guestline-agent.service");
    assert!(folder.path().join(inside).exists());
}

#[test]
fn what_cannot_have_an_agent_says_why() {
    let arm = format!("\x7fELF\u{1}\u{1}{}\u{28}\0", "\0".repeat(12));
    let said = |items: &[(&str, &str)]| {
        let folder = root(items);
        let error = embed(folder.path(), &agent(1)).unwrap_err();
        format!("{}\n  {}", crate::text::chain(&error), error.hint().unwrap_or("-"))
    };
    let all = [
        said(&[("readme", "x")]),
        said(&[("bin/sh", &arm)]),
        said(&[("bin/sh", "x"), ("sbin/init", "x")]),
        said(&[("bin/sh", "x"), ("etc/guestline/embedded", "{\"format\": 2}")]),
        said(&[("bin/sh", "x"), ("etc/guestline/embedded", "what?")]),
        said(&[("bin/sh", "x"), ("usr/local", "x")]),
        said(&[("bin/sh", "x"), ("usr", "-> usr")]),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_copy_is_made_whole_or_not_at_all() {
    let folder = root(SYSTEMD);
    fs::hard_link(folder.path().join("usr/bin/sh"), folder.path().join("usr/bin/other")).unwrap();
    let to = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let copy = to.path().join("copy");
    copy_folder(folder.path(), &copy, &cancel).unwrap();
    assert_eq!(content(&copy), content(folder.path()));
    let inode = |name: &str| copy.join(name).metadata().unwrap().ino();
    assert_eq!(inode("usr/bin/sh"), inode("usr/bin/other"));
    let said = |to: &Path| copy_folder(folder.path(), to, &cancel).unwrap_err().to_string();
    assert!(said(&copy).ends_with("is there already"));
    assert!(said(&folder.path().join("etc/x")).contains("of which it is to be a copy"));
    assert!(copy_folder(&to.path().join("no"), &to.path().join("x"), &cancel).is_err());
    cancel.cancel();
    let cancelled = copy_folder(folder.path(), &to.path().join("y"), &cancel);
    assert!(matches!(cancelled, Ok(()) | Err(super::super::CopyError::Cancelled)));
}

#[test]
fn an_initramfs_that_goes_on_elsewhere_is_refused() {
    let script = ("init", "#!/bin/sh\nexec run-init /root /sbin/init\n");
    let folder = root(&[script, ("bin/sh", "x")]);
    let made = Plan::make(&mut FolderRoot::new(folder.path()), &agent(1), Boots::Initramfs);
    let error = made.unwrap_err();
    assert!(matches!(&error, EmbedError::UnknownInit { path } if path == Path::new("init")));
    assert!(error.hint().unwrap().contains("into that root"));
    let folder = root(&[script, ("sbin/init", "x"), ("etc/inittab", "")]);
    let made = Plan::make(&mut FolderRoot::new(folder.path()), &agent(1), Boots::Initramfs);
    assert_eq!(made.unwrap().system.init, InitSystem::Inittab(inittab::Dialect::Sysv));
}
