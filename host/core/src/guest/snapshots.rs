//! Snapshots of the machine that a guest runs in: saved under names, and put back as often as wanted.
//!
//! A guest knows no machine: whoever leases it sets what saves and restores it ([`Snapshots`]). What is told to whom after a
//! restore is in `docs/templates.md`.

use super::{Guest, Skew};
use crate::link::{LinkError, TransportKind};
use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

/// The longest name, in bytes.
const MAX_NAME_LEN: usize = 64;

/// What a verb on a machine will have given.
pub type Verb<'a, T> = Pin<Box<dyn Future<Output = Result<T, SnapshotError>> + Send + 'a>>;

/// What saves and restores the machine that a guest runs in. Each verb is done to its end, whoever waits for it.
pub trait Snapshots: Debug + Send + Sync {
    /// Saves it under a name.
    fn save(&self, name: &str) -> Verb<'_, ()>;

    /// Puts it back, opens a new session with its agent, and gives it its time and randomness; tells how far its clock was
    /// off.
    fn restore(&self, name: &str) -> Verb<'_, Skew>;

    /// Forgets what was saved.
    fn delete(&self, name: &str) -> Verb<'_, ()>;

    /// All names, sorted.
    fn names(&self) -> Verb<'_, Vec<String>>;
}

/// A machine was not saved, or not put back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// No name for one.
    #[error(
        "`{}` is no name for a snapshot: it has 1 to 64 of a-z, A-Z, 0-9, `.`, `_` and `-`, and begins with a letter or \
         a digit",
        crate::text::one_line(name, MAX_NAME_LEN)
    )]
    NotAllowed {
        /// What was to be one.
        name: String,
    },
    /// There is none of that name; the machine runs on.
    #[error("there is no snapshot `{name}`: {}", listed(there))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        there: Vec<String>,
    },
    /// The disk is full; the machine runs on.
    #[error("no room for snapshot `{name}` in `{folder}`: {free_mib} MiB are free")]
    NoRoom {
        /// What was to be saved.
        name: String,
        /// Where.
        folder: String,
        /// What is left there.
        free_mib: u64,
    },
    /// The machine does not do it. A guest that was to be restored may stand still.
    #[error("cannot {verb} snapshot `{name}`: {reason}")]
    Refused {
        /// "save", "restore" or "delete".
        verb: &'static str,
        /// Of which name.
        name: String,
        /// As the machine says.
        reason: String,
    },
    /// It took too long. It may be done later.
    #[error("cannot {verb} snapshot `{name}` within {waited:.0?}")]
    TimedOut {
        /// "save", "restore" or "delete".
        verb: &'static str,
        /// Of which name.
        name: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The machine ended before, or meanwhile.
    #[error("cannot {verb} snapshot `{name}`: the guest {how}")]
    Ended {
        /// "save", "restore" or "delete".
        verb: &'static str,
        /// Of which name.
        name: String,
        /// What became of the guest, as in "panicked".
        how: String,
    },
    /// The machine is what it was, and no session with its agent could be opened, or it was not given its time and
    /// randomness.
    #[error("snapshot `{name}` is restored, but its agent cannot be used")]
    NoSession {
        /// What was restored.
        name: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The guest runs in no machine of ours.
    #[error("a guest over {transport} whose machine is not ours has no snapshots")]
    Unsupported {
        /// Over what it is reached.
        transport: TransportKind,
    },
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none has been saved".to_owned(),
        names => format!("there is `{}`", names.join("`, `")),
    }
}

/// May a snapshot have that name?
fn is_allowed(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(plain)
}

impl Guest {
    /// Saves the whole machine, as it runs, under a name, and lets it run on; an earlier one of that name is replaced.
    /// The session and all that runs in it go on, too. The guest stands meanwhile, and its clocks with it;
    /// its wall clock is set again.
    ///
    /// # Errors
    /// [`SnapshotError`]; what had the name before is still there then.
    ///
    /// # Cancel safety
    /// It is done to its end.
    pub async fn snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.machine(name)?.save(name).await
    }

    /// Puts the machine back to what it was when the snapshot was made: memory, processes, files, kernel. What this session
    /// ran, before the snapshot or after, ends with [`LinkError::Restarted`]. Then a new session is opened, the clock is
    /// set, and new randomness is stirred in; tells how far the clock was off.
    ///
    /// # Errors
    /// [`SnapshotError`]. After [`SnapshotError::Unknown`] and [`SnapshotError::NotAllowed`] all runs on as if nothing had
    /// been asked. A machine that has ended cannot be restored.
    ///
    /// # Cancel safety
    /// It is done to its end.
    pub async fn restore(&self, name: &str) -> Result<Skew, SnapshotError> {
        self.machine(name)?.restore(name).await
    }

    /// Forgets a snapshot, and gives back its room on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.machine(name)?.delete(name).await
    }

    /// The names of the snapshots there are, sorted.
    ///
    /// # Errors
    /// [`SnapshotError::Unsupported`].
    pub async fn snapshots(&self) -> Result<Vec<String>, SnapshotError> {
        self.snapshots_handle()?.names().await
    }

    fn machine(&self, name: &str) -> Result<&dyn Snapshots, SnapshotError> {
        let machine = self.snapshots_handle()?;
        match is_allowed(name) {
            true => Ok(machine),
            false => Err(SnapshotError::NotAllowed { name: name.to_owned() }),
        }
    }

    fn snapshots_handle(&self) -> Result<&dyn Snapshots, SnapshotError> {
        let transport = self.transport();
        self.machine.as_deref().ok_or(SnapshotError::Unsupported { transport })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words() {
        let long = "a".repeat(MAX_NAME_LEN);
        for name in ["a", "0", "Clean-2.boot_1", long.as_str()] {
            assert!(is_allowed(name), "{name}");
        }
        let longer = "a".repeat(MAX_NAME_LEN + 1);
        for name in ["", ".", "-a", "_a", "a b", "a/b", "ä", "a\n", "a\0", longer.as_str()] {
            assert!(!is_allowed(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_guest_whose_machine_is_not_ours_says_so() {
        use crate::link::scripted::{frame, hello, peer};
        use crate::link::{Lane, Link, Transport};
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        peer(theirs, |head, _| Some(frame(head, &guestline_protocol::Reply::Hello(hello()))));
        let transport = Transport::stream(TransportKind::UnixSocket, Lane::socket(ours));
        let (link, hello) = Link::open(transport).await.unwrap();
        let guest = Guest::new(link, hello);
        let errors = [
            guest.snapshot("a").await.unwrap_err(),
            guest.restore("a").await.unwrap_err(),
            guest.delete_snapshot("a").await.unwrap_err(),
            guest.snapshots().await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, SnapshotError::Unsupported { .. }), "{error:?}");
        }
    }

    #[test]
    fn what_the_user_reads() {
        let name = "clean".to_owned();
        let unknown = |there: &[&str]| SnapshotError::Unknown {
            name: name.clone(),
            there: there.iter().map(|&name| name.to_owned()).collect(),
        };
        let errors = [
            SnapshotError::NotAllowed { name: "a\u{1b}/b".to_owned() },
            unknown(&[]),
            unknown(&["boot", "empty"]),
            SnapshotError::NoRoom { name: name.clone(), folder: "/run/1".to_owned(), free_mib: 3 },
            SnapshotError::Refused {
                verb: "save",
                name: name.clone(),
                reason: "it is so".to_owned(),
            },
            SnapshotError::TimedOut {
                verb: "restore",
                name: name.clone(),
                waited: Duration::from_secs(76),
            },
            SnapshotError::Ended {
                verb: "restore",
                name: name.clone(),
                how: "panicked".to_owned(),
            },
            SnapshotError::NoSession { name: name.clone(), source: LinkError::Closed },
            SnapshotError::Unsupported { transport: TransportKind::UnixSocket },
        ];
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r"
        `a\u{1b}/b` is no name for a snapshot: it has 1 to 64 of a-z, A-Z, 0-9, `.`, `_` and `-`, and begins with a letter or a digit
        there is no snapshot `clean`: none has been saved
        there is no snapshot `clean`: there is `boot`, `empty`
        no room for snapshot `clean` in `/run/1`: 3 MiB are free
        cannot save snapshot `clean`: it is so
        cannot restore snapshot `clean` within 76s
        cannot restore snapshot `clean`: the guest panicked
        snapshot `clean` is restored, but its agent cannot be used
        a guest over unix socket whose machine is not ours has no snapshots
        ");
    }
}
