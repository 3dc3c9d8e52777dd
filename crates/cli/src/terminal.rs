//! The terminal: its size, raw mode, and the promise that it is sane again when we are gone.

use std::sync::{Mutex, PoisonError};

use banger_protocol::agent::TermSize;
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// What a terminal without a size is taken for.
const DEFAULT_SIZE: TermSize = TermSize { rows: 24, cols: 80 };

/// The settings to go back to, while raw mode is on.
static SANE: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether stdin is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdio::stdin())
}

/// Whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    isatty(stdio::stdout())
}

/// Whether stderr is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    isatty(stdio::stderr())
}

/// The size of the terminal we are on.
pub(crate) fn size() -> TermSize {
    [stdio::stdout(), stdio::stdin(), stdio::stderr()]
        .into_iter()
        .filter_map(|fd| tcgetwinsize(fd).ok())
        .map(|size| TermSize { rows: size.ws_row, cols: size.ws_col })
        .find(|size| size.rows > 0 && size.cols > 0)
        .unwrap_or(DEFAULT_SIZE)
}

/// Raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal on stdin into raw mode: every key goes to the guest.
    pub(crate) fn enter() -> std::io::Result<Self> {
        let sane = tcgetattr(stdio::stdin())?;
        let mut raw = sane.clone();
        raw.make_raw();
        *SANE.lock().unwrap_or_else(PoisonError::into_inner) = Some(sane);
        let guard = Self(());
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(guard)
    }

    /// Raw mode again, after a stop in which the shell took the terminal back.
    pub(crate) fn again(&self) {
        if let Ok(mut raw) = tcgetattr(stdio::stdin()) {
            raw.make_raw();
            let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &raw);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is in raw mode; also for the panic hook.
pub(crate) fn restore() {
    // A panic while the lock is held must not wait for itself.
    let saved = match SANE.try_lock() {
        Ok(mut saved) => saved.take(),
        Err(_) => None,
    };
    if let Some(sane) = saved {
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &sane);
    }
}
