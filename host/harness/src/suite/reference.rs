//! References: where tests are that are to run.
//!
//! ```text
//! tests/                                    a folder, a file, or a test by its name below its suite
//! tests/net/mtu.sh[nic=e1000]               variants of it
//! git+https://host/suite.git                a repository, at its HEAD
//! git+ssh://git@host/suite.git@v1.2#net     a branch, tag or commit of it, and a path in it
//! git+file:///srv/suite.git@main#net/mtu[nic=e1000]
//! ```
//! What stands behind the last `@` of the path of an URL is the revision: an URL with one in its path needs `@HEAD` behind it.

use super::selector::{Selector, SelectorError};
use crate::text::one_line;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// A reference is not longer, bytes.
const MAX_LEN: usize = 8192;

/// A revision is not longer, bytes.
const MAX_REVISION_LEN: usize = 256;

/// What git is asked to speak.
const SCHEMES: [&str; 4] = ["https", "ssh", "file", "http"];

/// Where tests are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where.
    pub source: Source,
    /// Which variants of them.
    pub selector: Option<Selector>,
}

/// Where tests are, without variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On this host; perhaps no file, but a name of a test below its suite.
    Path(PathBuf),
    /// In a repository.
    Git(GitSource),
}

/// A place in a repository, which git may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    url: String,
    revision: Option<String>,
    folder: Option<PathBuf>,
}

/// Words that are no reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// There are none.
    #[error("there is no reference: name a file, a folder, or a repository as git+https://…")]
    Empty,
    /// There are too many.
    #[error("the reference `{begin}` is longer than {MAX_LEN} bytes")]
    TooLong {
        /// Its beginning.
        begin: String,
    },
    /// Something is in it that nothing has.
    #[error("the reference `{words}` has a control character in it")]
    Control {
        /// They.
        words: String,
    },
    /// It looks like a repository.
    #[error("`{words}` looks like a repository: write `{meant}`")]
    Meant {
        /// They.
        words: String,
        /// How it is written.
        meant: String,
    },
    /// It is no URL.
    #[error("`{words}` is no repository: {why}")]
    Url {
        /// They.
        words: String,
        /// What is wanted.
        why: String,
    },
    /// It is no revision.
    #[error(
        "`{revision}` is no revision: one is a branch, a tag or a commit, and does not begin with `-`"
    )]
    Revision {
        /// It.
        revision: String,
    },
    /// It leads out of the repository.
    #[error("`{folder}` is no path in a repository: it is relative and has no `..`")]
    Folder {
        /// It.
        folder: String,
    },
    /// What stands in brackets selects nothing.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(words: &str) -> Result<Self, ReferenceError> {
        if words.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if words.len() > MAX_LEN {
            return Err(ReferenceError::TooLong { begin: one_line(words, 60) });
        }
        if words.contains(char::is_control) {
            return Err(ReferenceError::Control { words: one_line(words, 200) });
        }
        let (place, selector) = match words.strip_suffix(']').and_then(|_| words.rfind('[')) {
            Some(at) => (&words[..at], Some(words[at..].parse()?)),
            None => (words, None),
        };
        if place.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let source = match place.strip_prefix("git+") {
            Some(url) => Source::Git(git(url)?),
            None => match meant(place) {
                Some(meant) => {
                    return Err(ReferenceError::Meant { words: without_secret(place), meant });
                }
                None => Source::Path(place.into()),
            },
        };
        Ok(Self { source, selector })
    }
}

/// How what is surely no path is written.
fn meant(place: &str) -> Option<String> {
    let scheme = place.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return Some(format!("git+{}", without_secret(place)));
    }
    // What scp and git take: user@host:path.
    let (host, path) = place.split_once(':')?;
    let is_host = host.contains('@') && !host.contains('/') && !path.is_empty();
    is_host.then(|| format!("git+ssh://{host}/{}", path.trim_start_matches('/')))
}

fn git(text: &str) -> Result<GitSource, ReferenceError> {
    let (place, folder) = match text.split_once('#') {
        Some((place, folder)) => (place, Some(folder)),
        None => (text, None),
    };
    let path = place.find("://").and_then(|at| Some(at + 3 + place[at + 3..].find('/')?));
    let (url, revision) = match path.and_then(|path| Some(path + place[path..].rfind('@')?)) {
        Some(at) => (&place[..at], Some(&place[at + 1..])),
        None => (place, None),
    };
    GitSource::new(url, revision, folder.filter(|it| !it.is_empty()).map(Path::new))
}

impl GitSource {
    /// A place in a repository: at HEAD without a revision, the whole of it without a folder.
    ///
    /// # Errors
    /// One of them is none that git may be asked for.
    pub fn new(
        url: &str,
        revision: Option<&str>,
        folder: Option<&Path>,
    ) -> Result<Self, ReferenceError> {
        let wrong = |why: &str| ReferenceError::Url { words: without_secret(url), why: why.into() };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            wrong("write git+https://HOST/PATH, git+ssh://USER@HOST/PATH or git+file:///PATH")
        })?;
        if !SCHEMES.contains(&scheme) {
            return Err(wrong("git is asked for https, http, ssh and file"));
        }
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if path.trim_matches('/').is_empty() {
            return Err(wrong("it has no path"));
        }
        match (scheme, host) {
            ("file", "") => {}
            ("file", _) => return Err(wrong("a path on this host begins with three slashes")),
            (_, "") => return Err(wrong("it has no host")),
            // ssh would take it for an option.
            _ if host.starts_with('-') || host.contains("@-") => {
                return Err(wrong("a host does not begin with `-`"));
            }
            _ => {}
        }
        if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err(wrong("spaces are written %20"));
        }
        if let Some(revision) = revision.filter(|revision| !is_revision(revision)) {
            return Err(ReferenceError::Revision { revision: one_line(revision, 80) });
        }
        let is_inner = |folder: &&Path| {
            folder.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        if let Some(folder) = folder.filter(|folder| !is_inner(folder)) {
            let folder = one_line(&folder.to_string_lossy(), 200);
            return Err(ReferenceError::Folder { folder });
        }
        let (revision, folder) = (revision.map(str::to_owned), folder.map(Path::to_owned));
        Ok(Self { url: url.to_owned(), revision, folder })
    }

    /// For git; it may have a password in it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// As it may be shown and recorded.
    pub fn shown_url(&self) -> String {
        without_secret(&self.url)
    }

    /// The branch, tag or commit; none for HEAD.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The path in it; none for the whole.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// Whether git may be asked for it: no option, no range, no pattern, nothing in which a refspec has a meaning.
fn is_revision(text: &str) -> bool {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control() || "+:?*[\\^".contains(c);
    (1..=MAX_REVISION_LEN).contains(&text.len())
        && !text.starts_with(['-', '/', '.'])
        && !text.ends_with('/')
        && !text.contains(is_wrong)
        && !text.contains("..")
        && !text.contains("@{")
}

/// An URL without the password in it.
fn without_secret(url: &str) -> String {
    let shown = || {
        let (scheme, rest) = url.split_once("://")?;
        let host = &rest[..rest.find('/').unwrap_or(rest.len())];
        let (user, _) = host.rsplit_once('@')?;
        let behind = &rest[user.len()..];
        // What https has for a user alone may be a token.
        match user.split_once(':') {
            Some((name, _)) => Some(format!("{scheme}://{name}:***{behind}")),
            None if scheme == "ssh" => None,
            None => Some(format!("{scheme}://***{behind}")),
        }
    };
    one_line(&shown().unwrap_or_else(|| url.to_owned()), 300)
}

impl fmt::Display for GitSource {
    /// As a reference is written, without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "git+{}", self.shown_url())?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}")?,
            None if self.url.rsplit("://").next().is_some_and(|rest| {
                rest.split_once('/').is_some_and(|(_, path)| path.contains('@'))
            }) =>
            {
                f.write_str("@HEAD")?;
            }
            None => {}
        }
        match &self.folder {
            Some(folder) => write!(f, "#{}", folder.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Git(source) => source.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(words: &str) -> Reference {
        words.parse().unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    fn why(words: &str) -> String {
        words.parse::<Reference>().unwrap_err().to_string()
    }

    #[test]
    fn paths_may_have_a_selector() {
        for path in
            ["tests/", "tests/net/mtu.sh", "tests/cpu/avx512", ".", "-x", "a[1].sh", "gitty", "a:b"]
        {
            assert_eq!(
                reference(path),
                Reference { source: Source::Path(path.into()), selector: None }
            );
        }
        let some = reference("tests/net/mtu[nic=e1000]");
        assert_eq!(some.source, Source::Path("tests/net/mtu".into()));
        assert_eq!(some.selector, Some("nic=e1000".parse().unwrap()));
        assert!(
            why("mtu[nic]").contains("is not AXIS=VALUE")
                && why("mtu[]").contains("selects nothing")
        );
    }

    #[test]
    fn repositories_may_have_a_revision_and_a_folder() {
        for (words, url, revision, folder) in [
            (
                "git+file:///srv/s.git@v1.2#sub/dir",
                "file:///srv/s.git",
                Some("v1.2"),
                Some("sub/dir"),
            ),
            ("git+https://h/s.git", "https://h/s.git", None, None),
            ("git+ssh://git@h/s.git", "ssh://git@h/s.git", None, None),
            ("git+ssh://git@h:22/s.git@feature/x", "ssh://git@h:22/s.git", Some("feature/x"), None),
            (
                "git+https://h/@scope/s.git@HEAD#a@b",
                "https://h/@scope/s.git",
                Some("HEAD"),
                Some("a@b"),
            ),
            ("git+https://h/s#", "https://h/s", None, None),
            (
                "git+https://[::1]/s@refs/pull/1/head",
                "https://[::1]/s",
                Some("refs/pull/1/head"),
                None,
            ),
        ] {
            let Source::Git(source) = reference(words).source else { panic!("{words}") };
            let got = (source.url(), source.revision(), source.folder());
            assert_eq!(got, (url, revision, folder.map(Path::new)), "{words}");
            assert_eq!(source.to_string(), words.trim_end_matches('#'));
        }
        let some = reference("git+file:///s.git#net/mtu[nic=e1000]");
        assert_eq!(some.source.to_string(), "git+file:///s.git#net/mtu");
        assert!(some.selector.is_some());
    }

    #[test]
    fn what_is_none_says_the_way_out() {
        assert!(why("").contains("name a file, a folder") && why("[a=b]").contains("name a file"));
        assert_eq!(
            why("https://h/s"),
            "`https://h/s` looks like a repository: write `git+https://h/s`"
        );
        assert!(why("git@h:a/s.git").ends_with("write `git+ssh://git@h/a/s.git`"));
        for (words, wanted) in [
            ("git+h/s", "write git+https://HOST/PATH"),
            ("git+ext::sh -c x", "write git+https://HOST/PATH"),
            ("git+ext://x/y", "git is asked for https"),
            ("git+https://h", "it has no path"),
            ("git+https:///s", "it has no host"),
            ("git+file://h/s", "begins with three slashes"),
            ("git+ssh://-oProxyCommand=x/s", "a host does not begin with `-`"),
            ("git+ssh://u@-oProxyCommand=x/s", "a host does not begin with `-`"),
            ("git+https://h/a b", "spaces are written %20"),
            ("git+https://h/s@-x", "`-x` is no revision"),
            ("git+https://h/s@", "`` is no revision"),
            ("git+https://h/s@a..b", "`a..b` is no revision"),
            ("git+https://h/s@+a:b", "`+a:b` is no revision"),
            ("git+https://h/s#../x", "no path in a repository"),
            ("git+https://h/s#/etc", "no path in a repository"),
            ("a\u{1b}[2J", "control character"),
        ] {
            assert!(why(words).contains(wanted), "{words}: {}", why(words));
        }
        assert!(why(&"x".repeat(MAX_LEN + 1)).len() < 200);
    }

    #[test]
    fn a_password_is_not_shown() {
        let secret = reference("git+https://me:s3cret@h/s.git@v1");
        assert_eq!(secret.source.to_string(), "git+https://me:***@h/s.git@v1");
        let token = reference("git+https://t0ken@h/s.git").source.to_string();
        assert_eq!(token, "git+https://***@h/s.git");
        assert!(!why("https://me:s3cret@h/s").contains("s3cret"));
        assert!(!why("git+https://me:s3cret@h").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn no_words_panic(words in "\\PC{0,40}|(git\\+)?(file|ssh|https)?(://)?[a-z@/#:\\[\\]=.-]{0,20}") {
            if let Ok(found) = words.parse::<Reference>() {
                let again: Reference = found.source.to_string().parse().unwrap_or(found.clone());
                if !found.source.to_string().contains("***") && !found.source.to_string().ends_with(']') {
                    prop_assert_eq!(again.source, found.source);
                }
            }
        }
    }
}
