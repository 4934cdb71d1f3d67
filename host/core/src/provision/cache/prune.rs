//! What goes: decided from what is there, in the order of last use, without looking at the disk; then removed.

use super::{Cache, CacheEntry, Content};
use crate::kept::{Condition, Removal};
use std::fmt;
use std::time::{Duration, SystemTime};

/// What is to go, beside what the dead left and what is damaged.
#[derive(Debug, Clone, Default)]
pub struct PruneSpec {
    /// What was used last least recently, until all takes at most so many bytes.
    pub limit: Option<u64>,
    /// What was not used for so long.
    pub older_than: Option<Duration>,
    /// Everything.
    pub all: bool,
}

/// Why something is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Who made or removed it died over that.
    LeftOver,
    /// It is not what was made.
    Damaged(String),
    /// Everything is to go.
    Asked,
    /// Nobody used it for so long.
    Unused(Duration),
    /// There is too much, and all else was used later.
    OverLimit,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOver => f.write_str("left by one who died"),
            Self::Damaged(why) => write!(f, "damaged: {why}"),
            Self::Asked => f.write_str("as asked"),
            Self::Unused(_) => f.write_str("not used for long"),
            Self::OverLimit => f.write_str("used least recently"),
        }
    }
}

/// Something that was to go.
#[derive(Debug)]
pub struct Pruned {
    /// As it was.
    pub entry: CacheEntry,
    /// Why it was to go.
    pub reason: Reason,
    /// Did it?
    pub removal: Removal,
}

impl Cache {
    /// Removes what the dead left, what is damaged, and what is asked for, but nothing that is in use. Ends early when
    /// `go_on` says no.
    pub fn prune(&self, spec: &PruneSpec, go_on: &dyn Fn() -> bool) -> Vec<Pruned> {
        let entries = self.entries();
        let chosen = choose(&entries, spec, SystemTime::now());
        self.carry_out(entries, chosen, go_on)
    }

    /// Removes templates and images that are not in use, the least recently used first, until all that is kept takes at
    /// most `limit` bytes.
    pub fn evict(&self, limit: u64) -> Vec<Pruned> {
        let entries = self.entries();
        let order = in_order(&entries);
        let is_candidate = |&at: &usize| {
            let stays = |entry: &CacheEntry| {
                matches!(entry.content, Content::Packages { .. } | Content::Lists)
            };
            entries.get(at).is_some_and(|entry| !stays(entry))
        };
        let order = order.into_iter().filter(is_candidate);
        let chosen = beyond_limit(&entries, order, total(&entries), limit);
        self.carry_out(entries, chosen, &|| true)
    }

    fn carry_out(
        &self,
        entries: Vec<CacheEntry>,
        chosen: Vec<(usize, Reason)>,
        go_on: &dyn Fn() -> bool,
    ) -> Vec<Pruned> {
        let mut entries: Vec<Option<CacheEntry>> = entries.into_iter().map(Some).collect();
        let mut pruned = Vec::new();
        for (at, reason) in chosen {
            if !go_on() {
                break;
            }
            if let Some(entry) = entries.get_mut(at).and_then(Option::take) {
                // Whether it is in use is seen again with its lock held.
                let removal = if entry.in_use { Removal::InUse } else { self.remove(&entry) };
                pruned.push(Pruned { entry, reason, removal });
            }
        }
        pruned
    }
}

/// The entries that may go at all, the first to go first: the least recently used, a template before its image, and
/// packages last, since to have them again takes a network.
fn in_order(entries: &[CacheEntry]) -> Vec<usize> {
    let rank = |content: &Content| match content {
        Content::Template(_) => 0,
        Content::Image(_) | Content::Kernel | Content::Modules | Content::Downloads => 1,
        Content::Packages { .. } | Content::Lists => 2,
    };
    let mut order: Vec<(usize, &CacheEntry)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| {
            !matches!(entry.condition, Condition::Newer | Condition::Foreign | Condition::Making)
        })
        .collect();
    order.sort_by_key(|(_, entry)| {
        let rank = rank(&entry.content);
        (rank == 2, entry.used, rank)
    });
    order.into_iter().map(|(at, _)| at).collect()
}

fn total(entries: &[CacheEntry]) -> u64 {
    entries.iter().map(|entry| entry.bytes).fold(0, u64::saturating_add)
}

/// What is to go; also what would have to stay, since it is in use.
fn choose(entries: &[CacheEntry], spec: &PruneSpec, now: SystemTime) -> Vec<(usize, Reason)> {
    let order = in_order(entries);
    let mut left = total(entries);
    let (mut chosen, mut others) = (Vec::new(), Vec::new());
    for at in order {
        let Some(entry) = entries.get(at) else { continue };
        let unused = now.duration_since(entry.used).unwrap_or_default();
        let reason = match (&entry.condition, spec.older_than) {
            (Condition::LeftOver, _) => Reason::LeftOver,
            (Condition::Damaged(why), _) => Reason::Damaged(why.clone()),
            _ if spec.all => Reason::Asked,
            (_, Some(limit)) if unused > limit => Reason::Unused(unused),
            _ => {
                others.push(at);
                continue;
            }
        };
        if !entry.in_use {
            left = left.saturating_sub(entry.bytes);
        }
        chosen.push((at, reason));
    }
    if let Some(limit) = spec.limit {
        chosen.extend(beyond_limit(entries, others, left, limit));
    }
    chosen
}

/// Those of `order` that go until at most `limit` bytes are `left`.
fn beyond_limit(
    entries: &[CacheEntry],
    order: impl IntoIterator<Item = usize>,
    mut left: u64,
    limit: u64,
) -> Vec<(usize, Reason)> {
    let mut chosen = Vec::new();
    for at in order {
        let Some(entry) = entries.get(at).filter(|_| left > limit) else { break };
        if !entry.in_use {
            left = left.saturating_sub(entry.bytes);
        }
        chosen.push((at, Reason::OverLimit));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Used so many seconds ago.
    fn entry(content: Content, id: &str, bytes: u64, ago: u64) -> CacheEntry {
        let used = now() - Duration::from_secs(ago);
        CacheEntry::example(content, id, bytes, used, Condition::Ready)
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    /// What lies there: 100 bytes in all.
    fn entries() -> Vec<CacheEntry> {
        let damaged = Condition::Damaged("ram was written to".to_owned());
        vec![
            entry(Content::Template(None), "new", 10, 1),
            entry(Content::Template(None), "old", 10, 300),
            CacheEntry { in_use: true, ..entry(Content::Template(None), "oldest-in-use", 10, 400) },
            entry(Content::Image(None), "tiny/old", 10, 300),
            entry(Content::Image(None), "tiny/new", 10, 1),
            entry(Content::Packages { count: 2 }, "-", 10, 9_000),
            CacheEntry { condition: damaged, ..entry(Content::Template(None), "damaged", 5, 2) },
            CacheEntry {
                condition: Condition::LeftOver,
                ..entry(Content::Image(None), "dead", 5, 2)
            },
            CacheEntry {
                condition: Condition::Newer,
                ..entry(Content::Template(None), "2", 10, 9_999)
            },
            CacheEntry {
                condition: Condition::Foreign,
                ..entry(Content::Image(None), "root", 10, 9_999)
            },
            CacheEntry {
                condition: Condition::Making,
                in_use: true,
                ..entry(Content::Template(None), ".making-x", 10, 0)
            },
        ]
    }

    fn chosen(spec: &PruneSpec) -> Vec<String> {
        let entries = entries();
        let chosen = choose(&entries, spec, now());
        chosen.iter().map(|(at, reason)| format!("{}: {reason}", entries[*at].id)).collect()
    }

    const ALWAYS: [&str; 2] =
        ["damaged: damaged: ram was written to", "dead: left by one who died"];

    #[test]
    fn what_the_dead_left_and_what_is_damaged_goes_always() {
        assert_eq!(chosen(&PruneSpec::default()), ALWAYS);
        // That is 90 bytes then.
        assert_eq!(chosen(&PruneSpec { limit: Some(90), ..PruneSpec::default() }), ALWAYS);
    }

    #[test]
    fn beyond_the_limit_goes_what_was_used_least_recently() {
        let beyond = |limit| {
            let mut chosen = chosen(&PruneSpec { limit: Some(limit), ..PruneSpec::default() });
            chosen.drain(..2);
            chosen
        };
        let least = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("{name}: used least recently")).collect()
        };
        // What is in use is named, and makes no room.
        assert_eq!(beyond(80), least(&["oldest-in-use", "old"]));
        assert_eq!(beyond(79), least(&["oldest-in-use", "old", "tiny/old"]));
        // An image after a template that was used at the same time; packages at last.
        let all = ["oldest-in-use", "old", "tiny/old", "new", "tiny/new", "-"];
        assert_eq!(beyond(0), least(&all));
        assert_eq!(beyond(50), least(&all[..5]));
    }

    #[test]
    fn everything_is_all_but_what_is_anothers() {
        let all = chosen(&PruneSpec { all: true, ..PruneSpec::default() });
        assert_eq!(all.len(), 8);
        assert!(
            all.iter().all(|line| !line.starts_with("2:") && !line.starts_with("root:")),
            "{all:?}"
        );
    }

    #[test]
    fn old_is_what_was_not_used_for_longer() {
        let older = |seconds| {
            let older_than = Some(Duration::from_secs(seconds));
            let mut chosen = chosen(&PruneSpec { older_than, ..PruneSpec::default() });
            chosen.retain(|line| line.ends_with("for long"));
            chosen.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(older(300), ["oldest-in-use", "-"]);
        assert_eq!(older(299), ["oldest-in-use", "old", "tiny/old", "-"]);
        assert!(older(9_000).is_empty());
    }

    #[test]
    fn packages_are_never_evicted_to_make_room() {
        let entries = entries();
        let order = in_order(&entries);
        assert_eq!(order.last().map(|at| &*entries[*at].id), Some("-"));
    }
}
