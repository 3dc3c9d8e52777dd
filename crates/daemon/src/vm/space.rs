//! A host's disk that is full. The VMM then halts the machine, rather than fail the guest's writes;
//! here that is said, and ended once there is space. Must never let a guest lose what it wrote.

use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, Result};

use super::Vms;
use super::live::Live;

/// How often halted machines are looked after.
const TICK: Duration = Duration::from_secs(1);
/// With less than this free it is not worth a try.
const ENOUGH: u64 = 8 << 20;

impl Live {
    /// `unavailable` while the machine waits for space: its agent cannot answer, and ending it now
    /// would lose what the guest believes written.
    ///
    /// # Errors
    /// Then.
    pub(super) fn not_stalled(&self) -> Result<()> {
        if !self.machine().stalled() {
            return Ok(());
        }
        let name = &self.machine().handle().name;
        Err(Error::unavailable(format!("VM '{name}' waits: the host's disk is full"))
            .with_hint("free some space, and it goes on by itself"))
    }
}

impl Vms {
    /// Lets machines go on that were halted for want of space, for ever.
    pub(crate) async fn resume_stalled(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let all: Vec<Arc<Live>> = self.live_map().values().cloned().collect();
            for live in all.iter().filter(|l| l.machine().stalled()) {
                let free = rustix::fs::statvfs(self.dirs.state.path())
                    .map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
                if free < ENOUGH {
                    continue;
                }
                let name = &live.machine().handle().name;
                match live.machine().resume().await {
                    Ok(()) => tracing::info!(vm = %name, "there is space again: the machine goes on"),
                    Err(error) => tracing::warn!(vm = %name, %error, "a halted machine does not go on"),
                }
            }
        }
    }
}
