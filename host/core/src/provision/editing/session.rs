//! In the machine that has the disk: the volume with the system found, mounted, worked on, and let go of.

use super::guest_root::GuestRoot;
use super::volumes::{LEAVE, SCAN, Volume, parse};
use super::{EditError, Edited, RootWork};
use crate::guest::Guest;
use crate::image::embed::{Boots, EmbedError, Root, System, Tree};
use crate::text;
use guestline_protocol::{Command, ExecRequest, ExitStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Where the system's root is mounted.
const MOUNTED: &str = "/run/guest";

/// Below which its changes are, which may be file systems of their own; and what is looked at.
const OWN_MOUNTS: [&str; 4] = ["/usr", "/usr/local", "/etc", "/boot"];

/// So much of what a tool says is read.
const SAID: usize = 1 << 20;

/// A file system has no more subvolumes that are looked at.
const MAX_SUBVOLUMES: usize = 64;

/// See the module.
pub(super) struct Session {
    pub(super) guest: Guest,
    /// So long may what is done in the machine take, each for itself.
    pub(super) limit: Duration,
    /// The disk can be written to.
    pub(super) writes: bool,
}

/// Where a system is.
#[derive(Clone)]
struct Found {
    volume: Volume,
    /// Of btrfs, unless it is what is mounted without being named.
    subvolume: Option<String>,
    system: String,
}

impl Found {
    fn name(&self) -> String {
        match &self.subvolume {
            Some(subvolume) => format!("{}:{subvolume}", self.volume.name),
            None => self.volume.name.clone(),
        }
    }
}

impl Session {
    /// Works on the system of the disk.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        wanted: Option<&str>,
        work: Arc<impl RootWork<T>>,
    ) -> Result<(Edited<T>, bool), EditError> {
        let volumes = parse(&self.run("look at the disk", SCAN).await?);
        if self.writes && volumes.iter().any(|volume| volume.kind() == "swsuspend") {
            return Err(EditError::Hibernated);
        }
        let found = self.find(&volumes, wanted).await?;
        let mut notes = Vec::new();
        let is_unclean = self.is_unclean(&found.volume).await?;
        let trouble = self.mount_all(&found, &volumes, false).await?;
        notes.extend(trouble);
        let first = work.clone();
        let (mut looked, is_done) = self.in_root(move |root| first(root, false)).await??;
        self.unmount().await?;
        if self.writes && !is_done {
            self.mount_all(&found, &volumes, true).await?;
            if is_unclean {
                notes.push(format!(
                    "{} was not unmounted cleanly: its journal was replayed",
                    found.volume
                ));
            }
            (looked, _) = self.in_root(move |root| work(root, true)).await??;
            self.unmount().await?;
        }
        self.run("let go of the disk", LEAVE).await?;
        let place = match &found.subvolume {
            Some(name) => format!("{}, subvolume {}", found.volume, text::one_line(name, 60)),
            None => found.volume.to_string(),
        };
        Ok((Edited { found: looked, place, notes, is_unclean }, is_done))
    }

    /// The volume with the system.
    async fn find(&self, volumes: &[Volume], wanted: Option<&str>) -> Result<Found, EditError> {
        let list = || {
            let all: Vec<String> = volumes.iter().map(ToString::to_string).collect();
            all.join(", ")
        };
        let (name, subvolume) = match wanted.and_then(|name| name.split_once(':')) {
            Some((name, subvolume)) => (Some(name), Some(subvolume)),
            None => (wanted, None),
        };
        let candidates: Vec<&Volume> = volumes
            .iter()
            .filter(|volume| volume.may_hold_a_system())
            .filter(|volume| name.is_none_or(|name| volume.is_called(name)))
            .collect();
        if let (Some(wanted), true) = (wanted, candidates.is_empty()) {
            return Err(EditError::NoSuchRoot { name: wanted.to_owned(), has: list() });
        }
        let (mut found, mut last) = (Vec::new(), None);
        for volume in candidates {
            match self.systems_in(volume, volumes, subvolume).await {
                Ok(systems) => found.extend(systems),
                Err(error @ EditError::Tool { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (found.len(), last) {
            (0, Some(error)) => Err(error),
            (0, None) => Err(EditError::NoSystem { has: list() }),
            (1, _) => Ok(found.remove(0)),
            _ => {
                let each = |found: &Found| {
                    format!("{} ({})", text::one_line(&found.name(), 80), found.system)
                };
                let all: Vec<String> = found.iter().map(each).collect();
                Err(EditError::Several { has: all.join(", ") })
            }
        }
    }

    /// The systems in a file system: one, or of btrfs one in each of some subvolumes.
    async fn systems_in(
        &self,
        volume: &Volume,
        volumes: &[Volume],
        subvolume: Option<&str>,
    ) -> Result<Vec<Found>, EditError> {
        let here = |subvolume: Option<&str>| Found {
            volume: volume.clone(),
            subvolume: subvolume.map(str::to_owned),
            system: String::new(),
        };
        let first = here(subvolume);
        if let Some(system) = self.system(&first, volumes).await? {
            return Ok(vec![Found { system, ..first }]);
        }
        if volume.kind() != "btrfs" || subvolume.is_some() {
            return Ok(Vec::new());
        }
        let mount = format!("mount -t btrfs -o {},subvolid=5", volume.read_only());
        let device = text::quote(&volume.device);
        let list = format!(
            "mkdir -p {MOUNTED} && {mount} {device} {MOUNTED} || exit; \
             btrfs subvolume list {MOUNTED}; listed=$?; umount {MOUNTED} && exit $listed"
        );
        let said = self.run(&format!("list the subvolumes of {volume}"), &list).await?;
        let paths = said.lines().filter_map(|line| Some(line.split_once(" path ")?.1));
        let paths = paths.filter(|path| !path.contains(".snapshots/"));
        let mut systems = Vec::new();
        for path in paths.take(MAX_SUBVOLUMES) {
            let found = here(Some(path));
            if let Some(system) = self.system(&found, volumes).await? {
                systems.push(Found { system, ..found });
            }
        }
        Ok(systems)
    }

    /// The system that is there, if one is.
    async fn system(&self, place: &Found, all: &[Volume]) -> Result<Option<String>, EditError> {
        self.mount_all(place, all, false).await?;
        let looked = self.in_root(|root| System::of(&mut Tree(root), Boots::Disk)).await?;
        self.unmount().await?;
        match looked {
            Ok(system) => Ok(Some(system.to_string())),
            Err(EmbedError::NoSystem) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Mounts a system's root and what its fstab has below it, or nothing; tells what could not be.
    async fn mount_all(
        &self,
        place: &Found,
        all: &[Volume],
        writable: bool,
    ) -> Result<Vec<String>, EditError> {
        let subvolume = place.subvolume.as_deref();
        self.mount(&place.volume, subvolume, MOUNTED, writable).await?;
        let mounted = self.mount_below(all, writable).await;
        if mounted.is_err() {
            // The others are still to be looked at; what went wrong first is told.
            let _ = self.unmount().await;
        }
        mounted
    }

    /// Mounts what the fstab of the root has below it.
    async fn mount_below(&self, all: &[Volume], writable: bool) -> Result<Vec<String>, EditError> {
        let fstab = self.in_root(|root| Tree(root).read("/etc/fstab")).await?;
        let fstab = fstab.unwrap_or_default().unwrap_or_default();
        let fstab = String::from_utf8_lossy(&fstab).into_owned();
        let mut notes = Vec::new();
        for point in OWN_MOUNTS {
            let lines = fstab.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line = lines
                .filter(|line| line.get(1) == Some(&point))
                .find(|line| line.first().is_some_and(|source| !source.starts_with('#')));
            let Some(line) = line else { continue };
            let source = line.first().copied().unwrap_or_default();
            let options = line.get(3).copied().unwrap_or_default();
            let subvolume = options.split(',').find_map(|option| option.strip_prefix("subvol="));
            let volume = all.iter().find(|volume| volume.is(source));
            let Some(volume) = volume.filter(|volume| volume.may_hold_a_system()) else {
                // What is changed is in the others.
                if point != "/boot" {
                    let said = format!("its fstab says `{}`", text::one_line(source, 80));
                    return Err(EditError::Tool { what: format!("find its {point}"), said });
                }
                continue;
            };
            let at = self.in_root(move |root| Tree(root).folder(point)).await?;
            let Some(at) = at? else { continue };
            let at = format!("{MOUNTED}/{}", at.display());
            let writable = writable && point != "/boot";
            match self.mount(volume, subvolume, &at, writable).await {
                Err(EditError::Tool { what, said }) if point == "/boot" => {
                    notes.push(format!("cannot {what}: {said}"));
                }
                mounted => mounted?,
            }
        }
        Ok(notes)
    }

    async fn mount(
        &self,
        volume: &Volume,
        subvolume: Option<&str>,
        at: &str,
        writable: bool,
    ) -> Result<(), EditError> {
        let mut options = if writable { volume.writable() } else { volume.read_only() }.to_owned();
        if let Some(subvolume) = subvolume {
            options += &format!(",subvol={subvolume}");
        }
        let words = ["mount", "-t", volume.kind(), "-o", &options, &volume.device, at];
        // What mount(8) says of a failure is that the kernel has said more.
        let line = format!(
            "mkdir -p {} && {{ {} || {{ dmesg | tail -n 1 | sed 's/^\\[[^]]*\\] *//' >&2; false; }}; }}",
            text::quote(at),
            text::shell_line(words)
        );
        self.run(&format!("mount {volume}"), &line).await.map(drop)
    }

    async fn unmount(&self) -> Result<(), EditError> {
        self.run("unmount the disk", &format!("umount -R {MOUNTED}")).await.map(drop)
    }

    /// Was a file system not unmounted cleanly? By its superblock (Linux `fs/ext4/ext4.h`, `fs/btrfs`); of XFS it is known
    /// only where nothing is to be written.
    async fn is_unclean(&self, volume: &Volume) -> Result<bool, EditError> {
        let device = text::quote(&volume.device);
        // ext: the journal needs recovery, or the state is not "clean".
        let line = match volume.kind() {
            "ext2" | "ext3" | "ext4" => {
                format!("od -An -tu4 -j1120 -N4 {device}; od -An -tu2 -j1082 -N2 {device}")
            }
            "btrfs" => format!("od -An -tu8 -j65632 -N8 {device}"),
            // On a disk that cannot be written to, a log that is to be replayed cannot be.
            "xfs" if !self.writes => format!(
                "mkdir -p {MOUNTED}; mount -t xfs -o ro,nouuid {device} {MOUNTED} 2>/dev/null && \
                 umount {MOUNTED} && echo 0 || echo 1"
            ),
            _ => return Ok(false),
        };
        let said = self.run(&format!("look at {volume}"), &line).await?;
        let numbers: Vec<u64> =
            said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok(match (volume.kind(), &numbers[..]) {
            ("btrfs" | "xfs", [number]) => *number != 0,
            (_, [features, state]) => features & 4 != 0 || state & 1 == 0 || state & 2 != 0,
            _ => false,
        })
    }

    /// Runs what works on the root, in a thread of its own.
    async fn in_root<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Root) -> T + Send + 'static,
    ) -> Result<T, EditError> {
        let mut root = GuestRoot::new(self.guest.clone(), Handle::current(), self.limit, MOUNTED);
        let worked = tokio::task::spawn_blocking(move || work(&mut root)).await;
        worked.map_err(|_| EditError::Cancelled)
    }

    /// Runs a line in the machine; what it says.
    async fn run(&self, what: &str, line: &str) -> Result<String, EditError> {
        let request = ExecRequest::new(Command::Shell(line.as_bytes().to_vec().into()));
        let running = timeout(self.limit, self.guest.run(request, &[], SAID)).await;
        let late = |_| EditError::TimedOut { what: what.to_owned(), limit: self.limit };
        let ran = running.map_err(late)?.map_err(EditError::Lost)?;
        match ran.exited.status {
            ExitStatus::Exited(0) => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
            status => {
                let said = String::from_utf8_lossy(&ran.stderr).into_owned();
                let last = said.lines().rfind(|line| !line.trim().is_empty());
                let said = match last {
                    Some(line) => text::one_line(line.trim(), 200),
                    None => format!("{status:?}"),
                };
                Err(EditError::Tool { what: what.to_owned(), said })
            }
        }
    }
}
