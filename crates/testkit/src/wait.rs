//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

/// Asks until there is an answer or the time is over.
pub fn until<T>(timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + timeout;
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
    assert!(until(timeout, || ask().then_some(())).is_some(), "not within {timeout:?}: {what}");
}
