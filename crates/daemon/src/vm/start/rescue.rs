//! A rescue: kernel and agent on the disks of a VM that does not run, for getting its work out. The image's init is
//! not started and there is no network. Owns the machine from its launch to its end; the VM's record, its logs and
//! its state are afterwards as they were before.

use std::sync::Arc;
use std::time::Duration;

use banger_channel::Session;
use banger_model::{Error, ErrorCode, Result, Vm, VmId};
use banger_protocol::agent::{Request, ShutdownMode};
use futures_util::future::BoxFuture;
use tracing::Instrument;

use super::super::capability;
use super::super::disk;
use super::super::live::Live;
use super::super::teardown::remove_tree;
use super::{Origin, Purpose, Start, Step, Vms, Work};
use crate::op::Op;

/// Where its logs go, below the VM's directory.
pub(super) const DIR: &str = "rescue";
/// How long the agent has to flush the disks and power off.
const POWER_OFF: Duration = Duration::from_secs(5);

/// Whether a step of a start is one of a rescue, too: those that record what the VM is, and that make what only a
/// running VM needs, are not.
pub(super) fn has(step: &Step) -> bool {
    match step.work {
        Work::PrepareHost(index) | Work::ConfigureGuest(index) => {
            capability::ALL.get(index).is_some_and(|c| c.in_rescue)
        }
        Work::Own { .. } => {
            !matches!(step.name.name, "starting" | "system_disk" | "workspace_readonly" | "running")
        }
    }
}

impl Vms {
    /// Does some work with the agent of a VM: of the machine that runs, or else of a rescue.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`; what the work says; `guest_failed` when the agent of a machine that runs does not
    /// answer; what [`Self::in_rescue`] says.
    pub(crate) async fn in_guest<T: Send + 'static>(
        self: &Arc<Self>,
        op: &Op,
        reference: &str,
        work: impl FnOnce(Vm, Session) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let vm = self.find(reference)?;
        op.about(&vm.name);
        match self.alive(&vm.id) {
            Some(live) => on_live(op, vm, &live, work).await,
            None => self.in_rescue(op, &vm.id, work).await,
        }
    }

    /// Boots a VM that is off just as far as its agent, does some work there, and ends it. The VM's lock is held
    /// meanwhile. Nothing is left also when the caller goes away.
    ///
    /// # Errors
    /// What the work says; `boot_failed` with the console's tail; `not_running` when it has no disk yet.
    async fn in_rescue<T: Send + 'static>(
        self: &Arc<Self>,
        op: &Op,
        id: &VmId,
        work: impl FnOnce(Vm, Session) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (vms, op, id) = (self.clone(), op.clone(), id.clone());
        // On a task of its own: whoever waits for this may be dropped, and the machine is to be ended all the same.
        let task = async move {
            let lock = vms.lock(&op, &id).await?;
            let vm = vms.find(id.as_str())?;
            if let Some(live) = vms.alive(&id) {
                // A start was under way.
                drop(lock);
                return on_live(&op, vm, &live, work).await;
            }
            let done = vms.rescue(&op, vm, work).await;
            drop(lock);
            done
        };
        match tokio::spawn(task.in_current_span()).await {
            Ok(done) => done,
            Err(broken) => Err(Error::internal(format!("the rescue ended: {broken}"))),
        }
    }

    async fn rescue<T>(
        self: &Arc<Self>,
        op: &Op,
        vm: Vm,
        work: impl FnOnce(Vm, Session) -> BoxFuture<'static, Result<T>>,
    ) -> Result<T> {
        let dir = self.dirs.state.vm(&vm.id);
        if !disk::system(&dir, &vm).exists() {
            return Err(Error::new(ErrorCode::NotRunning, format!("VM '{}' has never run", vm.name))
                .with_hint(format!("start it: 'banger vm start {}'", vm.name)));
        }
        op.about(&vm.name);
        op.stage("rescue", format!("booting the agent alone on the disks of VM '{}'", vm.name), None);
        tracing::info!(vm = %vm.name, "rescue: booting the agent alone");
        self.tear_down(op, &vm.id).await?;
        let mut start = Start::new(op, vm.clone(), Origin::Boot, Purpose::Rescue);
        self.run_steps(&mut start).await?;
        let done = match (start.machine.take(), start.agent.take()) {
            (Some(machine), Some((agent, _))) => {
                let work = op.or_cancelled(work(vm.clone(), agent.clone()));
                let done = tokio::select! {
                    done = work => done,
                    exit = machine.wait() => Err(self.ended_in_boot(&start, &exit).await),
                };
                let off = async {
                    // Files may not have been flushed when the VM ended; the journal was replayed now.
                    let _ = agent.call(&Request::Sync).await;
                    let _ = agent.call(&Request::Shutdown { mode: ShutdownMode::PowerOff }).await;
                    machine.wait().await;
                };
                if tokio::time::timeout(POWER_OFF, off).await.is_err() {
                    tracing::warn!(vm = %vm.name, "the agent of a rescue did not power off");
                }
                done
            }
            _ => Err(Error::internal("a rescue without a machine")),
        };
        let ended = self.tear_down(op, &vm.id).await;
        remove_tree(&dir.join(DIR))?;
        let done = done?;
        ended.map(|()| done)
    }
}

/// Work with the agent of a machine that runs.
async fn on_live<T>(
    op: &Op,
    vm: Vm,
    live: &Live,
    work: impl FnOnce(Vm, Session) -> BoxFuture<'static, Result<T>>,
) -> Result<T> {
    let name = vm.name.clone();
    let agent = op.or_cancelled(live.agent_for(op)).await.map_err(|e| match e.code {
        ErrorCode::GuestFailed => e.with_hint(format!(
            "'banger vm kill {name}', then try again: this works on a VM that is off, too"
        )),
        _ => e,
    })?;
    op.or_cancelled(work(vm, agent)).await
}
