//! Files for the command `guest`, placed as cp(1) would.

use super::{Lab, LabError};
use guestline::guest::{PullOptions, PushOptions, Transferred};
use guestline::text;
use guestline_guest::Data;
use guestline_guest::protocol::{CopyRequest, Reply, Trouble};
use guestline_protocol::FileKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// So many troubles are told by name.
const TOLD: usize = 100;

/// What a thing is called in the folder that it is copied into; nothing for what has no name of its own, such as `.`,
/// whose contents are copied.
pub fn name_in(from: &[u8]) -> &[u8] {
    let end = from.iter().rposition(|&byte| byte != b'/').map_or(0, |at| at + 1);
    let start = from[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    match &from[start..end] {
        b"." | b".." => b"",
        name => name,
    }
}

/// Where a thing goes, and whether only its contents do: into the folder `to` under a name, or to `to` itself.
pub fn place(to: &[u8], name: Option<&[u8]>) -> (Vec<u8>, bool) {
    match name {
        None => (to.to_vec(), false),
        Some(b"") => (to.to_vec(), true),
        Some(name) => ([to, b"/", name].concat(), false),
    }
}

pub(super) async fn push(lab: &Lab, request: CopyRequest) -> Result<Reply, LabError> {
    let (machine, guest) = lab.machine(request.machine.as_deref())?;
    request.from.iter().try_for_each(|from| on_the_host(&from.0))?;
    let to = in_the_guest(&request.to.0);
    let wants_folder = to.ends_with(b"/");
    // One that is no folder is told by the guest when it is written to.
    let is_folder = guest.stat(&to, true).await.is_ok_and(|info| info.kind == FileKind::Folder);
    let into = is_folder || wants_folder;
    check(&request, into, machine)?;
    if into && !is_folder {
        guest.make_folder(&to, 0o755, true).await.map_err(LabError::link(machine))?;
    }
    let mut all = Transferred::default();
    for from in &request.from {
        let (to, contents) = place(&to, into.then(|| name_in(&from.0)));
        let options = PushOptions { into: contents, owners: false };
        let from = Path::new(OsStr::from_bytes(&from.0));
        add(&mut all, guest.push(from, &to, options).await.map_err(LabError::files(machine))?);
    }
    Ok(reply(all))
}

pub(super) async fn pull(lab: &Lab, request: CopyRequest) -> Result<Reply, LabError> {
    let (machine, guest) = lab.machine(request.machine.as_deref())?;
    on_the_host(&request.to.0)?;
    let to = Path::new(OsStr::from_bytes(&request.to.0));
    let into = to.is_dir() || request.to.0.ends_with(b"/");
    check(&request, into, "this host")?;
    if into {
        let made = std::fs::create_dir_all(to);
        made.map_err(|error| LabError::Usage(format!("cannot make `{}`: {error}", to.display())))?;
    }
    let mut all = Transferred::default();
    for from in &request.from {
        let from = in_the_guest(&from.0);
        let (to, contents) = place(&request.to.0, into.then(|| name_in(&from)));
        let to = Path::new(OsStr::from_bytes(&to));
        let options = PullOptions { into: contents, ..PullOptions::default() };
        add(&mut all, guest.pull(&from, to, options).await.map_err(LabError::files(machine))?);
    }
    Ok(reply(all))
}

/// A path in a guest, from its `/`.
fn in_the_guest(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }
}

/// Where the controller was started is none of a script's business.
fn on_the_host(path: &[u8]) -> Result<(), LabError> {
    if path.starts_with(b"/") && !path.contains(&0) {
        return Ok(());
    }
    let path = text::escape(path);
    Err(LabError::Usage(format!("`{path}` is no path of the host from its `/`")))
}

fn check(request: &CopyRequest, into: bool, place: &str) -> Result<(), LabError> {
    match &request.from[..] {
        [] => Err(LabError::Usage("there is nothing to copy".to_owned())),
        [_, _, ..] if !into => {
            let to = text::escape(&request.to.0);
            let what = format!("`{to}` in {place} is no folder: end it with / to have it made");
            Err(LabError::Usage(what))
        }
        _ => Ok(()),
    }
}

fn add(all: &mut Transferred, more: Transferred) {
    all.counts.items += more.counts.items;
    all.counts.troubles += more.counts.troubles;
    all.counts.bytes += more.counts.bytes;
    all.troubles.extend(more.troubles);
}

fn reply(all: Transferred) -> Reply {
    let told = u64::try_from(all.troubles.len()).unwrap_or(u64::MAX);
    let troubles = all.troubles.into_iter().take(TOLD).map(|trouble| Trouble {
        path: Data(trouble.path.into_iter().take(4096).collect()),
        error: text::printable(&trouble.error.to_string()),
    });
    Reply::Copied {
        items: all.counts.items,
        bytes: all.counts.bytes,
        troubles: troubles.collect(),
        trouble_count: all.counts.troubles.max(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_keep_their_names_in_a_folder() {
        for (from, name) in [
            ("a", "a"),
            ("/x/a", "a"),
            ("x/a//", "a"),
            (".", ""),
            ("x/..", ""),
            ("x/.", ""),
            ("/", ""),
        ] {
            assert_eq!(name_in(from.as_bytes()), name.as_bytes(), "{from}");
        }
        assert_eq!(place(b"/to", None), (b"/to".to_vec(), false));
        assert_eq!(place(b"/to/", Some(b"a")), (b"/to//a".to_vec(), false));
        assert_eq!(place(b"/to/", Some(b"")), (b"/to/".to_vec(), true));
        assert_eq!(in_the_guest(b"etc/hosts"), b"/etc/hosts");
        assert!(on_the_host(b"etc").is_err() && on_the_host(b"/a\0").is_err());
    }
}
