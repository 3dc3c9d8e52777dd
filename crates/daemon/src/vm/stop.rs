//! Stop, kill, delete, and the teardown that they, a failed start and reconcile share.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, ErrorCode, Result, Unfinished, Vm, VmId, VmState};
use banger_protocol::agent::{Request, ShutdownMode};
use banger_vmm::Signal;
use banger_vmm::process::{ProcessId, find_marked};

use super::capability;
use super::handles::Handles;
use super::live::Live;
use super::start::failed;
use super::{VmLock, Vms, not_running};
use crate::op::Op;

/// How long a guest has to power off when nobody says.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a guest that does not power off has to flush its file systems.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// How long a process has to be gone after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Vms {
    /// Powers the guest off in good order; when it does not obey in time, its file systems are
    /// flushed and the machine is ended.
    ///
    /// # Errors
    /// `not_running`, `cancelled`; a teardown that was not clean.
    pub(crate) async fn stop(self: &Arc<Self>, op: &Op, reference: &str, timeout: Duration) -> Result<Vm> {
        let id = self.find(reference)?.id;
        let lock = self.lock(op, &id).await?;
        self.stop_locked(op, &id, timeout, &lock).await
    }

    async fn stop_locked(
        self: &Arc<Self>,
        op: &Op,
        id: &VmId,
        timeout: Duration,
        _lock: &VmLock,
    ) -> Result<Vm> {
        let vm = self.find(id.as_str())?;
        let Some(live) = self.live(id).filter(|l| l.machine().exited().is_none()) else {
            return if matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Error) {
                Err(not_running(&vm))
            } else {
                self.settle(id, VmState::Stopped).await
            };
        };
        op.check()?;
        live.not_stalled()?;
        self.store.modify_vm(id, |vm| vm.state = VmState::Stopping)?;
        op.stage("power_off", format!("powering off ({})", vm.name), None);
        if !powered_off(&live, timeout).await {
            op.notice(format!(
                "VM '{}' did not power off within {} s: flushed and ended",
                vm.name,
                timeout.as_secs()
            ));
            flush(&live).await;
            if let Err(error) = live.machine().stop().await {
                tracing::warn!(vm = %vm.name, %error, "the machine monitor did not quit; killing it");
            }
        }
        op.stage("tear_down", format!("tearing down ({})", vm.name), None);
        self.settle(id, VmState::Stopped).await
    }

    /// Stops and starts.
    ///
    /// # Errors
    /// As of both.
    pub(crate) async fn restart(self: &Arc<Self>, op: &Op, reference: &str, timeout: Duration) -> Result<Vm> {
        let id = self.find(reference)?.id;
        let lock = self.lock(op, &id).await?;
        let vm = self.stop_locked(op, &id, timeout, &lock).await?;
        self.start_locked(op, vm, &lock).await
    }

    /// Sends the VMM a signal and, when that is one that ends it, waits for the end.
    ///
    /// # Errors
    /// `not_running`, `invalid_argument` for a signal nobody knows.
    pub(crate) async fn kill(self: &Arc<Self>, op: &Op, reference: &str, signal: Option<&str>) -> Result<Vm> {
        let signal = parse_signal(signal.unwrap_or("KILL"))?;
        let id = self.find(reference)?.id;
        let _lock = self.lock(op, &id).await?;
        let vm = self.find(id.as_str())?;
        let Some(live) = self.live(&id).filter(|l| l.machine().exited().is_none()) else {
            return Err(not_running(&vm));
        };
        live.machine().kill(signal).await?;
        let limit = if signal == Signal::KILL { KILL_LIMIT } else { Duration::from_secs(3) };
        match tokio::time::timeout(limit, live.machine().wait()).await {
            Ok(_) => self.settle(&id, VmState::Stopped).await,
            Err(_) if signal == Signal::KILL => Err(survived(&vm.name.to_string())),
            Err(_) => {
                op.notice(format!("VM '{}' survived the signal and runs on", vm.name));
                Ok(vm)
            }
        }
    }

    /// Deletes a VM and everything it owns.
    ///
    /// # Errors
    /// `busy` when it runs and `force` is not given.
    pub(crate) async fn delete(self: &Arc<Self>, op: &Op, reference: &str, force: bool) -> Result<Vm> {
        let id = self.find(reference)?.id;
        let lock = self.lock(op, &id).await?;
        let vm = self.find(id.as_str())?;
        if !force && self.live(&id).is_some_and(|l| l.machine().exited().is_none()) {
            return Err(Error::new(ErrorCode::Busy, format!("VM '{}' is running", vm.name))
                .with_hint(format!("stop it first, or 'banger vm delete -f {}'", vm.name)));
        }
        op.stage("delete", format!("deleting ({})", vm.name), None);
        self.delete_locked(&id, lock).await?;
        Ok(vm)
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
        let deleting = Op::new(None);
        match self.delete(&deleting, id.as_str(), true).await {
            Ok(_) => tracing::info!(vm_id = %id, "deleted with its connection"),
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => tracing::warn!(vm_id = %id, %error, "a VM outlives its connection"),
        }
    }

    /// From here on there is no way back: it is not cancelled half-way.
    pub(super) async fn delete_locked(self: &Arc<Self>, id: &VmId, lock: VmLock) -> Result<()> {
        self.store.modify_vm(id, |vm| vm.unfinished = Some(Unfinished::Deleting))?;
        self.tear_down(id).await?;
        let dir = self.dirs.state.vm(id);
        let doomed = self.dirs.state.scratch().join(format!("deleted-{id}"));
        match std::fs::rename(&dir, &doomed) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("delete", &dir, &e)),
            _ => {}
        }
        if let Err(full) = self.store.delete_vm(id) {
            // A full disk cannot even forget; what is deleted makes room for that.
            tracing::warn!(vm_id = %id, error = %full, "deleting the files before the record");
            remove_tree(&doomed)?;
            self.store.delete_vm(id)?;
        }
        remove_tree(&doomed)?;
        self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
        self.artifacts.collect();
        drop(lock);
        Ok(())
    }

    /// Tears down and records the state it is in afterwards.
    pub(super) async fn settle(self: &Arc<Self>, id: &VmId, state: VmState) -> Result<Vm> {
        let torn = self.tear_down(id).await;
        let vm = self.store.modify_vm(id, |vm| vm.state = state)?;
        torn?;
        vm.ok_or_else(|| Error::internal("the VM's record vanished"))
    }

    /// Releases everything a VM holds on the host. Every step runs whatever the one before it
    /// did; what fails is joined into one error. Safe to repeat.
    pub(super) async fn tear_down(&self, id: &VmId) -> Result<()> {
        let dir = self.dirs.state.vm(id);
        let handles = Handles::load(&dir);
        let mut processes: Vec<ProcessId> = Vec::new();
        if let Some(live) = self.live_map().remove(id) {
            processes.push(live.machine().handle().process.clone());
        }
        if let Some(handles) = &handles {
            processes.extend(handles.machine.iter().map(|m| m.process.clone()));
            // A process that was started and not yet written down carries the VM's mark.
            processes.extend(find_marked(id).unwrap_or_default());
        }
        let mut errors: Vec<String> = Vec::new();
        if let Err(error) = end_all(&processes).await {
            errors.push(error.to_string());
        }
        if let Some(handles) = &handles {
            for cleanup in capability::ALL.iter().rev().filter_map(|c| c.cleanup) {
                if let Err(error) = cleanup(handles).await {
                    errors.push(error.to_string());
                }
            }
        }
        if let Err(error) = remove_tree(&self.dirs.runtime.vm(id)) {
            errors.push(error.to_string());
        }
        // The handles go last, and only when nothing they name is left.
        if errors.is_empty()
            && let Err(error) = Handles::clear(&dir)
        {
            errors.push(error.to_string());
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
    }
}

/// Asks the guest to power off and waits.
async fn powered_off(live: &Live, timeout: Duration) -> bool {
    let asked = async {
        let agent = live.agent().await?;
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
async fn flush(live: &Live) {
    let synced = async {
        let agent = live.agent().await?;
        Ok::<_, Error>(agent.call(&Request::Sync).await?)
    };
    match tokio::time::timeout(SYNC_LIMIT, synced).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the guest could not flush its file systems"),
        Err(_) => tracing::warn!("the guest did not flush its file systems in time"),
    }
}

/// Ends each of them, also when one before it could not be ended.
pub(super) async fn end_all(processes: &[ProcessId]) -> Result<()> {
    let mut errors: Vec<String> = Vec::new();
    for process in processes {
        if let Err(error) = end_process(process).await {
            errors.push(error.to_string());
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
}

/// SIGKILL, and wait until it is gone: nothing it held may be used again before.
async fn end_process(process: &ProcessId) -> Result<()> {
    process.signal(Signal::KILL)?;
    match tokio::time::timeout(KILL_LIMIT, process.wait()).await {
        Ok(waited) => waited.map(drop).map_err(Into::into),
        Err(_) => Err(survived(&format!("process {}", process.pid))),
    }
}

fn survived(what: &str) -> Error {
    Error::internal(format!("{what} is still there {} s after it was killed", KILL_LIMIT.as_secs()))
}

pub(super) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
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
