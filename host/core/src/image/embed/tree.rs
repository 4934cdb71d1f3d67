//! Paths in a root file system, resolved as its own system would: absolute links and `..` stay below its root.

use super::root::{Node, Root};
use crate::digest::Digest;
use crate::host::hint_of_io;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// So many links lead to one place at most (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A larger file is none that is read here whole, in bytes.
const MAX_READ: u64 = 16 << 20;

/// A larger file is none that embedding put there, in bytes; an agent with all its symbols is smaller.
const MAX_OURS: u64 = 64 << 20;

/// The agent can be neither embedded nor taken out.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// Something in the root.
    #[error("cannot {what} `{}` in it", shown(path))]
    Access {
        /// As in "write".
        what: &'static str,
        /// Below the root.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Links lead to links.
    #[error("links lead round in circles at `{}`", shown(path))]
    Circle {
        /// Below the root.
        path: PathBuf,
    },
    /// Something lies in the way.
    #[error("`{}` is no folder", shown(path))]
    NotAFolder {
        /// Below the root.
        path: PathBuf,
    },
    /// A file is larger than it may be.
    #[error("`{}` has {len} bytes, which is no file of its kind", shown(path))]
    TooLong {
        /// Below the root.
        path: PathBuf,
        /// What it has.
        len: u64,
    },
    /// Somebody else has put it there.
    #[error("`{path}` is there already, and `guestline image embed` has not put it there")]
    Taken {
        /// The path.
        path: String,
    },
    /// What was recorded cannot be understood.
    #[error("`{}` is no record that this program can read: {why}", super::RECORD)]
    Record {
        /// Why.
        why: String,
    },
    /// There is no system.
    #[error("it holds no Linux system: neither os-release nor an init nor a shell")]
    NoSystem,
    /// Its programs are others than the agent.
    #[error("its programs are for {found}, and the agent for x86-64")]
    Architecture {
        /// What they are for.
        found: String,
    },
    /// Nothing would start the agent.
    #[error("its init `{}` is none that embedding knows", shown(path))]
    UnknownInit {
        /// Where it is.
        path: PathBuf,
    },
}

impl EmbedError {
    /// What mends it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Access { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "its owner may do so: run this as root, or on a tree of your own"
            }
            Self::Access { source, .. } => return hint_of_io(source),
            Self::Circle { .. } | Self::NotAFolder { .. } => "mend that in the root first",
            Self::TooLong { .. } => "make it what it was, or move it away first",
            Self::NoSystem => "is it a part of a root? name the folder or disk that has all of it",
            Self::Taken { .. } => "move it away first, or leave the agent as it is",
            Self::Record { .. } => "use the version of guestline that embedded the agent",
            Self::Architecture { .. } => {
                "`make agent ARCH=…` in a checkout builds an agent; put it there by hand"
            }
            Self::UnknownInit { path } if path == Path::new("init") => {
                "where it mounts a root and goes on there, embed the agent into that root; `guestline image import` makes \
                 an image of it in which the agent is the init"
            }
            Self::UnknownInit { .. } => {
                "`guestline agent extract` writes the agent, `guestline agent unit plain` prints what starts it"
            }
        })
    }
}

/// As the root's own system names it.
fn shown(path: &Path) -> String {
    crate::text::printable(&format!("/{}", path.display()))
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Without links, below the root.
    pub(super) path: PathBuf,
    /// What is there.
    pub(super) node: Option<Node>,
}

/// A root by its own paths.
pub(crate) struct Tree<'a>(pub(crate) &'a mut dyn Root);

impl Tree<'_> {
    /// Where a path leads to; its last part is not followed when it is a link, unless that is wanted.
    ///
    /// # Errors
    /// [`EmbedError`]; not that nothing is there.
    pub(super) fn find(&mut self, path: &str, follow: bool) -> Result<Place, EmbedError> {
        let mut rest: VecDeque<OsString> = parts(Path::new(path)).collect();
        let (mut here, mut node, mut links) = (PathBuf::new(), Some(Node::Folder), 0);
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                here.pop();
                node = Some(Node::Folder);
                continue;
            }
            match node {
                Some(Node::Folder) => here.push(&part),
                // What is not there has nothing below it, and could be made.
                None => {
                    here.push(&part);
                    continue;
                }
                Some(_) => return Err(EmbedError::NotAFolder { path: here }),
            }
            node = self.look(&here)?;
            if let Some(Node::Link { target }) = &node
                && (follow || !rest.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(EmbedError::Circle { path: here });
                }
                here.pop();
                if target.is_absolute() {
                    here = PathBuf::new();
                }
                for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(part);
                }
                node = Some(Node::Folder);
            }
        }
        Ok(Place { path: here, node })
    }

    /// Leads it to a file?
    pub(super) fn has_file(&mut self, path: &str) -> Result<bool, EmbedError> {
        Ok(matches!(self.found(path)?, Some(Place { node: Some(Node::File { .. }), .. })))
    }

    /// Where it leads to, if anything is there.
    pub(super) fn found(&mut self, path: &str) -> Result<Option<Place>, EmbedError> {
        match self.find(path, true) {
            Ok(Place { node: None, .. }) | Err(EmbedError::NotAFolder { .. }) => Ok(None),
            Ok(place) => Ok(Some(place)),
            Err(error) => Err(error),
        }
    }

    /// Where a folder is, without links; none when no folder is there.
    pub(crate) fn folder(&mut self, path: &str) -> Result<Option<PathBuf>, EmbedError> {
        let found = self.found(path)?;
        Ok(found.filter(|place| place.node == Some(Node::Folder)).map(|place| place.path))
    }

    /// A whole file's content; none when no file is there.
    pub(crate) fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, EmbedError> {
        match self.found(path)? {
            Some(Place { path, node: Some(Node::File { len, .. }) }) if len > MAX_READ => {
                Err(EmbedError::TooLong { path, len })
            }
            Some(Place { path, node: Some(Node::File { .. }) }) => {
                self.head(&path, MAX_READ).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A file's first bytes; none when no file is there.
    pub(crate) fn begin(&mut self, path: &str, most: u64) -> Result<Option<Vec<u8>>, EmbedError> {
        match self.found(path)? {
            Some(Place { path, node: Some(Node::File { .. }) }) => self.head(&path, most).map(Some),
            _ => Ok(None),
        }
    }

    /// Has a file this very content? None when no file is there.
    pub(crate) fn holds(&mut self, path: &str, content: &[u8]) -> Result<Option<bool>, EmbedError> {
        match self.found(path)? {
            Some(Place { path, node: Some(Node::File { len, .. }) }) => {
                let is_as_long = usize::try_from(len) == Ok(content.len());
                Ok(Some(is_as_long && self.head(&path, len)? == content))
            }
            _ => Ok(None),
        }
    }

    /// The digest of a file of so many bytes; none when it is larger than what is ever put there.
    pub(super) fn digest(&mut self, path: &Path, len: u64) -> Result<Option<Digest>, EmbedError> {
        match len {
            0..=MAX_OURS => Ok(Some(Digest::of(&self.head(path, len)?))),
            _ => Ok(None),
        }
    }

    /// The names in a folder, in their order; none when no folder is there.
    pub(crate) fn names(&mut self, path: &str) -> Result<Vec<String>, EmbedError> {
        let Some(Place { path, node: Some(Node::Folder) }) = self.found(path)? else {
            return Ok(Vec::new());
        };
        let listed = self.0.list(&path);
        let listed = listed.map_err(|source| EmbedError::Access { what: "list", path, source })?;
        let mut names: Vec<String> =
            listed.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    pub(super) fn look(&mut self, path: &Path) -> Result<Option<Node>, EmbedError> {
        let looked = self.0.look(path);
        looked.map_err(|source| access("look at", path, source))
    }

    pub(super) fn head(&mut self, path: &Path, most: u64) -> Result<Vec<u8>, EmbedError> {
        self.0.read(path, most).map_err(|source| access("read", path, source))
    }
}

/// Something in the root that could not be done.
pub(super) fn access(what: &'static str, path: &Path, source: io::Error) -> EmbedError {
    EmbedError::Access { what, path: path.to_owned(), source }
}

/// The names in a path, and `..`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::FolderRoot;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/sh"), "x").unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        for (target, name) in [
            ("usr/bin", "bin"),
            ("/usr/bin", "sbin"),
            ("../../../../..", "up"),
            ("/../secret", "out"),
            ("round", "round"),
            ("usr/bin/sh/", "file"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let mut holder = FolderRoot::new(&root);
        let mut tree = Tree(&mut holder);
        let real = |tree: &mut Tree<'_>, path: &str| tree.find(path, true).unwrap();
        for path in ["/bin/sh", "sbin/sh", "/up/usr/bin/sh", "up/up/bin/../bin/sh", "../bin/sh"] {
            let place = real(&mut tree, path);
            assert_eq!(place.path, Path::new("usr/bin/sh"), "{path}");
            assert!(matches!(place.node, Some(Node::File { len: 1, .. })), "{path}");
        }
        let out = real(&mut tree, "out");
        assert_eq!((out.path.as_path(), out.node), (Path::new("secret"), None));
        assert!(matches!(tree.find("round/x", true), Err(EmbedError::Circle { .. })));
        assert!(matches!(tree.find("file/x", true), Err(EmbedError::NotAFolder { .. })));
        assert_eq!(tree.found("file/x").unwrap(), None);
        let link = tree.find("bin", false).unwrap();
        assert!(matches!(link.node, Some(Node::Link { .. })));
        // What is not there would be made where it belongs.
        assert_eq!(real(&mut tree, "sbin/a/b").path, Path::new("usr/bin/a/b"));
    }
}
