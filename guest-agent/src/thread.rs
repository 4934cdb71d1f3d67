//! The agent's threads: small stacks, and one place that starts them; and their locks.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// The stack of a thread, bytes.
const STACK: usize = 256 * 1024;

/// Runs something on a thread of its own, which is not preferred as the poll loop is. Boxed, so that there is one copy of
/// what starting a thread takes.
pub(crate) fn spawn(work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let run = move || {
        crate::sys::set_nice(0);
        work();
    };
    Builder::new().stack_size(STACK).spawn(run).map(drop)
}

/// Takes a lock. Nobody who held it can have panicked: the agent aborts then.
#[inline(never)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
