//! Starting processes, and the other calls of `exec` that have no safe wrapper.
//!
//! A child is cloned with `CLONE_VM | CLONE_VFORK` onto a stack of its own: nothing is copied, and this thread stands
//! still until the child has executed its program or is gone. All that the child needs is made ready before; the child
//! makes system calls only: it takes no lock, allocates nothing and cannot panic. No signal of this process has a handler
//! that could run in it, but for faults. Identity is changed by raw system calls,
//! since musl's wrappers would signal the threads of the agent. What failed is left in memory, which is shared.
//!
//! clone3(2) puts the child into its cgroup at once (Linux 5.7). Where that is refused, clone(2) does the rest and the
//! child enters the cgroup by itself before anything else.
#![expect(unsafe_code, reason = "clone, wait4 and reads into spare room have no safe wrapper")]

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc::{self, c_char, c_int, c_long, c_void};
use nix::sys::stat::Mode;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Words of 16 bytes in the child's stack, 64 KiB.
const STACK_WORDS: usize = 4096;

/// Memory of so many bytes is kept for the next process's strings.
const KEPT: usize = 16 * 1024;

/// `CLONE_INTO_CGROUP` (`linux/sched.h`).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's signal set has 64 bits (`_NSIG / 8` bytes).
const SIGNAL_SET_LEN: c_long = 8;

/// A string for the kernel holds a NUL byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HasNul;

/// Strings as execve(2) takes them, in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Strings {
    /// Without any, but with the memory of those that were there, if that is little.
    pub(crate) fn emptied(mut self) -> Self {
        let starts = self.starts.capacity().saturating_mul(size_of::<usize>());
        if self.bytes.capacity() > KEPT || starts > KEPT {
            return Self::default();
        }
        self.bytes.clear();
        self.starts.clear();
        self
    }

    /// Adds one string, joined from parts.
    ///
    /// # Errors
    /// [`HasNul`] when a part has a NUL byte; nothing of use is left then.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) -> Result<(), HasNul> {
        self.starts.push(self.bytes.len());
        for part in parts {
            if part.contains(&0) {
                return Err(HasNul);
            }
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        Ok(())
    }

    /// The strings without their final NUL.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let tails = self.starts.iter().filter_map(|start| self.bytes.get(*start..));
        tails.filter_map(|tail| CStr::from_bytes_until_nul(tail).ok()).map(CStr::to_bytes)
    }

    /// Adds pointers to the strings, then a null pointer. Good as long as `self` is not changed.
    fn point(&self, pointers: &mut Vec<*const c_char>) {
        let tails = self.starts.iter().filter_map(|start| self.bytes.get(*start..));
        pointers.extend(tails.map(|tail| tail.as_ptr().cast()).chain([std::ptr::null()]));
    }
}

/// A resource and its limits, as prlimit(2) takes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// `RLIMIT_…`.
    pub(crate) resource: c_long,
    /// Soft and hard: the kernel's `struct rlimit64`.
    pub(crate) values: [u64; 2],
}

/// What a child becomes.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Programs to try one after the other, as execvp(3) does.
    pub(crate) programs: &'a Strings,
    pub(crate) argv: &'a Strings,
    pub(crate) envp: &'a Strings,
    /// Its working folder, where that is not the agent's.
    pub(crate) cwd: Option<&'a CStr>,
    /// What becomes descriptors 0, 1 and 2. Each is above 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// A session of its own, with descriptor 0 as its terminal; else a process group of its own.
    pub(crate) terminal: bool,
    /// Signals that are ignored here and not there: bit 0 is signal 1.
    pub(crate) default_signals: u64,
    /// Timer slack in nanoseconds (prctl(2)).
    pub(crate) timer_slack: Option<u64>,
    /// The OOM killer is to treat it as usual (proc_pid_oom_score_adj(5)), unlike the agent.
    pub(crate) reset_oom: bool,
    /// Its nice value (setpriority(2)), where the agent's own is another.
    pub(crate) nice: Option<i32>,
    pub(crate) umask: Option<u32>,
    pub(crate) limits: &'a [Limit],
    pub(crate) groups: Option<&'a [u32]>,
    pub(crate) gid: Option<u32>,
    pub(crate) uid: Option<u32>,
    /// The folder of its cgroup.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Clone,
    Cgroup,
    Terminal,
    Stdio,
    Limits,
    Identity,
    Folder,
    Program,
}

const STEPS: [Step; 8] = [
    Step::Clone,
    Step::Cgroup,
    Step::Terminal,
    Step::Stdio,
    Step::Limits,
    Step::Identity,
    Step::Folder,
    Step::Program,
];

/// The process was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpawnFailure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
}

/// Starts processes, one at a time.
pub(crate) struct Spawner {
    stack: Box<[u128]>,
    /// Of the last one's strings; the memory serves the next.
    pointers: Vec<*const c_char>,
    /// clone3(2) with a cgroup was not refused yet.
    pub(crate) into_cgroup: bool,
}

impl Spawner {
    pub(crate) fn new() -> Self {
        let stack = vec![0; STACK_WORDS].into_boxed_slice();
        Self { stack, pointers: Vec::new(), into_cgroup: true }
    }

    /// Starts a process and returns its id, when its program runs.
    ///
    /// # Errors
    /// [`SpawnFailure`]; nothing is left of the process then.
    pub(crate) fn spawn(&mut self, plan: &Plan<'_>) -> Result<i32, SpawnFailure> {
        let mut pointers = std::mem::take(&mut self.pointers);
        pointers.clear();
        plan.programs.point(&mut pointers);
        let argv = pointers.len();
        plan.argv.point(&mut pointers);
        let envp = pointers.len();
        plan.envp.point(&mut pointers);
        let started = self.start(plan, &pointers, (argv, envp));
        if size_of_val(pointers.as_slice()) <= KEPT {
            self.pointers = pointers;
        }
        started
    }

    /// With pointers to programs, from the first index on to arguments, from the second on to variables.
    fn start(
        &mut self,
        plan: &Plan<'_>,
        pointers: &[*const c_char],
        (argv, envp): (usize, usize),
    ) -> Result<i32, SpawnFailure> {
        let from = |start| pointers.get(start..).unwrap_or_default().as_ptr();
        let mut shared = Shared {
            plan,
            programs: pointers.get(..argv).unwrap_or_default(),
            argv: from(argv),
            envp: from(envp),
            join: None,
            // No such step: it did not fail.
            step: AtomicUsize::new(STEPS.len()),
            errno: AtomicI32::new(0),
        };
        if !self.into_cgroup {
            shared.join = join(plan)?;
        }
        let pid = self.clone_with(&mut shared)?;
        match STEPS.get(shared.step.load(Ordering::Acquire)) {
            None => Ok(pid),
            Some(step) => {
                wait_for(pid);
                let errno = Errno::from_raw(shared.errno.load(Ordering::Acquire));
                Err(SpawnFailure { step: *step, errno })
            }
        }
    }

    fn clone_with(&mut self, shared: &mut Shared<'_>) -> Result<i32, SpawnFailure> {
        let failed = |errno| SpawnFailure { step: Step::Clone, errno };
        if let (Some(cgroup), true) = (shared.plan.cgroup, self.into_cgroup) {
            let args = CloneArgs {
                flags: CLONE_INTO_CGROUP
                    | u64::from((libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned()),
                exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
                stack: self.stack.as_mut_ptr() as u64,
                stack_size: size_of_val(&*self.stack) as u64,
                cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
                ..CloneArgs::default()
            };
            // SAFETY: the stack is ours alone until clone3 returns, which it does when the child no longer uses this
            // memory (CLONE_VFORK); `shared` is what `child` takes, and lives as long.
            let cloned = unsafe { clone3(&args, (&raw const *shared).cast_mut().cast()) };
            match cloned {
                Err(Errno::ENOSYS | Errno::EINVAL | Errno::EPERM | Errno::E2BIG) => {
                    self.into_cgroup = false;
                    shared.join = join(shared.plan)?;
                }
                cloned => return cloned.map_err(failed),
            }
        }
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = self.stack.as_mut_ptr_range().end;
        // SAFETY: as above; the stack grows down from its end, which is aligned to 16 bytes.
        let pid = unsafe {
            libc::clone(child, top.cast(), flags, (&raw const *shared).cast_mut().cast())
        };
        Errno::result(pid).map_err(failed)
    }
}

/// The file by which the child enters its cgroup.
fn join(plan: &Plan<'_>) -> Result<Option<OwnedFd>, SpawnFailure> {
    let Some(cgroup) = plan.cgroup else { return Ok(None) };
    openat(cgroup, "cgroup.procs", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map(Some)
        .map_err(|errno| SpawnFailure { step: Step::Cgroup, errno })
}

/// What the child reads, and where it leaves its failure.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    /// Ends with a null pointer, as the two below.
    programs: &'a [*const c_char],
    argv: *const *const c_char,
    envp: *const *const c_char,
    join: Option<OwnedFd>,
    step: AtomicUsize,
    errno: AtomicI32,
}

/// Where the child begins, and ends.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `Spawner::clone_with` gives a `Shared` that lives until this process is gone or another program.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    let (step, errno) = shared.become_program();
    shared.errno.store(errno, Ordering::Release);
    shared.step.store(step as usize, Ordering::Release);
    // SAFETY: ends this process without running anything of the agent's.
    unsafe { libc::syscall(libc::SYS_exit_group, 127 as c_long) };
    127
}

impl Shared<'_> {
    /// Returns only with what failed.
    fn become_program(&self) -> (Step, i32) {
        match self.prepare() {
            Err(failure) => failure,
            Ok(()) => (Step::Program, self.execute()),
        }
    }

    /// A command that cannot be made an ordinary victim runs all the same.
    fn reset_oom(&self) {
        let path = c"/proc/self/oom_score_adj".as_ptr() as c_long;
        let flags = c_long::from(libc::O_WRONLY | libc::O_CLOEXEC);
        let open = call(Step::Limits, libc::SYS_openat, [libc::AT_FDCWD.into(), path, flags, 0]);
        if let Ok(fd) = open {
            let _ = call(Step::Limits, libc::SYS_write, [fd, c"0".as_ptr() as c_long, 1, 0]);
            let _ = call(Step::Limits, libc::SYS_close, [fd, 0, 0, 0]);
        }
    }

    fn prepare(&self) -> Result<(), (Step, i32)> {
        let plan = self.plan;
        if let Some(join) = &self.join {
            let zero = c"0".as_ptr() as c_long;
            call(Step::Cgroup, libc::SYS_write, [join.as_raw_fd().into(), zero, 1, 0])?;
        }
        let [stdin, stdout, stderr] = plan.stdio.map(|fd| c_long::from(fd.as_raw_fd()));
        if plan.terminal {
            call(Step::Terminal, libc::SYS_setsid, [0; 4])?;
            let request = libc::TIOCSCTTY as c_long;
            call(Step::Terminal, libc::SYS_ioctl, [stdin, request, 0, 0])?;
        } else {
            call(Step::Terminal, libc::SYS_setpgid, [0; 4])?;
        }
        for (from, to) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
            call(Step::Stdio, libc::SYS_dup3, [from, to, 0, 0])?;
        }
        self.reset_signals();
        if let Some(slack) = plan.timer_slack {
            let slack = slack.cast_signed();
            // Without it a stray is not found; the command runs all the same.
            let _ =
                call(Step::Limits, libc::SYS_prctl, [libc::PR_SET_TIMERSLACK.into(), slack, 0, 0]);
        }
        if plan.reset_oom {
            self.reset_oom();
        }
        if let Some(nice) = plan.nice {
            // It is a wish: less of a CPU is not none.
            let which = libc::PRIO_PROCESS.into();
            let _ = call(Step::Limits, libc::SYS_setpriority, [which, 0, nice.into(), 0]);
        }
        if let Some(umask) = plan.umask {
            call(Step::Limits, libc::SYS_umask, [umask.into(), 0, 0, 0])?;
        }
        for limit in plan.limits {
            let values = (&raw const limit.values) as c_long;
            call(Step::Limits, libc::SYS_prlimit64, [0, limit.resource, values, 0])?;
        }
        if let Some(groups) = plan.groups {
            let len = c_long::try_from(groups.len()).unwrap_or(c_long::MAX);
            let list = groups.as_ptr() as c_long;
            call(Step::Identity, libc::SYS_setgroups, [len, list, 0, 0])?;
        }
        if let Some(gid) = plan.gid.map(c_long::from) {
            call(Step::Identity, libc::SYS_setresgid, [gid, gid, gid, 0])?;
        }
        if let Some(uid) = plan.uid.map(c_long::from) {
            call(Step::Identity, libc::SYS_setresuid, [uid, uid, uid, 0])?;
        }
        // Last, so that the folder and the program are judged by what the command may do.
        let Some(cwd) = plan.cwd else { return Ok(()) };
        call(Step::Folder, libc::SYS_chdir, [cwd.as_ptr() as c_long, 0, 0, 0]).map(drop)
    }

    fn reset_signals(&self) {
        // The kernel's `struct sigaction` of zeros: SIG_DFL, no flags, nothing blocked.
        let default = [0_u64; 4];
        let mut ignored = self.plan.default_signals;
        while ignored != 0 {
            let signal = c_long::from(ignored.trailing_zeros()).saturating_add(1);
            ignored &= ignored.wrapping_sub(1);
            let action = (&raw const default) as c_long;
            let args = [signal, action, 0, SIGNAL_SET_LEN];
            let _ = call(Step::Program, libc::SYS_rt_sigaction, args);
        }
        unblock_signals();
    }

    /// Tries the programs in turn; returns why none was executed.
    fn execute(&self) -> i32 {
        let mut reason = libc::ENOENT;
        let mut denied = false;
        for program in self.programs.iter().filter(|program| !program.is_null()) {
            let args = [*program as c_long, self.argv as c_long, self.envp as c_long, 0];
            let Err((_, errno)) = call(Step::Program, libc::SYS_execve, args) else { continue };
            reason = errno;
            match errno {
                libc::EACCES => denied = true,
                libc::ENOENT
                | libc::ENOTDIR
                | libc::ENAMETOOLONG
                | libc::ESTALE
                | libc::ENODEV
                | libc::ETIMEDOUT => {}
                _ => return errno,
            }
        }
        if denied { libc::EACCES } else { reason }
    }
}

/// A system call of the child. It may write the `errno` of the thread that waits: the kernel's answer is what counts there.
fn call(step: Step, number: c_long, args: [c_long; 4]) -> Result<c_long, (Step, i32)> {
    let [a, b, c, d] = args;
    // SAFETY: only called from this file, with numbers and arguments that belong together; pointers among them are to
    // memory of `Shared` or `Plan`, which outlive the child.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        -1 => Err((step, Errno::last_raw())),
        result => Ok(result),
    }
}

/// The agent has signals blocked that it reads.
fn unblock_signals() {
    let none = 0_u64;
    let (how, set) = (libc::SIG_SETMASK.into(), (&raw const none) as c_long);
    let _ = call(Step::Program, libc::SYS_rt_sigprocmask, [how, set, 0, SIGNAL_SET_LEN]);
}

/// `struct clone_args` up to its third version, 88 bytes (`linux/sched.h`).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3(2), with [`child`] running on the stack of `args`.
///
/// # Safety
/// `args` has `CLONE_VM | CLONE_VFORK` and a stack that nobody else uses; `shared` points to a [`Shared`].
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &CloneArgs, shared: *mut c_void) -> nix::Result<i32> {
    let result: i64;
    // SAFETY: in the parent this is a system call, which changes rax, rcx and r11 alone. The child has registers and a
    // stack of its own, calls `child` with that aligned to 16 bytes, and never leaves the block.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {shared}",
            "call {child}",
            "ud2",
            "2:",
            shared = in(reg) shared,
            child = in(reg) child as extern "C" fn(*mut c_void) -> c_int,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const *args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    cloned(result)
}

/// clone3(2), with [`child`] running on the stack of `args`.
///
/// # Safety
/// `args` has `CLONE_VM | CLONE_VFORK` and a stack that nobody else uses; `shared` points to a [`Shared`].
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: &CloneArgs, shared: *mut c_void) -> nix::Result<i32> {
    let result: i64;
    // SAFETY: in the parent this is a system call, which changes x0 alone. The child has registers and a stack of its
    // own, and never leaves the block.
    unsafe {
        core::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {shared}",
            "blr {child}",
            "brk #1",
            "2:",
            shared = in(reg) shared,
            child = in(reg) child as extern "C" fn(*mut c_void) -> c_int,
            in("x8") libc::SYS_clone3,
            inlateout("x0") (&raw const *args) as i64 => result,
            in("x1") size_of::<CloneArgs>(),
        );
    }
    cloned(result)
}

/// Other processors have clone(2) only.
///
/// # Safety
/// None needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(_args: &CloneArgs, _shared: *mut c_void) -> nix::Result<i32> {
    Err(Errno::ENOSYS)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn cloned(result: i64) -> nix::Result<i32> {
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(errno) => Err(Errno::from_raw(errno.saturating_neg())),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// Takes the remains of a child that failed.
fn wait_for(pid: i32) {
    // SAFETY: wait4 takes null for what is not wanted.
    while unsafe { libc::wait4(pid, std::ptr::null_mut(), 0, std::ptr::null_mut()) } == -1
        && Errno::last() == Errno::EINTR
    {}
}

/// A child that is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    /// As wait(2) tells it.
    pub(crate) status: c_int,
    /// Microseconds in user mode and in the kernel.
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) max_rss_kib: u64,
}

/// Takes the remains of any child that is gone, ours or an orphan, if there is one.
pub(crate) fn wait_any() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: an rusage of zeros is valid: it is plain data.
    let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
    // SAFETY: both pointers are to live locals.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    let micros = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let rest = u64::try_from(time.tv_usec).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(rest)
    };
    (pid > 0).then(|| Ended {
        pid,
        status,
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    })
}

/// Has all descriptors above 2 closed where another program is executed.
pub(crate) fn close_on_exec() {
    let (first, last): (c_long, c_long) = (3, c_int::MAX.into());
    let flags = c_long::from(libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: with this flag close_range(2) closes nothing. Linux 5.11; before, each of the first descriptors is marked
    // by itself, which fails where there is none.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, flags) == -1 {
            for fd in 3..1024 {
                let _ = libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// Sends any signal, also a real-time one, to a process or to the group it leads. Never to ourselves, to process 1 or to all.
pub(crate) fn send_signal(pid: i32, group: bool, signal: u8) {
    if pid > 1 && pid.cast_unsigned() != std::process::id() {
        let to = if group { pid.saturating_neg() } else { pid };
        // SAFETY: kill has no preconditions. It fails for a process that is gone, which is what was wanted.
        let _ = unsafe { libc::kill(to, signal.into()) };
    }
}

/// Reads once, at most `max` bytes, into the room that `buffer` has to spare.
pub(crate) fn read_append(
    fd: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    max: usize,
) -> nix::Result<usize> {
    let room = buffer.spare_capacity_mut();
    let (to, len) = (room.as_mut_ptr(), room.len().min(max));
    // SAFETY: `to` is good for `len` bytes, which read only writes.
    let got = Errno::result(unsafe { libc::read(fd.as_raw_fd(), to.cast(), len) })?;
    let got = usize::try_from(got).unwrap_or(0);
    // SAFETY: the kernel wrote `got` bytes behind those that were there, within the capacity.
    unsafe { buffer.set_len(buffer.len().saturating_add(got)) };
    Ok(got)
}

nix::ioctl_read_bad!(fionread, libc::FIONREAD, c_int);
nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);

/// How many bytes wait in a pipe or terminal (`FIONREAD`, pipe(7)).
pub(crate) fn bytes_waiting(fd: BorrowedFd<'_>) -> usize {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which is to a live local.
    let _ = unsafe { fionread(fd.as_raw_fd(), &raw mut count) };
    usize::try_from(count).unwrap_or(0)
}

/// Sets the size of a terminal (tty_ioctl(4)).
pub(crate) fn set_terminal_size(fd: BorrowedFd<'_>, columns: u16, rows: u16) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which is a live local.
    unsafe { tiocswinsz(fd.as_raw_fd(), &raw const size) }.map(drop)
}
