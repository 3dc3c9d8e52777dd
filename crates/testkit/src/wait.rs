//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

/// A machine that is busy or slow gets so many times what is enough for others: an end is for what never comes.
const PATIENCE: u32 = 4;

/// Asks until there is an answer or the time is over: `timeout` is enough for a machine that has nothing else to do.
pub fn until<T>(timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + timeout * PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks until it is true; panics with `what` when the time is over.
pub fn must(what: &str, timeout: Duration, mut ask: impl FnMut() -> bool) {
    assert!(
        until(timeout, || ask().then_some(())).is_some(),
        "not within {PATIENCE} times {timeout:?}: {what}"
    );
}
