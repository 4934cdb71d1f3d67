use super::super::reference::{Reference, Source};
use super::*;
use std::os::unix::fs::symlink;
use std::sync::Barrier;

/// A repository with two commits, and a cache.
struct Fixture {
    home: tempfile::TempDir,
    first: String,
    second: String,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join("suite");
        fs::create_dir_all(repository.join("net/deep")).unwrap();
        let mut fixture = Self { home, first: String::new(), second: String::new() };
        fixture.git(&["init", "--quiet", "--initial-branch=trunk"]);
        fixture.write("net/mtu.sh", "#!/bin/sh\n");
        symlink("/etc", repository.join("out")).unwrap();
        symlink("net", repository.join("in")).unwrap();
        fixture.first = fixture.commit();
        fixture.git(&["tag", "-a", "-m", "one", "v1"]);
        fixture.write("net/mtu.sh", "second\n");
        fixture.second = fixture.commit();
        fixture
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("suite")
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    fn git(&self, words: &[&str]) -> String {
        let mut command = Command::new("git");
        for name in LOCAL {
            command.env_remove(name);
        }
        let names =
            ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgSign=false"];
        let output =
            command.current_dir(self.repository()).args(names).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.repository().join(name), text).unwrap();
    }

    fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message=x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn checkout(&self, behind: &str) -> Result<Checkout, GitError> {
        let words = format!("git+file://{}{behind}", self.repository().display());
        let reference: Reference = words.parse().unwrap();
        let Source::Git(source) = reference.source else { panic!("{words}") };
        checkout(&source, &self.cache(), &CancellationToken::new())
    }

    fn why(&self, behind: &str) -> (String, Option<String>) {
        let error = self.checkout(behind).unwrap_err();
        let hide = |text: String| text.replace(&self.repository().display().to_string(), "/suite");
        (hide(error.to_string()), error.hint().map(hide))
    }
}

fn content(checkout: &Checkout) -> String {
    fs::read_to_string(checkout.root.join("net/mtu.sh")).unwrap()
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let fixture = Fixture::new();
    let head = fixture.checkout("").unwrap();
    assert_eq!((&head.commit, content(&head).as_str()), (&fixture.second, "second\n"));
    assert_eq!((&head.folder, head.root.join(".git").exists()), (&head.root, false));
    assert_eq!(head.url, format!("file://{}", fixture.repository().display()));
    let first = &fixture.first;
    for revision in ["v1", "refs/tags/v1", "HEAD~1", "trunk~1", first, &first[..12]] {
        let one = fixture.checkout(&format!("@{revision}#net")).unwrap();
        assert_eq!((&one.commit, content(&one).as_str()), (first, "#!/bin/sh\n"), "{revision}");
        assert_eq!(one.folder, one.root.join("net"));
    }
    // A branch that moved is fetched again, with force.
    fixture.git(&["reset", "--quiet", "--hard", "v1"]);
    fixture.write("net/mtu.sh", "third\n");
    let third = fixture.commit();
    assert_eq!(fixture.checkout("@trunk").unwrap().commit, third);
    assert_eq!(content(&head), "second\n");
}

#[test]
fn a_commit_that_is_there_needs_no_repository() {
    let fixture = Fixture::new();
    let before = fixture.checkout(&format!("@{}", fixture.first)).unwrap();
    fs::rename(fixture.repository(), fixture.home.path().join("gone")).unwrap();
    assert_eq!(fixture.checkout(&format!("@{}", fixture.first)).unwrap(), before);
    // That one was fetched with the other, and only has to be written.
    let second = fixture.checkout(&format!("@{}", fixture.second)).unwrap();
    assert_eq!(content(&second), "second\n");
    let (why, hint) = fixture.why("@v1");
    assert!(
        why.starts_with("git cannot fetch file:///suite at `v1`: fatal: '/suite' does not"),
        "{why}"
    );
    assert!(hint.unwrap().contains("`git ls-remote file:///suite` has to work"));
}

#[test]
fn a_commit_that_no_branch_has_is_asked_for() {
    let fixture = Fixture::new();
    fixture.git(&["reset", "--quiet", "--hard", "v1"]);
    let second = fixture.checkout(&format!("@{}", fixture.second)).unwrap();
    assert_eq!(content(&second), "second\n");
}

#[test]
fn no_path_leads_out() {
    let fixture = Fixture::new();
    assert!(fixture.checkout("#in/mtu.sh").unwrap().folder.ends_with("in/mtu.sh"));
    // A name of a test below its suite.
    assert!(fixture.checkout("#net/mtu/case").is_ok());
    let commit = &fixture.second;
    for out in ["out", "out/passwd", "out/none"] {
        let (why, _) = fixture.why(&format!("#{out}"));
        assert_eq!(
            why,
            format!("`{out}` in {commit} of file:///suite leads out of the repository")
        );
    }
    let (why, hint) = fixture.why("#none/at/all");
    assert_eq!(why, format!("file:///suite has no `none/at/all` in {commit}"));
    assert!(hint.is_some());
}

#[test]
fn what_is_not_there_is_told() {
    let fixture = Fixture::new();
    for none in ["v9", "0123456789", "refs/guestline/x"] {
        let (why, hint) = fixture.why(&format!("@{none}"));
        let is_fetch = none.starts_with("refs/");
        assert!(is_fetch || why == format!("file:///suite has no `{none}`"), "{why}");
        assert!(why.contains(none) && hint.unwrap().contains("git ls-remote file:///suite"));
    }
    let (why, _) = fixture.why(&format!("@{}", "0123".repeat(10)));
    assert!(why.contains("git cannot fetch file:///suite at `0123"), "{why}");
    let empty = tempfile::tempdir_in(fixture.home.path()).unwrap();
    let source = GitSource::new(&format!("file://{}", empty.path().display()), None, None).unwrap();
    let none = checkout(&source, &fixture.cache(), &CancellationToken::new());
    assert!(matches!(none, Err(GitError::Git { doing: "fetch", .. })));
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(checkout(&source, &fixture.cache(), &cancel), Err(GitError::Cancelled)));
}

#[test]
fn several_at_once_get_the_same() {
    let fixture = Fixture::new();
    let barrier = Barrier::new(4);
    let found: Vec<_> = std::thread::scope(|scope| {
        let one = || {
            barrier.wait();
            fixture.checkout("@v1").unwrap()
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(found.iter().all(|one| one == &found[0] && content(one) == "#!/bin/sh\n"));
    // What an interrupted one left is no hindrance.
    let folder = found[0].root.parent().unwrap().parent().unwrap();
    fs::create_dir_all(folder.join("making/files/left")).unwrap();
    let head = fixture.checkout("").unwrap();
    assert!(!head.root.join("left").exists() && !folder.join("making").exists());
}

#[test]
fn nothing_in_a_repository_is_run() {
    let fixture = Fixture::new();
    let mark = fixture.home.path().join("mark");
    fixture.write(".gitattributes", "* filter=evil\n");
    fixture
        .write(".gitconfig", &format!("[filter \"evil\"]\n smudge = touch {}\n", mark.display()));
    fs::create_dir_all(fixture.repository().join("hooks")).unwrap();
    fixture.write("hooks/post-checkout", &format!("#!/bin/sh\ntouch {}\n", mark.display()));
    fixture.write(".gitmodules", "[submodule \"a\"]\n path = a\n url = ext::sh -c touch% mark\n");
    fixture.commit();
    assert!(fixture.checkout("").is_ok());
    assert!(!mark.exists());
}
