//! From /init to the running guest: starts the agent's server, then becomes the image's init or, where there is
//! none, process 1 for good: reaps, restarts the server, ends the machine when told.
//! Must never return to nothing: process 1 that ends is a kernel panic.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{WaitOptions, wait};
use rustix::system::RebootCommand;

use super::console::{die, say};
use super::error::{BootError, Result};
use super::modules::ModuleDir;
use super::{SERVER_ARG0, guest, sys};
use crate::groups::{self, Groups};

/// Tells the server which descriptor is the initramfs's directory of modules.
pub(super) const MODULES_FD: &str = "BANGER_MODULES_FD";
/// Tells the server which init process 1 is about to become; absent when it stays the agent.
pub(super) const INIT: &str = "BANGER_INIT";
/// Tells the server on which vsock port to serve; absent when the channel is a virtio-serial port.
pub(super) const VSOCK: &str = "BANGER_VSOCK";
/// Where images keep their init, in the order in which the kernel and distributions look.
const INITS: &[&str] = &[
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How often the server may die within [`RESTART_WINDOW`] before the machine is given up.
const RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(30);

/// Starts this executable again as the server, beside `init` if there is one, and returns its process id.
pub(super) fn start_server(
    modules: Option<&ModuleDir>,
    groups: Option<&Groups>,
    init: Option<&str>,
    vsock: Option<u32>,
) -> Result<u32> {
    let mut server = Command::new("/proc/self/exe");
    server.arg0(SERVER_ARG0).env_clear().env("PATH", PATH);
    if let Some(init) = init {
        server.env(INIT, init);
    }
    if let Some(port) = vsock {
        server.env(VSOCK, port.to_string());
    }
    let mut left = Vec::new();
    if let Some(dir) = modules {
        server.env(MODULES_FD, dir.fd().as_raw_fd().to_string());
        left.push(dir.fd().as_fd());
    }
    if let Some(groups) = groups {
        server.env(groups::ROOT_FD, groups.root().as_raw_fd().to_string());
        left.push(groups.root());
    }
    let leave = |flags| {
        left.iter()
            .try_for_each(|fd| rustix::io::fcntl_setfd(fd, flags))
            .map_err(BootError::os("leave descriptors to the agent"))
    };
    leave(FdFlags::empty())?;
    let child = spawn(&mut server, groups);
    leave(FdFlags::CLOEXEC)?;
    child.map_err(BootError::os("start the agent"))
}

/// Starts the server in its group. Being moved there would take a moment in which it cannot start anything.
fn spawn(server: &mut Command, groups: Option<&Groups>) -> io::Result<u32> {
    let begun = groups.and_then(Groups::server).map(|group| sys::fork_into(group));
    match begun {
        Some(Ok(sys::Fork::Parent(pid))) => return Ok(pid),
        Some(Ok(sys::Fork::Child)) => {
            let error = server.exec();
            say(&format!("cannot start the agent: {error}"));
            std::process::exit(127)
        }
        // Kernels before 5.7 cannot.
        Some(Err(_)) | None => {}
    }
    let pid = server.spawn()?.id();
    if let Some(groups) = groups {
        groups.take_server(pid);
    }
    Ok(pid)
}

/// The image's init, if it has one that can be run.
pub(super) fn find_init(root: &Path) -> Option<&'static str> {
    INITS.iter().copied().find(|path| {
        let path = root.join(path.trim_start_matches('/'));
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// Becomes the image's init. Returns only when that cannot be.
pub(super) fn become_init(init: &str) -> BootError {
    guest::calm_systemd(Path::new("/run"));
    let error = Command::new(init).env_clear().env("PATH", PATH).env("TERM", "linux").exec();
    BootError::os(format!("run {init}"))(error)
}

/// Process 1 for good. The signals are those of systemd(1), busybox's and sysvinit's tools.
pub(super) fn stay(
    mut server: u32,
    modules: Option<&ModuleDir>,
    groups: Option<&Groups>,
    vsock: Option<u32>,
) -> ! {
    let power_off =
        [libc::SIGUSR1, libc::SIGUSR2, libc::SIGPWR, sys::realtime_signal(3), sys::realtime_signal(4)];
    let reboot = [libc::SIGTERM, libc::SIGINT, sys::realtime_signal(5)];
    let all: Vec<i32> = [libc::SIGCHLD].iter().chain(&power_off).chain(&reboot).copied().collect();
    let signals = match sys::SignalSet::of(&all).and_then(|set| set.block().map(|()| set)) {
        Ok(signals) => signals,
        Err(error) => die(&format!("cannot wait for signals: {error}")),
    };
    let mut deaths: Vec<Instant> = Vec::new();
    loop {
        // Children first: one may have ended before the signal was blocked.
        if reap(server) {
            deaths.retain(|then| then.elapsed() < RESTART_WINDOW);
            deaths.push(Instant::now());
            if deaths.len() > RESTARTS {
                die(&format!("the agent ended {RESTARTS} times within {} seconds", RESTART_WINDOW.as_secs()));
            }
            say("the agent ended; it is started again");
            // Commands inherit the mask of blocked signals; the server must not.
            let _ = signals.unblock();
            server =
                start_server(modules, groups, None, vsock).unwrap_or_else(|error| die(&error.to_string()));
            let _ = signals.block();
            continue;
        }
        match signals.wait() {
            Ok(signal) if power_off.contains(&signal) => end(RebootCommand::PowerOff),
            Ok(signal) if reboot.contains(&signal) => end(RebootCommand::Restart),
            Ok(_) => {}
            Err(error) => die(&format!("cannot wait for signals: {error}")),
        }
    }
}

/// Reaps all that ended; says whether `server` was among them.
fn reap(server: u32) -> bool {
    let mut found = false;
    while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
        found |= u32::try_from(pid.as_raw_nonzero().get()) == Ok(server);
    }
    found
}

/// Ends all processes, then the machine; everything written before is on the disks.
fn end(how: RebootCommand) -> ! {
    rustix::fs::sync();
    for (signal, grace) in [(libc::SIGTERM, Duration::from_secs(2)), (libc::SIGKILL, Duration::from_secs(2))]
    {
        let _ = sys::kill(-1, signal);
        let deadline = Instant::now() + grace;
        while others_live() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Read-only, the overlay writes out what it holds; the disk below it follows.
    let _ = rustix::mount::mount_remount("/", rustix::mount::MountFlags::RDONLY, "");
    rustix::fs::sync();
    let _ = rustix::system::reboot(how);
    die("the machine cannot be ended")
}

/// Reaps, and says whether any process but this one lives. Only process 1 has all the others as descendants.
fn others_live() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_must_be_an_executable_file() {
        // Given an image whose /sbin/init is a directory and whose /etc/init cannot be run
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sbin/init")).unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::create_dir_all(root.path().join("bin")).unwrap();
        let file = |name: &str, mode| {
            std::fs::write(root.path().join(name), "").unwrap();
            std::fs::set_permissions(root.path().join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        file("etc/init", 0o644);
        assert_eq!(find_init(root.path()), None);
        // When it has one further down the list
        file("bin/init", 0o755);
        // Then that one is it
        assert_eq!(find_init(root.path()), Some("/bin/init"));
    }
}
