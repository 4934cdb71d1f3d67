//! Killing a command with all that it started.
//!
//! Where the command has a cgroup, the kernel does it. In any case `/proc` is walked as well, for what moved into another
//! cgroup, or where there are no cgroups: the command's descendants, whoever is in a process group or session that one
//! of them leads, and orphans. Those become children of the agent, which is a "child subreaper", and lost their chain of
//! parents; what still tells them is a mark that is inherited whatever they do to their environment, the timer slack: a
//! command without a cgroup gets one that no other running command has, some nanoseconds above the agent's.
//!
//! A walk that finds somebody new is followed by another one. A process that has been sent SIGKILL starts no others, so
//! this ends; [`ROUNDS`] bounds it all the same.

use super::cgroup::Leaf;
use crate::sys::spawn::send_signal;
use std::collections::{HashMap, HashSet};
use std::fs;

/// A tree is walked at most so often in one go.
const ROUNDS: usize = 100;

/// Clock ticks in a second, as `/proc` counts (`USER_HZ`).
const TICKS: u64 = 100;

const SIGKILL: u8 = 9;

/// A command's main process and all that it started.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) main: i32,
    /// Its number is free for another.
    pub(super) is_reaped: bool,
    pub(super) leaf: Option<Leaf>,
    pub(super) mark: Option<Mark>,
    /// Those that were sent SIGKILL, with their start times.
    killed: HashMap<i32, u64>,
}

/// What tells an orphan's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Timer slack in nanoseconds.
    pub(super) slack: u64,
    /// Nothing older is part of it; in ticks since the boot.
    pub(super) since: u64,
}

impl Mark {
    /// A mark for a command that starts now, which none of `taken` has.
    pub(super) fn new(base: u64, serial: u64, taken: &[u64]) -> Self {
        // At most 10 µs above what every process has: no program notices.
        let candidates = (0..=taken.len() as u64).map(|step| {
            let step = serial.wrapping_add(step).checked_rem(10_000).unwrap_or(0);
            base.saturating_add(1).saturating_add(step)
        });
        let slack = candidates.into_iter().find(|slack| !taken.contains(slack));
        Self { slack: slack.unwrap_or(base), since: ticks() }
    }
}

/// What every process has that was not given a mark.
pub(super) fn usual_slack() -> u64 {
    nix::sys::prctl::get_timerslack().ok().and_then(|slack| slack.try_into().ok()).unwrap_or(50_000)
}

fn ticks() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.ok()
        .and_then(|now| {
            let seconds = u64::try_from(now.tv_sec()).ok()?;
            let rest = u64::try_from(now.tv_nsec()).ok()?.checked_div(1_000_000_000 / TICKS)?;
            seconds.checked_mul(TICKS)?.checked_add(rest)
        })
        .unwrap_or(0)
}

impl Tree {
    pub(super) fn new(main: i32, leaf: Option<Leaf>, mark: Option<Mark>) -> Self {
        Self { main, is_reaped: false, leaf, mark, killed: HashMap::new() }
    }
}

/// Kills trees, and nobody else: `others` are the main processes of other commands.
pub(super) fn kill(trees: &mut [&mut Tree], others: &[i32]) {
    for _ in 0..ROUNDS {
        // Before anybody is killed, so that chains of parents are whole.
        let processes = Processes::now();
        let mut is_done = true;
        for tree in &mut *trees {
            let fresh = tree.fresh(&processes, others);
            if let Some(leaf) = &mut tree.leaf {
                leaf.kill();
            }
            if !tree.is_reaped {
                send_signal(tree.main, true, SIGKILL);
                send_signal(tree.main, false, SIGKILL);
            }
            for process in fresh {
                send_signal(process.pid, false, SIGKILL);
                tree.killed.insert(process.pid, process.start);
                is_done = false;
            }
        }
        if is_done {
            return;
        }
    }
}

impl Tree {
    /// Who belongs to it and was not killed yet.
    fn fresh<'a>(&self, processes: &'a Processes, others: &[i32]) -> Vec<&'a Process> {
        // The ids that make a child, a group or a session part of it. None is of somebody who came later.
        let mut ids: HashSet<i32> = self
            .killed
            .iter()
            .filter(|(pid, start)| processes.start(**pid).is_none_or(|now| now == **start))
            .map(|(pid, _)| *pid)
            .collect();
        if !self.is_reaped || processes.start(self.main).is_none() {
            ids.insert(self.main);
        }
        let candidates = processes.list.iter().filter(|process| {
            process.pid > 1 && process.pid != processes.agent && !others.contains(&process.pid)
        });
        let mut rest: Vec<&Process> = candidates.collect();
        let mut found = Vec::new();
        loop {
            let is_part = |process: &&Process| {
                let kin = [process.pid, process.parent, process.group, process.session];
                kin.iter().any(|id| ids.contains(id)) || self.is_marked(process, processes.agent)
            };
            let (part, other): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_part);
            if part.is_empty() {
                break;
            }
            ids.extend(part.iter().map(|process| process.pid));
            found.extend(part);
            rest = other;
        }
        found.retain(|process| self.killed.get(&process.pid) != Some(&process.start));
        found
    }

    fn is_marked(&self, process: &Process, agent: i32) -> bool {
        let Some(mark) =
            self.mark.filter(|mark| process.parent == agent && process.start >= mark.since)
        else {
            return false;
        };
        let slack = fs::read_to_string(format!("/proc/{}/timerslack_ns", process.pid));
        slack.is_ok_and(|slack| slack.trim().parse() == Ok(mark.slack))
    }
}

/// One process of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Ticks since the boot.
    start: u64,
}

/// All processes at one time.
struct Processes {
    agent: i32,
    list: Vec<Process>,
    starts: HashMap<i32, u64>,
}

impl Processes {
    fn now() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let stats = pids.filter_map(|pid| fs::read(format!("/proc/{pid}/stat")).ok());
        let list: Vec<Process> = stats.filter_map(|stat| process(&stat)).collect();
        let starts = list.iter().map(|process| (process.pid, process.start)).collect();
        Self { agent: std::process::id().cast_signed(), list, starts }
    }

    fn start(&self, pid: i32) -> Option<u64> {
        self.starts.get(&pid).copied()
    }
}

/// Its name may hold anything, also brackets and line ends.
fn process(stat: &[u8]) -> Option<Process> {
    let text = String::from_utf8_lossy(stat);
    let (pid, _) = text.split_once(' ')?;
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let [_, parent, group, session, ..] = fields.as_slice() else { return None };
    Some(Process {
        pid: pid.parse().ok()?,
        parent: parent.parse().ok()?,
        group: group.parse().ok()?,
        session: session.parse().ok()?,
        // Field 22, of which two are before the rest.
        start: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_fields_is_none() {
        let stat = "42 (a) S 1 (b) S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 555 1 2\n";
        let expected = Process { pid: 42, parent: 7, group: 8, session: 9, start: 555 };
        assert_eq!(process(stat.as_bytes()), Some(expected));
        for bad in ["", "1", "1 (a", "1 (a) S", "x (a) S 1 2 3", "1 (a) S 1 2 3 4"] {
            assert_eq!(process(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn marks_of_running_commands_differ() {
        let mut taken = Vec::new();
        for serial in [0, 0, 10_000, 1, 9_999, 19_999] {
            let mark = Mark::new(50_000, serial, &taken);
            assert!(!taken.contains(&mark.slack));
            assert!((50_001..=60_000).contains(&mark.slack));
            taken.push(mark.slack);
        }
    }

    fn processes(list: &[(i32, i32, i32, i32, u64)]) -> Processes {
        let list: Vec<_> = list
            .iter()
            .map(|&(pid, parent, group, session, start)| Process {
                pid,
                parent,
                group,
                session,
                start,
            })
            .collect();
        let starts = list.iter().map(|process| (process.pid, process.start)).collect();
        Processes { agent: 1, list, starts }
    }

    fn pids(found: &[&Process]) -> Vec<i32> {
        let mut pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn descendants_groups_and_sessions_are_part_and_others_are_not() {
        let all = processes(&[
            (1, 0, 1, 1, 0),
            (10, 1, 10, 1, 5),
            // A child that came before its parent in the list, and led a session.
            (11, 12, 12, 12, 9),
            (12, 10, 12, 12, 8),
            // Orphans: of the group, of the session of 12, and of nobody.
            (13, 1, 10, 1, 9),
            (14, 1, 14, 12, 9),
            (15, 1, 15, 15, 9),
            // Another command.
            (20, 1, 20, 1, 6),
            (21, 20, 20, 1, 7),
        ]);
        let mut tree = Tree::new(10, None, None);
        assert_eq!(pids(&tree.fresh(&all, &[20])), [10, 11, 12, 13, 14]);
        tree.killed = HashMap::from([(10, 5), (12, 8)]);
        assert_eq!(pids(&tree.fresh(&all, &[20])), [11, 13, 14]);
        // Its number belongs to another process now.
        let mut tree = Tree::new(20, None, None);
        tree.is_reaped = true;
        assert_eq!(pids(&tree.fresh(&all, &[])), []);
        let mut tree = Tree::new(10, None, None);
        tree.killed = HashMap::from([(20, 3)]);
        assert_eq!(pids(&tree.fresh(&all, &[])), [10, 11, 12, 13, 14]);
    }
}
