//! What embedding changes in a root: found out first, and done when that is wanted.

use super::inittab;
use super::record::{Lines, RECORD, Record};
use super::root::{Node, Root};
use super::survey::{Boots, Driver, InitSystem, System};
use super::tree::{EmbedError, Place, Tree, access};
use super::units::{AGENT_PATH, ServiceManager};
use crate::digest::Digest;
use crate::image::Agent;
use std::fmt;
use std::path::{Path, PathBuf};

const UNIT: &str = "/etc/systemd/system/guestline-agent.service";
const WANTED: &str = "/etc/systemd/system/sysinit.target.wants/guestline-agent.service";
const SCRIPT: &str = "/etc/init.d/guestline-agent";
const RUNLEVEL: &str = "/etc/runlevels/boot/guestline-agent";
const INITTAB: &str = "/etc/inittab";
const MODULES: &str = "/etc/modules-load.d/guestline.conf";

/// What the agent's port needs, where that is no part of the kernel.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_console"];

/// A file without a label may not be executed by what SELinux confines.
const NO_LABELS: &str = "it enforces SELinux, and what is added has no labels: boot it with `enforcing=0`, or have it \
                         label all files anew (/.autorelabel)";

/// What becomes of something in a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It was not there.
    Add,
    /// It takes the place of what an earlier guestline put there.
    Replace,
    /// It goes.
    Remove,
    /// It stays as it is, though it is not as it would be put there.
    Leave,
}

/// A change in a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What becomes of it.
    pub verb: Verb,
    /// Its path, as the root's own system says it.
    pub path: String,
    /// More of it: a size, what a link says, why it stays.
    pub what: String,
}

impl Change {
    pub(super) fn new(verb: Verb, path: &str, what: impl Into<String>) -> Self {
        Self { verb, path: path.to_owned(), what: what.into() }
    }

    /// "added /usr/local/sbin/guestline-agent (410 kB)"; as what would be done, or was.
    pub fn told(&self, done: bool) -> String {
        let verb = match (self.verb, done) {
            (Verb::Add, true) => "added",
            (Verb::Add, false) => "would add",
            (Verb::Replace, true) => "replaced",
            (Verb::Replace, false) => "would replace",
            (Verb::Remove, true) => "removed",
            (Verb::Remove, false) => "would remove",
            (Verb::Leave, true) => "left",
            (Verb::Leave, false) => "would leave",
        };
        let path = crate::text::printable(&self.path);
        match self.what.is_empty() {
            true => format!("{verb} {path}"),
            false => format!("{verb} {path} ({})", crate::text::printable(&self.what)),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told(true))
    }
}

/// Something that is to be in a root.
enum Want {
    File { path: &'static str, mode: u32, content: Vec<u8> },
    Link { path: &'static str, target: &'static str },
    Lines { path: &'static str, lines: Vec<String>, new_file: String },
}

/// A step of the work, by paths without links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Folder(PathBuf),
    Write { path: PathBuf, mode: u32, content: Vec<u8> },
    Link { path: PathBuf, target: PathBuf },
    Remove(PathBuf),
}

impl Step {
    pub(super) fn run(&self, root: &mut dyn Root) -> Result<(), EmbedError> {
        match self {
            Self::Folder(path) => {
                root.make_folder(path).map_err(|source| access("make the folder", path, source))
            }
            Self::Write { path, mode, content } => {
                root.write(path, *mode, content).map_err(|source| access("write", path, source))
            }
            Self::Link { path, target } => {
                root.make_link(path, target).map_err(|source| access("make the link", path, source))
            }
            Self::Remove(path) => {
                root.remove(path).map_err(|source| access("remove", path, source))
            }
        }
    }
}

/// What embedding changes in a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the root holds.
    pub system: System,
    /// What becomes of what; empty when all is there already.
    pub changes: Vec<Change>,
    /// What to know of it.
    pub notes: Vec<String>,
    steps: Vec<Step>,
    /// Written before the rest, so that what an interrupt leaves can be taken out, and after it.
    records: Option<(Record, Record)>,
    /// Where the record is, and the folders that it needs.
    record_at: (Vec<PathBuf>, PathBuf),
}

impl Plan {
    /// Finds out what embedding this agent changes.
    ///
    /// # Errors
    /// [`EmbedError`]; nothing is changed in any case.
    pub fn make(root: &mut dyn Root, agent: &Agent, boots: Boots) -> Result<Self, EmbedError> {
        let mut tree = Tree(root);
        let system = System::of(&mut tree, boots)?;
        if let Some(found) = system.foreign.clone() {
            return Err(EmbedError::Architecture { found });
        }
        let before = Record::of(&mut tree)?;
        let (wants, mut notes) = wants(&system, agent)?;
        if let Some(config) = tree.read("/etc/selinux/config")?
            && String::from_utf8_lossy(&config)
                .lines()
                .any(|line| line.trim() == "SELINUX=enforcing")
        {
            notes.push(NO_LABELS.to_owned());
        }
        let mut planning = Planning {
            old: before.clone().unwrap_or_else(Record::new),
            new: Record::new(),
            folders: Vec::new(),
            steps: Vec::new(),
            changes: Vec::new(),
        };
        planning.new.folders.clone_from(&planning.old.folders);
        // The record is written before all else.
        let place = tree.find(RECORD, true)?;
        let record_folders = planning.folders_of(&mut tree, &place)?;
        for want in &wants {
            planning.want(&mut tree, want)?;
        }
        planning.clear(&mut tree, &wants)?;
        let is_recorded = planning.new.is_empty() || before.as_ref() == Some(&planning.new);
        let records = (!is_recorded).then(|| (planning.provisional(), planning.new.clone()));
        let record_at = (record_folders, place.path);
        let Planning { steps, changes, .. } = planning;
        Ok(Self { system, changes, notes, steps, records, record_at })
    }

    /// Is all there already?
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.records.is_none()
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// [`EmbedError`]; what was changed so far can be taken out again.
    pub fn apply(&self, root: &mut dyn Root) -> Result<(), EmbedError> {
        let (folders, record_at) = &self.record_at;
        let record = |record: &Record| Step::Write {
            path: record_at.clone(),
            mode: 0o644,
            content: record.to_bytes(),
        };
        if let Some((provisional, _)) = &self.records {
            for folder in folders {
                Step::Folder(folder.clone()).run(root)?;
            }
            record(provisional).run(root)?;
        }
        for step in &self.steps {
            step.run(root)?;
        }
        match &self.records {
            Some((provisional, last)) if provisional != last => record(last).run(root),
            _ => Ok(()),
        }
    }
}

/// What has been found out so far.
struct Planning {
    old: Record,
    new: Record,
    /// Folders that are to be made.
    folders: Vec<PathBuf>,
    steps: Vec<Step>,
    changes: Vec<Change>,
}

impl Planning {
    fn want(&mut self, tree: &mut Tree<'_>, want: &Want) -> Result<(), EmbedError> {
        match want {
            Want::File { path, mode, content } => self.want_file(tree, path, *mode, content),
            Want::Link { path, target } => self.want_link(tree, path, target),
            Want::Lines { path, lines, new_file } => {
                match tree.read(path)? {
                    // The whole file was added, by us.
                    Some(bytes) if self.old.files.get(*path) == Some(&Digest::of(&bytes)) => {
                        self.want_file(tree, path, 0o644, new_file.as_bytes())
                    }
                    Some(bytes) => self.want_lines(tree, path, lines, &bytes),
                    None => self.want_file(tree, path, 0o644, new_file.as_bytes()),
                }
            }
        }
    }

    fn want_file(
        &mut self,
        tree: &mut Tree<'_>,
        path: &str,
        mode: u32,
        content: &[u8],
    ) -> Result<(), EmbedError> {
        let place = tree.find(path, false)?;
        let digest = Digest::of(content);
        let recorded = self.old.files.get(path).cloned();
        let verb = match &place.node {
            None => Verb::Add,
            Some(Node::File { len, mode: has }) => {
                let found = tree.digest(&place.path, *len)?;
                if found.as_ref() == Some(&digest) {
                    // Of others it stays theirs.
                    self.new.files.extend(recorded.map(|_| (path.to_owned(), digest)));
                    if *has == mode || !self.new.files.contains_key(path) {
                        return Ok(());
                    }
                    Verb::Replace
                } else if found.is_some() && recorded == found {
                    Verb::Replace
                } else if let Some(recorded) = recorded {
                    self.new.files.insert(path.to_owned(), recorded);
                    let why = "it was changed since it was embedded";
                    self.changes.push(Change::new(Verb::Leave, path, why));
                    return Ok(());
                } else {
                    return Err(EmbedError::Taken { path: path.to_owned() });
                }
            }
            Some(_) => return Err(EmbedError::Taken { path: path.to_owned() }),
        };
        self.parents(tree, &place)?;
        self.new.files.insert(path.to_owned(), Digest::of(content));
        self.changes.push(Change::new(verb, path, size(content.len())));
        self.steps.push(Step::Write { path: place.path, mode, content: content.to_vec() });
        Ok(())
    }

    fn want_link(
        &mut self,
        tree: &mut Tree<'_>,
        path: &str,
        target: &str,
    ) -> Result<(), EmbedError> {
        let place = tree.find(path, false)?;
        match &place.node {
            None => {}
            Some(Node::Link { target: has }) if has == Path::new(target) => {
                if self.old.links.contains_key(path) {
                    self.new.links.insert(path.to_owned(), target.to_owned());
                }
                return Ok(());
            }
            Some(_) => return Err(EmbedError::Taken { path: path.to_owned() }),
        }
        self.parents(tree, &place)?;
        self.new.links.insert(path.to_owned(), target.to_owned());
        self.changes.push(Change::new(Verb::Add, path, format!("link to {target}")));
        self.steps.push(Step::Link { path: place.path, target: target.into() });
        Ok(())
    }

    /// More lines in a file of others.
    fn want_lines(
        &mut self,
        tree: &mut Tree<'_>,
        path: &str,
        lines: &[String],
        there: &[u8],
    ) -> Result<(), EmbedError> {
        let place = tree.find(path, true)?;
        let Some(Node::File { mode, .. }) = place.node else {
            return Err(EmbedError::Taken { path: path.to_owned() });
        };
        let Ok(mut text) = String::from_utf8(there.to_vec()) else {
            return Err(EmbedError::Taken { path: path.to_owned() });
        };
        let before = text.clone();
        let mut ours = Vec::new();
        let mut cut = false;
        if let Some(old) = self.old.lines.get(path) {
            let gone: Vec<String> =
                old.lines.iter().filter(|line| !lines.contains(line)).cloned().collect();
            text = inittab::removed(&text, &gone, false);
            cut = old.cut;
            ours.extend(old.lines.iter().filter(|line| inittab::has(&text, line)).cloned());
        }
        let missing: Vec<String> =
            lines.iter().filter(|line| !inittab::has(&text, line)).cloned().collect();
        if !missing.is_empty() {
            cut |= !text.is_empty() && !text.ends_with('\n');
            text = inittab::added(&text, &missing);
            for line in &missing {
                self.changes.push(Change::new(Verb::Add, path, format!("line {line}")));
            }
            ours.extend(missing);
        }
        if !ours.is_empty() {
            self.new.lines.insert(path.to_owned(), Lines { lines: ours, cut });
        }
        if text != before {
            let content = text.into_bytes();
            self.steps.push(Step::Write { path: place.path, mode, content });
        }
        Ok(())
    }

    /// What an earlier version added and this one does not want goes, where it is as it was added.
    fn clear(&mut self, tree: &mut Tree<'_>, wants: &[Want]) -> Result<(), EmbedError> {
        let wanted: Vec<&str> = wants.iter().map(Want::path).collect();
        let files: Vec<_> = self
            .old
            .files
            .clone()
            .into_iter()
            .filter(|(path, _)| !wanted.contains(&&**path))
            .collect();
        for (path, digest) in files {
            if let Some(place) = super::undo::file_of_ours(tree, &path, &digest)? {
                self.changes.push(Change::new(Verb::Remove, &path, ""));
                self.steps.push(Step::Remove(place));
            }
        }
        let links: Vec<_> = self
            .old
            .links
            .clone()
            .into_iter()
            .filter(|(path, _)| !wanted.contains(&&**path))
            .collect();
        for (path, target) in links {
            if let Some(place) = super::undo::link_of_ours(tree, &path, &target)? {
                self.changes.push(Change::new(Verb::Remove, &path, ""));
                self.steps.push(Step::Remove(place));
            }
        }
        Ok(())
    }

    /// Makes the folders above a place that are not there.
    fn parents(&mut self, tree: &mut Tree<'_>, place: &Place) -> Result<(), EmbedError> {
        let folders = self.folders_of(tree, place)?;
        self.steps.extend(folders.into_iter().map(Step::Folder));
        Ok(())
    }

    /// The folders above a place that are to be made, each after the one that it is in.
    fn folders_of(
        &mut self,
        tree: &mut Tree<'_>,
        place: &Place,
    ) -> Result<Vec<PathBuf>, EmbedError> {
        let mut missing = Vec::new();
        for folder in place.path.ancestors().skip(1) {
            if self.folders.iter().any(|made| made == folder) || tree.look(folder)?.is_some() {
                break;
            }
            missing.push(folder.to_owned());
        }
        missing.reverse();
        for folder in &missing {
            self.folders.push(folder.clone());
            let path = format!("/{}", folder.display());
            if !self.new.folders.contains(&path) {
                self.new.folders.push(path);
            }
        }
        Ok(missing)
    }

    /// What is right to take out at any moment of the work: what is new, and what is replaced as it is before.
    fn provisional(&self) -> Record {
        let mut record = self.new.clone();
        for (path, digest) in &self.old.files {
            record.files.insert(path.clone(), digest.clone());
        }
        record.links.extend(self.old.links.clone());
        record
    }
}

impl Want {
    fn path(&self) -> &'static str {
        match self {
            Self::File { path, .. } | Self::Link { path, .. } | Self::Lines { path, .. } => path,
        }
    }
}

/// What is to be in such a system, and what to know of it.
fn wants(system: &System, agent: &Agent) -> Result<(Vec<Want>, Vec<String>), EmbedError> {
    let mut notes = Vec::new();
    let unit = |manager: ServiceManager| manager.unit(AGENT_PATH).into_bytes();
    let mut wants =
        vec![Want::File { path: AGENT_PATH, mode: 0o755, content: agent.bytes().to_vec() }];
    let modules: Vec<&str> =
        DRIVERS.into_iter().filter(|name| system.driver(name) == Driver::Module).collect();
    for name in DRIVERS.into_iter().filter(|name| system.driver(name) == Driver::Missing) {
        notes.push(format!(
            "a kernel in it has no {name}: the agent answers on the serial port only"
        ));
    }
    let mut loads = !modules.is_empty();
    match &system.init {
        InitSystem::Systemd => {
            let content = unit(ServiceManager::Systemd);
            wants.push(Want::File { path: UNIT, mode: 0o644, content });
            wants.push(Want::Link { path: WANTED, target: UNIT });
        }
        InitSystem::OpenRc => {
            let content = unit(ServiceManager::OpenRc);
            wants.push(Want::File { path: SCRIPT, mode: 0o755, content });
            wants.push(Want::Link { path: RUNLEVEL, target: SCRIPT });
        }
        InitSystem::Inittab(dialect) => {
            let lines = dialect.lines(AGENT_PATH, &modules);
            let new_file = dialect.new_file(&lines);
            wants.push(Want::Lines { path: INITTAB, lines, new_file });
            loads &= *dialect == inittab::Dialect::Sysv;
        }
        InitSystem::None { path } => {
            wants.push(Want::Link { path, target: AGENT_PATH });
            loads = false;
            if !modules.is_empty() {
                notes.push(format!(
                    "boot it with guestline.modules={} on the kernel command line: nothing else loads them",
                    modules.join(",")
                ));
            }
        }
        InitSystem::Unknown { path } => {
            return Err(EmbedError::UnknownInit { path: path.clone() });
        }
    }
    if loads {
        let content = modules.iter().map(|name| format!("{name}\n")).collect::<String>();
        wants.push(Want::File { path: MODULES, mode: 0o644, content: content.into_bytes() });
    }
    Ok((wants, notes))
}

/// "410 kB".
fn size(len: usize) -> String {
    match len {
        0..1000 => format!("{len} bytes"),
        1000..1_000_000 => format!("{} kB", len.div_ceil(1000)),
        _ => format!("{:.1} MB", len as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests;
