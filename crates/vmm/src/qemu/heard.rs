//! What QEMU's events said of a machine, whichever connection heard them. Must never forget a panic for the shutdown that
//! follows it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::arguments::PORT_ID;
use crate::driver::ExitReason;

/// What the machine said of itself, over all connections to it.
#[derive(Debug)]
pub(super) struct Heard {
    reason: Mutex<ExitReason>,
    stalled: AtomicBool,
    /// How the last migration ended.
    migration: Mutex<Option<String>>,
    /// Whether the guest has the agent's port open, as far as it was said.
    port_open: Mutex<Option<bool>>,
    /// How often the guest closed it.
    closings: watch::Sender<u64>,
    /// Rings when any of these may have changed.
    news: watch::Sender<()>,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            reason: Mutex::new(ExitReason::Unknown),
            stalled: AtomicBool::new(false),
            migration: Mutex::default(),
            port_open: Mutex::default(),
            closings: watch::Sender::new(0),
            news: watch::Sender::new(()),
        }
    }
}

impl Heard {
    /// Why it ends, as far as it said.
    pub(super) fn reason(&self) -> ExitReason {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was halted because its disk's file could not grow.
    pub(super) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// How a migration ended, if it has.
    pub(super) fn migration(&self) -> Option<String> {
        self.migration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts how often the guest closed the agent's port.
    pub(super) fn closings(&self) -> watch::Receiver<u64> {
        self.closings.subscribe()
    }

    /// Takes in the answer to `query-status`: events from before this connection are not repeated.
    pub(super) fn status(&self, answer: &Value) {
        let status = answer.get("status").and_then(Value::as_str);
        self.stalled.store(status == Some("io-error"), Ordering::Relaxed);
    }

    /// The guest opened or closed the agent's port. Of what it does within a second only the last is told
    /// (`monitor_qapi_event_conf`): one that is opened twice was closed between.
    fn port(&self, open: bool) {
        let mut was = self.port_open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open || *was == Some(true) {
            self.closings.send_modify(|n| *n += 1);
        }
        *was = Some(open);
    }

    /// Remembers what an event says about the machine's end (qapi/run-state.json: SHUTDOWN,
    /// GUEST_PANICKED), its halt (qapi/block-core.json: BLOCK_IO_ERROR) or the agent's port
    /// (qapi/char.json: VSERPORT_CHANGE). A panic is not overwritten by the shutdown that follows it.
    pub(super) fn note(&self, event: &str, data: &Value) {
        let word = |key: &str| data.get(key).and_then(Value::as_str);
        let new = match (event, word("reason")) {
            ("BLOCK_IO_ERROR", _) if word("action") == Some("stop") => {
                return self.stalled.store(true, Ordering::Relaxed);
            }
            ("VSERPORT_CHANGE", _) if word("id") == Some(PORT_ID) => {
                return self.port(data.get("open").and_then(Value::as_bool) == Some(true));
            }
            ("RESUME", _) => return self.stalled.store(false, Ordering::Relaxed),
            ("MIGRATION", _) => {
                if let Some(end) = word("status").filter(|s| ["completed", "failed", "cancelled"].contains(s))
                {
                    let mut migration = self.migration.lock().unwrap_or_else(PoisonError::into_inner);
                    *migration = Some(end.to_owned());
                }
                return;
            }
            ("GUEST_PANICKED", _) | ("SHUTDOWN", Some("guest-panic")) => ExitReason::GuestPanic,
            ("SHUTDOWN", Some("guest-shutdown")) => ExitReason::GuestShutdown,
            ("SHUTDOWN", Some("guest-reset")) => ExitReason::GuestReset,
            ("SHUTDOWN", _) => ExitReason::Host,
            _ => return,
        };
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if *reason != ExitReason::GuestPanic {
            *reason = new;
        }
    }

    /// Whoever waits for news looks again.
    pub(super) fn ring(&self) {
        self.news.send_replace(());
    }

    /// Changes when any of this may have changed.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_that_is_opened_twice_was_closed_between() {
        let heard = Heard::default();
        let said = |id: &str, open: bool| heard.note("VSERPORT_CHANGE", &json!({ "id": id, "open": open }));
        for (id, open, closings) in [
            (PORT_ID, true, 0),
            ("another", false, 0),
            (PORT_ID, false, 1),
            (PORT_ID, true, 1),
            (PORT_ID, true, 2),
        ] {
            said(id, open);
            assert_eq!(*heard.closings().borrow(), closings, "{id} {open}");
        }
    }

    #[test]
    fn a_panic_is_not_hidden_by_the_reset_behind_it() {
        let heard = Heard::default();
        heard.note("GUEST_PANICKED", &Value::Null);
        heard.note("SHUTDOWN", &json!({"reason": "guest-reset"}));
        assert_eq!(heard.reason(), ExitReason::GuestPanic);
    }

    #[test]
    fn a_disk_that_cannot_grow_halts_the_machine_until_it_resumes() {
        let heard = Heard::default();
        heard.note("BLOCK_IO_ERROR", &json!({"action": "report", "nospace": true}));
        assert!(!heard.stalled(), "the guest was told: nothing waits");
        heard.note("BLOCK_IO_ERROR", &json!({"action": "stop", "nospace": true}));
        assert!(heard.stalled());
        heard.note("RESUME", &Value::Null);
        assert!(!heard.stalled());
        // A new connection does not hear old events, and asks.
        heard.status(&json!({"status": "io-error", "running": false}));
        assert!(heard.stalled());
    }
}
