//! The agent's threads: small stacks, and one place that starts them; and their locks.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// The stack of a thread, bytes.
const STACK: usize = 256 * 1024;

/// What a thread is to do.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// A thread that has done what it was to do, and waits for more: to make one takes a restored guest, whose code is all
/// cold, as long as a small job altogether.
struct Spare {
    state: Mutex<SpareState>,
    changed: Condvar,
}

struct SpareState {
    /// One waits, and has nothing to do yet.
    is_idle: bool,
    work: Option<Work>,
}

static SPARE: Spare =
    Spare { state: Mutex::new(SpareState { is_idle: false, work: None }), changed: Condvar::new() };

impl Spare {
    /// Gives the work to the one that waits; back if none does.
    fn give(&self, work: Work) -> Option<Work> {
        let mut state = lock(&self.state);
        if !std::mem::take(&mut state.is_idle) {
            return Some(work);
        }
        state.work = Some(work);
        self.changed.notify_one();
        None
    }

    /// Waits for work; none when another waits already.
    fn wait(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        if state.is_idle || state.work.is_some() {
            return None;
        }
        state.is_idle = true;
        loop {
            if let Some(work) = state.work.take() {
                return Some(work);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Has a thread wait for the first work.
pub(crate) fn prepare() {
    // Without one the work makes its own.
    let _ = start(Box::new(|| ()));
}

/// Runs something on a thread of its own, which is not preferred as the poll loop is. Boxed, so that there is one copy of
/// what starting a thread takes.
pub(crate) fn spawn(work: Work) -> io::Result<()> {
    match SPARE.give(work) {
        Some(work) => start(work),
        None => Ok(()),
    }
}

fn start(work: Work) -> io::Result<()> {
    let run = move || {
        crate::sys::set_nice(0);
        let mut next = Some(work);
        while let Some(work) = next {
            work();
            next = SPARE.wait();
        }
    };
    Builder::new().stack_size(STACK).spawn(run).map(drop)
}

/// Takes a lock. Nobody who held it can have panicked: the agent aborts then.
#[inline(never)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread::{ThreadId, current};

    /// On which threads works ran that were given one after the other, or all at once.
    fn threads(count: usize, at_once: bool) -> Vec<ThreadId> {
        let (said, heard) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(Mutex::new(wait));
        let mut all = Vec::new();
        for _ in 0..count {
            let (said, wait) = (said.clone(), wait.clone());
            let work: Work = Box::new(move || {
                if at_once {
                    let _ = lock(&wait).recv();
                }
                said.send(current().id()).unwrap();
            });
            spawn(work).unwrap();
            if !at_once {
                all.push(heard.recv().unwrap());
                // It says so before it waits.
                while !lock(&SPARE.state).is_idle {
                    std::thread::yield_now();
                }
            }
        }
        drop(go);
        if at_once {
            all.extend(heard.iter().take(count));
        }
        all
    }

    #[test]
    fn one_thread_is_kept_and_none_waits_for_another() {
        prepare();
        while !lock(&SPARE.state).is_idle {
            std::thread::yield_now();
        }
        let mut one_by_one = threads(5, false);
        one_by_one.dedup();
        assert_eq!(one_by_one.len(), 1);
        let together = threads(5, true);
        assert_eq!(together.len(), 5);
    }
}
