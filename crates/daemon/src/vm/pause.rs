//! Pause and resume: a VM whose vCPUs are halted by its user. The journal in `handles.json` says that they may be, before
//! they are, so that no daemon's death leaves a machine halted that nobody paused. Must never touch a machine without
//! its VM's lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_channel::{ChannelError, Session};
use banger_model::{Error, ErrorCode, Result, Vm, VmId, VmName, VmState};
use banger_protocol::agent::Request;

use super::clock;
use super::handles::Handles;
use super::live::Live;
use super::start::failed;
use super::{VmLock, Vms, not_running};
use crate::op::Op;

/// How long a guest may take to stand still or to go on.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a guest is asked to freeze, again and again. One that boots on a busy host may load modules for that long.
const FREEZE_CEILING: Duration = Duration::from_secs(60);
/// The least that a guest which could not be frozen gets to do what its processes waited for. It gets as long as the attempt
/// took: a slow guest is slow at both.
const FREEZE_PAUSE: Duration = Duration::from_millis(250);

/// The names of a pause's steps.
pub(super) fn pause_steps() -> Vec<String> {
    ["journal", "halt", "paused"].map(str::to_owned).to_vec()
}

/// The names of a resume's steps.
pub(super) fn resume_steps() -> Vec<String> {
    ["go_on", "clock", "resumed"].map(str::to_owned).to_vec()
}

/// The error of whatever needs a guest that runs.
#[must_use]
pub(super) fn paused(name: &VmName) -> Error {
    Error::new(ErrorCode::NotRunning, format!("VM '{name}' is paused"))
        .with_hint(format!("let it go on: 'banger vm resume {name}'"))
}

impl Vms {
    /// Halts a VM's vCPUs; memory and processes stay as they are.
    ///
    /// # Errors
    /// `not_running`; `unavailable` while it waits for disk space.
    pub(crate) async fn pause(self: &Arc<Self>, op: &Op, reference: &str) -> Result<Vm> {
        let (vm, live, _lock) = self.up(op, reference).await?;
        if live.is_paused() {
            op.notice(format!("VM '{}' is paused already", vm.name));
            return Ok(vm);
        }
        live.not_stalled()?;
        op.check()?;
        op.stage("pause", format!("pausing ({})", vm.name), None);
        match self.halt(op, &vm.id, &live).await {
            Ok(paused) => Ok(paused),
            Err(mut error) => {
                // It runs on as it did.
                if live.machine().exited().is_none()
                    && let Err(also) = self.unhalt(op, &vm.id, &live).await
                {
                    error.message = format!("{}; and it could not go on: {also}", error.message);
                }
                Err(error)
            }
        }
    }

    async fn halt(self: &Arc<Self>, op: &Op, id: &VmId, live: &Live) -> Result<Vm> {
        self.step(op, id, "journal", async { self.journal_halt(id, true) }).await?;
        self.step(op, id, "halt", self.stand_still(id, live)).await?;
        live.set_paused(true);
        let record = async { self.change(op, id, |vm| vm.state = VmState::Paused) };
        self.step(op, id, "paused", record).await?.ok_or_else(record_gone)
    }

    async fn unhalt(self: &Arc<Self>, op: &Op, id: &VmId, live: &Live) -> Result<()> {
        live.machine().resume().await?;
        live.set_paused(false);
        if let Err(error) = thaw(live).await {
            tracing::warn!(vm_id = %id, %error, "a guest that is not paused after all may stand still");
        }
        self.change(op, id, |vm| vm.state = VmState::Running)?;
        self.journal_halt(id, false)
    }

    /// The guest's processes first, so that a copy of it can be told who it is before they go on, then its vCPUs. One
    /// whose agent cannot do that is paused all the same.
    async fn stand_still(&self, id: &VmId, live: &Live) -> Result<()> {
        let frozen = freeze(live).await;
        if let Err(error) = &frozen {
            tracing::info!(vm_id = %id, %error, "a guest is paused in the midst of its work");
        }
        live.set_frozen(frozen.is_ok());
        self.journal(id, |handles| handles.frozen = frozen.is_ok())?;
        Ok(live.machine().pause().await?)
    }

    /// Lets a paused VM go on, with the time it is now.
    ///
    /// # Errors
    /// `not_running`.
    pub(crate) async fn resume(self: &Arc<Self>, op: &Op, reference: &str) -> Result<Vm> {
        let (vm, live, _lock) = self.up(op, reference).await?;
        if !live.is_paused() {
            op.notice(format!("VM '{}' is not paused", vm.name));
            return Ok(vm);
        }
        op.check()?;
        op.stage("resume", format!("resuming ({})", vm.name), None);
        match self.go_on(op, &vm, &live).await {
            Ok(vm) => Ok(vm),
            Err(mut error) => {
                // It stays as it was.
                if live.machine().exited().is_none()
                    && let Err(also) = self.halt_again(op, &vm.id, &live).await
                {
                    error.message = format!("{}; and it could not be halted again: {also}", error.message);
                }
                Err(error)
            }
        }
    }

    async fn go_on(self: &Arc<Self>, op: &Op, vm: &Vm, live: &Live) -> Result<Vm> {
        let id = &vm.id;
        self.step(op, id, "go_on", async { Ok(live.machine().resume().await?) }).await?;
        let clock = async {
            if let Err(error) = thaw(live).await {
                op.notice(format!("the clock of VM '{}' may be wrong: {error}", vm.name));
            }
            Ok(())
        };
        self.step(op, id, "clock", clock).await?;
        let record = async {
            let vm = self.change(op, id, |vm| vm.state = VmState::Running)?.ok_or_else(record_gone)?;
            self.journal_halt(id, false)?;
            Ok(vm)
        };
        let vm = self.step(op, id, "resumed", record).await?;
        live.set_paused(false);
        Ok(vm)
    }

    async fn halt_again(self: &Arc<Self>, op: &Op, id: &VmId, live: &Live) -> Result<()> {
        self.journal_halt(id, true)?;
        self.stand_still(id, live).await?;
        live.set_paused(true);
        self.change(op, id, |vm| vm.state = VmState::Paused)?;
        Ok(())
    }

    /// Lets a paused machine run for its own end: whoever stops it has recorded that.
    pub(super) async fn wake_to_stop(&self, live: &Live) {
        if !live.is_paused() {
            return;
        }
        let woken = async {
            live.machine().resume().await?;
            thaw(live).await
        };
        if let Err(error) = woken.await {
            tracing::warn!(vm = %live.machine().handle().name, %error, "a paused guest does not go on in good order");
        }
        live.set_paused(false);
    }

    /// Makes an adopted machine what its record says: halted when its user paused it, and else never, whatever a
    /// daemon that died was about to do with it.
    pub(super) async fn settle_halt(&self, vm: &Vm, handles: &Handles, live: &Arc<Live>) -> Result<()> {
        if vm.state == VmState::Paused {
            live.machine().pause().await?;
            live.set_paused(true);
            live.set_frozen(handles.frozen);
            return Ok(());
        }
        if !handles.halted {
            return Ok(());
        }
        tracing::info!(vm_id = %vm.id, vm = %vm.name, "a machine that a daemon's death left halted goes on");
        live.machine().resume().await?;
        let live = live.clone();
        // A guest that does not answer keeps no daemon from starting.
        tokio::spawn(async move {
            if let Err(error) = thaw(&live).await {
                tracing::warn!(vm = %live.machine().handle().name, %error, "the clock of a guest that goes on may be wrong");
            }
        });
        self.journal_halt(&vm.id, false)
    }

    /// Notes that the machine's vCPUs may stand still, or that they do not any more.
    pub(super) fn journal_halt(&self, id: &VmId, halted: bool) -> Result<()> {
        self.journal(id, |handles| handles.halted = halted)
    }

    fn journal(&self, id: &VmId, note: impl FnOnce(&mut Handles)) -> Result<()> {
        let dir = self.dirs.state.vm(id);
        let Some(mut handles) = Handles::load(&dir) else { return Ok(()) };
        note(&mut handles);
        handles.save(&dir).map_err(|e| failed("write handles.json in", &dir, &e))
    }

    /// A VM that is up, and its lock.
    pub(super) async fn up(&self, op: &Op, reference: &str) -> Result<(Vm, Arc<Live>, VmLock)> {
        let (vm, lock) = self.locked(op, reference).await?;
        match self.alive(&vm.id) {
            Some(live) => Ok((vm, live, lock)),
            None => Err(not_running(&vm)),
        }
    }
}

/// Freezes a guest's processes, all but its agent. A guest that cannot be frozen at this moment is asked again: a process
/// of it may wait for another one that is frozen already, as any that opens an automount point waits for systemd, and
/// goes on once all are thawed.
pub(super) async fn freeze(live: &Live) -> Result<()> {
    let began = Instant::now();
    loop {
        let asked = Instant::now();
        match freeze_once(live).await? {
            Err(error) if error.code == ErrorCode::GuestFailed && began.elapsed() < FREEZE_CEILING => {
                tracing::info!(vm = %live.machine().handle().name, %error, "the guest is asked to freeze again");
                tokio::time::sleep(asked.elapsed().max(FREEZE_PAUSE)).await;
            }
            Err(error) if error.code == ErrorCode::GuestFailed => {
                return Err(error.with_hint("wait until the guest's disk is idle, and try again"));
            }
            frozen => return frozen,
        }
    }
}

/// The inner result is the agent's own.
async fn freeze_once(live: &Live) -> Result<Result<()>> {
    within(live, async |agent| Ok(agent.call(&Request::Freeze).await.map(drop).map_err(Into::into))).await
}

/// Sets a guest's wall clock, then lets its processes go on if they stood still.
pub(super) async fn thaw(live: &Live) -> Result<()> {
    within(live, async |agent| {
        let asked = Instant::now();
        match agent.call(&Request::Thaw { unix_ns: clock::now() }).await {
            Ok(_) if asked.elapsed() <= clock::EXACT => Ok(()),
            // What was under way for long is late.
            Ok(_) | Err(ChannelError::TooOld { .. }) => clock::tell(&agent).await,
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// Sets a guest's wall clock to the host's.
pub(super) async fn set_clock(live: &Live) -> Result<()> {
    within(live, async |agent| clock::tell(&agent).await).await
}

/// A request to the agent of a machine that may just have been halted.
async fn within<T>(live: &Live, ask: impl AsyncFnOnce(Session) -> Result<T>) -> Result<T> {
    let asked = async { ask(live.agent_halted().await?).await };
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(answer) => answer,
        Err(_) => {
            let name = &live.machine().handle().name;
            let message = format!("the agent in VM '{name}' did not answer within {} s", LIMIT.as_secs());
            Err(Error::new(ErrorCode::GuestFailed, message))
        }
    }
}

fn record_gone() -> Error {
    Error::internal("the VM's record vanished")
}
