//! What embedding added, taken out of a root again.

use super::inittab;
use super::plan::{Change, Step, Verb};
use super::record::{RECORD, Record};
use super::root::{Node, Root};
use super::tree::{EmbedError, Tree};
use super::units::AGENT_PATH;
use crate::digest::Digest;
use std::path::{Path, PathBuf};

/// Finds out what taking the agent out changes, and does so if that is wanted; what was changed since stays. Nothing is
/// to do, which is told too, when none was embedded.
///
/// # Errors
/// [`EmbedError`]; what is left to do then can be done by the same again.
pub(super) fn unembed(
    root: &mut dyn Root,
    really: bool,
) -> Result<(Vec<Change>, bool), EmbedError> {
    let mut tree = Tree(root);
    let (mut changes, mut steps) = (Vec::new(), Vec::new());
    let Some(record) = Record::of(&mut tree)? else {
        if tree.find(AGENT_PATH, false)?.node.is_some() {
            let why = "`guestline image embed` has not put it there";
            changes.push(Change::new(Verb::Leave, AGENT_PATH, why));
        }
        return Ok((changes, true));
    };
    let changed = "it was changed since it was embedded";
    // What starts the agent goes before the agent.
    for (path, target) in &record.links {
        match link_of_ours(&mut tree, path, target)? {
            Some(place) => {
                changes.push(Change::new(Verb::Remove, path, ""));
                steps.push(Step::Remove(place));
            }
            None if tree.find(path, false)?.node.is_some() => {
                changes.push(Change::new(Verb::Leave, path, changed));
            }
            None => {}
        }
    }
    for (path, lines) in &record.lines {
        let Some(text) = tree.read(path)?.and_then(|bytes| String::from_utf8(bytes).ok()) else {
            continue;
        };
        let without = inittab::removed(&text, &lines.lines, lines.cut);
        let place = tree.find(path, true)?;
        if let Some(Node::File { mode, .. }) = place.node
            && lines.lines.iter().any(|line| inittab::has(&text, line))
        {
            for line in lines.lines.iter().filter(|line| inittab::has(&text, line)) {
                changes.push(Change::new(Verb::Remove, path, format!("line {line}")));
            }
            let content = without.into_bytes();
            steps.push(Step::Write { path: place.path, mode, content });
        }
    }
    for (path, digest) in &record.files {
        match file_of_ours(&mut tree, path, digest)? {
            Some(place) => {
                changes.push(Change::new(Verb::Remove, path, ""));
                steps.push(Step::Remove(place));
            }
            None if tree.find(path, false)?.node.is_some() => {
                changes.push(Change::new(Verb::Leave, path, changed));
            }
            None => {}
        }
    }
    steps.push(Step::Remove(tree.find(RECORD, true)?.path));
    if really {
        for step in &steps {
            step.run(tree.0)?;
        }
        for folder in record.folders.iter().rev() {
            remove_if_empty(&mut tree, folder)?;
        }
    }
    Ok((changes, false))
}

/// Removes a folder that nobody has put anything into.
fn remove_if_empty(tree: &mut Tree<'_>, folder: &str) -> Result<(), EmbedError> {
    let place = tree.find(folder, false)?;
    if place.node == Some(Node::Folder)
        && place.path != Path::new("")
        && tree.names(folder)?.is_empty()
    {
        Step::Remove(place.path).run(tree.0)?;
    }
    Ok(())
}

/// Where a file is that holds what was recorded; none when it is gone, or holds something else.
pub(super) fn file_of_ours(
    tree: &mut Tree<'_>,
    path: &str,
    digest: &Digest,
) -> Result<Option<PathBuf>, EmbedError> {
    let place = tree.find(path, false)?;
    let Some(Node::File { len, .. }) = place.node else { return Ok(None) };
    let found = tree.digest(&place.path, len)?;
    Ok((found.as_ref() == Some(digest)).then_some(place.path))
}

/// Where a link is that says what was recorded; none when it is gone, or says something else.
pub(super) fn link_of_ours(
    tree: &mut Tree<'_>,
    path: &str,
    target: &str,
) -> Result<Option<PathBuf>, EmbedError> {
    let place = tree.find(path, false)?;
    Ok(match place.node {
        Some(Node::Link { target: has }) if has == Path::new(target) => Some(place.path),
        _ => None,
    })
}
