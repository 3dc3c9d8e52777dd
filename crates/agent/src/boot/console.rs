//! The console as the host reads it when a boot fails, and the end of a machine that cannot boot.
//! Must never block a boot: a console that cannot be written is ignored.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::system::RebootCommand;

/// One line on the console. The host shows the console's tail when a boot fails.
pub(super) fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 16);
    let _ = writeln!(text, "banger: {line}");
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Ends the machine at once, with the reason on the console.
pub(super) fn die(reason: &str) -> ! {
    say(reason);
    let _ = rustix::termios::tcdrain(std::io::stderr());
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    // Where power cannot be cut, the end of process 1 is a panic, and panic=-1 on the command line ends it.
    std::process::exit(1)
}

/// How long each step of the boot took, for `banger.debug`.
pub(super) struct Steps {
    last: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// Begins to count.
    pub(super) fn begin() -> Self {
        Self { last: Instant::now(), taken: Vec::with_capacity(16) }
    }

    /// The step that ends now.
    pub(super) fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.taken.push((step, now - self.last));
        self.last = now;
    }

    /// All of it in one line.
    pub(super) fn print(&self) {
        let mut line = String::from("steps (ms):");
        for (step, time) in &self.taken {
            let _ = write!(line, " {step} {:.1}", time.as_secs_f64() * 1e3);
        }
        say(&line);
    }
}
