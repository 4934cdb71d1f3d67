//! Packages through apt, which checks signatures; no root needed (apt-get(8), `download`, `--print-uris`).
//!
//! ```text
//! host's own   its lists as they are
//! a suite      CACHE/apt/SUITE/: sources, lists and state of its own, on the mirrors that the host uses or the one that is configured
//! ```

use super::mirror::{KEYRING, Mirror};
use super::packages::{PackageError, Stanza, Watch, nearest, run, run_watched};
use super::recipe::Recipe;
use crate::digest::Digest;
use nix::unistd::Uid;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use tokio_util::sync::CancellationToken;

/// What [`PackageError::Unknown`] calls the host's own lists.
pub(super) const PLACE: &str = "this host's apt lists";

/// Suites that have no others beside them.
pub(super) const ROLLING: [&str; 3] = ["sid", "unstable", "experimental"];

/// The component that is always looked into.
const MAIN: &str = "main";

/// What a suite's newer packages are in.
const BACKPORTS: &str = "-backports";

/// Packages that nothing can do without, but for apt, which takes itself for one.
const ESSENTIAL: &str = "?essential ?not(?name(^apt$))";

/// What of a suite is looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    suite: String,
    /// Each once, and always `main`.
    components: BTreeSet<String>,
    backports: bool,
}

impl Wanted {
    /// As a recipe has it.
    pub(super) fn of(recipe: &Recipe) -> Self {
        let components = recipe.components.iter().cloned();
        Self {
            suite: recipe.suite.clone().unwrap_or_default(),
            components: components.chain([MAIN.to_owned()]).collect(),
            backports: recipe.backports,
        }
    }

    /// In one word: what has other lists has another one.
    pub(super) fn word(&self) -> String {
        let others = self.components.iter().filter(|name| *name != MAIN);
        let mut word = self.suite.clone();
        for more in others.map(String::as_str).chain(self.backports.then_some("backports")) {
            word += &format!("+{more}");
        }
        word
    }

    /// A line of sources.list(5) for the suite, or for what is beside it, such as `-security`.
    pub(super) fn source(&self, uri: &str, part: &str, keyring: &Path) -> String {
        let components: Vec<&str> = self.components.iter().map(String::as_str).collect();
        let (suite, components) = (&self.suite, components.join(" "));
        format!("deb [signed-by={}] {uri} {suite}{part} {components}\n", keyring.display())
    }

    /// The same for the suite and the backports that are wanted, which are in the same archive.
    pub(super) fn sources(&self, uri: &str, keyring: &Path) -> String {
        let backports = self.backports.then(|| self.source(uri, BACKPORTS, keyring));
        self.source(uri, "", keyring) + &backports.unwrap_or_default()
    }

    /// What apt_preferences(5) is to say: backports count like the suite, so that what is newer there is taken.
    fn preferences(&self) -> String {
        let pin = |by: &str| {
            let suite = &self.suite;
            format!("Package: *\nPin: release {by}={suite}{BACKPORTS}\nPin-Priority: 500\n")
        };
        match self.backports {
            true => format!("{}\n{}", pin("n"), pin("a")),
            false => String::new(),
        }
    }
}

/// An apt, with its lists.
#[derive(Debug, Clone)]
pub(super) struct Apt {
    options: Vec<OsString>,
    place: String,
}

impl Apt {
    /// The host's own, with its lists and preferences, but blind to what is installed: a package that somebody took from
    /// backports would be the candidate from then on (apt_preferences(5)).
    pub(super) fn of_host() -> Self {
        Self { options: vec!["-oDir::State::status=/dev/null".into()], place: PLACE.to_owned() }
    }

    /// One of a suite. Its lists are fetched when there are none, or `fresh` ones are wanted; when that fails, and there are
    /// some, those are used.
    ///
    /// # Errors
    /// [`PackageError`].
    pub(super) fn of_suite(
        wanted: &Wanted,
        mirror: Option<&Mirror>,
        cache: &Path,
        fresh: bool,
        cancel: &CancellationToken,
    ) -> Result<Self, PackageError> {
        let root = cache.join(super::shelf::LISTS).join(wanted.word());
        let wrong = |source: io::Error| PackageError::Pool { path: root.clone(), source };
        for folder in
            ["etc/preferences.d", "etc/apt.conf.d", "state/lists/partial", "cache/archives/partial"]
        {
            fs::create_dir_all(root.join(folder)).map_err(wrong)?;
        }
        let sources = match mirror {
            Some(mirror) => mirror.sources(wanted),
            None => sources_of_host(wanted, cancel)?,
        };
        if sources.is_empty() {
            return Err(PackageError::NoSource {
                host: "this host's apt knows no archive of Debian".to_owned(),
            });
        }
        let list = root.join("etc/sources.list");
        let has_changed = fs::read_to_string(&list).ok().as_deref() != Some(&sources);
        fs::write(root.join("status"), "").map_err(wrong)?;
        fs::write(&list, &sources).map_err(wrong)?;
        let preferences = root.join("etc/preferences.d/guestline");
        fs::write(preferences, wanted.preferences()).map_err(wrong)?;
        let set = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("-o{name}="));
            option.push(value);
            option
        };
        let mut options = vec![
            set("Dir::Etc", &root.join("etc")),
            set("Dir::State", &root.join("state")),
            set("Dir::State::status", &root.join("status")),
            set("Dir::Cache", &root.join("cache")),
        ];
        let plain = [
            "-oAPT::Architecture=amd64",
            "-oAPT::Architectures=amd64",
            "-oAPT::Install-Recommends=false",
            "-oAPT::Get::List-Cleanup=true",
            "-oAcquire::Languages=none",
            "-oAcquire::ForceHash=SHA256",
            "-oDir::Etc::SourceParts=/dev/null",
        ];
        options.extend(plain.map(OsString::from));
        let apt = Self { options, place: format!("suite `{}`", wanted.word()) };
        let lists = fs::read_dir(root.join("state/lists")).map_err(wrong)?.flatten();
        let has_lists =
            lists.into_iter().any(|file| file.file_name().to_string_lossy().contains("_Packages"));
        if fresh || has_changed || !has_lists {
            match run(
                apt.command("apt-get").args(["-q", "update", "-oAPT::Update::Error-Mode=any"]),
                cancel,
            ) {
                Err(error) if !has_lists || cancel.is_cancelled() => return Err(error),
                _ => {}
            }
        }
        Ok(apt)
    }

    /// The candidate version's stanza.
    ///
    /// # Errors
    /// [`PackageError`].
    pub(super) fn show(
        &self,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<Stanza, PackageError> {
        let unknown = || self.unknown(name.to_owned(), cancel);
        let shown =
            run(self.command("apt-cache").args(["show", "--no-all-versions", name]), cancel);
        let text = shown.map_err(|error| match error {
            PackageError::Failed { .. } if !cancel.is_cancelled() => unknown(),
            other => other,
        })?;
        Stanza::parse(&String::from_utf8_lossy(&text)).ok_or_else(unknown)
    }

    /// What installing these in an empty root takes, with all that nothing can do without.
    ///
    /// # Errors
    /// [`PackageError`].
    pub(super) fn plan(
        &self,
        names: &[String],
        cancel: &CancellationToken,
    ) -> Result<Vec<Stanza>, PackageError> {
        let mut command = self.command("apt-get");
        command.args(["-q", "-y", "--print-uris", "install", ESSENTIAL]).args(names);
        let text = run(&mut command, cancel).map_err(|error| match &error {
            PackageError::Failed { said, .. } => match unknown_in(said) {
                Some(name) => self.unknown(name, cancel),
                None => error,
            },
            _ => error,
        })?;
        let text = String::from_utf8_lossy(&text);
        let mut plan: Vec<Stanza> = text.lines().filter_map(parse_uri).collect();
        plan.sort_by(|a, b| a.name.cmp(&b.name));
        match plan.is_empty() {
            false => Ok(plan),
            true => Err(PackageError::Failed {
                command: "apt-get --print-uris install".to_owned(),
                said: "it names no package".to_owned(),
            }),
        }
    }

    /// Downloads packages, of which names and versions are known, into a folder.
    ///
    /// # Errors
    /// [`PackageError`].
    pub(super) fn download(
        &self,
        packages: &[(&str, &str)],
        folder: &Path,
        watch: Watch<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), PackageError> {
        let mut command = self.command("apt-get");
        command.current_dir(folder).args(["-q", "download"]);
        command.args(packages.iter().map(|(name, version)| format!("{name}={version}")));
        run_watched(&mut command, None, watch, cancel).map(drop)
    }

    fn unknown(&self, name: String, cancel: &CancellationToken) -> PackageError {
        let names = run(self.command("apt-cache").arg("pkgnames"), cancel).unwrap_or_default();
        let near = nearest(&name, String::from_utf8_lossy(&names).lines());
        PackageError::Unknown { name, place: self.place.clone(), near }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        if Uid::effective().is_root() {
            // Otherwise root's apt downloads as a user who may not enter our folder.
            command.arg("-oAPT::Sandbox::User=root");
        }
        command
    }
}

/// The sources of a suite on the mirrors from which the host has its own, whichever that is: the suite itself, its updates
/// and its security archive.
fn sources_of_host(wanted: &Wanted, cancel: &CancellationToken) -> Result<String, PackageError> {
    let format = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let text = run(&mut command, cancel)?;
    Ok(sources_of(&String::from_utf8_lossy(&text), wanted))
}

fn sources_of(targets: &str, wanted: &Wanted) -> String {
    let targets: Vec<(&str, &str)> = targets
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, '|');
            let (origin, release) = (fields.next()?, fields.next()?);
            let (component, uri) = (fields.next()?, fields.next()?);
            (origin == "Debian" && component == MAIN).then_some((release, uri))
        })
        .collect();
    // The host's own suite is the one that nothing hangs on.
    let own =
        targets.iter().map(|(release, _)| *release).find(|release| !release.contains(['-', '/']));
    let Some(own) = own else { return String::new() };
    let parts = match ROLLING.contains(&&*wanted.suite) {
        true => &[""][..],
        false => &["", "-updates", "-security"],
    };
    let mut seen = BTreeSet::new();
    let mut text = String::new();
    for (release, uri) in targets {
        let Some(part) = release.strip_prefix(own).filter(|part| parts.contains(part)) else {
            continue;
        };
        if seen.insert((uri, part)) {
            text += &match part {
                "" => wanted.sources(uri, Path::new(KEYRING)),
                part => wanted.source(uri, part, Path::new(KEYRING)),
            };
        }
    }
    text
}

/// The package that apt cannot find.
fn unknown_in(said: &str) -> Option<String> {
    let name = said.strip_prefix("E: Unable to locate package ").or_else(|| {
        said.strip_prefix("E: Package '")?.strip_suffix("' has no installation candidate")
    })?;
    Some(name.trim().to_owned())
}

/// `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE SHA256:DIGEST`
fn parse_uri(line: &str) -> Option<Stanza> {
    let mut words = line.strip_prefix('\'')?.split_whitespace();
    let (_uri, file, size) = (words.next()?, words.next()?, words.next()?);
    let sha256 = Digest::parse(words.next()?.strip_prefix("SHA256:")?)?;
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version) = (parts.next()?.to_owned(), parts.next()?.replace("%3a", ":"));
    let mut stanza = Stanza::new(name, version, sha256);
    stanza.size = size.parse().ok();
    Some(stanza)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_looked_for_where_the_host_has_its_own() {
        let targets = "Debian|bookworm|main|https://m/debian/\n\
                       Debian|bookworm|contrib|https://m/debian/\n\
                       Debian|bookworm-updates|main|https://m/debian/\n\
                       Debian|bookworm-backports|main|https://m/debian/\n\
                       Debian|bookworm-security|main|https://m/debian-security/\n\
                       Node|nodistro|main|https://n/\n";
        let wanted = |suite: &str| Wanted {
            suite: suite.to_owned(),
            components: [MAIN.to_owned()].into(),
            backports: false,
        };
        insta::assert_snapshot!(sources_of(targets, &wanted("trixie")), @r"
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian/ trixie main
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian/ trixie-updates main
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian-security/ trixie-security main
        ");
        assert_eq!(sources_of(targets, &wanted("sid")).lines().count(), 1);
        assert_eq!(sources_of("Ubuntu|noble|main|https://u/\n", &wanted("trixie")), "");
        assert_eq!((&*wanted("sid").word(), &*wanted("sid").preferences()), ("sid", ""));
        let more = Wanted {
            components: [MAIN, "contrib"].map(str::to_owned).into(),
            backports: true,
            ..wanted("trixie")
        };
        insta::assert_snapshot!(sources_of(targets, &more), @r"
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian/ trixie contrib main
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian/ trixie-backports contrib main
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian/ trixie-updates contrib main
        deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://m/debian-security/ trixie-security contrib main
        ");
        assert_eq!(more.word(), "trixie+contrib+backports");
        assert!(
            more.preferences().contains("Pin: release n=trixie-backports\nPin-Priority: 500\n")
        );
    }

    #[test]
    fn what_a_plan_says() {
        let digest = "d9d0e75779cb79af869181f17b93c5c263a2b89cac6a0193c436160a4483ddc1";
        let line = format!("'https://m/p.deb' procps_2%3a4.0.2-3_amd64.deb 708712 SHA256:{digest}");
        let stanza = parse_uri(&line).unwrap();
        assert_eq!((stanza.name.as_str(), stanza.version.as_str()), ("procps", "2:4.0.2-3"));
        assert_eq!(stanza.size, Some(708_712));
        assert_eq!(stanza.file_begin(), "procps_2%3a4.0.2-3_");
        assert_eq!(parse_uri("Reading package lists..."), None);
        assert_eq!(unknown_in("E: Unable to locate package nftable").unwrap(), "nftable");
        assert_eq!(unknown_in("E: Package 'x' has no installation candidate").unwrap(), "x");
        assert_eq!(unknown_in("E: something else"), None);
    }
}
