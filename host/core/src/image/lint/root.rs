//! A root file system, looked at as a machine would boot it.

use super::Finding;
use crate::image::Agent;
use crate::image::embed::survey::{Driver, MAX_KERNELS};
use crate::image::embed::{
    AGENT_PATH, Boots, EmbedError, InitSystem, Plan, Root, System, Tree, Verb,
};
use crate::text;

/// Boot loaders' configurations: files, and folders of files.
const LOADERS: [&str; 7] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/etc/kernel/cmdline",
    "/etc/default/grub",
    "/boot/grub/grub.conf",
];
const LOADER_FOLDERS: [&str; 2] = ["/boot/loader/entries", "/efi/loader/entries"];

/// A driver, its option in a kernel's configuration, whether nothing works without it, and what does not.
const DRIVERS: [(&str, &str, bool, &str); 3] = [
    ("virtio_pci", "CONFIG_VIRTIO_PCI", true, "no disk and no link of a machine works"),
    ("virtio_blk", "CONFIG_VIRTIO_BLK", true, "it finds no disk of a machine, its root neither"),
    (
        "virtio_console",
        "CONFIG_VIRTIO_CONSOLE",
        false,
        "the link goes over a serial port, which is slow",
    ),
];

/// What was found in a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linted {
    /// What the root holds.
    pub system: String,
    /// What it lacks.
    pub findings: Vec<Finding>,
}

/// Looks at a root. `is_disk`: it is on a disk of its own, from which a machine boots.
///
/// # Errors
/// [`EmbedError`]; [`EmbedError::NoSystem`] when there is nothing to look at.
pub fn lint(
    root: &mut dyn Root,
    agent: &Agent,
    boots: Boots,
    is_disk: bool,
) -> Result<Linted, EmbedError> {
    let mut tree = Tree(root);
    let system = System::of(&mut tree, boots)?;
    let mut findings = Vec::new();
    if let Some(found) = &system.foreign {
        findings.push(Finding::new(
            "architecture",
            true,
            format!("its programs are for {found}"),
            "no machine of an x86-64 host runs them",
            "take an image for x86-64",
        ));
    } else {
        findings.extend(lint_agent(tree.0, agent, boots)?);
    }
    let mut tree = Tree(root);
    findings.extend(lint_kernels(&mut tree, &system, is_disk)?);
    findings.extend(lint_console(&mut tree)?);
    if let InitSystem::None { path } = &system.init {
        findings.push(Finding::new(
            "no-init",
            false,
            format!("it has no init at {path}"),
            "nothing but the agent starts in it: no services, no logs",
            "install one, or live with the agent as its init, as `guestline image embed` has it",
        ));
    }
    if !system.has_shell {
        findings.push(Finding::new(
            "no-shell",
            false,
            "it has no /bin/sh",
            "command lines cannot run in it, only programs: `guestline check -- PROGRAM ARGUMENT…`",
            "put one there, such as a static busybox",
        ));
    }
    findings.sort_by_key(|finding| !finding.prevents);
    Ok(Linted { system: system.to_string(), findings })
}

fn lint_agent(
    root: &mut dyn Root,
    agent: &Agent,
    boots: Boots,
) -> Result<Option<Finding>, EmbedError> {
    let embeds = "embed one: guestline image embed IN -o OUT";
    let Some(is_ours) = Tree(root).holds(AGENT_PATH, agent.bytes())? else {
        let costs = "no check can run in it";
        return Ok(Some(Finding::new("no-agent", true, "it has no agent", costs, embeds)));
    };
    let plan = match Plan::make(root, agent, boots) {
        Ok(plan) => plan,
        Err(error @ EmbedError::UnknownInit { .. }) => {
            let (costs, mends) =
                ("nothing may start the agent", error.hint().unwrap_or_default().to_owned());
            return Ok(Some(Finding::new("unknown-init", false, error.to_string(), costs, mends)));
        }
        // Somebody has put an agent there, or what starts it, of whatever version.
        Err(EmbedError::Taken { path }) => {
            let what = format!("{path} is not of this program, and not embedded by it");
            let costs = "it may lack what this program asks of it, and may not be started";
            let mends = "move it away, and embed one: guestline image embed IN -o OUT";
            return Ok(Some(Finding::new("other-agent", false, what, costs, mends)));
        }
        Err(error) => return Err(error),
    };
    let starts = plan.changes.iter().find(|change| {
        change.path != AGENT_PATH && matches!(change.verb, Verb::Add | Verb::Replace)
    });
    Ok(match starts {
        Some(change) => {
            let what = format!("its agent is not started: {} is missing", change.path);
            let mends = "embed it again: guestline image embed IN -o OUT";
            Some(Finding::new("agent-not-started", true, what, "no check can run in it", mends))
        }
        None if !is_ours => {
            let what = "its agent is of another version";
            let costs = "it may lack what this program asks of it";
            Some(Finding::new("other-agent", false, what, costs, embeds))
        }
        None => None,
    })
}

fn lint_kernels(
    tree: &mut Tree<'_>,
    system: &System,
    is_disk: bool,
) -> Result<Vec<Finding>, EmbedError> {
    let mut findings = Vec::new();
    let boot = tree.names("/boot")?;
    let has_kernel = boot
        .iter()
        .any(|name| ["vmlinuz", "bzImage", "linux"].iter().any(|kernel| name.starts_with(kernel)));
    if !has_kernel {
        findings.push(Finding::new(
            "no-kernel",
            false,
            "it has no kernel in /boot",
            "it boots with a kernel of another image only",
            "give it one: --kernel FILE",
        ));
    }
    let of_config = boot.iter().filter_map(|name| name.strip_prefix("config-"));
    let mut releases: Vec<String> = of_config.map(str::to_owned).collect();
    releases.extend(system.kernels.iter().map(|kernel| kernel.release.clone()));
    releases.sort();
    releases.dedup();
    releases.truncate(MAX_KERNELS);
    for release in releases {
        let config = tree.read(&format!("/boot/config-{release}"))?;
        let config = config.map(|config| String::from_utf8_lossy(&config).into_owned());
        let kernel = system.kernels.iter().find(|kernel| kernel.release == release);
        for (name, option, vital, costs) in DRIVERS {
            let is_module = kernel.is_some_and(|kernel| kernel.driver(name) != Driver::Missing);
            // A module that is configured and not there is missing.
            let is_built_in = config.as_ref().is_some_and(|config| {
                config.lines().any(|line| line.strip_prefix(option) == Some("=y"))
            });
            if is_module || is_built_in {
                continue;
            }
            let release = text::one_line(&release, 60);
            findings.push(Finding::new(
                "no-virtio",
                vital && is_disk,
                format!("its kernel {release} has no {name}"),
                costs,
                format!("take a kernel with {option}, or another one: --kernel FILE"),
            ));
        }
    }
    Ok(findings)
}

/// A boot loader that has the kernel speak on a screen only.
fn lint_console(tree: &mut Tree<'_>) -> Result<Option<Finding>, EmbedError> {
    let mut files: Vec<String> = LOADERS.map(str::to_owned).to_vec();
    for folder in LOADER_FOLDERS {
        files.extend(tree.names(folder)?.into_iter().map(|name| format!("{folder}/{name}")));
    }
    let mut seen = None;
    for file in files {
        let Some(bytes) = tree.read(&file)? else { continue };
        if String::from_utf8_lossy(&bytes).contains("console=ttyS0") {
            return Ok(None);
        }
        seen.get_or_insert(file);
    }
    Ok(seen.map(|file| {
        Finding::new(
            "no-serial-console",
            false,
            format!("its boot loader has no console=ttyS0 ({file})"),
            "there is no evidence of a boot that fails",
            "add console=ttyS0 to the kernel's command line there",
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::embed::{FolderRoot, Work};
    use std::fs;
    use std::path::Path;

    fn put(root: &Path, items: &[(&str, &[u8])]) {
        for (name, content) in items {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn linted(root: &Path) -> Linted {
        let agent = Agent::for_tests(b"agent".to_vec());
        lint(&mut FolderRoot::new(root), &agent, Boots::Disk, true).unwrap()
    }

    fn ids(root: &Path) -> Vec<&'static str> {
        linted(root).findings.iter().map(|finding| finding.id).collect()
    }

    fn embed(root: &Path, agent: &[u8]) {
        let agent = Agent::for_tests(agent.to_vec());
        let work = Work::Embed { agent, boots: Boots::Disk };
        work.run(&mut FolderRoot::new(root), true).unwrap();
    }

    #[test]
    fn each_thing_that_is_missing_is_told_with_its_price() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(
            root,
            &[
                ("etc/os-release", b"ID=x\n"),
                ("lib/modules/6.1/modules.dep", b"kernel/virtio_net.ko:\n"),
                ("boot/grub/grub.cfg", b"linux /vmlinuz quiet\n"),
            ],
        );
        let linted = linted(root);
        let all: Vec<String> = linted.findings.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(format!("{}\n{}", linted.system, all.join("\n")));
    }

    #[test]
    fn what_has_all_has_no_findings() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        put(
            root,
            &[
                ("etc/os-release", b"ID=x\n"),
                ("bin/sh", b"#!"),
                ("sbin/init", b"x"),
                ("etc/inittab", b"\n"),
                ("lib/modules/6.1/modules.dep", b"a/virtio_console.ko.zst:\n"),
                ("lib/modules/6.1/modules.builtin", b"a/virtio_pci.ko\n"),
                ("boot/vmlinuz-6.1", b"x"),
                ("boot/config-6.1", b"CONFIG_VIRTIO_BLK=y\n"),
                ("boot/grub/grub.cfg", b"linux /vmlinuz console=ttyS0\n"),
            ],
        );
        assert_eq!(ids(root), ["no-agent"]);
        embed(root, b"older");
        assert_eq!(ids(root), ["other-agent"]);
        embed(root, b"agent");
        assert_eq!(ids(root), [""; 0]);
        fs::write(root.join("etc/inittab"), "").unwrap();
        assert_eq!(ids(root), ["agent-not-started"]);
    }

    #[test]
    fn files_of_any_length_and_any_number_of_kernels() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let agent = AGENT_PATH.trim_start_matches('/');
        put(root, &[("etc/os-release", b"ID=x\n"), ("sbin/init", b"x"), ("etc/inittab", b"\n")]);
        embed(root, b"agent");
        fs::File::options().write(true).open(root.join(agent)).unwrap().set_len(1 << 40).unwrap();
        for kernel in 0..70 {
            put(root, &[(&format!("lib/modules/6.{kernel:02}/modules.dep"), b"")]);
        }
        let findings = linted(root).findings;
        let of_agent: Vec<_> = findings.iter().filter(|found| found.id == "other-agent").collect();
        assert_eq!(of_agent.len(), 1, "{of_agent:?}");
        let of_kernels = findings.iter().filter(|finding| finding.id == "no-virtio");
        assert_eq!(of_kernels.count(), 3 * MAX_KERNELS);
        let said = Work::Unembed.run(&mut FolderRoot::new(root), true).unwrap().changes;
        assert!(said.iter().any(|change| change.path == AGENT_PATH && change.verb == Verb::Leave));
    }

    #[test]
    fn what_others_have_put_there_is_named() {
        let unit = "etc/systemd/system/guestline-agent.service";
        for path in [AGENT_PATH.trim_start_matches('/'), unit] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            put(root, &[("etc/os-release", b"ID=x\n"), ("lib/systemd/systemd", b"x")]);
            fs::create_dir(root.join("sbin")).unwrap();
            std::os::unix::fs::symlink("/lib/systemd/systemd", root.join("sbin/init")).unwrap();
            put(root, &[(AGENT_PATH.trim_start_matches('/'), b"agent"), (path, b"theirs")]);
            let findings = linted(root).findings;
            let other = findings.iter().find(|finding| finding.id == "other-agent").unwrap();
            let begin = format!("/{path} is not of this program");
            assert!(other.to_string().contains(&begin), "{other}");
        }
    }

    #[test]
    fn programs_of_another_machine() {
        let folder = tempfile::tempdir().unwrap();
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 183;
        put(folder.path(), &[("bin/sh", &elf)]);
        assert_eq!(ids(folder.path()), ["architecture", "no-kernel", "no-init"]);
    }
}
