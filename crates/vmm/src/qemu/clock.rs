//! The host's time-stamp counter, measured for guests under software emulation.
//!
//! QEMU's TCG gives the guest the host's own counter, so the guest need not find out its rate. Left
//! to itself a stock kernel compares it with an emulated timer chip, which fails on a busy host
//! (5 boots of 5 beside three busy loops on two cores), and then it waits for ever for a clock tick.

use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

/// Two looks this far apart tell the rate to a few parts in a million: a look costs well under
/// 100 ns.
const WINDOW: Duration = Duration::from_millis(20);
/// Looks further apart may have a suspend between them.
const WINDOW_MAX: Duration = Duration::from_secs(10);

/// Measures once, beginning when it is made.
#[derive(Debug)]
pub(super) struct HostClock {
    first: Look,
    khz: OnceCell<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    counter: u64,
}

impl Look {
    fn now() -> Self {
        // The look with the least time around it is the one that nothing interrupted.
        let mut best: Option<(Duration, Self)> = None;
        for _ in 0..8 {
            let before = Instant::now();
            let counter = counter();
            let width = before.elapsed();
            if best.as_ref().is_none_or(|(least, _)| width < *least) {
                best = Some((width, Self { at: before + width / 2, counter }));
            }
        }
        best.map_or_else(|| Self { at: Instant::now(), counter: counter() }, |(_, look)| look)
    }

    fn khz_until(self, later: Self) -> Option<u32> {
        let ns = later.at.checked_duration_since(self.at)?.as_nanos();
        let ticks = u128::from(later.counter.checked_sub(self.counter)?);
        u32::try_from((ticks * 1_000_000).checked_div(ns)?).ok()
    }
}

fn counter() -> u64 {
    #[expect(unsafe_code, reason = "the counter has no safe wrapper")]
    // SAFETY: every x86-64 processor has the instruction; it only reads a register.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

impl HostClock {
    pub(super) fn start() -> Self {
        Self { first: Look::now(), khz: OnceCell::new() }
    }

    /// The counter's rate in kHz; `None` when it is not plausible.
    pub(super) async fn khz(&self) -> Option<u32> {
        let khz = *self.khz.get_or_init(|| measure(self.first)).await;
        // From the slowest to beyond the fastest processors that run this code.
        (500_000..10_000_000).contains(&khz).then_some(khz)
    }
}

async fn measure(first: Look) -> u32 {
    let (first, missing) = match first.at.elapsed() {
        long if long > WINDOW_MAX => (Look::now(), WINDOW),
        some => (first, WINDOW.saturating_sub(some)),
    };
    tokio::time::sleep(missing).await;
    first.khz_until(Look::now()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_measurements_agree() {
        let (one, two) = (HostClock::start(), HostClock::start());
        let (one, two) = (one.khz().await.unwrap(), two.khz().await.unwrap());
        // The kernel itself tolerates 1 %; a busy test machine gets a tenth of that.
        assert!(one.abs_diff(two) < one / 1000, "{one} {two}");
    }

    #[test]
    fn nonsense_gives_no_rate() {
        let now = Look::now();
        let back = Look { at: now.at + Duration::from_secs(1), counter: now.counter - 1 };
        assert_eq!(now.khz_until(back), None);
        assert_eq!(now.khz_until(now), None);
        let later = Look { at: now.at + Duration::from_millis(10), counter: now.counter + 26_000_000 };
        assert_eq!(now.khz_until(later), Some(2_600_000));
    }
}
