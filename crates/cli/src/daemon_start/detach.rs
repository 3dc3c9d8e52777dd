//! Spawns a process that has nothing of ours: own session, `/` as its directory, no descriptor but
//! the pipe it answers on. The only place of the CLI with unsafe code.
#![expect(unsafe_code, reason = "setsid between fork and exec, and borrowing descriptors by number")]

use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Spawns `program --ready-fd N` detached, where N is `ready`.
pub(super) fn spawn(mut program: Command, ready: PipeWriter) -> io::Result<Child> {
    keep_to_ourselves()?;
    fcntl_setfd(&ready, FdFlags::empty())?;
    program
        .arg("--ready-fd")
        .arg(ready.as_raw_fd().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and
    // allocates nothing.
    unsafe {
        program.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let child = program.spawn();
    // Ours must be closed, or the reading end never sees the end.
    drop(ready);
    child
}

/// Marks every open descriptor above stderr close-on-exec: a lock or pipe that our caller left open
/// for us must not live as long as the daemon does.
fn keep_to_ourselves() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if fd <= 2 {
            continue;
        }
        // SAFETY: the number is not negative, and the borrow ends within this iteration. Should the
        // descriptor be closed meanwhile (the directory being read is), fcntl answers EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if let Ok(flags) = fcntl_getfd(fd) {
            let _ = fcntl_setfd(fd, flags | FdFlags::CLOEXEC);
        }
    }
    Ok(())
}
