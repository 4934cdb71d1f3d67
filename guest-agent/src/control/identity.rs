//! A machine's identity: its name, its machine id, the names it knows, its network interfaces.
//!
//! ```text
//! checked as a whole ── kernel's host name ── files ── interfaces
//! file:  written in place, if it is a plain one
//!          └ else: new file beside it, renamed over it
//!                    └ EROFS, EBUSY: written to /run/guestline, mounted over it (as systemd does with machine-id)
//! ```
//! A file that is mounted over has its content changed in place by the next request: it is /run/guestline's own then.

use super::{errno, invalid, net, quoted, refused};
use guestline_files::describe;
use guestline_protocol::{IdentityRequest, RemoteError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Length of the longest host name (`HOST_NAME_MAX`).
const MAX_HOSTNAME_LEN: usize = 64;

/// Where the content of files is that cannot be replaced.
const COVERS: &str = "run/guestline";

/// Gives the guest an identity; what is absent stays.
///
/// # Errors
/// Invalid before anything is changed; not found for an interface that is not there; else what the kernel says.
pub(crate) fn apply(request: &IdentityRequest) -> Result<(), RemoteError> {
    check(request)?;
    if let Some(hostname) = &request.hostname {
        nix::unistd::sethostname(hostname)
            .map_err(|errno| refused(&format!("host name `{hostname}`"), errno))?;
    }
    write_files(Path::new("/"), request)?;
    request.nics.iter().try_for_each(net::apply)
}

fn check(request: &IdentityRequest) -> Result<(), RemoteError> {
    if let Some(hostname) = &request.hostname {
        let fits = (1..=MAX_HOSTNAME_LEN).contains(&hostname.len());
        if !fits
            || !hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        {
            return Err(invalid(format!(
                "{hostname:?} is no host name of 1 to {MAX_HOSTNAME_LEN} letters, digits, `.` and `-`"
            )));
        }
    }
    if let Some(id) = &request.machine_id {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != 32 || !id.bytes().all(is_digit) {
            return Err(invalid(format!(
                "{id:?} is no machine id of 32 lower-case hexadecimal digits"
            )));
        }
    }
    request.nics.iter().try_for_each(net::check)
}

/// Writes the files below `root`, which is `/` but in tests.
fn write_files(root: &Path, request: &IdentityRequest) -> Result<(), RemoteError> {
    if let Some(hostname) = &request.hostname {
        replace(root, "etc/hostname", &format!("{hostname}\n"), 0o644)?;
    }
    if let Some(id) = &request.machine_id {
        let line = format!("{id}\n");
        replace(root, "etc/machine-id", &line, 0o444)?;
        // Mostly a link to the one above, or not there.
        let dbus = "var/lib/dbus/machine-id";
        if fs::symlink_metadata(root.join(dbus)).is_ok_and(|found| found.is_file()) {
            replace(root, dbus, &line, 0o444)?;
        }
    }
    match &request.hosts {
        Some(hosts) => replace(root, "etc/hosts", hosts, 0o644),
        None => Ok(()),
    }
}

/// Gives a file a new content: in place, by a rename, or by a mount where it cannot be replaced.
fn replace(root: &Path, name: &str, content: &str, mode: u32) -> Result<(), RemoteError> {
    let target = root.join(name);
    if write_in_place(&target, content).is_ok_and(|written| written) {
        return Ok(());
    }
    let cover = root.join(COVERS).join(name.replace('/', "-"));
    let is_covered = match (fs::metadata(&target), fs::metadata(&cover)) {
        (Ok(target), Ok(cover)) => target.dev() == cover.dev() && target.ino() == cover.ino(),
        _ => false,
    };
    if is_covered {
        let written = fs::write(&cover, content);
        return written.map_err(|error| refused(&quoted(&cover), errno(&error)));
    }
    let reason = match rename_over(&target, content, mode) {
        Ok(()) => return Ok(()),
        Err(error) => errno(&error),
    };
    let object = quoted(&target);
    if !matches!(reason, Errno::EROFS | Errno::EBUSY) {
        return Err(refused(&object, reason));
    }
    mount_over(&target, &cover, content, mode).map_err(|errno| {
        let cover = quoted(&cover);
        refused(
            &format!("{object}: {}; nor can {cover} be mounted over it", describe(reason)),
            errno,
        )
    })
}

/// Writes a file that is there, if it is one, and nobody else's: no link, no mount, and without other names. Its mode stays. A few
/// system calls instead of a dozen: a restored machine, whose code is all cold, waits for this.
fn write_in_place(target: &Path, content: &str) -> io::Result<bool> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().write(true).custom_flags(flags).open(target)?;
    let found = file.metadata()?;
    let folder = target.parent().map(fs::metadata).transpose()?;
    let is_mount = folder.is_none_or(|folder| folder.dev() != found.dev());
    if !found.is_file() || found.nlink() != 1 || is_mount {
        return Ok(false);
    }
    file.write_all_at(content.as_bytes(), 0)?;
    if found.len() > content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    Ok(true)
}

/// Writes a new file beside `target` and gives it its name. It is not synced: a machine that was given an identity is
/// there for a test, and a crash in between shows the old content or, on some file systems, none.
fn rename_over(target: &Path, content: &str, mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut beside = std::ffi::OsString::from(".guestline-");
    beside.push(name);
    let beside: PathBuf = folder.join(beside);
    // A bare image may have no /etc.
    fs::create_dir_all(folder)?;
    // Left by an agent that was killed.
    let _ = fs::remove_file(&beside);
    let written = write_new(&beside, content, mode).and_then(|()| fs::rename(&beside, target));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn mount_over(target: &Path, cover: &Path, content: &str, mode: u32) -> nix::Result<()> {
    // A new inode, since an old one may be mounted somewhere.
    rename_over(cover, content, mode).map_err(|error| errno(&error))?;
    mount(Some(cover), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

fn write_new(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    // Whatever the umask left of it.
    file.set_permissions(Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::in_namespaces;
    use guestline_protocol::{ErrorKind, NicIdentity};
    use std::os::unix::fs::symlink;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn request(hostname: &str) -> IdentityRequest {
        IdentityRequest {
            hostname: Some(hostname.to_owned()),
            machine_id: Some(ID.to_owned()),
            nics: Vec::new(),
            hosts: Some("127.0.0.1 localhost\n".to_owned()),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn nonsense_is_refused_as_a_whole() {
        let long = "a".repeat(65);
        for hostname in ["", "a b", "ä", "a/b", "a\nb", &long] {
            let error = check(&request(hostname)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{hostname}");
            assert!(error.message.contains("host name"), "{}", error.message);
        }
        check(&request("Web-1.example")).unwrap();
        check(&request(&"a".repeat(64))).unwrap();
        let long = format!("{ID}0");
        for id in ["", "0123", &ID.to_uppercase(), &long, &ID.replace('0', "g")] {
            let wrong = IdentityRequest { machine_id: Some(id.to_owned()), ..request("a") };
            assert_eq!(check(&wrong).unwrap_err().kind, ErrorKind::Invalid, "{id}");
        }
        let nic = NicIdentity {
            name: "eth0/x".to_owned(),
            mac: None,
            ipv4: None,
            ipv6: None,
            router: None,
            up: false,
        };
        let wrong = IdentityRequest { nics: vec![nic], ..request("a") };
        assert_eq!(check(&wrong).unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn files_are_replaced_with_their_modes() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let dbus = root.join("var/lib/dbus");
        fs::create_dir_all(&dbus).unwrap();
        symlink("/etc/machine-id", dbus.join("machine-id")).unwrap();
        // Nothing there yet, not even /etc; then again over what is there.
        for hostname in ["one", "two"] {
            write_files(root, &request(hostname)).unwrap();
            let etc = root.join("etc");
            assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), format!("{hostname}\n"));
            assert_eq!(fs::read_to_string(etc.join("machine-id")).unwrap(), format!("{ID}\n"));
            assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "127.0.0.1 localhost\n");
            assert_eq!(mode(&etc.join("hostname")), 0o644);
            assert_eq!(mode(&etc.join("machine-id")), 0o444);
            assert_eq!(fs::read_dir(&etc).unwrap().count(), 3, "something is left over");
        }
        assert!(fs::symlink_metadata(dbus.join("machine-id")).unwrap().is_symlink());
        fs::remove_file(dbus.join("machine-id")).unwrap();
        fs::write(dbus.join("machine-id"), "old").unwrap();
        write_files(root, &request("three")).unwrap();
        assert_eq!(fs::read_to_string(dbus.join("machine-id")).unwrap(), format!("{ID}\n"));
    }

    #[test]
    fn what_is_absent_stays() {
        let root = tempfile::tempdir().unwrap();
        write_files(root.path(), &IdentityRequest::default()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/hosts")).unwrap();
        let error = write_files(root.path(), &request("a")).unwrap_err();
        let hosts = root.path().join("etc/hosts");
        assert_eq!(error.message, format!("`{}`: Is a directory", hosts.display()));
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 3);
    }

    #[test]
    fn read_only_and_mounted_files_are_mounted_over() {
        if !in_namespaces(module_path!(), "read_only_and_mounted_files_are_mounted_over") {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (root, etc) = (root.path(), root.path().join("etc"));
        fs::create_dir(&etc).unwrap();
        let tmpfs = |flags| mount(Some("none"), &etc, Some("tmpfs"), flags, None::<&str>);
        tmpfs(MsFlags::empty()).unwrap();
        for name in ["hostname", "machine-id", "hosts"] {
            fs::write(etc.join(name), "old").unwrap();
        }
        // EBUSY: one of them is a mount already.
        let other = root.join("other");
        fs::write(&other, "mounted").unwrap();
        let over = etc.join("hosts");
        mount(Some(&other), &over, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let before = mounts();
        write_files(root, &request("busy")).unwrap();
        assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "127.0.0.1 localhost\n");
        assert_eq!(fs::read_to_string(&other).unwrap(), "mounted");
        assert_eq!(mounts(), before + 1);
        // EROFS, twice: the second time in place, without more mounts.
        tmpfs(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY).unwrap();
        for hostname in ["first", "a-longer-name", "second"] {
            write_files(root, &request(hostname)).unwrap();
            assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), format!("{hostname}\n"));
            assert_eq!(mode(&etc.join("machine-id")), 0o444);
            assert_eq!(mounts(), before + 3);
        }
    }
}
