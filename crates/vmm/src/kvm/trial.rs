//! Runs the tiny guest, in a child process that can be killed, because a guest under a broken KVM
//! may never come back. Must never take longer than its two limits together.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::{KvmStatus, guest};

/// Hardware needs about 5 ms, most of it for KVM_CREATE_VM.
const LIMIT: Duration = Duration::from_millis(100);
/// A second try for a host that is merely busy.
const SECOND_LIMIT: Duration = Duration::from_millis(400);

/// How the child ended: its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Status(i32),
    Killed,
}

const DONE: i32 = 0;
/// Plus the number of the set-up step that failed.
const SETUP: i32 = 64;
/// Plus the number of the last stage that the guest began.
const STAGE: i32 = 128;

pub(super) fn run() -> KvmStatus {
    let end = match attempt(LIMIT) {
        Ok(End::Killed) => attempt(SECOND_LIMIT),
        other => other,
    };
    match end {
        Ok(End::Status(DONE)) => KvmStatus::Works,
        other => KvmStatus::Emulated { detail: explain(other) },
    }
}

fn explain(end: io::Result<End>) -> String {
    match end {
        Ok(End::Killed) => "guest code did not come to its end in time".to_owned(),
        Ok(End::Status(n @ STAGE..)) => {
            let stage = u8::try_from(n - STAGE).unwrap_or(u8::MAX);
            format!("guest code failed at {}", guest::stage(stage))
        }
        Ok(End::Status(n)) => format!("a tiny virtual machine could not be made, step {}", n - SETUP),
        Err(error) => format!("the trial could not be run: {error}"),
    }
}

fn attempt(limit: Duration) -> io::Result<End> {
    #[expect(unsafe_code, reason = "a child is the only bound on a guest that never exits")]
    // SAFETY: the child makes system calls, and small allocations inside kvm-ioctls, which glibc
    // keeps usable after a fork even of a process with threads (its fork handlers reset the
    // allocator's locks). It takes no other lock and leaves by _exit, so no destructor of the
    // parent's state runs twice.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let status = child();
            // SAFETY: _exit ends this process and touches nothing.
            unsafe { libc::_exit(status) }
        }
        pid => pid,
    };
    let Some(pid) = Pid::from_raw(pid) else { return Err(io::Error::other("fork gave no pid")) };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let ended = ends_within(&pidfd, limit)?;
    if !ended {
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
        // A child that not even SIGKILL ends at once is left to the kernel.
        ends_within(&pidfd, LIMIT)?;
    }
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
    Ok(status.and_then(|s| s.exit_status()).filter(|_| ended).map_or(End::Killed, End::Status))
}

fn ends_within(pidfd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// In the child: makes the machine, runs it, and gives the exit status.
fn child() -> i32 {
    match machine() {
        Ok(status) => status,
        Err(step) => SETUP + step,
    }
}

fn machine() -> Result<i32, i32> {
    let kvm = Kvm::new().map_err(|_| 1)?;
    let vm = kvm.create_vm().map_err(|_| 2)?;
    let (address, memory) = guest_memory().ok_or(3)?;
    guest::fill(memory);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY as u64,
        userspace_addr: address,
    };
    #[expect(unsafe_code, reason = "the kernel will write to this memory on the guest's behalf")]
    // SAFETY: the region is a private mapping of exactly this size that is never unmapped; nothing
    // in this process reads or writes it once the guest runs.
    unsafe {
        vm.set_user_memory_region(region).map_err(|_| 4)?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(|_| 5)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|_| 6)?;
    vcpu.set_cpuid2(&cpuid).map_err(|_| 7)?;
    let mut sregs = vcpu.get_sregs().map_err(|_| 8)?;
    guest::enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(|_| 9)?;
    vcpu.set_regs(&guest::registers()).map_err(|_| 10)?;

    let mut stage = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::PORT, [guest::PASSED])) => return Ok(DONE),
            Ok(VcpuExit::IoOut(guest::PORT, [number])) => stage = *number,
            Err(e) if e.errno() == libc::EINTR => {}
            _ => return Ok(STAGE + i32::from(stage)),
        }
    }
}

fn guest_memory() -> Option<(u64, &'static mut [u8])> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    #[expect(unsafe_code, reason = "guest memory must be page-aligned and never freed")]
    // SAFETY: a fresh anonymous mapping aliases nothing and lives until the process ends.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), guest::MEMORY, protection, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return None;
        }
        Some((at as u64, std::slice::from_raw_parts_mut(at.cast(), guest::MEMORY)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_trial_gives_a_definite_answer_in_bounded_time() {
        if !std::path::Path::new("/dev/kvm").exists() {
            println!("skipped: there is no /dev/kvm");
            return;
        }
        let start = Instant::now();
        let status = run();
        println!("{status:?} after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(2));
        if let KvmStatus::Emulated { detail } = &status {
            assert!(!detail.contains("unknown"), "{detail}");
        }
        // The same answer twice: it is about the host, not about luck.
        assert_eq!(std::mem::discriminant(&status), std::mem::discriminant(&run()));
    }

    #[test]
    fn the_answer_names_what_failed() {
        assert_eq!(explain(Ok(End::Status(STAGE + 1))), "guest code failed at cmpxchg16b");
        assert!(explain(Ok(End::Killed)).contains("in time"));
        assert!(explain(Ok(End::Status(SETUP + 2))).contains("step 2"));
    }
}
