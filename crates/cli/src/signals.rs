//! The signals this process gets, as a stream. Must never decide what they mean.

use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Result};

/// The interrupt from the keyboard.
pub(crate) const INT: i32 = Number::INT.as_raw();
/// The terminal's size changed.
pub(crate) const WINCH: i32 = Number::WINCH.as_raw();
/// We were continued after a stop.
pub(crate) const CONT: i32 = Number::CONT.as_raw();

const ENDING: [i32; 4] = [INT, Number::TERM.as_raw(), Number::HUP.as_raw(), Number::QUIT.as_raw()];
const USER: [i32; 2] = [Number::USR1.as_raw(), Number::USR2.as_raw()];

/// Whether this signal ends a program that does nothing about it, on somebody's request.
pub(crate) fn is_ending(signal: i32) -> bool {
    ENDING.contains(&signal)
}

/// Caught signals.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Those that end a program.
    pub(crate) fn ending() -> Result<Self> {
        Self::of(&ENDING)
    }

    /// Those that a command in a guest is told of, too.
    pub(crate) fn all() -> Result<Self> {
        let mut all = ENDING.to_vec();
        all.extend(USER);
        all.extend([WINCH, CONT]);
        Self::of(&all)
    }

    fn of(numbers: &[i32]) -> Result<Self> {
        let ignored = ignored_mask();
        let caught = numbers
            .iter()
            // nohup(1): a hang-up that our caller ignores is none to us either.
            .filter(|n| **n != Number::HUP.as_raw() || ignored & (1 << (**n - 1)) == 0)
            .map(|n| Ok((*n, signal(SignalKind::from_raw(*n))?)))
            .collect::<io::Result<_>>()
            .map_err(|e| {
                CliError::from(banger_model::Error::internal(format!("cannot catch signals: {e}")))
            })?;
        Ok(Self(caught))
    }

    /// The next signal's number. Cancel-safe.
    pub(crate) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            for (number, stream) in &mut self.0 {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next signal that ends a program. Cancel-safe.
    pub(crate) async fn next_ending(&mut self) -> i32 {
        loop {
            let signal = self.next().await;
            if is_ending(signal) {
                return signal;
            }
        }
    }
}

/// The signals this process was started with ignored (proc_pid_status(5), `SigIgn`).
fn ignored_mask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}
