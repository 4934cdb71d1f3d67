//! Debian packages: which ones, from where, checked, and kept in a pool.
//!
//! A package's stanza (deb-src-control(5), "Packages" index) names its version and its SHA-256.
//! Whichever way it comes, a package is taken only with that digest, and kept under it.

use super::apt::{self, Apt};
use super::mirror::{Mirror, MirrorError};
use crate::digest::Digest;
use crate::host::{MAKE_ROOM, hint_of_io};
use crate::image::manifest::PackageRecord;
use crate::sys;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Where packages come from.
#[derive(Debug, Clone)]
pub enum PackageSource {
    /// The host's own apt.
    Apt,
    /// A mirror named in the configuration.
    Mirror(Mirror),
    /// This host is no Debian and no mirror is configured.
    None {
        /// What the host is, as its os-release says.
        host: String,
    },
}

/// Packages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Nowhere to take them from.
    #[error("this host (`{host}`) is no Debian, and no package mirror is configured")]
    NoSource {
        /// What the host is.
        host: String,
    },
    /// A program is missing or cannot be started.
    #[error("cannot run `{program}`")]
    NoProgram {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// Its command line.
        command: String,
        /// Its last words.
        said: String,
    },
    /// No such package.
    #[error("no package `{name}` in {place}")]
    Unknown {
        /// The package.
        name: String,
        /// Where it was looked for.
        place: String,
        /// The one that was perhaps meant.
        near: Option<String>,
    },
    /// A download with another digest.
    #[error("package `{name}` has the wrong SHA-256: {found}, not {wanted}")]
    Digest {
        /// The package.
        name: String,
        /// Of the download.
        found: Digest,
        /// Of the index.
        wanted: Digest,
    },
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The pool.
    #[error("cannot write `{path}`", path = path.display())]
    Pool {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PackageError {
    /// What mends it, where that is known.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::NoSource { .. } => Some(
                "take an image that another host has made (`guestline image pull`), or name a Debian mirror in \
                 guestline.toml: docs/images.md, \"Hosts without apt\""
                    .to_owned(),
            ),
            Self::Unknown { near: Some(near), .. } => Some(format!("is `{near}` meant?")),
            Self::Unknown { place, .. } if place == apt::PLACE => {
                Some("are apt's lists there? `apt-get update` as root fetches them".to_owned())
            }
            Self::Unknown { name, .. } => Some(format!(
                "mend its name, or take another suite: https://packages.debian.org/{name}"
            )),
            Self::Failed { said, .. }
                if said.contains("No space left") || said.starts_with(CURL_CANNOT_WRITE) =>
            {
                Some(MAKE_ROOM.to_owned())
            }
            Self::Failed { command, .. } => match command.split(' ').next().unwrap_or_default() {
                "apt-get" => {
                    Some("does the mirror answer? `apt-get update` as root tells".to_owned())
                }
                "curl" => Some(
                    "does the mirror in guestline.toml answer? try again: packages that came whole are kept"
                        .to_owned(),
                ),
                "gpgv" => Some(
                    "`keyring` in guestline.toml has to have the key of the mirror's suite; Debian's are in the package \
                     debian-archive-keyring"
                        .to_owned(),
                ),
                _ => None,
            },
            Self::Digest { .. } => Some(
                "something on the way changes what the mirror sends, or it is being changed: try again, or another mirror"
                    .to_owned(),
            ),
            Self::Mirror(MirrorError::NoIndex { .. }) => {
                Some("`suite` in guestline.toml has to be one that the mirror has below `dists`".to_owned())
            }
            Self::Mirror(MirrorError::Digest { .. }) => {
                Some("the mirror is being changed: try again in a while, or another mirror".to_owned())
            }
            Self::Pool { source, .. } => hint_of_io(source).map(str::to_owned),
            Self::NoProgram { program, .. } => Some(match &**program {
                "mmdebstrap" => "install it: apt-get install mmdebstrap".to_owned(),
                "mksquashfs" => "install it: apt-get install squashfs-tools".to_owned(),
                program => format!("install the package that has `{program}`"),
            }),
        }
    }
}

/// How curl(1) begins to say that the disk is full (its status 23), among others.
const CURL_CANNOT_WRITE: &str = "curl: (23)";

/// Of the names in a list, the one that was perhaps meant: few letters away.
pub(super) fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<String> {
    let most = (name.len() / 3).clamp(1, 3);
    let alike = all.filter(|other| other.len().abs_diff(name.len()) <= most);
    let near = alike.map(|other| (strsim::levenshtein(name, other), other));
    let found = near.filter(|(distance, _)| *distance <= most).min();
    found.map(|(_, name)| name.to_owned())
}

/// How the names of a kernel's packages begin.
const KERNEL_PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// A package's entry in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stanza {
    pub(super) name: String,
    pub(super) version: String,
    /// Path below the mirror.
    pub(super) filename: String,
    pub(super) sha256: Digest,
    /// Bytes, where they are known.
    pub(super) size: Option<u64>,
    depends: String,
}

impl Stanza {
    /// Of a package that is no metapackage, and is downloaded by its name.
    pub(super) fn new(name: String, version: String, sha256: Digest) -> Self {
        Self { name, version, filename: String::new(), sha256, size: None, depends: String::new() }
    }

    /// How the name of its file begins where apt puts it: an epoch's colon would be none of a file's name.
    pub(super) fn file_begin(&self) -> String {
        format!("{}_{}_", self.name, self.version.replace(':', "%3a"))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once(": ")).collect();
        let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
        Some(Self {
            name: field("Package")?,
            version: field("Version")?,
            filename: field("Filename")?,
            sha256: Digest::parse(fields.get("SHA256")?)?,
            size: fields.get("Size").and_then(|size| size.parse().ok()),
            depends: field("Depends").unwrap_or_default(),
        })
    }

    /// Of a kernel's package, those that have the rest of it: Debian's newer ones are in several, and a metapackage has
    /// nothing but these.
    fn parts(&self) -> Vec<&str> {
        if !KERNEL_PARTS.iter().any(|part| self.name.starts_with(part)) {
            return Vec::new();
        }
        let names = self.depends.split(',').filter_map(|package| package.split_whitespace().next());
        names.filter(|name| KERNEL_PARTS.iter().any(|part| name.starts_with(part))).collect()
    }

    /// Is there nothing in it but what it stands for?
    fn is_meta(&self) -> bool {
        self.parts().iter().any(|name| name.starts_with("linux-image-"))
    }
}

/// Is told what is done now.
pub(super) type Step<'a> = &'a dyn Fn(&str);

/// Is called now and then while a program runs.
pub(super) type Watch<'a> = &'a dyn Fn();

/// A package in the pool.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) record: PackageRecord,
    pub(super) path: PathBuf,
}

impl PackageSource {
    /// The named packages, of a kernel all that it is in, from the pool or into it; `step` is told how far that is.
    pub(super) fn fetch(
        &self,
        names: &[String],
        pool: &Path,
        step: Step<'_>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Fetched>, PackageError> {
        std::fs::create_dir_all(pool)
            .map_err(|source| PackageError::Pool { path: pool.to_owned(), source })?;
        match self {
            Self::Apt => {
                let apt = Apt::of_host();
                keep_all(&resolve(names, |name| apt.show(name, cancel))?, pool, &apt, step, cancel)
            }
            Self::Mirror(mirror) => {
                let index = mirror.index(pool, cancel)?;
                let stanzas = resolve(names, |name| index.find(name))?;
                mirror.fetch(&missing(&stanzas, pool), pool, step, cancel)?;
                Ok(stanzas.iter().map(|stanza| fetched(stanza, pool)).collect())
            }
            Self::None { host } => Err(PackageError::NoSource { host: host.clone() }),
        }
    }

    /// Exactly these packages, from the pool or into it.
    pub(super) fn fetch_exactly(
        &self,
        stanzas: &[Stanza],
        pool: &Path,
        step: Step<'_>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Fetched>, PackageError> {
        let missing = missing(stanzas, pool);
        match self {
            _ if missing.is_empty() => {}
            Self::Apt => download(&missing, pool, &Apt::of_host(), step, cancel)?,
            Self::Mirror(mirror) => {
                let index = mirror.index(pool, cancel)?;
                let find = |stanza: &&Stanza| {
                    let found = index.find(&stanza.name)?;
                    if found.version != stanza.version {
                        let name = format!("{}={}", stanza.name, stanza.version);
                        let place = index.place();
                        return Err(PackageError::Unknown { name, place, near: None });
                    }
                    Ok(Stanza { sha256: stanza.sha256.clone(), ..found })
                };
                let wanted: Vec<Stanza> = missing.iter().map(find).collect::<Result<_, _>>()?;
                mirror.fetch(&wanted.iter().collect::<Vec<_>>(), pool, step, cancel)?;
            }
            Self::None { host } => return Err(PackageError::NoSource { host: host.clone() }),
        }
        Ok(stanzas.iter().map(|stanza| fetched(stanza, pool)).collect())
    }
}

impl Mirror {
    /// Packages of its index into the pool.
    fn fetch(
        &self,
        stanzas: &[&Stanza],
        pool: &Path,
        step: Step<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), PackageError> {
        download_by(stanzas, pool, step, 1, |batch, folder, watch| {
            batch.iter().try_for_each(|stanza| self.download(stanza, folder, watch, cancel))
        })
    }
}

/// Unpacks a package, with all its files, below a folder.
pub(super) fn unpack_all(
    package: &Fetched,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<(), PackageError> {
    run(Command::new("dpkg-deb").arg("-x").arg(&package.path).arg(folder), cancel).map(drop)
}

/// The named packages, and all that the rest of a kernel among them is in.
pub(super) fn resolve(
    names: &[String],
    find: impl Fn(&str) -> Result<Stanza, PackageError>,
) -> Result<Vec<Stanza>, PackageError> {
    let (mut open, mut seen, mut stanzas) =
        (VecDeque::from(names.to_vec()), BTreeSet::new(), Vec::new());
    while let Some(name) = open.pop_front() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let stanza = find(&name)?;
        open.extend(stanza.parts().into_iter().map(str::to_owned));
        if !stanza.is_meta() {
            stanzas.push(stanza);
        }
    }
    Ok(stanzas)
}

/// Packages from the pool, and those that are not there by apt, all at once.
pub(super) fn keep_all(
    stanzas: &[Stanza],
    pool: &Path,
    apt: &Apt,
    step: Step<'_>,
    cancel: &CancellationToken,
) -> Result<Vec<Fetched>, PackageError> {
    download(&missing(stanzas, pool), pool, apt, step, cancel)?;
    Ok(stanzas.iter().map(|stanza| fetched(stanza, pool)).collect())
}

/// Those that are not in the pool, whole.
pub(super) fn missing<'a>(stanzas: &'a [Stanza], pool: &Path) -> Vec<&'a Stanza> {
    stanzas.iter().filter(|stanza| !is_kept(stanza, pool)).collect()
}

/// So many packages are fetched by one program.
const BATCH: usize = 32;

/// Packages by apt into the pool; `step` is told how far that is.
pub(super) fn download(
    stanzas: &[&Stanza],
    pool: &Path,
    apt: &Apt,
    step: Step<'_>,
    cancel: &CancellationToken,
) -> Result<(), PackageError> {
    download_by(stanzas, pool, step, BATCH, |batch, folder, watch| {
        let named: Vec<(&str, &str)> =
            batch.iter().map(|stanza| (&*stanza.name, &*stanza.version)).collect();
        apt.download(&named, folder, watch, cancel)
    })
}

/// Packages into the pool, some at a time, by what puts them into a folder under the names that apt gives them. What came whole
/// is kept, also where the rest did not come: who tries again goes on from there.
fn download_by(
    stanzas: &[&Stanza],
    pool: &Path,
    step: Step<'_>,
    at_a_time: usize,
    get: impl Fn(&[&Stanza], &Path, Watch<'_>) -> Result<(), PackageError>,
) -> Result<(), PackageError> {
    if stanzas.is_empty() {
        return Ok(());
    }
    let trouble = |source| PackageError::Pool { path: pool.to_owned(), source };
    let folder = making_folder(pool).map_err(trouble)?;
    let mut progress = FetchProgress::new(stanzas, step);
    for batch in stanzas.chunks(at_a_time) {
        progress.tell(&[]);
        let got = get(batch, folder.path(), &|| progress.tell(&whole_in(folder.path(), batch)));
        let mut wrong = None;
        for stanza in batch {
            let taken = match file_of(folder.path(), stanza) {
                Some(file) => size_of(&file).map_err(trouble).and_then(|size| {
                    take_in(stanza, &file, pool)?;
                    Ok(size)
                }),
                None => Err(PackageError::Failed {
                    command: format!("download of {}", stanza.name),
                    said: "left no file".to_owned(),
                }),
            };
            match taken {
                Ok(size) => progress.add(size),
                Err(error) => drop(wrong.get_or_insert(error)),
            }
        }
        got?;
        wrong.map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// The file of a package in a folder, where it has the name that apt gives it.
fn file_of(folder: &Path, stanza: &Stanza) -> Option<PathBuf> {
    let begin = stanza.file_begin();
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut files = files.filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&begin) && file.ends_with(".deb")
    });
    files.next()
}

fn size_of(file: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(file)?.len())
}

/// The sizes of those packages of a batch that lie in a folder, as whole as can be told without reading them.
fn whole_in(folder: &Path, batch: &[&Stanza]) -> Vec<u64> {
    let sizes = batch.iter().filter_map(|stanza| {
        let size = size_of(&file_of(folder, stanza)?).ok()?;
        stanza.size.is_none_or(|wanted| wanted == size).then_some(size)
    });
    sizes.collect()
}

/// How far packages have come.
struct FetchProgress<'a> {
    step: Step<'a>,
    count: usize,
    bytes: u64,
    of: usize,
    /// Where all sizes are known.
    of_bytes: Option<u64>,
    /// How many were told last, so that nothing is told twice.
    told: Cell<Option<usize>>,
}

impl<'a> FetchProgress<'a> {
    fn new(stanzas: &[&Stanza], step: Step<'a>) -> Self {
        let of_bytes = stanzas.iter().map(|stanza| stanza.size).sum();
        Self { step, count: 0, bytes: 0, of: stanzas.len(), of_bytes, told: Cell::new(None) }
    }

    fn add(&mut self, size: u64) {
        self.count += 1;
        self.bytes += size;
    }

    /// Tells of those that have come, and of more that just come in.
    fn tell(&self, more: &[u64]) {
        let count = self.count + more.len();
        if self.told.replace(Some(count)) == Some(count) {
            return;
        }
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let came = mb(self.bytes + more.iter().sum::<u64>());
        let of = self.of_bytes.map(|bytes| format!(" of {}", mb(bytes))).unwrap_or_default();
        (self.step)(&format!("fetches its packages: {count} of {}, {came}{of} MB", self.of));
    }
}

/// Where a package is kept.
fn kept_at(stanza: &Stanza, pool: &Path) -> PathBuf {
    pool.join(format!("{}_{}.deb", stanza.name, stanza.sha256.short()))
}

/// Is it in the pool, whole?
fn is_kept(stanza: &Stanza, pool: &Path) -> bool {
    Digest::of_file(&kept_at(stanza, pool)).is_ok_and(|digest| digest == stanza.sha256)
}

/// Puts a file that was downloaded into the pool, if it is what it should be.
fn take_in(stanza: &Stanza, file: &Path, pool: &Path) -> Result<(), PackageError> {
    let trouble = |path: &Path| {
        let path = path.to_owned();
        move |source| PackageError::Pool { path, source }
    };
    let found = Digest::of_file(file).map_err(trouble(file))?;
    if found != stanza.sha256 {
        let (name, wanted) = (stanza.name.clone(), stanza.sha256.clone());
        return Err(PackageError::Digest { name, found, wanted });
    }
    let path = kept_at(stanza, pool);
    std::fs::rename(file, &path).map_err(trouble(&path))
}

/// A package that is in the pool.
pub(super) fn fetched(stanza: &Stanza, pool: &Path) -> Fetched {
    let record = PackageRecord {
        name: stanza.name.clone(),
        version: stanza.version.clone(),
        sha256: stanza.sha256.clone(),
    };
    Fetched { record, path: kept_at(stanza, pool) }
}

/// A folder that is swept when its maker dies.
pub(super) fn making_folder(parent: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(super::shelf::MAKING).tempdir_in(parent)
}

/// So long a program may take to end that is told to.
const TIDY: Duration = Duration::from_secs(5);

/// So often it is looked how far a program is.
const WATCH: Duration = Duration::from_millis(500);

/// Runs a program to its end, or to that of `cancel`, and returns its standard output.
pub(super) fn run(
    command: &mut Command,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, PackageError> {
    run_on(command, None, cancel)
}

/// As [`run`], with a file as its standard input.
pub(super) fn run_on(
    command: &mut Command,
    stdin: Option<File>,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, PackageError> {
    run_watched(command, stdin, &|| (), cancel)
}

/// As [`run_on`], and `watch` is called now and then.
pub(super) fn run_watched(
    command: &mut Command,
    stdin: Option<File>,
    watch: Watch<'_>,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, PackageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    let line = line.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("LC_ALL", "C.UTF-8").process_group(0);
    sys::die_with_us(command);
    let no_program = |source| PackageError::NoProgram { program: program.clone(), source };
    let mut child = command.spawn().map_err(no_program)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read_all(stdout));
        let stderr = scope.spawn(|| read_all(stderr));
        let (group, mut told) = (Pid::from_raw(child.id().cast_signed()), None);
        let mut watched = Instant::now();
        let status = loop {
            match child.try_wait() {
                // It may tidy up, for a moment.
                Ok(None) if cancel.is_cancelled() && told.is_none() => {
                    let _ = killpg(group, Signal::SIGTERM);
                    told = Some(Instant::now());
                }
                Ok(None) if told.is_some_and(|told| told.elapsed() > TIDY) => {
                    let _ = killpg(group, Signal::SIGKILL);
                    break child.wait();
                }
                Ok(None) => {
                    if watched.elapsed() > WATCH {
                        watch();
                        watched = Instant::now();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(Some(status)) => break Ok(status),
                Err(error) => break Err(error),
            }
        };
        (status, stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default())
    });
    if status.map_err(no_program)?.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&stderr);
    let mut lines = said.lines().rev().filter(|line| !line.trim().is_empty());
    // mmdebstrap's own last word says nothing.
    let said = lines.find(|line| !line.contains("failed to run")).unwrap_or("said nothing");
    let said = if cancel.is_cancelled() { "interrupted" } else { said.trim() };
    Err(PackageError::Failed { command: line, said: said.to_owned() })
}

pub(super) fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before an error is all there is.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Unpacks gzip, xz, zstd by the program that the first bytes call for; other bytes are an error.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, PackageError> {
    let program = match packed {
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => {
            let (command, said) = ("unpack".to_owned(), "unknown compression".to_owned());
            return Err(PackageError::Failed { command, said });
        }
    };
    let no_program = |source| PackageError::NoProgram { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(no_program)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // What it does not want to read shows in its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(packed)));
        child.wait_with_output()
    });
    let output = output.map_err(no_program)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => {
            let (command, said) = (format!("{program} -dc"), "the data is damaged".to_owned());
            Err(PackageError::Failed { command, said })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nInstalled-Size: 13\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\
        Filename: pool/main/l/x.deb\n\
        SHA256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

    #[test]
    fn a_kernel_is_in_one_package_or_in_several() {
        let stanza = |name: &str, depends: &str| {
            let text = META.replace("linux-image-cloud-amd64", name);
            let old = "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)";
            Stanza::parse(&text.replace(old, depends)).unwrap()
        };
        let all = [
            stanza(
                "linux-image-cloud-amd64",
                "linux-base-cloud-amd64 (= 7), linux-image-7-cloud-amd64 (= 7)",
            ),
            stanza("linux-base-cloud-amd64", "linux-base-7-cloud-amd64 (= 7)"),
            stanza("linux-base-7-cloud-amd64", "kmod"),
            stanza(
                "linux-image-7-cloud-amd64",
                "dracut | x, linux-binary-7 (= 7), linux-modules-7 (= 7), linux-base",
            ),
            stanza("linux-binary-7", ""),
            stanza("linux-modules-7", "linux-binary-7"),
            stanza("busybox-static", "linux-image-7-cloud-amd64"),
        ];
        let find = |name: &str| {
            let found = all.iter().find(|stanza| stanza.name == name).cloned();
            found.ok_or_else(|| PackageError::Unknown {
                name: name.to_owned(),
                place: "here".to_owned(),
                near: None,
            })
        };
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            resolve(&wanted, find)
                .unwrap()
                .into_iter()
                .map(|stanza| stanza.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&["linux-image-cloud-amd64"]),
            [
                "linux-base-cloud-amd64",
                "linux-image-7-cloud-amd64",
                "linux-base-7-cloud-amd64",
                "linux-binary-7",
                "linux-modules-7"
            ]
        );
        assert_eq!(names(&["busybox-static"]), ["busybox-static"]);
        assert_eq!(Stanza::parse("Package: half\n"), None);
    }

    #[test]
    fn a_download_with_another_digest_is_refused_and_not_kept() {
        let pool = tempfile::tempdir().unwrap();
        let stanza = Stanza::parse(META).unwrap();
        let result = download_by(&[&stanza], pool.path(), &|_| (), 1, |_, folder, _| {
            std::fs::write(folder.join(stanza.file_begin() + "amd64.deb"), "other").unwrap();
            Ok(())
        });
        assert!(matches!(result, Err(PackageError::Digest { .. })), "{result:?}");
        assert_eq!(std::fs::read_dir(pool.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_came_before_an_interruption_is_kept_and_the_rest_is_fetched_next() {
        let pool = tempfile::tempdir().unwrap();
        let all: Vec<Stanza> = ["a", "b", "c", "d"]
            .map(|name| Stanza {
                size: Some(1_500_000),
                ..Stanza::new(name.to_owned(), "1:2".to_owned(), Digest::of(&content(name)))
            })
            .into();
        let put = |folder: &Path, stanza: &Stanza, len: usize| {
            let path = folder.join(stanza.file_begin() + "amd64.deb");
            std::fs::write(path, &content(&stanza.name)[..len]).unwrap();
        };
        let told = std::cell::RefCell::new(Vec::new());
        let step = |what: &str| told.borrow_mut().push(what.to_owned());
        let interrupted = || {
            let (command, said) = ("apt-get".to_owned(), "interrupted".to_owned());
            Err(PackageError::Failed { command, said })
        };
        let open = missing(&all, pool.path());
        let result = download_by(&open, pool.path(), &step, 3, |batch, folder, watch| {
            put(folder, batch[0], 1_500_000);
            watch();
            put(folder, batch[1], 1_500_000);
            // In its midst when the interrupt comes.
            put(folder, batch[2], 700_000);
            watch();
            watch();
            interrupted()
        });
        assert!(result.unwrap_err().to_string().contains("interrupted"));
        let open = missing(&all, pool.path());
        assert_eq!(open.iter().map(|stanza| &*stanza.name).collect::<Vec<_>>(), ["c", "d"]);
        // Nothing of the third is left.
        assert_eq!(std::fs::read_dir(pool.path()).unwrap().count(), 2);
        let again = download_by(&open, pool.path(), &step, 1, |batch, folder, _| {
            put(folder, batch[0], 1_500_000);
            Ok(())
        });
        again.unwrap();
        assert!(missing(&all, pool.path()).is_empty());
        insta::assert_snapshot!(told.borrow().join("\n"), @r"
        fetches its packages: 0 of 4, 0 of 6 MB
        fetches its packages: 1 of 4, 2 of 6 MB
        fetches its packages: 2 of 4, 3 of 6 MB
        fetches its packages: 0 of 2, 0 of 3 MB
        fetches its packages: 1 of 2, 2 of 3 MB
        ");
    }

    fn content(name: &str) -> Vec<u8> {
        name.bytes().cycle().take(1_500_000).collect()
    }

    #[test]
    fn whatever_is_wrong_has_a_way_out() {
        let failed = |command: &str, said: &str| PackageError::Failed {
            command: command.to_owned(),
            said: said.to_owned(),
        };
        let unknown = |place: &str, near: Option<&str>| PackageError::Unknown {
            name: "nftable".to_owned(),
            place: place.to_owned(),
            near: near.map(str::to_owned),
        };
        let (found, wanted) = (Digest::of(b"a"), Digest::of(b"b"));
        let suite = || "sid".to_owned();
        let list =
            MirrorError::Digest { suite: suite(), found: found.clone(), wanted: wanted.clone() };
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (error, hint) in [
            (unknown("suite `sid`", Some("nftables")), "is `nftables` meant?"),
            (unknown("suite `sid`", None), "https://packages.debian.org/nftable"),
            (unknown(apt::PLACE, None), "apt-get update"),
            (PackageError::Digest { name: suite(), found, wanted }, "another mirror"),
            (failed("gpgv --keyring x", "gpgv: Can't check signature"), "debian-archive-keyring"),
            (failed("curl -fsSL", "curl: (18) transfer closed"), "are kept"),
            (failed("curl -fsSL", "curl: (23) Failure writing output"), "cache prune"),
            (failed("apt-get -q download", "E: 404"), "apt-get update"),
            (failed("apt-get -q download", "No space left on device"), "cache prune"),
            (failed("mmdebstrap", "tar: No space left on device"), "cache prune"),
            (MirrorError::NoIndex { suite: suite() }.into(), "`dists`"),
            (list.into(), "another mirror"),
            (PackageError::Pool { path: "x".into(), source: full }, "cache prune"),
        ] {
            let said = error.hint().unwrap_or_default();
            assert!(said.contains(hint), "{error}: {said:?}");
        }
    }

    #[test]
    fn a_name_that_was_perhaps_meant_is_near() {
        let near = |name| nearest(name, ["nftables", "busybox-static", "nfs-common"].into_iter());
        assert_eq!(near("nftable").as_deref(), Some("nftables"));
        assert_eq!(near("busybox-statik").as_deref(), Some("busybox-static"));
        assert_eq!(near("postgres"), None);
    }

    #[test]
    fn unpacks_what_it_knows() {
        let packed = run(Command::new("sh").args(["-c", "echo hello | gzip -nc"]), &no()).unwrap();
        assert_eq!(unpack(&packed).unwrap(), b"hello\n");
        assert!(unpack(&packed[..10]).is_err());
        assert!(unpack(b"plain").is_err());
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_last_words() {
        let mut command = Command::new("sh");
        let error =
            run(command.args(["-c", "echo one >&2; echo two >&2; false"]), &no()).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c echo one >&2; echo two >&2; false` failed: two");
        let error = run(&mut Command::new("guestline-no-such-program"), &no()).unwrap_err();
        assert_eq!(error.to_string(), "cannot run `guestline-no-such-program`");
    }

    fn no() -> CancellationToken {
        CancellationToken::new()
    }

    #[test]
    fn a_program_and_its_children_end_when_cancelled() {
        let cancel = no();
        let canceller = cancel.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            canceller.cancel();
        });
        let began = std::time::Instant::now();
        let error = run(Command::new("sh").args(["-c", "sleep 60 | cat"]), &cancel).unwrap_err();
        thread.join().unwrap();
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(error.to_string().ends_with("failed: interrupted"), "{error}");
    }
}
