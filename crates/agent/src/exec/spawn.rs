//! Starting a process without copying the agent: clone(2) with CLONE_VM and CLONE_VFORK, as
//! posix_spawn does it, but with a session, a terminal, credentials and a pidfd.
//!
//! Between clone and execve the child runs on the agent's memory. It must not allocate, lock,
//! panic or touch thread-local state other than errno: only system calls on prepared pointers.
#![expect(unsafe_code, reason = "a leaf module around clone, execve and kill")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::Pid;

/// Everything a child needs, prepared so that it has nothing left to compute.
pub(super) struct Plan<'a> {
    /// Files to try, in order.
    pub(super) candidates: &'a [CString],
    pub(super) argv: &'a [CString],
    pub(super) env: &'a [CString],
    pub(super) cwd: &'a CString,
    /// stdin, stdout, stderr.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Whether stdin becomes the controlling terminal.
    pub(super) terminal: bool,
    /// User, group and supplementary groups; `None` leaves them.
    pub(super) identity: Option<(u32, u32, &'a [u32])>,
    /// The control group to begin in, where the kernel can do that.
    pub(super) group: Option<BorrowedFd<'a>>,
}

/// A running child, its own session and process group.
pub(super) struct Child {
    pub(super) pid: Pid,
    /// Readable when the child has ended.
    pub(super) pidfd: OwnedFd,
}

/// Why no program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No process could be made.
    Clone(Errno),
    /// The terminal or the streams.
    Stdio(Errno),
    /// The user's identity.
    Identity(Errno),
    /// The working directory.
    Cwd(Errno),
    /// None of the candidates could be executed; the most telling of their errors, and whose it was.
    Exec(Errno, usize),
}

/// What parent and child share.
struct Shared {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    stdio: [c_int; 3],
    terminal: bool,
    identity: Option<(u32, u32, *const u32, usize)>,
    ignored: &'static [c_int],
    failure: Option<Failure>,
}

/// The kernel's own `struct sigaction` on x86-64: handler, flags, restorer, mask. The C library's calls will not hear
/// of signals 32 and 33, which a parent may well have ignored.
type KernelAction = [usize; 4];
/// Bytes of its mask.
const SIGSET: usize = 8;
/// Bytes of the child's stack: system calls need little.
const STACK: usize = 32 * 1024;

/// Starts the program. Blocks the calling thread until the child has called execve or failed.
///
/// # Errors
/// What failed, in the child or before it.
pub(super) fn spawn(plan: &Plan<'_>) -> Result<Child, Failure> {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let mut shared = Shared {
        candidates: plan.candidates.iter().map(|s| s.as_ptr()).collect(),
        argv: pointers(plan.argv),
        env: pointers(plan.env),
        cwd: plan.cwd.as_ptr(),
        stdio: plan.stdio.map(|fd| fd.as_raw_fd()),
        terminal: plan.terminal,
        identity: plan.identity.map(|(uid, gid, groups)| (uid, gid, groups.as_ptr(), groups.len())),
        ignored: ignored_signals(),
        failure: None,
    };
    let mut stack: Vec<u8> = Vec::with_capacity(STACK);
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut saved = unset();
    let all = full();
    // SAFETY: both sets are valid for the call. Signals stay blocked until the child has its own handlers table.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut saved) };
    // SAFETY: the stack is ours, aligned to 16 and grows down from its end; CLONE_VFORK keeps this frame, `shared` and
    // the stack alive until the child has left them. `child` upholds the module's rules.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK);
        let top = top.sub(top as usize % 16);
        let arg: *mut c_void = (&raw mut shared).cast();
        let begun = plan.group.and_then(|group| clone_into(group, flags, top, arg, &raw mut pidfd));
        begun.unwrap_or_else(|| libc::clone(child, top.cast(), flags, arg, &raw mut pidfd))
    };
    // SAFETY: restores the set saved above. It leaves errno alone: what it has to say it returns.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const saved, ptr::null_mut()) };
    let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else {
        return Err(Failure::Clone(last_errno()));
    };
    // SAFETY: the kernel made this descriptor for us, with close-on-exec, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: the child wrote it through a raw pointer, so it must be read as if it changed behind our back.
    match unsafe { ptr::read_volatile(&raw const shared.failure) } {
        None => Ok(Child { pid, pidfd }),
        Some(failure) => {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(failure)
        }
    }
}

/// clone3(2), which can begin a process in a control group; the C library does not offer it. `None` where it cannot be:
/// before Linux 5.7, or when the group takes no processes.
///
/// # Safety
/// As for clone(2) with these flags: `top` is the aligned end of a stack, and `arg` is what [`child`] takes.
unsafe fn clone_into(
    group: BorrowedFd<'_>,
    flags: c_int,
    top: *mut u8,
    arg: *mut c_void,
    pidfd: *mut c_int,
) -> Option<c_int> {
    // SAFETY: zeros are a valid value of a structure of numbers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal has a field of its own.
    args.flags = (flags & !libc::SIGCHLD) as u64 | crate::boot::CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = pidfd as u64;
    // The kernel takes the lower end and the size; only their sum matters.
    args.stack = top as u64 - STACK as u64 / 2;
    args.stack_size = STACK as u64 / 2;
    args.cgroup = group.as_raw_fd() as u64;
    let result: i64;
    // SAFETY: the child comes back from the system call on its own, empty stack, where only the registers are as here;
    // it calls `child`, which does not return. The parent comes back after that has left the memory, with its own stack
    // as it was. The system call spoils rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") child as extern "C" fn(*mut c_void) -> c_int,
            in("r13") arg,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    c_int::try_from(result).ok().filter(|pid| *pid > 0)
}

/// Sends a signal, also a real-time one, to a process group.
pub(super) fn signal_group(group: Pid, signal: c_int) {
    if (1..=64).contains(&signal) {
        // SAFETY: kill has no memory effects. The group is positive, so this is never "everybody".
        unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) };
    }
}

extern "C" fn child(arg: *mut c_void) -> c_int {
    // SAFETY: `arg` is the parent's `Shared`, which outlives us (CLONE_VFORK).
    let shared = unsafe { &mut *arg.cast::<Shared>() };
    // SAFETY: we are the child that `prepare` is written for.
    let failure = unsafe { prepare(shared) }.err().unwrap_or_else(|| {
        // SAFETY: the lists end with null and their strings live in the parent.
        unsafe { execute(shared) }
    });
    // SAFETY: as above; volatile because the parent reads it outside the compiler's view.
    unsafe {
        ptr::write_volatile(&raw mut shared.failure, Some(failure));
        libc::_exit(127)
    }
}

/// Session, streams, identity, directory.
///
/// # Safety
/// Only in the child of [`spawn`].
unsafe fn prepare(s: &Shared) -> Result<(), Failure> {
    // SAFETY: plain system calls on valid pointers and prepared numbers. The identity calls go to the kernel directly:
    // the C library's wrappers would try to change every thread of the parent.
    unsafe {
        // All zeros: SIG_DFL, no flags, an empty mask.
        let default: KernelAction = [0; 4];
        for signal in s.ignored {
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal,
                default.as_ptr(),
                ptr::null_mut::<usize>(),
                SIGSET,
            );
        }
        libc::setsid();
        for (to, from) in s.stdio.iter().enumerate() {
            check(libc::dup2(*from, to as c_int)).map_err(Failure::Stdio)?;
        }
        if s.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0)).map_err(Failure::Stdio)?;
        }
        // Everything is close-on-exec already; this is the second lock on the door.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if let Some((uid, gid, groups, len)) = s.identity {
            let identity = [
                libc::syscall(libc::SYS_setgroups, len, groups),
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            ];
            if identity.contains(&-1) {
                return Err(Failure::Identity(last_errno()));
            }
        }
        check(libc::chdir(s.cwd)).map_err(Failure::Cwd)?;
        libc::umask(0o022);
        let none = unset();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
    Ok(())
}

/// Tries the candidates as execvp(3) does: on with the search after "not found" and "not allowed".
///
/// # Safety
/// Only in the child of [`spawn`].
unsafe fn execute(s: &Shared) -> Failure {
    let mut worst = (Errno::NOENT, 0);
    for (i, candidate) in s.candidates.iter().enumerate() {
        // SAFETY: null-terminated lists of C strings that the parent keeps.
        unsafe { libc::execve(*candidate, s.argv.as_ptr(), s.env.as_ptr()) };
        match last_errno() {
            Errno::NOENT | Errno::NOTDIR if i + 1 < s.candidates.len() || worst.0 == Errno::ACCESS => {}
            Errno::ACCESS if worst.0 == Errno::NOENT => worst = (Errno::ACCESS, i),
            Errno::ACCESS => {}
            other => return Failure::Exec(other, i),
        }
    }
    Failure::Exec(worst.0, worst.1)
}

fn check(result: c_int) -> Result<(), Errno> {
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

/// Only after a call that failed: a thread on which none has failed yet has no number that could be told.
fn last_errno() -> Errno {
    // SAFETY: the C library's own location, valid for this thread; in the child it is the suspended parent's.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn unset() -> libc::sigset_t {
    // SAFETY: zeros are a valid, empty set.
    unsafe { std::mem::zeroed() }
}

fn full() -> libc::sigset_t {
    let mut set = unset();
    // SAFETY: a valid set of ours.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

/// The signals this process ignores: an exec would pass that on. Rust's runtime ignores SIGPIPE.
fn ignored_signals() -> &'static [c_int] {
    static IGNORED: OnceLock<Vec<c_int>> = OnceLock::new();
    IGNORED.get_or_init(|| (1..=64).filter(|signal| is_ignored(*signal)).collect())
}

fn is_ignored(signal: c_int) -> bool {
    let mut now: KernelAction = [0; 4];
    // SAFETY: only asks, into a structure of the kernel's size; a signal that does not exist is an error.
    let asked = unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, ptr::null::<usize>(), now.as_mut_ptr(), SIGSET)
    };
    asked == 0 && now[0] == libc::SIG_IGN
}
