//! What an image is made of: its manifest, `image.toml`, with what it extends already in it.

use super::apt::ROLLING;
use super::put_file::{self, PutFile};
use crate::digest::Digest;
use crate::machine::{DiskFormat, Drive, FirmwareKind, MEMORY_MIB};
use crate::text::{is_plain_name, one_line};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::{Table, Value};

/// A recipe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image's name: `[a-z0-9][a-z0-9._-]*`, at most 64 of them.
    pub name: String,
    /// One line for lists.
    pub summary: String,
    /// Debian's suite, such as `bookworm`, that the packages are of; their root is a disk. Without one the packages are
    /// those of the host's own apt, of which nothing but busybox and the kernel is taken.
    pub suite: Option<String>,
    /// Components of the suite's archive that are looked into beside `main`, such as `contrib`.
    #[serde(default)]
    pub components: Vec<String>,
    /// The suite's backports are looked into as well, and what is newer there is taken.
    #[serde(default)]
    pub backports: bool,
    /// Debian packages; with a suite they are installed with all they need. A kernel's may be a metapackage.
    pub packages: Vec<String>,
    /// Default memory of a machine, MiB.
    pub memory_mib: u64,
    /// When a machine is ready.
    #[serde(default)]
    pub ready: Ready,
    /// A line for its shell that is run in a machine that waits in a pool.
    pub warm_up: Option<String>,
    /// What runs a line: it gets `-c` and the line.
    #[serde(default = "default_shell")]
    pub shell: String,
    /// The init that takes over from the agent, which lives on beside it; none where the agent is the init.
    pub init: Option<String>,
    /// What tests may ask for.
    #[serde(default)]
    pub provides: Vec<String>,
    /// Who answers for it.
    #[serde(default)]
    pub owner: String,
    /// Under which licences it may be passed on.
    #[serde(default)]
    pub licence: String,
    /// The kernel; none where a disk brings its own.
    #[serde(default)]
    pub kernel: KernelRecipe,
    /// A root that is there already, instead of packages.
    pub root: Option<RootRecipe>,
    /// A disk that is booted as it is.
    pub disk: Option<DiskRecipe>,
    /// The shell and its tools, where that is all there is.
    pub busybox: Option<BusyboxRecipe>,
    /// Small files: path and content.
    #[serde(default, deserialize_with = "put_file::deserialize")]
    pub files: BTreeMap<String, PutFile>,
    /// Symbolic links: path and where it leads.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// Packages that were asked for beside those of its manifest.
    #[serde(skip)]
    more: Vec<String>,
    /// Its file, when somebody wrote one.
    #[serde(skip)]
    pub(super) path: Option<PathBuf>,
    /// All that it says, as one manifest that extends none.
    #[serde(skip)]
    text: String,
    /// Digest of all that it says.
    #[serde(skip)]
    digest: Option<Digest>,
}

/// Stands before packages that are asked for beside an image's own.
pub(super) const MORE: char = '+';

/// What runs a line where nothing else is said.
const SHELL: &str = "/bin/sh";

fn default_shell() -> String {
    SHELL.to_owned()
}

/// A root that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRecipe {
    /// A squashfs; in a manifest, beside it. Or a folder of this host. Empty where it has not come with an image of another
    /// host.
    #[serde(default)]
    pub file: PathBuf,
    /// Digest of its content; of a folder, of what its files are.
    pub sha256: Digest,
}

/// A disk that is booted as it is, by its own boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecipe {
    /// The disk; in a manifest, beside it; empty as a root's.
    #[serde(default)]
    pub file: PathBuf,
    /// Digest of the file's content.
    pub sha256: Digest,
    /// How the file holds it.
    pub format: DiskFormat,
    /// What starts its boot loader.
    #[serde(default)]
    pub firmware: FirmwareKind,
    /// What it is put into.
    #[serde(default)]
    pub drive: Drive,
    /// A disk that a machine has beside it, which tells its cloud-init what to do.
    pub seed: Option<SeedRecipe>,
}

/// A small raw disk that is attached read-only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedRecipe {
    /// The seed; in a manifest, beside it; empty as a root's.
    #[serde(default)]
    pub file: PathBuf,
    /// Digest of the file's content.
    pub sha256: Digest,
}

/// The kernel and its modules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecipe {
    /// The package that it is in, which is unpacked and not installed; one of `packages` where there is no suite.
    pub package: Option<String>,
    /// Command line, without what is added for the agent.
    #[serde(default)]
    pub cmdline: String,
    /// Modules that the agent loads, with what they need.
    #[serde(default)]
    pub load: Vec<String>,
    /// More modules in the image, with what they need; with a suite all are there.
    #[serde(default)]
    pub modules: Vec<String>,
}

/// The shell and its tools.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusyboxRecipe {
    /// Path in its package.
    pub program: String,
}

/// When a machine is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Ready {
    /// When its agent answers.
    #[default]
    Agent,
    /// When its system has come up (`systemctl is-system-running`), also if units of it have failed.
    Running,
    /// When a unit is active.
    Unit(String),
}

impl FromStr for Ready {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "agent" => Ok(Self::Agent),
            "running" => Ok(Self::Running),
            unit if unit.contains('.') && !unit.contains(char::is_whitespace) => {
                Ok(Self::Unit(unit.to_owned()))
            }
            _ => Err(format!(
                "`{text}` is neither `agent` nor `running` nor a unit such as `ssh.service`"
            )),
        }
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Running => "running",
            Self::Unit(unit) => unit,
        })
    }
}

impl TryFrom<String> for Ready {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Ready> for String {
    fn from(ready: Ready) -> Self {
        ready.to_string()
    }
}

/// There is no such recipe, or it is wrong.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// No image of this name.
    #[error("no image is called `{name}`; there is: {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The names there are, those first that are nearest to it.
        known: Vec<String>,
    },
    /// The text.
    #[error("the manifest of image `{name}` is wrong{}", place(path.as_ref()))]
    Parse {
        /// The image.
        name: String,
        /// Its file, when somebody wrote one.
        path: Option<PathBuf>,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// It says what cannot be.
    #[error("the manifest of image `{name}` is wrong{}: {why}", place(path.as_ref()))]
    Wrong {
        /// The image.
        name: String,
        /// Its file, when somebody wrote one.
        path: Option<PathBuf>,
        /// What.
        why: String,
    },
    /// It cannot have these packages as well.
    #[error("image `{name}` cannot have more packages: {why}")]
    Packages {
        /// The image.
        name: String,
        /// Why.
        why: String,
    },
    /// A file of somebody's.
    #[error("cannot read `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn place(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" (`{}`)", path.display())).unwrap_or_default()
}

impl Recipe {
    /// What its kernel's command line says of the shell that runs lines.
    pub(super) fn shell_parameter(&self) -> String {
        match &*self.shell {
            SHELL => String::new(),
            shell => format!(" guestline.shell={shell}"),
        }
    }

    /// Of tables, each of which extends the one before.
    ///
    /// # Errors
    /// In words.
    pub(super) fn of(tables: impl IntoIterator<Item = Table>) -> Result<Self, String> {
        let (mut all, mut added) = (Table::new(), None);
        for mut table in tables {
            table.remove(EXTENDS);
            let base = all.remove(NAME);
            added = added
                .or_else(|| Some((base.as_ref()?.as_str()?.to_owned(), new_in(&all, &table)?)));
            all.retain(|key, _| !OF_ITS_OWN.contains(&key));
            if let Some(Value::String(base)) = base
                && !table.contains_key(SUMMARY)
            {
                table.insert(SUMMARY.to_owned(), summary_of(&base, &table).into());
            }
            merge(&mut all, table);
        }
        let text = toml::to_string(&without_places(&all)).map_err(|error| error.to_string())?;
        let recipe = all.try_into::<Self>();
        let mut recipe = recipe.map_err(|error| error.message().to_owned())?;
        recipe.check()?;
        if let (Some((base, package)), Some(_)) = (added, &recipe.busybox) {
            return Err(format!(
                "packages: `{package}` would not be in it, for of the packages of `{base}` nothing is taken but a \
                 kernel and busybox; extend an image with a suite, such as `debian-12`"
            ));
        }
        recipe.digest = Some(Digest::of(text.as_bytes()));
        recipe.text = text;
        Ok(recipe)
    }

    /// Of the text of another host, which extends none.
    ///
    /// # Errors
    /// In words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let table = toml::from_str::<Table>(text).map_err(|error| error.message().to_owned())?;
        match table.contains_key(EXTENDS) {
            true => Err("it extends another, and has to stand alone".to_owned()),
            false => Self::of([table]),
        }
    }

    /// The same under another name.
    ///
    /// # Errors
    /// In words, why it cannot be called that.
    pub(super) fn renamed(&self, name: &str) -> Result<Self, String> {
        let mut table =
            toml::from_str::<Table>(&self.text).map_err(|error| error.message().to_owned())?;
        table.insert(NAME.to_owned(), Value::String(name.to_owned()));
        Self::of([table])
    }

    /// All that it says, as one manifest that extends none: what another host needs. None where packages were asked for
    /// beside those of a manifest.
    pub fn whole_text(&self) -> Option<&str> {
        self.more.is_empty().then_some(&self.text)
    }

    /// With more packages.
    ///
    /// # Errors
    /// In words, why it can have none.
    pub(super) fn with_packages(mut self, packages: &[&str]) -> Result<Self, String> {
        if self.suite.is_none() || self.root.is_some() {
            return Err("it takes no packages: it has no suite to take them from".to_owned());
        }
        for &package in packages {
            if !is_package(package) {
                return Err(format!("`{package}` is no name of a package"));
            }
            self.more.push(package.to_owned());
            if !self.packages.iter().any(|there| there == package) {
                self.packages.push(package.to_owned());
            }
        }
        self.more.sort();
        self.more.dedup();
        let digest = format!("{}\n{}", self.digest(), self.more.join(" "));
        self.digest = Some(Digest::of(digest.as_bytes()));
        Ok(self)
    }

    /// Its name, with the packages that were asked for beside: `NAME+PACKAGE,PACKAGE`.
    pub fn reference(&self) -> String {
        match &self.more[..] {
            [] => self.name.clone(),
            more => format!("{}{MORE}{}", self.name, more.join(",")),
        }
    }

    /// Digest of all that it says.
    pub fn digest(&self) -> Digest {
        self.digest.clone().unwrap_or_else(|| Digest::of(b""))
    }

    fn check(&self) -> Result<(), String> {
        if !is_plain_name(&self.name) {
            return Err(format!(
                "`{}` is no name of an image: a-z, 0-9, `.`, `_` and `-`",
                self.name
            ));
        }
        if !MEMORY_MIB.contains(&self.memory_mib) {
            return Err("memory_mib is 32 at least".to_owned());
        }
        if let Some(package) =
            self.packages.iter().chain(&self.kernel.package).find(|name| !is_package(name))
        {
            return Err(format!("`{package}` is no name of a package"));
        }
        self.check_root()?;
        if let Some(suite) = self.suite.as_ref().filter(|suite| !is_package(suite)) {
            return Err(format!("`{suite}` is no name of a suite"));
        }
        self.check_archive()?;
        if !self.shell.starts_with('/') || !self.shell.chars().all(|c| c.is_ascii_graphic()) {
            return Err("shell is an absolute path".to_owned());
        }
        if self
            .init
            .as_ref()
            .is_some_and(|init| !init.starts_with('/') || init.contains(char::is_whitespace))
        {
            return Err("init is an absolute path".to_owned());
        }
        if self.ready != Ready::Agent && self.init.is_none() {
            return Err("ready is `agent` where the agent is the init".to_owned());
        }
        let paths = self.files.keys().chain(self.links.keys());
        if let Some(path) = paths.into_iter().find(|path| !stays_below(path)) {
            return Err(format!("`{path}` is no path below the root, without a slash before it"));
        }
        Ok(())
    }
}

impl Recipe {
    /// What of its suite is looked into.
    fn check_archive(&self) -> Result<(), String> {
        if let Some(component) = self.components.iter().find(|name| !is_package(name)) {
            return Err(format!("`{component}` is no name of a component, such as `contrib`"));
        }
        match &self.suite {
            None if self.backports || !self.components.is_empty() => {
                Err("components, backports: it has no suite to take packages from".to_owned())
            }
            Some(suite) if self.backports && ROLLING.contains(&&**suite) => {
                Err(format!("backports: suite `{suite}` has none; leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// It has one root, and a kernel for it.
    fn check_root(&self) -> Result<(), String> {
        let wrong = |why: &str| Err(why.to_owned());
        let is_there = self.disk.is_some() || self.root.is_some();
        if is_there && !(self.files.is_empty() && self.links.is_empty()) {
            return wrong(
                "it has a [root] or a [disk], which stays as it is, so it takes no [files] and no [links]; \
                 --with DIR:PATH puts files into a machine",
            );
        }
        if self.disk.is_some() {
            let is_more = self.root.is_some() || self.busybox.is_some() || self.suite.is_some();
            return match is_more || self.kernel != KernelRecipe::default() {
                true => wrong("it has a [disk], which brings its root and its kernel"),
                false if !self.packages.is_empty() => wrong(
                    "packages: it has a [disk], which is booted as it is, so it takes none; install them in the disk",
                ),
                false => Ok(()),
            };
        }
        if self.root.is_some() && (self.busybox.is_some() || !self.packages.is_empty()) {
            return wrong("it has a [root], so it takes no packages and no [busybox]");
        }
        match (&self.suite, &self.busybox, &self.kernel.package) {
            (Some(_), None, Some(_)) | (None, Some(_), None) => {}
            (Some(_), None, None) => return wrong("kernel.package is missing"),
            (Some(_), Some(_), _) => {
                return wrong("it has a suite and busybox; one of them is its root");
            }
            (None, _, _) if self.root.is_some() => {
                return wrong("it has no suite, which its kernel.package is of");
            }
            (None, _, _) => {
                return wrong(
                    "it has no suite, so it wants [busybox], and its kernel among the packages",
                );
            }
        }
        match self.kernel.cmdline.is_empty() {
            true => wrong("kernel.cmdline is missing"),
            false => Ok(()),
        }
    }
}

/// What it says, but for where files are: their digests tell what they are.
fn without_places(all: &Table) -> Table {
    let mut all = all.clone();
    for keys in FILES {
        if let Some(table) = table_at(&mut all, keys) {
            table.remove("file");
        }
    }
    put_file::forget_places(&mut all);
    all
}

/// Tables that name a file beside the manifest.
const FILES: [&[&str]; 3] = [&["root"], &["disk"], &["disk", "seed"]];

/// The table at these keys, if there is one.
fn table_at<'a>(all: &'a mut Table, keys: &[&str]) -> Option<&'a mut Table> {
    keys.iter().try_fold(all, |table, key| table.get_mut(*key)?.as_table_mut())
}

/// Makes the files that a manifest names beside it those of this folder.
///
/// # Errors
/// In words, what is wrong with one that goes into the image.
pub(super) fn in_folder(table: &mut Table, folder: &Path) -> Result<(), String> {
    for keys in FILES {
        if let Some(table) = table_at(table, keys)
            && let Some(Value::String(file)) = table.get_mut("file")
        {
            *file = folder.join(&*file).to_string_lossy().into_owned();
        }
    }
    put_file::look_at(table, folder)
}

/// The key that names what a manifest extends.
pub(super) const EXTENDS: &str = "extends";

/// The key that names an image.
pub(super) const NAME: &str = "name";

const SUMMARY: &str = "summary";

const PACKAGES: &str = "packages";

/// What a manifest has of the one that it extends in no case, besides the name: they tell who the other is, and who answers
/// for it.
const OF_ITS_OWN: [&str; 2] = [SUMMARY, "owner"];

/// The first of the packages that a table adds to those of what it extends.
fn new_in(all: &Table, table: &Table) -> Option<String> {
    let packages = |table: &Table| Some(table.get(PACKAGES)?.as_array()?.clone());
    let there = packages(all).unwrap_or_default();
    let package = packages(table)?.into_iter().find(|package| !there.contains(package))?;
    Some(package.as_str()?.to_owned())
}

/// The summary of a manifest that extends another one and has none: `debian-12 with nftables`.
fn summary_of(base: &str, table: &Table) -> String {
    let packages = table.get(PACKAGES).and_then(Value::as_array);
    let packages = packages.into_iter().flatten().filter_map(Value::as_str);
    let packages = packages.collect::<Vec<_>>().join(", ");
    match packages.is_empty() {
        true => format!("{base}, changed"),
        false => one_line(&format!("{base} with {packages}"), 100),
    }
}

/// Tables are merged, lists appended, and all else replaced, a file as a whole. A kernel's command line is a list of words.
fn merge(all: &mut Table, table: Table) {
    for (key, value) in table {
        match (all.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(new)) if key == put_file::KEY => {
                there.extend(new);
            }
            (Some(Value::Table(there)), Value::Table(new)) => merge(there, new),
            // What another one provides, this one does not.
            (Some(Value::Array(there)), Value::Array(new)) if key != "provides" => {
                for item in new {
                    if !there.contains(&item) {
                        there.push(item);
                    }
                }
            }
            (Some(Value::String(there)), Value::String(new)) if key == "cmdline" => {
                *there = format!("{there} {new}");
            }
            (_, value) => drop(all.insert(key, value)),
        }
    }
}

/// Debian policy 5.6.1, and what suites are called.
fn is_package(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric();
    name.len() >= 2
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || b"+-.".contains(&byte))
}

fn stays_below(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(texts: &[&str]) -> Result<Recipe, String> {
        let tables = texts.iter().map(|text| toml::from_str::<Table>(text).unwrap());
        Recipe::of(tables)
    }

    const BASE: &str = r#"
        name = "base"
        summary = "x"
        suite = "bookworm"
        packages = ["bash", "sed"]
        memory_mib = 256
        [kernel]
        package = "linux-image-cloud-amd64"
        cmdline = "quiet"
        load = ["virtio_pci"]
        [files]
        "etc/hostname" = "a"
        "etc/hosts" = ""
    "#;

    #[test]
    fn what_extends_adds_and_replaces() {
        let child = r#"
            name = "child"
            extends = "base"
            packages = ["nftables", "bash"]
            kernel = { cmdline = "debug" }
            files = { "etc/hostname" = "b" }
        "#;
        let both = recipe(&[BASE, child]).unwrap();
        assert_eq!((&*both.name, &*both.summary), ("child", "base with nftables, bash"));
        assert_eq!(both.packages, ["bash", "sed", "nftables"]);
        assert_eq!(both.kernel.cmdline, "quiet debug");
        assert_eq!(both.kernel.load, ["virtio_pci"]);
        assert_eq!(both.files["etc/hostname"].bytes().unwrap(), b"b");
        assert_eq!(both.files.len(), 2);
        assert_ne!(both.digest(), recipe(&[BASE]).unwrap().digest());
        assert_eq!((both.shell.as_str(), both.ready), ("/bin/sh", Ready::Agent));
    }

    #[test]
    fn who_another_is_and_who_answers_for_it_is_not_inherited() {
        let base =
            BASE.replace("summary = \"x\"", "summary = \"x\"\nowner = \"them\"\nlicence = \"MIT\"");
        let child = "name = \"child\"\nextends = \"base\"\nmemory_mib = 300\n";
        let child = recipe(&[&base, child]).unwrap();
        assert_eq!((&*child.name, &*child.summary), ("child", "base, changed"));
        assert_eq!((&*child.owner, &*child.licence), ("", "MIT"));
        // Also not the name, should nobody say one.
        assert!(recipe(&[&base, "memory_mib = 300"]).unwrap_err().contains("missing field `name`"));
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_part_of_the_digest() {
        let child = |file: &str| {
            recipe(&[BASE, &format!("name = \"child\"\n[files]\n\"etc/hostname\" = {file}\n")])
        };
        let plain = child("{ content = \"b\", mode = \"0600\" }").unwrap();
        assert_eq!(plain.files["etc/hostname"].mode, 0o600);
        let grandchild = format!("{{ sha256 = \"{}\" }}", Digest::of(b"c"));
        let grandchild = format!("name = \"child\"\n[files]\n\"etc/hostname\" = {grandchild}\n");
        let middle = "name = \"child\"\n[files]\n\"etc/hostname\" = { content = \"b\" }\n";
        let replaced = recipe(&[BASE, middle, &grandchild]).unwrap();
        assert!(replaced.files["etc/hostname"].bytes().is_err());
        let other_mode = child("{ content = \"b\", mode = \"0644\" }").unwrap();
        let other_text = child("{ content = \"c\", mode = \"0600\" }").unwrap();
        assert_ne!(other_mode.digest(), plain.digest());
        assert_ne!(other_text.digest(), plain.digest());
        let said = child("{ content = \"b\", mode = \"x\" }").unwrap_err();
        assert!(said.starts_with("files.\"etc/hostname\": mode is octal digits"), "{said}");
    }

    #[test]
    fn more_packages_make_another_image() {
        let base = recipe(&[BASE]).unwrap();
        let more = base.clone().with_packages(&["tcpdump", "nftables", "bash"]).unwrap();
        assert_eq!(more.packages, ["bash", "sed", "tcpdump", "nftables"]);
        assert_eq!((&*more.name, &*more.reference()), ("base", "base+bash,nftables,tcpdump"));
        assert_ne!(more.digest(), base.digest());
        let again = base.clone().with_packages(&["bash", "nftables", "tcpdump"]).unwrap();
        assert_eq!(again.digest(), more.digest());
        assert!(base.with_packages(&["../x"]).is_err());
    }

    #[test]
    fn a_recipe_may_look_into_more_of_its_suite() {
        let more = "name = \"more\"\ncomponents = [\"contrib\", \"main\"]\nbackports = true\n";
        let more = recipe(&[BASE, more]).unwrap();
        assert_eq!(crate::image::apt::Wanted::of(&more).word(), "bookworm+contrib+backports");
        let plain = recipe(&[BASE, "name = \"more\"\ncomponents = [\"main\"]\n"]).unwrap();
        assert_eq!(crate::image::apt::Wanted::of(&plain).word(), "bookworm");
    }

    #[test]
    fn packages_that_nobody_would_install_are_refused() {
        let tiny = "name = \"tiny\"\nsummary = \"x\"\npackages = [\"linux-image\", \"busybox\"]\nmemory_mib = 64\n\
                    kernel = { cmdline = \"quiet\" }\nbusybox = { program = \"bin/busybox\" }\n";
        let child = |packages: &str| format!("name = \"child\"\npackages = [{packages}]\n");
        let grandchild = "name = \"grandchild\"\nmemory_mib = 128\n";
        // The same ones once more do no harm.
        recipe(&[tiny, &child("\"busybox\""), grandchild]).unwrap();
        let more = child("\"busybox\", \"nftables\"");
        let said = recipe(&[tiny, &more]).unwrap_err();
        assert!(said.starts_with("packages: `nftables` would not be in it"), "{said}");
        assert!(said.contains("of `tiny`") && said.contains("`debian-12`"), "{said}");
        assert_eq!(recipe(&[tiny, &more, grandchild]).unwrap_err(), said);
        let disk = format!(
            "name = \"d\"\nsummary = \"x\"\nmemory_mib = 64\npackages = []\n[disk]\nformat = \"raw\"\nsha256 = \"{}\"\n",
            Digest::of(b"")
        );
        recipe(&[&disk]).unwrap();
        let said = recipe(&[&disk, &child("\"nftables\"")]).unwrap_err();
        assert!(said.starts_with("packages: it has a [disk]"), "{said}");
    }

    #[test]
    fn what_cannot_be_is_said() {
        let wrong = |from: &str, to: &str| recipe(&[&BASE.replace(from, to)]).unwrap_err();
        let all = [
            wrong("name = \"base\"", "name = \"Base/..\""),
            wrong("memory_mib = 256", "memory = 256"),
            wrong("memory_mib = 256", "memory_mib = 1"),
            wrong("summary = \"x\"", ""),
            wrong("\"sed\"", "\"$(rm)\""),
            wrong("suite = \"bookworm\"", ""),
            wrong("suite = \"bookworm\"", "suite = \"a b\""),
            wrong("summary", "components = [\"non free\"]\nsummary"),
            wrong("suite = \"bookworm\"", "suite = \"sid\"\nbackports = true"),
            wrong("package = \"linux-image-cloud-amd64\"", ""),
            wrong("summary", "shell = \"sh\"\nsummary"),
            wrong("summary", "shell = \"/bin/a sh\"\nsummary"),
            wrong("summary", "ready = \"soon\"\nsummary"),
            wrong("summary", "ready = \"running\"\nsummary"),
            wrong("\"etc/hosts\"", "\"/etc/hosts\""),
            wrong("\"etc/hosts\"", "\"etc/../../hosts\""),
        ];
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn a_seed_is_told_by_its_digest_and_not_by_its_place() {
        let (zeros, ones) = ("0".repeat(64), "1".repeat(64));
        let text = format!(
            "name = 'x'\nsummary = 'x'\npackages = []\nmemory_mib = 512\n\
             [disk]\nfile = 'disk'\nsha256 = '{zeros}'\nformat = 'raw'\n\
             seed = {{ file = 'seed', sha256 = '{ones}' }}\n"
        );
        let mut table = toml::from_str::<Table>(&text).unwrap();
        in_folder(&mut table, Path::new("/there")).unwrap();
        let here = Recipe::of([table]).unwrap();
        let seed = |recipe: &Recipe| recipe.disk.clone().unwrap().seed;
        assert_eq!(seed(&here).unwrap().file, Path::new("/there/seed"));
        // Of another host, where it is not known.
        let there = Recipe::parse(here.whole_text().unwrap()).unwrap();
        assert_eq!(there.digest(), here.digest());
        assert_eq!(seed(&there).unwrap().file, Path::new(""));
        assert_ne!(recipe(&[&text.replace(&ones, &zeros)]).unwrap().digest(), here.digest());
    }

    #[test]
    fn ready_is_a_word_or_a_unit() {
        for text in ["agent", "running", "ssh.service"] {
            assert_eq!(text.parse::<Ready>().unwrap().to_string(), text);
        }
        assert!("ssh".parse::<Ready>().is_err());
    }
}
