//! Images of what others made: a root is packed, a disk copied, and a manifest written beside it.
//!
//! ```text
//! STATE/images/NAME/   image.toml, root.squashfs or disk, perhaps seed, NAME.lock: whole, or not there
//! ```
//! It is kept there, since it cannot be made again; what is made of it goes to the cache like any image.

use super::build::{BuildError, BuildTerms, DISK, ROOT, SEED};
use super::catalogue::{Catalogue, IMPORTED};
use super::elf::foreign_machine;
use super::foreign::{Kind, KindError, Rootfs, RootfsError, What};
use super::import_disk::{cut_from, firmware_of};
use super::recipe::{Recipe, RecipeError};
use super::store::ImageError;
use crate::digest::Digest;
use crate::host::hint_of_io;
use crate::machine::qcow2::inspect;
use crate::machine::{FirmwareKind, MEMORY_MIB, NotUsable};
use crate::sparse;
use crate::text::{is_plain_name, one_line};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use toml::{Table, Value};

/// What runs lines.
const SHELL: &str = "bin/sh";

/// What the agent gives to what it runs, NAME=VALUE a line.
const ENVIRONMENT: &str = "etc/guestline/environment";

/// Begins the names of imports that are being made, or were when their maker died.
const MAKING: &str = ".making-";

/// A disk machine has more than one of a small root, MiB: what boots there is a whole system.
const DISK_MEMORY_MIB: u64 = 512;

/// What is to be imported, and as what.
#[derive(Debug, Clone)]
pub struct ImportSpec {
    /// File or folder.
    pub from: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its name; else the file's, as far as it is one.
    pub name: Option<String>,
    /// Which image of an archive that holds several.
    pub pick: Option<String>,
    /// Whose kernel boots it, where it brings none.
    pub kernel_of: String,
    /// The init that takes over; else the agent is the init.
    pub init: Option<String>,
    /// Memory of a machine.
    pub memory_mib: Option<u64>,
    /// What starts a disk; else what the disk looks made for.
    pub firmware: Option<FirmwareKind>,
    /// A disk that tells the cloud-init of the one that is imported what to do.
    pub seed: Option<PathBuf>,
    /// Busybox is put in, and its commands where there are none of these names.
    pub busybox: bool,
    /// It is published without a look whether it boots and answers.
    pub unchecked: bool,
    /// It takes the place of an import of the same name.
    pub replace: bool,
}

impl ImportSpec {
    /// Says what would be refused whatever is in the file: the name it is to have, options, and a seed that is none.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn check(&self, catalogue: &Catalogue) -> Result<(), ImportError> {
        name_of(self, catalogue)?;
        if let Some(init) = self.init.as_ref().filter(|init| !init.starts_with('/')) {
            return Err(ImportError::RelativeInit { init: init.clone() });
        }
        if let Some(option) = self.unfit(self.kind) {
            return Err(ImportError::Unfit { option, kind: self.kind });
        }
        self.seed.as_deref().map_or(Ok(()), check_seed)
    }

    /// Options that have nothing to say of what is imported.
    fn unfit(&self, kind: Kind) -> Option<&'static str> {
        let is_disk = matches!(kind, Kind::Qcow2 | Kind::RawDisk | Kind::Iso);
        let holds_several =
            matches!(kind, Kind::OciLayout | Kind::OciArchive | Kind::DockerArchive);
        let is_packed = is_disk || kind == Kind::Squashfs;
        match () {
            () if self.pick.is_some() && !holds_several => Some("--pick"),
            () if self.firmware.is_some() && !is_disk => Some("--firmware"),
            () if self.seed.is_some() && !is_disk => Some("--seed"),
            () if self.init.is_some() && is_disk => Some("--init"),
            () if self.busybox && is_packed => Some("--busybox"),
            () => None,
        }
    }
}

/// What cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A disk that cannot be used.
    #[error("cannot take `{path}`", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: NotUsable,
    },
    /// No name can be made of the file's.
    #[error(
        "`{name}` is no name of an image: at most 64 of a-z, 0-9, `.`, `_` and `-`, not ended by `.toml`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is one.
    #[error("there is an image `{name}` already, {whose}")]
    Taken {
        /// The name.
        name: String,
        /// Who has it.
        whose: &'static str,
    },
    /// It has no shell.
    #[error("`{path}` has no `/bin/sh`, which runs command lines", path = path.display())]
    NoShell {
        /// The file.
        path: PathBuf,
    },
    /// It has not what is to be its init.
    #[error("`{path}` has no `{init}`", path = path.display())]
    NoInit {
        /// The file.
        path: PathBuf,
        /// The init.
        init: String,
    },
    /// An init that is no path.
    #[error("--init is an absolute path in the root, and `{init}` is none")]
    RelativeInit {
        /// The init.
        init: String,
    },
    /// An option that has nothing to say of what is imported.
    #[error("{option} is not for a {kind}")]
    Unfit {
        /// The option.
        option: &'static str,
        /// What is imported.
        kind: Kind,
    },
    /// A seed that cannot be looked at, or is nothing known.
    #[error("cannot take `{path}` as a seed", path = path.display())]
    Seed {
        /// The seed.
        path: PathBuf,
        /// Why.
        #[source]
        source: KindError,
    },
    /// A seed that is no disk as cloud-init reads one.
    #[error(
        "cannot take `{path}` as a seed: it is a {kind}, and cloud-init reads a raw disk or an ISO image",
        path = path.display()
    )]
    NoSeed {
        /// The seed.
        path: PathBuf,
        /// What it is.
        kind: Kind,
    },
    /// For another machine.
    #[error("`{path}` is for {found}, and a machine of Guestline is x86-64", path = path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// Whose kernel it is to have.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// It has no kernel of its own to give.
    #[error("image `{name}` has no kernel package to boot a root with")]
    NoKernel {
        /// The image.
        name: String,
    },
    /// What is made of it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It cannot be packed.
    #[error("cannot pack `{path}`", path = path.display())]
    Pack {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// A disk cannot be copied.
    #[error("cannot copy `{path}` into the folder of imports", path = path.display())]
    Copy {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Some of it is missing.
    #[error("`{path}` is cut: it says that it has {said} bytes", path = path.display())]
    Cut {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: Kind,
        /// Its length by its own word.
        said: u64,
    },
    /// Its folder.
    #[error("cannot write `{path}`", path = path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImportError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Image(ImageError::Build { source, .. })
                if matches!(**source, BuildError::Unfit { .. }) =>
            {
                "a disk wants the agent in it (guestline image embed), or a seed by which its cloud-init puts it in \
                 (--seed); --boot-timeout says how long it may take, --no-check imports what it is"
                    .to_owned()
            }
            Self::Image(error) => return error.hint(),
            Self::Rootfs(error) => return error.hint(),
            Self::Disk { source, .. } => return source.hint().map(str::to_owned),
            Self::Name { .. } => "--name gives it one".to_owned(),
            Self::Taken { whose: OWN, .. } => {
                "--replace puts this one in its place, --name gives it another name".to_owned()
            }
            Self::Taken { .. } => "--name gives it another name".to_owned(),
            Self::NoShell { .. } => {
                "--busybox puts one in, with the usual tools, where it has none".to_owned()
            }
            Self::NoInit { .. } => "without --init the agent is the init".to_owned(),
            Self::Cut { kind, .. } => format!("fetch the {kind} once more, and compare its checksum"),
            Self::Seed { .. } | Self::NoSeed { .. } => {
                "guestline image embed --nocloud -o SEED writes one with the agent".to_owned()
            }
            Self::NoKernel { .. } => "--kernel-of debian-12 is the default".to_owned(),
            Self::RelativeInit { init } => format!("say it from the root on: --init /{init}"),
            Self::Unfit { option, .. } => format!("leave {option} out"),
            Self::Architecture { .. } => "take what is made for x86-64 (amd64)".to_owned(),
            Self::Pack { source, .. } => return source.hint(),
            Self::Copy { source, .. } | Self::Write { source, .. } => {
                return hint_of_io(source).map(str::to_owned);
            }
            Self::Recipe(_) => "`guestline image list` shows which there are".to_owned(),
        })
    }
}

const OWN: &str = "an import";
const USERS: &str = "a manifest of yours";
const CARRIED: &str = "which Guestline carries";

/// An import on its way: its folder is gone with it, unless it is published.
#[derive(Debug)]
pub(super) struct Import {
    making: tempfile::TempDir,
    place: PathBuf,
    pub(super) recipe: Recipe,
}

impl Import {
    /// Packs or copies what is there, in `imports`, of a spec that was checked; nobody else makes an import meanwhile.
    pub(super) fn make(
        spec: &ImportSpec,
        catalogue: &Catalogue,
        busybox: Option<&Busybox>,
        terms: &BuildTerms<'_>,
    ) -> Result<Self, ImportError> {
        // Somebody else may have taken it since the options were looked at.
        let (name, kind) = (name_of(spec, catalogue)?, spec.kind);
        let place = catalogue.imported(&name);
        let imports = place.parent().unwrap_or(&place);
        let wrong = |source| ImportError::Write { path: imports.to_owned(), source };
        fs::create_dir_all(imports).map_err(wrong)?;
        sweep(imports);
        let making = tempfile::Builder::new().prefix(MAKING).tempdir_in(imports).map_err(wrong)?;
        let folder = making.path();
        let written = match kind {
            Kind::Qcow2 | Kind::RawDisk | Kind::Iso => disk(spec, kind, folder, terms)?,
            Kind::Squashfs => squashfs(spec, kind, catalogue, folder, terms)?,
            _ => root(spec, kind, catalogue, folder, busybox, terms)?,
        };
        let text = manifest_text(&name, spec, kind, written);
        let path = folder.join(IMPORTED);
        fs::write(&path, text).map_err(wrong)?;
        let recipe = catalogue.get(&path.to_string_lossy())?;
        Ok(Self { making, place, recipe })
    }

    /// Puts it into its place, where an older one goes.
    pub(super) fn publish(self) -> Result<(), ImportError> {
        let wrong = |source| ImportError::Write { path: self.place.clone(), source };
        let making = self.making.path();
        // What was there is there until this is, and goes with the folder that this was made in.
        let exchanged =
            renameat2(AT_FDCWD, making, AT_FDCWD, &self.place, RenameFlags::RENAME_EXCHANGE);
        match exchanged {
            Err(Errno::ENOENT) => {
                fs::rename(making, &self.place).map_err(wrong)?;
                let _ = self.making.keep();
                Ok(())
            }
            exchanged => exchanged.map_err(|errno| wrong(errno.into())),
        }
    }
}

/// Removes an import whole; what is left of it, should this be interrupted, is swept by the next.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    let gone = folder.with_file_name(format!("{MAKING}gone"));
    let _ = fs::remove_dir_all(&gone);
    fs::rename(folder, &gone)?;
    fs::remove_dir_all(gone)
}

/// Removes what makers that died left; the lock of those who make images is held.
fn sweep(imports: &Path) {
    for entry in fs::read_dir(imports).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(MAKING) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The name that an import is to have, when nobody else has it.
fn name_of(spec: &ImportSpec, catalogue: &Catalogue) -> Result<String, ImportError> {
    let name = match &spec.name {
        Some(name) => name.clone(),
        None => file_name(&spec.from),
    };
    // What ends so is meant as a path wherever an image is named.
    if !is_plain_name(&name) || name.ends_with(".toml") {
        return Err(ImportError::Name { name });
    }
    let whose = if catalogue.carries(&name) {
        CARRIED
    } else if catalogue.own(&name).is_some() {
        USERS
    } else if catalogue.imported(&name).exists() && !spec.replace {
        OWN
    } else {
        return Ok(name);
    };
    Err(ImportError::Taken { name, whose })
}

/// What a file is called, without what tells its kind, as a name of an image.
fn file_name(path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut name = name.as_str();
    let ends =
        ["gz", "xz", "zst", "bz2", "tar", "tgz", "cpio", "img", "raw", "qcow2", "iso", "lz4"];
    while let Some((stem, end)) = name.rsplit_once('.')
        && (ends.contains(&end) || end == "squashfs")
    {
        name = stem;
    }
    name.replace([' ', '+', ':', '@', '~'], "-")
}

/// The digest of a file that was made here.
fn digest(path: &Path) -> Result<Digest, ImportError> {
    Digest::of_file(path).map_err(|source| ImportError::Write { path: path.to_owned(), source })
}

/// What is told of an import while it is made: its own part of the manifest.
struct Written {
    key: &'static str,
    file: &'static str,
    sha256: Digest,
    /// What else stands in its table.
    more: Vec<(&'static str, &'static str)>,
    /// The image whose kernel it has.
    kernel: Option<Recipe>,
    /// The seed beside it.
    seed: Option<Digest>,
    /// Systemd is its init.
    has_systemd: bool,
}

fn root(
    spec: &ImportSpec,
    kind: Kind,
    catalogue: &Catalogue,
    folder: &Path,
    busybox: Option<&Busybox>,
    terms: &BuildTerms<'_>,
) -> Result<Written, ImportError> {
    let kernel = kernel_of(spec, catalogue)?;
    terms.step(&format!("reads the {kind}"));
    let to = folder.join(ROOT);
    let failed = |source| ImportError::Pack { path: spec.from.clone(), source: Box::new(source) };
    let (pick, scratch) = (spec.pick.as_deref(), folder);
    let mut rootfs = Rootfs::read(&spec.from, kind, pick, scratch, terms.cancel)?;
    if let Some(busybox) = busybox {
        rootfs.add_busybox(&busybox.program, &busybox.applets)?;
    }
    let (whole, cut): (Vec<String>, Vec<String>) =
        rootfs.config.env.iter().cloned().partition(|variable| !variable.contains('\n'));
    for variable in cut {
        let name = variable.split('=').next().unwrap_or_default();
        let name = one_line(name, 60);
        terms.note(&format!("its variable {name} has several lines, and is left out"));
    }
    if !whole.is_empty() {
        let environment = whole.join("\n") + "\n";
        rootfs.add_file(ENVIRONMENT, 0o644, environment.as_bytes())?;
    }
    let has_systemd = runs_here(spec, &rootfs)?;
    terms.step("packs its root");
    rootfs.pack(&to, terms.cancel).map_err(failed)?;
    let sha256 = digest(&to)?;
    let (more, seed) = (Vec::new(), None);
    Ok(Written { key: "root", file: ROOT, sha256, more, kernel: Some(kernel), seed, has_systemd })
}

/// A root that is packed already.
fn squashfs(
    spec: &ImportSpec,
    kind: Kind,
    catalogue: &Catalogue,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Written, ImportError> {
    let kernel = kernel_of(spec, catalogue)?;
    terms.step(&format!("copies the {kind}"));
    let sha256 = copy(&spec.from, &folder.join(ROOT), terms)?;
    let (more, seed, has_systemd) = (Vec::new(), None, false);
    Ok(Written { key: "root", file: ROOT, sha256, more, kernel: Some(kernel), seed, has_systemd })
}

/// The image whose kernel a root gets.
fn kernel_of(spec: &ImportSpec, catalogue: &Catalogue) -> Result<Recipe, ImportError> {
    let kernel = catalogue.get(&spec.kernel_of)?;
    match kernel.suite.is_some() && kernel.kernel.package.is_some() {
        true => Ok(kernel),
        false => Err(ImportError::NoKernel { name: kernel.name }),
    }
}

/// A root that can run lines on an x86-64 machine. Tells whether systemd is to be its init.
fn runs_here(spec: &ImportSpec, rootfs: &Rootfs) -> Result<bool, ImportError> {
    let path = || spec.from.clone();
    let shell = rootfs.tree.read(SHELL.as_bytes(), 64);
    let shell = shell.ok_or_else(|| ImportError::NoShell { path: path() })?;
    if let Some(found) = foreign_machine(&shell) {
        return Err(ImportError::Architecture { path: path(), found });
    }
    let Some(init) = &spec.init else { return Ok(false) };
    let found = rootfs.tree.find(init.trim_start_matches('/').as_bytes());
    match found {
        Some((place, node)) if matches!(node.what, What::File(_)) => {
            Ok(place.ends_with(b"/systemd"))
        }
        _ => Err(ImportError::NoInit { path: path(), init: init.clone() }),
    }
}

/// Refuses a seed that no cloud-init would see as a disk with a file system.
fn check_seed(seed: &Path) -> Result<(), ImportError> {
    let path = || seed.to_owned();
    // Of what is a disk, a few bytes are read.
    let kind = Kind::of(seed, &CancellationToken::new());
    match kind.map_err(|source| ImportError::Seed { path: path(), source })? {
        Kind::RawDisk | Kind::Iso => Ok(()),
        kind => Err(ImportError::NoSeed { path: path(), kind }),
    }
}

/// Copies a file into the folder of imports.
fn copy(from: &Path, to: &Path, terms: &BuildTerms<'_>) -> Result<Digest, ImportError> {
    let failed = |source| ImportError::Copy { path: from.to_owned(), source };
    sparse::copy(from, to, terms.cancel).map_err(failed)
}

/// A disk and its seed, copied as they are.
fn disk(
    spec: &ImportSpec,
    kind: Kind,
    folder: &Path,
    terms: &BuildTerms<'_>,
) -> Result<Written, ImportError> {
    let format = match kind {
        Kind::Qcow2 => "qcow2",
        _ => "raw",
    };
    let unread = |source| ImportError::Copy { path: spec.from.clone(), source };
    if let Some(said) = cut_from(&spec.from, kind).map_err(unread)? {
        return Err(ImportError::Cut { path: spec.from.clone(), kind, said });
    }
    terms.step(&format!("copies the {kind}"));
    let to = folder.join(DISK);
    let sha256 = copy(&spec.from, &to, terms)?;
    if kind == Kind::Qcow2 {
        let looked = File::open(&to).and_then(|file| inspect(&file)).map_err(unread)?;
        looked.map_err(|source| ImportError::Disk { path: spec.from.clone(), source })?;
    }
    let firmware = match spec.firmware.unwrap_or_else(|| firmware_of(&to, kind)) {
        FirmwareKind::Bios => "bios",
        FirmwareKind::Uefi => "uefi",
    };
    let drive = if kind == Kind::Iso { "cdrom" } else { "disk" };
    let more = vec![("format", format), ("firmware", firmware), ("drive", drive)];
    let seed = spec.seed.as_ref().map(|seed| copy(seed, &folder.join(SEED), terms)).transpose()?;
    Ok(Written { key: "disk", file: DISK, sha256, more, kernel: None, seed, has_systemd: false })
}

/// The manifest of an import.
fn manifest_text(name: &str, spec: &ImportSpec, kind: Kind, written: Written) -> String {
    let Written { key, file, sha256, more, kernel, seed, has_systemd } = written;
    let from = spec.from.file_name().unwrap_or_default().to_string_lossy();
    let summary = format!("imported {kind} {from}");
    let default = kernel.as_ref().map_or(DISK_MEMORY_MIB, |kernel| kernel.memory_mib);
    let memory = spec.memory_mib.unwrap_or(default).clamp(*MEMORY_MIB.start(), *MEMORY_MIB.end());
    let mut all = manifest(name, &summary, memory, kernel);
    if let Some(init) = &spec.init {
        all.insert("init".to_owned(), init.as_str().into());
        let ready = if has_systemd { "running" } else { "agent" };
        all.insert("ready".to_owned(), ready.into());
    }
    let mut table = part(file.into(), &sha256);
    table.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
    if let Some(seed) = seed {
        table.insert("seed".to_owned(), Value::Table(part(SEED.into(), &seed)));
    }
    all.insert(key.to_owned(), Value::Table(table));
    format!("# Written by `guestline image import`.\n\n{all}")
}

/// The manifest of a folder that is a root where it is.
pub(super) fn of_folder(folder: &Path, sha256: &Digest, kernel: Recipe) -> Table {
    let (name, summary) = (file_name(folder), format!("folder {}", folder.display()));
    let name = match is_plain_name(&name) {
        true => format!("dir-{}", name.get(..name.len().min(60)).unwrap_or_default()),
        false => "dir".to_owned(),
    };
    let mut all = manifest(&name, &summary, kernel.memory_mib, Some(kernel));
    let place = folder.to_string_lossy().into_owned();
    all.insert("root".to_owned(), Value::Table(part(place.into(), sha256)));
    all
}

/// What the manifests of all that is not built say.
fn manifest(name: &str, summary: &str, memory_mib: u64, kernel: Option<Recipe>) -> Table {
    let mut all = Table::new();
    let mut set = |key: &str, value: Value| drop(all.insert(key.to_owned(), value));
    set("name", name.into());
    set("summary", one_line(summary, 100).into());
    set("packages", Value::Array(Vec::new()));
    set("memory_mib", i64::try_from(memory_mib).unwrap_or(i64::MAX).into());
    if let Some(kernel) = kernel {
        set("suite", kernel.suite.unwrap_or_default().into());
        if !kernel.components.is_empty() {
            let components = kernel.components.into_iter().map(Value::from).collect();
            set("components", Value::Array(components));
        }
        if kernel.backports {
            set("backports", true.into());
        }
        let mut table = Table::new();
        table.insert("package".to_owned(), kernel.kernel.package.unwrap_or_default().into());
        table.insert("cmdline".to_owned(), kernel.kernel.cmdline.into());
        let load = kernel.kernel.load.into_iter().map(Value::from).collect();
        table.insert("load".to_owned(), Value::Array(load));
        set("kernel", Value::Table(table));
    }
    all
}

/// A file that a manifest names.
fn part(file: Value, sha256: &Digest) -> Table {
    let mut table = Table::new();
    table.insert("file".to_owned(), file);
    table.insert("sha256".to_owned(), sha256.as_str().into());
    table
}

/// A shell and its tools for roots that have none.
#[derive(Debug)]
pub(super) struct Busybox {
    pub(super) program: Vec<u8>,
    /// Paths of its commands.
    pub(super) applets: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_room_that_is_mended() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let path = || PathBuf::from("x");
        let build = || Box::new(BuildError::Write { path: path(), source: full() });
        let name = || "x".to_owned();
        for error in [
            ImportError::Copy { path: path(), source: full() },
            ImportError::Write { path: path(), source: full() },
            ImportError::Pack { path: path(), source: build() },
            ImportError::Image(ImageError::Build { name: name(), source: build() }),
            ImportError::Image(ImageError::Folder { path: path(), source: full() }),
        ] {
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains("cache prune"), "{error}: {hint:?}");
        }
    }

    #[test]
    fn a_files_name_becomes_an_images() {
        for (file, wanted) in [
            ("/nowhere/Alpine-3.19.tar.gz", "alpine-3.19"),
            ("/nowhere/disk.qcow2", "disk"),
            ("/nowhere/my image.iso", "my-image"),
            ("/nowhere/.tar", ""),
            ("/", ""),
        ] {
            assert_eq!(file_name(Path::new(file)), wanted);
        }
    }
}
