//! A real terminal: a pty whose far end the program gets as its controlling terminal.
//!
//! Owns the pty and the program on it. Keeps the near end open after the program's end, so that
//! the terminal's state can be looked at as a shell would find it.

#![expect(unsafe_code, reason = "a child becomes the leader of a session in the moment before exec")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::{Run, wait};

/// A program on a terminal.
#[derive(Debug)]
pub struct Terminal {
    near: File,
    far: OwnedFd,
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
    before: Termios,
}

impl Terminal {
    /// Runs a program on a new terminal of this size.
    #[must_use]
    pub fn run(program: Run, rows: u16, cols: u16) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pty");
        grantpt(&near).expect("grantpt");
        unlockpt(&near).expect("unlockpt");
        let name = ptsname(&near, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let far = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("its far end");
        tcsetwinsize(&near, size(rows, cols)).expect("its size");
        let before = tcgetattr(&far).expect("its state");

        let end = || Stdio::from(far.try_clone().expect("one more descriptor"));
        let mut command = program.env("TERM", "xterm").into_command();
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only system calls are made, on descriptors that are open in
        // the child and on its own signals; nothing allocates or takes a lock.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                // A suite that runs in the background of a script was told to ignore the keyboard;
                // whoever sits at a terminal was not.
                for signal in [libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program runs");
        let near = File::from(near);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, shared) = (near.try_clone().expect("one more descriptor"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                shared.lock().unwrap().extend_from_slice(chunk.get(..n).unwrap_or_default());
            }
        });
        Self { near, far, child, screen, seen: 0, before }
    }

    /// Everything that was shown.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until `text` is shown, after what earlier calls have seen.
    #[track_caller]
    pub fn sees(&mut self, text: &str) {
        let found = wait::until(Duration::from_secs(30), || {
            let screen = self.screen.lock().unwrap();
            let fresh = screen.get(self.seen..).unwrap_or_default();
            let at = fresh.windows(text.len()).position(|w| w == text.as_bytes())?;
            Some(self.seen + at + text.len())
        });
        match found {
            Some(end) => self.seen = end,
            None => panic!("the terminal never showed {text:?} but\n{}", self.screen()),
        }
    }

    /// Types.
    pub fn types(&mut self, keys: &[u8]) {
        self.near.write_all(keys).expect("the terminal takes keys");
    }

    /// Makes the window another size.
    pub fn resize(&self, rows: u16, cols: u16) {
        tcsetwinsize(&self.near, size(rows, cols)).expect("a terminal can be resized");
    }

    /// Sends the program a signal, to it alone.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .expect("it runs");
    }

    /// Waits for the program's end and gives its status as a shell shows it.
    #[track_caller]
    pub fn status(&mut self) -> i32 {
        let ended =
            wait::until(Duration::from_secs(60), || self.child.try_wait().expect("it can be waited for"));
        let Some(status) = ended else {
            panic!("the program on the terminal does not end\n{}", self.screen())
        };
        // What it wrote last is still on its way to the screen.
        std::thread::sleep(Duration::from_millis(50));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// Whether the terminal is in raw mode now: no echo, no line editing.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        use rustix::termios::LocalModes;
        let now = tcgetattr(&self.far).expect("its state");
        !now.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// Passes when the terminal is as it was before the program ran.
    #[track_caller]
    pub fn is_as_before(&self) {
        let now = tcgetattr(&self.far).expect("its state");
        assert_eq!(now.input_modes, self.before.input_modes, "input modes");
        assert_eq!(now.output_modes, self.before.output_modes, "output modes");
        assert_eq!(now.control_modes, self.before.control_modes, "control modes");
        assert_eq!(now.local_modes, self.before.local_modes, "local modes");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_a_controlling_terminal_its_size_and_its_keys() {
        let script = "tty >/dev/null && stty size </dev/tty; read line; echo got $line; stty -echo; exit 3";
        let mut terminal = Terminal::run(Run::new("sh").args(["-c", script]), 33, 77);
        terminal.sees("33 77");
        terminal.types(b"hello\n");
        terminal.sees("got hello");
        assert_eq!(terminal.status(), 3);
        let insane = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| terminal.is_as_before()));
        assert!(insane.is_err(), "a terminal left without echo is not as before");
    }

    #[test]
    fn ctrl_c_reaches_the_foreground_group() {
        let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
        let mut terminal = Terminal::run(Run::new("sh").args(["-c", script]), 24, 80);
        terminal.sees("ready");
        terminal.types(b"\x03");
        terminal.sees("caught");
        assert_eq!(terminal.status(), 9);
        terminal.is_as_before();
    }
}
