//! The clock watch: after the host slept, or its wall clock was stepped, every guest that runs is told the time. Those
//! that are paused are told when they go on. Must never touch a guest's clock for anything less than a step.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Vms;
use super::live::Live;
use super::pause::set_clock;

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);
/// What differs by less is no step: reading the clocks takes time, too.
const STEP_NS: i128 = 20_000_000;

/// The host's clocks, read one after the other, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The time of day.
    pub(crate) realtime: i128,
    /// Time since boot, without sleep.
    pub(crate) monotonic: i128,
    /// Time since boot.
    pub(crate) boottime: i128,
}

impl Reading {
    /// Now.
    fn take() -> Self {
        let of = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        Self {
            // As guests are told it.
            realtime: jiff::Timestamp::now().as_nanosecond(),
            monotonic: of(ClockId::Monotonic),
            boottime: of(ClockId::Boottime),
        }
    }

    /// Why a guest's clock, which goes by the monotonic one, is not right any more.
    fn jumped(self, before: Self) -> Option<&'static str> {
        let moved =
            |now: i128, then: i128| ((now - self.monotonic) - (then - before.monotonic)).abs() > STEP_NS;
        if moved(self.boottime, before.boottime) {
            return Some("the host slept");
        }
        moved(self.realtime, before.realtime).then_some("the host's clock was set")
    }
}

impl Vms {
    /// Watches the host's clocks, for ever.
    pub(crate) async fn watch_clock(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut before = Reading::take();
        loop {
            tick.tick().await;
            let now = Reading::take();
            self.follow_clock(before, now).await;
            before = now;
        }
    }

    /// Tells every guest that runs the time if the clocks have jumped between two readings; how many took it.
    async fn follow_clock(&self, before: Reading, now: Reading) -> usize {
        let Some(why) = now.jumped(before) else { return 0 };
        let all: Vec<Arc<Live>> = self.live_map().values().cloned().collect();
        tracing::info!(why, machines = all.len(), "guests are told the time");
        let told = all.iter().filter(|live| !live.is_paused()).map(|live| async move {
            let name = &live.machine().handle().name;
            set_clock(live).await.inspect_err(|error| {
                tracing::warn!(vm = %name, %error, "the guest's clock may be wrong");
            })
        });
        futures_util::future::join_all(told).await.iter().filter(|told| told.is_ok()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn later(reading: Reading, ns: i128) -> Reading {
        Reading {
            realtime: reading.realtime + ns,
            monotonic: reading.monotonic + ns,
            boottime: reading.boottime + ns,
        }
    }

    #[test]
    fn a_sleep_and_a_step_are_noticed_and_time_going_by_is_not() {
        let then = Reading { realtime: 1_795_267_200 * SECOND, monotonic: 7 * SECOND, boottime: 9 * SECOND };
        assert_eq!(later(then, SECOND).jumped(then), None);
        // Between two of the three the reader may have been kept waiting.
        assert_eq!(
            Reading { boottime: then.boottime + SECOND + STEP_NS / 2, ..later(then, SECOND) }.jumped(then),
            None
        );
        let slept = Reading { monotonic: then.monotonic + SECOND, ..later(then, 3600 * SECOND) };
        assert_eq!(slept.jumped(then), Some("the host slept"));
        for step in [-3600, 3600] {
            let mut set = later(then, SECOND);
            set.realtime += step * SECOND;
            assert_eq!(set.jumped(then), Some("the host's clock was set"));
        }
    }

    #[test]
    fn the_hosts_own_clocks_do_not_jump_by_being_read() {
        let before = Reading::take();
        assert_eq!(Reading::take().jumped(before), None);
    }
}
