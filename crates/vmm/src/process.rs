//! The identity of a process that may outlive us: pid, start time and boot id together.
//!
//! Owns /proc look-ups and pidfds. Must never signal a bare pid: every signal goes through a pidfd
//! whose process was compared with the identity after the pidfd was opened.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::{ChildExit, Result, VmmError};

mod marked;

pub use marked::{Marked, all_marked, find_marked, mark};

/// One process in the history of one host: a pid alone is reused, a pid with its start time is not
/// within one boot, and the boot id tells boots apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: u32,
    /// Clock ticks from boot to its start: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// The fields of `/proc/PID/stat` that we need.
struct Stat {
    state: u8,
    session: u32,
    threads: u32,
    start_time: u64,
}

/// The current boot's id.
///
/// # Errors
/// When /proc is not mounted.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(VmmError::file("read", path))?.trim().to_owned())
}

fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "an unknown format of /proc/PID/stat");
    // The second field is the command in parentheses and may itself contain ") ".
    let end = text.iter().rposition(|b| *b == b')').ok_or_else(garbled)?;
    let rest = String::from_utf8_lossy(text.get(end + 2..).unwrap_or_default()).into_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).copied().ok_or_else(garbled);
    Ok(Some(Stat {
        state: field(3)?.bytes().next().unwrap_or(b'?'),
        session: field(6)?.parse().map_err(|_| garbled())?,
        threads: field(20)?.parse().map_err(|_| garbled())?,
        start_time: field(22)?.parse().map_err(|_| garbled())?,
    }))
}

impl Stat {
    /// A zombie runs nothing and holds nothing; only its parent has not looked yet. But `Z` is the first thread's state:
    /// as long as others of its threads are on their way out, all the files, and the locks on them, are still held.
    fn ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }
}

impl ProcessId {
    /// The identity of a process that runs now; `None` when there is none (or a zombie).
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn of(pid: u32) -> Result<Option<Self>> {
        match stat(pid).map_err(|source| VmmError::Process { what: "look at", pid, source })? {
            Some(stat) if !stat.ended() => {
                Ok(Some(Self { pid, start_time: stat.start_time, boot_id: boot_id()? }))
            }
            _ => Ok(None),
        }
    }

    /// What /proc says of this very process, as long as nobody has reaped it.
    fn stat(&self) -> Option<Stat> {
        let same_boot = boot_id().is_ok_and(|id| id == self.boot_id);
        stat(self.pid).ok().flatten().filter(|stat| same_boot && stat.start_time == self.start_time)
    }

    /// Whether this very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.stat().is_some_and(|stat| !stat.ended())
    }

    /// Whether a signal has stopped this very process (`T` in `/proc/PID/stat`).
    pub(crate) fn is_stopped(&self) -> bool {
        self.stat().is_some_and(|stat| stat.state == b'T')
    }

    /// Whether a part of this very process's memory is on a swap device; so it is where that cannot be told.
    pub(crate) fn has_swapped(&self) -> bool {
        // Counted page by page: what /proc/PID/status says may be off by some hundred.
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap_or_default();
        !self.is_alive() || !rollup.lines().any(|line| line.split_whitespace().eq(["Swap:", "0", "kB"]))
    }

    /// How long it has run, if it does.
    fn age(&self) -> Result<Duration> {
        let path = Path::new("/proc/uptime");
        let text = fs::read_to_string(path).map_err(VmmError::file("read", path))?;
        let up: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        #[expect(clippy::cast_precision_loss, reason = "seconds since boot fit a double")]
        let began = self.start_time as f64 / ticks as f64;
        Ok(Duration::from_secs_f64((up - began).max(0.0)))
    }

    /// A descriptor of this very process; `None` when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn open_pidfd(&self) -> Result<Option<OwnedFd>> {
        let Some(fd) = raw_pidfd(self.pid)? else { return Ok(None) };
        // Looked at only now: while we hold the pidfd the answer is about the process it names.
        Ok(self.is_alive().then_some(fd))
    }

    /// Sends a signal to this very process. False: it has ended already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        match self.open_pidfd()? {
            Some(fd) => signal_pidfd(fd.as_fd(), self.pid, signal),
            None => Ok(false),
        }
    }

    /// Waits until this very process has ended, and reaps it when it is our child, also if it ended before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn wait(&self) -> Result<Option<ChildExit>> {
        let Some(fd) = raw_pidfd(self.pid)? else { return Ok(None) };
        // Looked at only now, as above.
        match self.stat() {
            Some(_) => wait_pidfd(fd, self.pid).await,
            None => Ok(None),
        }
    }
}

pub(crate) fn raw_pidfd(pid: u32) -> Result<Option<OwnedFd>> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::SRCH) => Ok(None),
        Err(e) => Err(VmmError::Process { what: "open", pid, source: e.into() }),
    }
}

pub(crate) fn signal_pidfd(fd: std::os::fd::BorrowedFd<'_>, pid: u32, signal: Signal) -> Result<bool> {
    match rustix::process::pidfd_send_signal(fd, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(e) => Err(VmmError::Process { what: "signal", pid, source: e.into() }),
    }
}

/// Waits for the end of the process behind a pidfd; `None` when it is not our child.
pub(crate) async fn wait_pidfd(fd: OwnedFd, pid: u32) -> Result<Option<ChildExit>> {
    let failed = |source| VmmError::Process { what: "wait for", pid, source };
    let fd = watch_fd(fd).map_err(failed)?;
    // A pidfd becomes readable when its process ends, for any holder (pidfd_open(2)).
    let _ready = fd.readable().await.map_err(failed)?;
    reap(fd.get_ref().as_fd()).map_err(failed)
}

/// Registers a descriptor with the runtime, to wait until it can be read.
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio cannot see that an OwnedFd keeps its descriptor")]
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and the AsyncFd
    // owns it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

fn reap(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<ChildExit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(fd), options) {
        Ok(Some(status)) => {
            Ok(Some(ChildExit { code: status.exit_status(), signal: status.terminating_signal() }))
        }
        Ok(None) | Err(Errno::CHILD) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::marked::carries;
    use super::*;
    use banger_model::VmId;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    fn sleeper(mark: Option<&str>) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600");
        if let Some(mark) = mark {
            command.arg0(format!("sleep:{mark}"));
        }
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        #[expect(unsafe_code, reason = "the test needs a session leader")]
        unsafe {
            command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
        }
        command.spawn().unwrap()
    }

    #[test]
    fn a_process_is_alive_until_it_ends_and_a_zombie_is_not() {
        let mut child = sleeper(None);
        let id = ProcessId::of(child.id()).unwrap().unwrap();
        assert!(id.is_alive());
        assert!(id.signal(Signal::KILL).unwrap());
        // Not reaped yet: wait for the zombie.
        while stat(id.pid).unwrap().is_some_and(|s| !s.ended()) {
            std::thread::yield_now();
        }
        assert!(!id.is_alive());
        child.wait().unwrap();
        assert!(!id.is_alive());
        assert!(id.open_pidfd().unwrap().is_none());
        assert!(!id.signal(Signal::KILL).unwrap());
    }

    extern "C" fn linger(_: *mut libc::c_void) -> libc::c_int {
        loop {
            #[expect(unsafe_code, reason = "the test needs a thread that only waits")]
            // SAFETY: pause takes and touches nothing.
            unsafe {
                libc::pause();
            }
        }
    }

    /// The pid of a child whose first thread ends at once, and whose second one does not.
    fn without_its_first_thread() -> u32 {
        let mut stack = vec![0_u8; 64 << 10];
        let top = stack.as_mut_ptr_range().end;
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND;
        #[expect(unsafe_code, reason = "the standard library cannot end a first thread alone")]
        // SAFETY: between fork and its end the child only makes system calls; its second thread has a stack of its own, a
        // copy of ours that nobody frees.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                // Nor does it outlive a test that fails.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::clone(linger, top.cast(), thread | libc::CLONE_THREAD, std::ptr::null_mut());
                libc::syscall(libc::SYS_exit, 0);
            }
            pid
        };
        u32::try_from(pid).unwrap()
    }

    #[tokio::test]
    async fn a_process_whose_first_thread_ended_before_the_others_is_alive_and_waited_for() {
        // Given what a killed VMM is for a while on a busy host
        let pid = without_its_first_thread();
        while stat(pid).unwrap().unwrap().state != b'Z' {
            std::thread::yield_now();
        }
        // Then it is there, until the last of its threads has gone
        let id = ProcessId::of(pid).unwrap().expect("what still holds its files is somebody");
        assert!(id.is_alive());
        assert!(id.signal(Signal::KILL).unwrap());
        id.wait().await.unwrap();
        assert!(!id.is_alive());
        assert!(stat(pid).unwrap().is_none(), "it was not reaped");
    }

    #[test]
    fn memory_of_which_nothing_is_known_may_be_on_a_swap_device() {
        let swap = fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1;
        let mut child = sleeper(None);
        let now = ProcessId::of(child.id()).unwrap().unwrap();
        assert!(swap || !now.has_swapped());
        assert!(ProcessId { start_time: now.start_time - 1, ..now.clone() }.has_swapped());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(now.has_swapped());
    }

    #[test]
    fn a_reused_pid_is_somebody_else() {
        // Given a running process, and a record of an earlier one with the same pid
        let mut child = sleeper(None);
        let now = ProcessId::of(child.id()).unwrap().unwrap();
        let earlier = ProcessId { start_time: now.start_time - 1, ..now.clone() };
        let other_boot = ProcessId { boot_id: "0".repeat(36), ..now.clone() };
        // Then neither the earlier process nor one of another boot is it, and signals miss it
        for not_it in [earlier, other_boot] {
            assert!(!not_it.is_alive());
            assert!(!not_it.signal(Signal::KILL).unwrap());
        }
        assert!(now.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "the code under test reaps it")]
    async fn waiting_reaps_our_child_and_tells_its_end() {
        let child = sleeper(None);
        let id = ProcessId::of(child.id()).unwrap().unwrap();
        let waiter = tokio::spawn({
            let id = id.clone();
            async move { id.wait().await }
        });
        tokio::task::yield_now().await;
        id.signal(Signal::TERM).unwrap();
        let exit = waiter.await.unwrap().unwrap();
        assert!(exit.is_none_or(|e| e == ChildExit { code: None, signal: Some(libc::SIGTERM) }));
        assert!(ProcessId::of(id.pid).unwrap().is_none());
    }

    #[test]
    fn marked_processes_are_found_and_mentions_are_not() {
        let id = VmId::from_random([0xb, 0, 0, 0, 0, 1]);
        let mark = mark(&id);
        let mut ours = sleeper(Some(&mark));
        // A mention: the mark inside another word, as in a search for it.
        let mut mention = sleeper(Some(&format!("{mark}x")));
        let found = loop {
            // The name appears when the child has executed its program.
            let found = find_marked(&id).unwrap();
            if !found.is_empty() {
                break found;
            }
            std::thread::yield_now();
        };
        assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [ours.id()]);
        for child in [&mut ours, &mut mention] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(find_marked(&id).unwrap().is_empty());
    }

    #[test]
    fn a_marked_process_is_found_without_knowing_its_vm_and_with_its_directory() {
        let id = VmId::from_random([0xb, 0, 0, 0, 0, 2]);
        let mut ours = sleeper(Some(&mark(&id)));
        let found = loop {
            let all = all_marked(Duration::ZERO).unwrap();
            if let Some(found) = all.into_iter().find(|m| m.vm == id) {
                break found;
            }
            std::thread::yield_now();
        };
        assert_eq!(found.process.pid, ours.id());
        assert_eq!(found.works_in, std::env::current_dir().unwrap());
        // It is young yet.
        assert!(all_marked(Duration::from_secs(3600)).unwrap().iter().all(|m| m.vm != id));
        ours.kill().unwrap();
        ours.wait().unwrap();
    }

    #[test]
    fn marks_are_whole_words() {
        assert!(carries(b"qemu\0-name\0banger-vm-1\0", "banger-vm-1"));
        assert!(carries(b"/usr/bin/passt:banger-vm-1\0-f\0", "banger-vm-1"));
        assert!(!carries(b"banger-vm-1\0", "banger-vm-1"));
        assert!(!carries(b"less\0/x/banger-vm-1\0", "banger-vm-1"));
        assert!(!carries(b"", "banger-vm-1"));
    }
}
