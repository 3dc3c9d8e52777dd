//! Telling process 1 to end the machine, in the language it understands.
//! Must never cut power itself while an init is there to end its services.

use std::path::Path;
use std::process::{Command, Stdio};

use banger_protocol::agent::ShutdownMode;

use super::error::{BootError, Result};
use super::sys;

/// How an init is told.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// A signal to process 1.
    Signal(i32),
    /// A program of the image.
    Program(&'static str),
}

/// Tells process 1 and returns; flushes first, so that even an init that hangs loses nothing.
pub(super) fn begin(mode: ShutdownMode) -> Result<()> {
    rustix::fs::sync();
    let comm = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let exe = std::fs::read_link("/proc/1/exe").unwrap_or_default();
    match way(comm.trim(), &exe, super::is_agent_init(), mode) {
        Way::Signal(signal) => sys::kill(1, signal).map_err(BootError::os("tell process 1 to end")),
        Way::Program(program) => Command::new(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(BootError::os(format!("run {program}")))
            .and_then(|status| {
                if status.success() {
                    Ok(())
                } else {
                    Err(BootError::Missing(format!(
                        "{program} could not tell {} to end ({status})",
                        comm.trim()
                    )))
                }
            }),
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
