//! Debian packages: which ones, from where, checked, and kept in a pool.
//!
//! A package's stanza (deb-src-control(5), "Packages" index) names its version and its SHA-256.
//! Whichever way it comes, a package is taken only with that digest, and kept under it.

use super::apt;
use super::mirror::{Mirror, MirrorError};
use crate::digest::Digest;
use crate::image::manifest::PackageRecord;
use crate::sys;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
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
                "name a Debian mirror in guestline.toml: docs/images.md, \"Hosts without apt\""
                    .to_owned(),
            ),
            Self::Unknown { place, .. } if place == apt::PLACE => {
                Some("are apt's lists there? `apt-get update` as root fetches them".to_owned())
            }
            Self::Failed { command, said }
                if command.starts_with("apt-get") && !said.contains("No space left") =>
            {
                Some("does the mirror answer? `apt-get update` as root tells".to_owned())
            }
            Self::NoProgram { program, .. } => {
                Some(format!("install the package that has `{program}`"))
            }
            _ => None,
        }
    }
}

/// A package's entry in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stanza {
    pub(super) name: String,
    pub(super) version: String,
    /// Path below the mirror.
    pub(super) filename: String,
    pub(super) sha256: Digest,
    depends: String,
}

impl Stanza {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once(": ")).collect();
        let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
        Some(Self {
            name: field("Package")?,
            version: field("Version")?,
            filename: field("Filename")?,
            sha256: Digest::parse(fields.get("SHA256")?)?,
            depends: field("Depends").unwrap_or_default(),
        })
    }

    /// The kernel that a kernel metapackage stands for.
    fn stands_for(&self) -> Option<&str> {
        let first = self.depends.split([' ', ',']).next()?;
        (self.name.starts_with("linux-image-") && first.starts_with("linux-image-"))
            .then_some(first)
    }
}

/// A package in the pool.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) record: PackageRecord,
    pub(super) path: PathBuf,
}

impl PackageSource {
    /// The named packages, metapackages of kernels replaced by the kernel, from the pool or into it.
    pub(super) fn fetch(
        &self,
        names: &[String],
        pool: &Path,
        cancel: &CancellationToken,
    ) -> Result<Vec<Fetched>, PackageError> {
        std::fs::create_dir_all(pool)
            .map_err(|source| PackageError::Pool { path: pool.to_owned(), source })?;
        match self {
            Self::Apt => names
                .iter()
                .map(|name| {
                    let stanza = resolve(name, |name| apt::show(name, cancel))?;
                    keep(&stanza, pool, |folder| apt::download(&stanza, folder, cancel))
                })
                .collect(),
            Self::Mirror(mirror) => {
                let index = mirror.index(pool, cancel)?;
                names
                    .iter()
                    .map(|name| {
                        let stanza = resolve(name, |name| index.find(name))?;
                        keep(&stanza, pool, |folder| mirror.download(&stanza, folder, cancel))
                    })
                    .collect()
            }
            Self::None { host } => Err(PackageError::NoSource { host: host.clone() }),
        }
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

fn resolve(
    name: &str,
    find: impl Fn(&str) -> Result<Stanza, PackageError>,
) -> Result<Stanza, PackageError> {
    let stanza = find(name)?;
    match stanza.stands_for() {
        Some(kernel) => find(kernel),
        None => Ok(stanza),
    }
}

/// The package from the pool, else by `download`, which puts one file into a folder and returns it.
fn keep(
    stanza: &Stanza,
    pool: &Path,
    download: impl FnOnce(&Path) -> Result<PathBuf, PackageError>,
) -> Result<Fetched, PackageError> {
    let path = pool.join(format!("{}_{}.deb", stanza.name, stanza.sha256.short()));
    let trouble = |path: &Path| {
        let path = path.to_owned();
        move |source| PackageError::Pool { path, source }
    };
    let kept = Digest::of_file(&path).is_ok_and(|digest| digest == stanza.sha256);
    if !kept {
        let folder = making_folder(pool).map_err(trouble(pool))?;
        let file = download(folder.path())?;
        let found = Digest::of_file(&file).map_err(trouble(&file))?;
        if found != stanza.sha256 {
            let (name, wanted) = (stanza.name.clone(), stanza.sha256.clone());
            return Err(PackageError::Digest { name, found, wanted });
        }
        std::fs::rename(&file, &path).map_err(trouble(&path))?;
    }
    let record = PackageRecord {
        name: stanza.name.clone(),
        version: stanza.version.clone(),
        sha256: stanza.sha256.clone(),
    };
    Ok(Fetched { record, path })
}

/// A folder that is swept when its maker dies.
pub(super) fn making_folder(parent: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(super::shelf::MAKING).tempdir_in(parent)
}

/// Runs a program to its end, or to that of `cancel`, and returns its standard output.
pub(super) fn run(
    command: &mut Command,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, PackageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    let line = line.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("LC_ALL", "C.UTF-8").process_group(0);
    sys::die_with_us(command);
    let no_program = |source| PackageError::NoProgram { program: program.clone(), source };
    let mut child = command.spawn().map_err(no_program)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, stdout, stderr) = std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read_all(stdout));
        let stderr = scope.spawn(|| read_all(stderr));
        let status = loop {
            match child.try_wait() {
                Ok(None) if cancel.is_cancelled() => {
                    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                    break child.wait();
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
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
    let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("said nothing");
    let said = if cancel.is_cancelled() { "interrupted" } else { said.trim() };
    Err(PackageError::Failed { command: line, said: said.to_owned() })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
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
    fn a_kernel_metapackage_stands_for_its_kernel() {
        let meta = Stanza::parse(META).unwrap();
        assert_eq!(meta.stands_for(), Some("linux-image-6.1.0-56-cloud-amd64"));
        let kernel =
            Stanza::parse(&META.replace("linux-image-cloud-amd64", "busybox-static")).unwrap();
        assert_eq!(kernel.stands_for(), None);
        assert_eq!(Stanza::parse("Package: half\n"), None);
    }

    #[test]
    fn a_download_with_another_digest_is_refused_and_not_kept() {
        let pool = tempfile::tempdir().unwrap();
        let stanza = Stanza::parse(META).unwrap();
        let result = keep(&stanza, pool.path(), |folder| {
            let path = folder.join("x.deb");
            std::fs::write(&path, "other").unwrap();
            Ok(path)
        });
        assert!(matches!(result, Err(PackageError::Digest { .. })), "{result:?}");
        assert_eq!(std::fs::read_dir(pool.path()).unwrap().count(), 0);
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
