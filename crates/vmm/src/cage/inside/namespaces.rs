//! Namespaces of our own. As an ordinary user they hang on a user namespace; root takes one too, so that nothing in it
//! has a right over the host, and does without it where they are denied.

use std::fs;
use std::io;

use super::{Fatal, during};

/// Who we are inside: nobody that the host's files know, and not 0, so that no program gets capabilities by its start.
const INSIDE: u32 = 1000;

/// The namespaces were entered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered;

/// Enters them all, or none, and says why.
pub(super) fn enter(hosts_network: bool) -> Result<Result<Entered, String>, Fatal> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let network = if hosts_network { 0 } else { libc::CLONE_NEWNET };
    let others = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | network;
    match unshare(libc::CLONE_NEWUSER | others) {
        Ok(()) => {
            // Whoever may not choose its groups may not drop one either: some files deny a group what they give others.
            for (file, text) in [
                ("/proc/self/setgroups", "deny".to_owned()),
                ("/proc/self/uid_map", format!("{INSIDE} {uid} 1\n")),
                ("/proc/self/gid_map", format!("{INSIDE} {gid} 1\n")),
            ] {
                fs::write(file, text).map_err(during("write the user namespace's map"))?;
            }
        }
        Err(_) if uid == 0 && unshare(others).is_ok() => {}
        Err(error) => return Ok(Err(why(&error))),
    }
    // The host's name is none of its business.
    if let Err(error) = rustix::system::sethostname(b"cage") {
        let why = banger_host::user_namespaces::why_denied().why;
        return Ok(Err(format!("user namespaces give no rights here ({error}): {why}")));
    }
    Ok(Ok(Entered))
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "unsharing has no safe wrapper")]
    // SAFETY: this process has one thread and shares nothing with another; no pointer is passed.
    let failed = unsafe { libc::unshare(flags) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => "user.max_user_namespaces allows no more of them".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            format!("this host denies user namespaces: {}", banger_host::user_namespaces::why_denied().why)
        }
        Some(libc::EINVAL | libc::ENOSYS) => "this kernel has no user namespaces".to_owned(),
        _ => error.to_string(),
    }
}

/// Forks; true in the child.
pub(super) fn fork_child() -> io::Result<bool> {
    #[expect(unsafe_code, reason = "forking has no safe wrapper")]
    // SAFETY: this process has one thread, so no lock is held in the copy of its memory that the child gets.
    match unsafe { libc::fork() } {
        0 => Ok(true),
        pid if pid > 0 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks with our own parent as the new process's parent. `None` in the new one, which is the first of its process
/// namespace; its pid outside in the old one.
pub(super) fn fork_sister() -> io::Result<Option<u32>> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    #[expect(unsafe_code, reason = "CLONE_PARENT is not among what fork wraps")]
    // SAFETY: without CLONE_VM this is a fork: the new process has its own copy of the memory and of the stack. This
    // process has one thread, so no lock is held in the copy.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match u32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) => Ok(Some(pid)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
