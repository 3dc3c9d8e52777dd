//! Optional abilities of a VM, plugged into its life by hooks. Start, teardown and doctor run the hooks in the order of
//! [`ALL`] and know no ability by name. An ability must never keep anything between two starts but in the VM's record,
//! its directory or `handles.json`.

mod network;
mod work_disk;

use std::sync::Arc;

use banger_channel::Session;
use banger_model::{Error, Result, Vm};
use banger_protocol::agent::Identity;
use banger_protocol::api::Check;
use banger_vmm::MachineSpec;
use futures_util::future::BoxFuture;

use super::Vms;
use super::handles::Handles;
use super::snapshot::Snapshot;
use super::start::Purpose;

pub(super) use network::try_out as try_network;
pub(super) use work_disk::has_homes;

/// All of them. Hooks run in this order, undos in the reverse one.
pub(crate) const ALL: &[Capability] = &[work_disk::CAPABILITY, network::CAPABILITY];

/// One ability: the names of its start steps, and how to get its hooks for one start.
#[derive(Debug)]
pub(crate) struct Capability {
    /// The step that runs [`Hooks::prepare_host`].
    pub(super) host_step: StepName,
    /// The step that runs [`Hooks::configure_guest`], if it has any use for that.
    pub(super) guest_step: Option<StepName>,
    /// Its hooks for one start.
    pub(super) plug: fn() -> Box<dyn Hooks>,
    /// Whether a rescue needs it: a disk, for there may be a workspace on it, but no network.
    pub(super) in_rescue: bool,
    /// Releases what it holds on the host by `handles.json`. Part of every teardown, whatever failed before it.
    pub(super) cleanup: Option<Cleanup>,
    /// Refuses a change that cannot be.
    pub(super) check_change: Option<CheckChange>,
    /// Carries a change out that is in the record already, on a VM that is off. Runs again at the next start if a
    /// crash kept it from being whole.
    pub(super) apply_change: Option<ApplyChange>,
    /// Whether it would work on this host.
    pub(crate) doctor: Option<fn() -> BoxFuture<'static, Check>>,
}

/// See [`Capability::cleanup`].
pub(super) type Cleanup = for<'a> fn(&'a Handles) -> BoxFuture<'a, Result<()>>;

/// See [`Capability::check_change`].
pub(super) type CheckChange = fn(from: &Vm, to: &Vm) -> Result<()>;

/// See [`Capability::apply_change`].
pub(super) type ApplyChange = for<'a> fn(&'a Vms, &'a Vm) -> BoxFuture<'a, Result<()>>;

/// How a step is called by machines and by people.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepName {
    /// A stable word.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) message: &'static str,
}

/// What a hook may use.
pub(super) struct Context<'a> {
    /// The service.
    pub(super) vms: &'a Arc<Vms>,
    /// The VM that is being started.
    pub(super) vm: &'a Vm,
    /// What will have to be torn down; the caller writes it to disk after the hook.
    pub(super) handles: &'a mut Handles,
    /// Whose disks it begins with, if not with empty ones.
    pub(super) disks: Option<&'a Snapshot>,
    /// What it is started for.
    pub(super) purpose: Purpose,
}

/// One ability during one start. A hook that has nothing to do for this VM does nothing.
pub(super) trait Hooks: Send + Sync {
    /// Refuses what cannot work, before anything is made.
    fn preflight<'a>(&'a mut self, _cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes what it needs on the host. Runs again after a teardown when a boot is tried once more.
    fn prepare_host<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>>;

    /// Starts what the machine need not wait for, while that is launched. The caller writes the handles afterwards.
    fn beside_launch<'a>(&'a mut self, _cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Removes what [`Hooks::prepare_host`] made and no teardown knows of. The machine is gone by then.
    fn undo_prepare_host<'a>(&'a mut self, _cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Adds its devices to the machine.
    fn contribute_to_machine(&mut self, vm: &Vm, spec: &mut MachineSpec) -> Result<(), Error>;

    /// Adds what a guest that goes on from a snapshot has to be told before it does.
    fn identify(&self, _identity: &mut Identity) {}

    /// Tells the guest, once its agent has answered.
    fn configure_guest<'a>(&'a mut self, _agent: &'a Session) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
