//! Guests' clocks. A guest is told the time when it begins or goes on, and again if that was long under way; every guest
//! that runs is after the host slept, or when its wall clock was stepped, or was slowly led away from what guests count.
//! Must never touch the clock of one that has the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_channel::Session;
use banger_model::Result;
use banger_protocol::agent::{AgentHello, Request};
use rustix::time::{ClockId, clock_gettime};

use super::Vms;
use super::live::Live;
use super::pause::set_clock;

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);
/// What differs by less is no step: reading the clocks takes time, too.
const STEP_NS: i128 = 20_000_000;
/// How far a host's wall clock is led away (adjtimex(2), by whoever keeps its time) before guests are told: they count what
/// the processor counts. Within the hundred milliseconds that a guest's clock may be off, with what else adds to it.
const LED_AWAY_NS: i128 = 50_000_000;
/// What was under way for no longer than this leaves a guest that has the time, as far as a user can tell.
pub(super) const EXACT: Duration = Duration::from_millis(50);
/// A guest that seems to be no more than this from the host's time when it answers is closer than that: the answer was
/// under way, too. Telling it again costs a start some milliseconds.
const CLOSE: Duration = Duration::from_millis(75);
/// How often a guest on a busy host is told at most.
const TRIES: u32 = 4;

/// The host's clocks, read one after the other, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The time of day.
    pub(crate) realtime: i128,
    /// Time since boot, without sleep.
    pub(crate) monotonic: i128,
    /// Time since boot.
    pub(crate) boottime: i128,
    /// Time since boot, without sleep, as the hardware counts it.
    pub(crate) raw: i128,
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
            realtime: now().into(),
            monotonic: of(ClockId::Monotonic),
            boottime: of(ClockId::Boottime),
            raw: of(ClockId::MonotonicRaw),
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

    /// Why a guest's clock, which goes by the hardware, is not right any more if it was right then.
    fn led_away(self, then: Self) -> Option<&'static str> {
        let away = (self.realtime - then.realtime) - (self.raw - then.raw);
        (away.abs() > LED_AWAY_NS).then_some("the host's clock was corrected")
    }
}

/// The time of day as guests are told it, nanoseconds since 1970.
pub(super) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Tells a guest the time, until it has it: it is late by as long as the word is under way, which cannot be longer than
/// until the answer is there.
pub(super) async fn tell(agent: &Session) -> Result<()> {
    for _ in 0..TRIES {
        let asked = Instant::now();
        agent.call(&Request::SetTime { unix_ns: now() }).await?;
        if asked.elapsed() <= EXACT {
            break;
        }
    }
    Ok(())
}

/// Tells a guest the time once more that had none when it answered.
pub(super) async fn correct(agent: &Session, hello: &AgentHello) -> Result<()> {
    let off = hello.unix_ns.map_or(Duration::ZERO, |theirs| Duration::from_nanos(now().abs_diff(theirs)));
    if off <= CLOSE {
        return Ok(());
    }
    tracing::info!(off_ms = off.as_millis(), "a guest is told the time again");
    tell(agent).await
}

impl Vms {
    /// Watches the host's clocks, for ever.
    pub(crate) async fn watch_clock(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut before = Reading::take();
        // When all guests had the time.
        let mut right = before;
        loop {
            tick.tick().await;
            let now = Reading::take();
            if let Some(why) = now.jumped(before).or_else(|| now.led_away(right)) {
                self.tell_all(why).await;
                right = now;
            }
            before = now;
        }
    }

    /// Tells every guest that runs the time.
    async fn tell_all(&self, why: &str) {
        let all: Vec<Arc<Live>> = self.live_map().values().cloned().collect();
        tracing::info!(why, machines = all.len(), "guests are told the time");
        let told = all.iter().filter(|live| !live.is_paused()).map(|live| async move {
            if let Err(error) = set_clock(live).await {
                tracing::warn!(vm = %live.machine().handle().name, %error, "the guest's clock may be wrong");
            }
        });
        futures_util::future::join_all(told).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use banger_channel::{GuestStream, Handler};
    use banger_protocol::agent::{InitKind, Reply, VERSION};

    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn later(reading: Reading, ns: i128) -> Reading {
        Reading {
            realtime: reading.realtime + ns,
            monotonic: reading.monotonic + ns,
            boottime: reading.boottime + ns,
            raw: reading.raw + ns,
        }
    }

    fn reading() -> Reading {
        let (realtime, raw) = (1_795_267_200 * SECOND, 6 * SECOND);
        Reading { realtime, monotonic: 7 * SECOND, boottime: 9 * SECOND, raw }
    }

    #[test]
    fn a_clock_that_is_led_away_slowly_is_noticed_when_it_is_far() {
        // A thousandth of a second each second, to which the monotonic clock is led as well
        for (sign, most) in [(1, 50), (-1, 50), (0, 4000)] {
            let (then, mut now) = (reading(), reading());
            for second in 1..=most {
                let before = now;
                now = later(now, SECOND + sign * SECOND / 1000);
                now.raw = then.raw + second * SECOND;
                assert_eq!((now.jumped(before), now.led_away(then)), (None, None), "{sign} {second}");
            }
            now = later(now, SECOND + sign * SECOND / 1000);
            now.raw = then.raw + (most + 1) * SECOND;
            assert_eq!(now.led_away(then).is_some(), sign != 0);
        }
    }

    #[test]
    fn a_sleep_and_a_step_are_noticed_and_time_going_by_is_not() {
        let then = reading();
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

    /// A guest that is late with its first answers.
    #[derive(Clone, Default)]
    struct Guest(Arc<Mutex<(u32, u32)>>);

    impl Handler for Guest {
        async fn handle(&self, request: Request, stream: GuestStream) {
            assert!(
                matches!(request, Request::SetTime { unix_ns } if now().abs_diff(unix_ns) < 1_000_000_000)
            );
            let slow = {
                let mut of = self.0.lock().unwrap();
                of.0 += 1;
                of.1 = of.1.saturating_sub(1);
                of.1 > 0
            };
            if slow {
                tokio::time::sleep(EXACT * 2).await;
            }
            let _ = stream.reply(&Reply::Done).await;
        }
    }

    #[tokio::test]
    async fn a_guest_is_told_until_the_word_was_quick_and_one_that_has_the_time_is_not() {
        let guest = Guest::default();
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(banger_channel::serve(theirs, guest.clone()));
        let agent = Session::connect(ours, Default::default()).await.unwrap();
        let told = |slow: u32| std::mem::replace(&mut *guest.0.lock().unwrap(), (0, slow)).0;
        let hello = |off: i64| AgentHello {
            version: VERSION,
            agent: String::new(),
            capabilities: Vec::new(),
            kernel: String::new(),
            boot_id: String::new(),
            init: InitKind::Agent,
            uptime_ms: 1,
            unix_ns: Some(now() + off),
        };
        correct(&agent, &hello(0)).await.unwrap();
        correct(&agent, &AgentHello { unix_ns: None, ..hello(0) }).await.unwrap();
        assert_eq!(told(1), 0);
        for off in [-3_600_000_000_000, 100_000_000] {
            correct(&agent, &hello(off)).await.unwrap();
            assert!(told(3) >= 1);
        }
        // Two words that were late, and the one that was not; a guest that is always late is left alone in the end.
        tell(&agent).await.unwrap();
        assert!((3..=TRIES).contains(&told(99)));
        tell(&agent).await.unwrap();
        assert_eq!(told(0), TRIES);
    }

    #[test]
    fn the_hosts_own_clocks_do_not_jump_by_being_read() {
        let before = Reading::take();
        assert_eq!(Reading::take().jumped(before), None);
    }
}
