//! Stop, kill and delete: named steps, most of which are the teardown's. Once one has begun it is not cancelled.

use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, ErrorCode, LastError, Result, Unfinished, Vm, VmId, VmState};
use banger_protocol::agent::{Request, ShutdownMode};
use banger_vmm::Signal;

use super::live::Live;
use super::start::failed;
use super::teardown::{self, KILL_LIMIT, remove_tree, survived};
use super::{VmLock, Vms, not_running};
use crate::op::Op;

/// How long a guest has to power off when nobody says.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest that does not power off has to flush its file systems.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// The names of a stop's steps.
pub(super) fn steps() -> Vec<String> {
    let own = ["stopping", "power_off", "end"].map(str::to_owned).into_iter();
    own.chain(teardown::steps()).chain(["stopped".to_owned()]).collect()
}

/// The names of a kill's steps.
pub(super) fn kill_steps() -> Vec<String> {
    ["signal".to_owned()].into_iter().chain(teardown::steps()).chain(["stopped".to_owned()]).collect()
}

/// The names of a delete's steps.
pub(super) fn delete_steps() -> Vec<String> {
    let own = ["aside", "forget", "files"].map(str::to_owned);
    ["deleting".to_owned()].into_iter().chain(teardown::steps()).chain(own).collect()
}

impl Vms {
    /// Powers the guest off in good order; when it does not obey in time, its file systems are
    /// flushed and the machine is ended.
    ///
    /// # Errors
    /// `not_running`, `cancelled`; a teardown that was not clean.
    pub(crate) async fn stop(self: &Arc<Self>, op: &Op, reference: &str, timeout: Duration) -> Result<Vm> {
        let (vm, lock) = self.locked(op, reference).await?;
        self.stop_locked(op, &vm, timeout, &lock).await
    }

    pub(super) async fn stop_locked(
        self: &Arc<Self>,
        op: &Op,
        vm: &Vm,
        timeout: Duration,
        _lock: &VmLock,
    ) -> Result<Vm> {
        let id = &vm.id;
        let Some(live) = self.alive(id) else {
            return if matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Error) {
                Err(not_running(vm))
            } else {
                self.settle(op, id, VmState::Stopped).await
            };
        };
        op.check()?;
        live.not_stalled()?;
        let mark = async { self.change(op, id, |vm| vm.state = VmState::Stopping) };
        if let Err(error) = self.step(op, id, "stopping", mark).await {
            // It runs on as it did.
            if let Err(also) = self.change(op, id, |now| now.state = vm.state) {
                tracing::error!(vm_id = %id, error = %also, "a stop that did not begin could not be recorded");
            }
            return Err(error);
        }
        // From here on there is no way back: half stopped is stopped.
        match self.power_down(op, vm, &live, timeout).await {
            Ok(()) => {
                op.stage("tear_down", format!("tearing down ({})", vm.name), None);
                self.settle(op, id, VmState::Stopped).await
            }
            Err(mut error) => {
                if let Err(also) = self.settle(op, id, VmState::Stopped).await {
                    error.message = format!("{}; and {also}", error.message);
                }
                Err(error)
            }
        }
    }

    async fn power_down(self: &Arc<Self>, op: &Op, vm: &Vm, live: &Live, timeout: Duration) -> Result<()> {
        let id = &vm.id;
        op.stage("power_off", format!("powering off ({})", vm.name), None);
        let power_off = async {
            self.wake_to_stop(live).await;
            Ok(powered_off(op, live, timeout).await)
        };
        let off = self.step(op, id, "power_off", power_off).await;
        let end = async {
            if !off.as_ref().is_ok_and(|off| *off) {
                op.notice(format!(
                    "VM '{}' did not power off within {} s: flushed and ended",
                    vm.name,
                    timeout.as_secs()
                ));
                flush(op, live).await;
                if let Err(error) = live.machine().stop().await {
                    tracing::warn!(vm = %vm.name, %error, "the machine monitor did not quit; killing it");
                }
            }
            Ok(())
        };
        let ended = self.step(op, id, "end", end).await;
        off.and(ended)
    }

    /// Stops and starts.
    ///
    /// # Errors
    /// As of both.
    pub(crate) async fn restart(self: &Arc<Self>, op: &Op, reference: &str, timeout: Duration) -> Result<Vm> {
        let (vm, lock) = self.locked(op, reference).await?;
        let vm = self.stop_locked(op, &vm, timeout, &lock).await?;
        self.start_locked(op, vm, &lock).await
    }

    /// Sends the VMM a signal and, when that is one that ends it, waits for the end.
    ///
    /// # Errors
    /// `not_running`, `invalid_argument` for a signal nobody knows.
    pub(crate) async fn kill(self: &Arc<Self>, op: &Op, reference: &str, signal: Option<&str>) -> Result<Vm> {
        let signal = parse_signal(signal.unwrap_or("KILL"))?;
        let (vm, _lock) = self.locked(op, reference).await?;
        let id = &vm.id;
        let Some(live) = self.alive(id) else {
            return Err(not_running(&vm));
        };
        let limit = if signal == Signal::KILL { KILL_LIMIT } else { Duration::from_secs(3) };
        let send = async {
            live.machine().kill(signal).await?;
            Ok(tokio::time::timeout(limit, live.machine().wait()).await.is_ok())
        };
        let sent = self.step(op, id, "signal", send).await;
        let ended = live.machine().exited().is_some();
        match sent {
            Ok(true) => self.settle(op, id, VmState::Stopped).await,
            Ok(false) if signal == Signal::KILL => Err(survived(vm.name.as_str())),
            Ok(false) => {
                op.notice(format!("VM '{}' survived the signal and runs on", vm.name));
                Ok(vm)
            }
            Err(error) => {
                if ended {
                    self.settle(op, id, VmState::Stopped).await?;
                }
                Err(error)
            }
        }
    }

    /// Deletes a VM and everything it owns.
    ///
    /// # Errors
    /// `busy` when it runs and `force` is not given.
    pub(crate) async fn delete(self: &Arc<Self>, op: &Op, reference: &str, force: bool) -> Result<Vm> {
        let (vm, lock) = self.locked(op, reference).await?;
        let id = &vm.id;
        if !force && self.alive(id).is_some() {
            return Err(Error::new(ErrorCode::Busy, format!("VM '{}' is {}", vm.name, vm.state))
                .with_hint(format!("stop it first, or 'banger vm delete -f {}'", vm.name)));
        }
        op.stage("delete", format!("deleting ({})", vm.name), None);
        self.delete_locked(op, id, lock).await?;
        Ok(vm)
    }

    /// From here on there is no way back: it is not cancelled half-way, and what a crash cuts short the next daemon
    /// finishes.
    pub(super) async fn delete_locked(self: &Arc<Self>, op: &Op, id: &VmId, lock: VmLock) -> Result<()> {
        let Some(vm) = self.store.vm(id)? else { return Ok(()) };
        if let Err(error) = self.mark_deleting(op, id).await {
            // It did not begin: the VM is what it was.
            if let Err(also) = self.change(op, id, |now| now.unfinished = vm.unfinished) {
                tracing::error!(vm_id = %id, error = %also, "a delete that did not begin could not be recorded");
            }
            return Err(error);
        }
        let deleted = self.delete_all(op, &vm).await;
        match &deleted {
            Ok(()) => {
                self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
                op.deleted(&vm);
                self.artifacts.collect();
            }
            Err(error) => {
                // Still to be deleted, and shown as what it is until then.
                let last_error = LastError { code: error.code, message: error.message.clone() };
                let shown = self.change(op, id, |vm| {
                    vm.state = VmState::Error;
                    vm.last_error = Some(last_error);
                });
                if let Err(error) = shown {
                    tracing::warn!(vm_id = %id, %error, "a delete that failed could not be recorded");
                }
                self.unclean.notify_one();
            }
        }
        drop(lock);
        deleted
    }

    async fn mark_deleting(self: &Arc<Self>, op: &Op, id: &VmId) -> Result<()> {
        // A full disk cannot even take this note; the delete goes on, for it is what makes room.
        let mark = async {
            let marked = self.change(op, id, |vm| {
                // One that nobody ever saw stays out of sight, and goes as well.
                if !vm.is_hidden() {
                    vm.unfinished = Some(Unfinished::Deleting);
                }
            });
            if let Err(full) = marked {
                tracing::warn!(vm_id = %id, error = %full, "a delete begins without a note of it");
            }
            Ok(())
        };
        self.step(op, id, "deleting", mark).await
    }

    async fn delete_all(self: &Arc<Self>, op: &Op, vm: &Vm) -> Result<()> {
        let id = &vm.id;
        self.tear_down(op, id).await?;
        let dir = self.dirs.state.vm(id);
        let doomed = self.dirs.state.scratch().join(format!("deleted-{id}"));
        let aside = async {
            match std::fs::rename(&dir, &doomed) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("delete", &dir, &e)),
                _ => Ok(()),
            }
        };
        self.step(op, id, "aside", aside).await?;
        let forget = async {
            if let Err(full) = self.store.delete_vm(id) {
                // A full disk cannot even forget; what is deleted makes room for that.
                tracing::warn!(vm_id = %id, error = %full, "deleting the files before the record");
                remove_tree(&doomed)?;
                self.store.delete_vm(id)?;
            }
            Ok(())
        };
        let forgotten = self.step(op, id, "forget", forget).await;
        let removed = self.step(op, id, "files", async { remove_tree(&doomed) }).await;
        forgotten.and(removed)
    }

    /// Waits until the connection that a VM belongs to is closed, then deletes it. A daemon that
    /// ends leaves it to the next one.
    pub(crate) async fn delete_with_connection(self: &Arc<Self>, op: &Op, id: &VmId) {
        let closed = op.cancel_token().cancelled();
        let gone = async {
            while matches!(self.store.vm(id), Ok(Some(_))) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return,
            () = gone => return,
            () = closed => {}
        }
        if self.shutdown.is_cancelled() {
            return;
        }
        let delete = |op: Op| async move { self.delete(&op, id.as_str(), true).await };
        match self.operations.run("delete", id.as_str(), delete).await {
            Ok(_) => tracing::info!(vm_id = %id, "deleted with its connection"),
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => tracing::warn!(vm_id = %id, %error, "a VM outlives its connection"),
        }
    }

    /// Tears down and records the state it is in afterwards, whatever the teardown came to.
    pub(super) async fn settle(self: &Arc<Self>, op: &Op, id: &VmId, state: VmState) -> Result<Vm> {
        let torn = self.tear_down(op, id).await;
        let record = async { self.change(op, id, |vm| vm.state = state) };
        let vm = self.step(op, id, "stopped", record).await?;
        torn?;
        vm.ok_or_else(|| Error::internal("the VM's record vanished"))
    }
}

/// Asks the guest to power off and waits.
async fn powered_off(op: &Op, live: &Live, timeout: Duration) -> bool {
    let asked = async {
        let agent = live.agent_for(op).await?;
        Ok::<_, Error>(agent.call(&Request::Shutdown { mode: ShutdownMode::PowerOff }).await?)
    };
    let ends = async {
        // The agent may be gone before its answer is here; the machine's end is what counts.
        if let Ok(Err(error)) = tokio::time::timeout(timeout, asked).await {
            tracing::info!(%error, "the power-off request was not answered");
        }
        live.machine().wait().await
    };
    tokio::time::timeout(timeout, ends).await.is_ok()
}

/// Asks the guest to write its file systems out.
pub(super) async fn flush(op: &Op, live: &Live) {
    let synced = async {
        let agent = live.agent_for(op).await?;
        Ok::<_, Error>(agent.call(&Request::Sync).await?)
    };
    match tokio::time::timeout(SYNC_LIMIT, synced).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the guest could not flush its file systems"),
        Err(_) => tracing::warn!("the guest did not flush its file systems in time"),
    }
}

/// A signal by name (with or without `SIG`) or number.
fn parse_signal(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    let by_name = match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "HUP" | "1" => Some(Signal::HUP),
        "INT" | "2" => Some(Signal::INT),
        "QUIT" | "3" => Some(Signal::QUIT),
        "ABRT" | "6" => Some(Signal::ABORT),
        "KILL" | "9" => Some(Signal::KILL),
        "USR1" | "10" => Some(Signal::USR1),
        "USR2" | "12" => Some(Signal::USR2),
        "TERM" | "15" => Some(Signal::TERM),
        "CONT" | "18" => Some(Signal::CONT),
        "STOP" | "19" => Some(Signal::STOP),
        _ => None,
    };
    by_name.ok_or_else(|| {
        Error::invalid(format!("'{}' is not a signal", text.escape_debug()))
            .with_hint("write KILL, TERM, INT, HUP, QUIT, ABRT, USR1, USR2, STOP or CONT")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_in_any_customary_way() {
        for name in ["KILL", "kill", "SIGKILL", "9"] {
            assert_eq!(parse_signal(name).unwrap(), Signal::KILL);
        }
        assert!(parse_signal("NOPE").is_err());
        assert!(parse_signal("").is_err());
    }
}
