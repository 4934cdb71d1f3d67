//! What a test may leave behind in a machine that others use after it: processes, mounts, modules, taint, a host name.

use guestline::guest::{FilesError, Guest};
use guestline_protocol::{ByteBuf, Command, ExecRequest, ExitStatus};

/// Files of a guest that show it (proc(5)), and how much is read of each.
const FILES: [&str; 4] =
    ["/proc/mounts", "/proc/modules", "/proc/sys/kernel/tainted", "/proc/sys/kernel/hostname"];
const MAX_LEN: usize = 1 << 20;

/// What reads them.
const CAT: &str = "cat";

/// The cgroup that the agent itself is in (cgroups(7)).
const OWN_CGROUP: &str = "/proc/self/cgroup";

/// Where cgroups are mounted, and the one below which an agent has those of its commands.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const NAME: &str = "guestline";

/// What a guest has mounted and loaded, and whether anything that was started there still runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// Tells of processes: cgroup.events of all commands.
    events: String,
    /// The content of all files, one after the other.
    files: Vec<u8>,
    is_idle: bool,
}

impl Leftovers {
    /// Of a guest, now. None where it has no cgroups: nothing is known of its processes then.
    ///
    /// # Errors
    /// What reading gives.
    pub(super) async fn of(guest: &Guest) -> Result<Option<Self>, FilesError> {
        match events_file(guest).await {
            Some(events) => Self::look(guest, events).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same guest is as it was, and nothing runs there.
    pub(super) async fn is_all_there_is(&self, guest: &Guest) -> bool {
        Self::look(guest, self.events.clone()).await.is_ok_and(|now| now == *self && now.is_idle)
    }

    async fn look(guest: &Guest, events: String) -> Result<Self, FilesError> {
        // First, since what reads the others is a command itself.
        let populated = guest.read(events.as_bytes(), MAX_LEN).await?;
        let is_idle = populated.split(|&byte| byte == b'\n').any(|line| line == b"populated 0");
        let words = [CAT].iter().chain(&FILES).map(|word| ByteBuf::from(word.as_bytes().to_vec()));
        let request = ExecRequest::new(Command::Argv(words.collect()));
        // One command is quicker than a request for each file.
        let output = guest.run(request, &[], MAX_LEN).await?;
        let is_read = output.exited.status == ExitStatus::Exited(0);
        Ok(Self { events, files: output.stdout, is_idle: is_idle && is_read })
    }
}

/// Where it stands whether any command of the agent has left a process.
async fn events_file(guest: &Guest) -> Option<String> {
    let own = guest.read(OWN_CGROUP.as_bytes(), MAX_LEN).await.unwrap_or_default();
    let own = String::from_utf8_lossy(&own).into_owned();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for mount in MOUNTS {
        for below in [own, ""] {
            let file = format!("{mount}/{below}/{NAME}/cgroup.events").replace("//", "/");
            if guest.read(file.as_bytes(), MAX_LEN).await.is_ok() {
                return Some(file);
            }
        }
    }
    None
}
