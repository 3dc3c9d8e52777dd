//! Telling process 1 to end the machine, in the language it understands.
//! Must never cut power itself while an init is there to end its services.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use banger_protocol::agent::ShutdownMode;

use super::error::{BootError, Result};
use super::{console, sys};

/// How an init is told.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// A signal to process 1.
    Signal(i32),
    /// A program of the image.
    Program(&'static str),
}

/// An init that has just been started does not listen yet; a signal before that would be lost.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// Flushes, so that even an init that hangs loses nothing, and tells process 1; on a thread of its own.
pub(super) fn begin(mode: ShutdownMode) -> Result<()> {
    let tell = move || {
        rustix::fs::sync();
        if let Err(error) = tell(mode) {
            console::say(&error.to_string());
        }
    };
    std::thread::Builder::new().spawn(tell).map(drop).map_err(BootError::os("begin to end the machine"))
}

fn tell(mode: ShutdownMode) -> Result<()> {
    // Our own process 1 blocks its signals before it starts this server; while it waits for one, the
    // kernel shows it neither as blocked nor as caught (sigtimedwait(2) lifts the block for its wait).
    let agent = is_agent();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let comm = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
        let exe = std::fs::read_link("/proc/1/exe").unwrap_or_default();
        let way = way(comm.trim(), &exe, agent, mode);
        let status = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
        match way {
            Way::Signal(signal) if agent || listens(&status, signal) || Instant::now() >= deadline => {
                return sys::kill(1, signal).map_err(BootError::os("tell process 1 to end"));
            }
            Way::Signal(_) => std::thread::sleep(PAUSE),
            Way::Program(program) => return run(program),
        }
    }
}

/// The agent's own file is not in the image, so equal device and inode mean the same program.
fn is_agent() -> bool {
    match (rustix::fs::stat("/proc/1/exe"), rustix::fs::stat("/proc/self/exe")) {
        (Ok(one), Ok(own)) => (one.st_dev, one.st_ino) == (own.st_dev, own.st_ino),
        _ => false,
    }
}

/// Whether a process catches a signal, or blocks it to take it in its own time (proc(5), `SigCgt` and `SigBlk`).
fn listens(status: &str, signal: i32) -> bool {
    ["SigBlk:", "SigCgt:"]
        .iter()
        .filter_map(|key| status.lines().find_map(|line| line.strip_prefix(key)))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| {
            u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit)).is_some_and(|m| m & 1 == 1)
        })
}

fn run(program: &'static str) -> Result<()> {
    let status = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(BootError::os(format!("run {program}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(BootError::Missing(format!("{program} could not tell process 1 to end ({status})")))
    }
}

fn way(comm: &str, exe: &Path, agent: bool, mode: ShutdownMode) -> Way {
    let off = mode == ShutdownMode::PowerOff;
    let exe = exe.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if agent || comm == "systemd" || exe == "systemd" {
        // systemd(1), "SIGRTMIN+4" and "+5"; as process 1, the agent takes the same.
        return Way::Signal(sys::realtime_signal(if off { 4 } else { 5 }));
    }
    match exe {
        // busybox's init: the signals its own poweroff and reboot send.
        "busybox" => Way::Signal(if off { libc::SIGUSR2 } else { libc::SIGTERM }),
        // s6-linux-init(7), "signals".
        "s6-svscan" => Way::Signal(if off { libc::SIGUSR2 } else { libc::SIGINT }),
        _ => Way::Program(if off { "poweroff" } else { "reboot" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_listens_once_it_catches_or_blocks_the_signal() {
        // Given the masks of a process that blocks 38 (as systemd does for its signalfd) and catches 15
        let status = "Name:\tsystemd\nSigBlk:\t0000002000000000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000004000\n";
        assert!(listens(status, 38) && listens(status, 15));
        assert!(!listens(status, 37) && !listens(status, 13) && !listens("", 38));
    }

    #[test]
    fn each_init_is_told_in_its_own_language() {
        let off = |comm, exe, agent| way(comm, Path::new(exe), agent, ShutdownMode::PowerOff);
        let reboot = |comm, exe, agent| way(comm, Path::new(exe), agent, ShutdownMode::Reboot);
        assert_eq!(off("systemd", "/usr/lib/systemd/systemd", false), Way::Signal(sys::realtime_signal(4)));
        assert_eq!(
            reboot("systemd", "/usr/lib/systemd/systemd", false),
            Way::Signal(sys::realtime_signal(5))
        );
        assert_eq!(off("init", "/bin/busybox", false), Way::Signal(libc::SIGUSR2));
        assert_eq!(reboot("init", "/bin/busybox", false), Way::Signal(libc::SIGTERM));
        assert_eq!(off("init", "/sbin/init", false), Way::Program("poweroff"));
        assert_eq!(reboot("init", "/init", true), Way::Signal(sys::realtime_signal(5)));
    }
}
