//! The VM service: what a VM is comes from the store, what is true right now from the OS.
//!
//! | file | part |
//! |---|---|
//! | `create` | a VM from nothing, all or nothing |
//! | `start` | the table of start steps, each with its undo |
//! | `capability` | optional abilities, plugged in by hooks |
//! | `change` | size and image of a VM that is off |
//! | `disk` | the files of a VM's own disks |
//! | `stop` | stop, kill and delete |
//! | `pause` | pause and resume |
//! | `capture` | the present moment of a VM, as files |
//! | `fork` | VMs that go on from there |
//! | `snapshots` | moments that are kept, and the way back |
//! | `clock` | what guests are told when the host has slept |
//! | `teardown` | the one teardown that all of them share |
//! | `live` | machines that run: agent session, and what happens when one ends |
//! | `reconcile` | what a new daemon makes of what an old one left |
//! | `space` | machines that wait for space on the host's disk |
//! | `warm` | templates: what new VMs go on from |
//! | `snapshot` | a directory that a VM can go on from |
//! | `handles` | what must be torn down although nobody remembers it |
//!
//! A VM's lock is held over a lifecycle operation, never over guest I/O.

pub(crate) mod capability;
mod capture;
mod change;
mod clock;
mod create;
mod disk;
mod fork;
mod handles;
mod host_network;
mod live;
mod pause;
mod reconcile;
mod snapshot;
mod snapshots;
mod space;
mod start;
mod stop;
mod teardown;
pub(crate) mod warm;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_model::{
    Accel, DriverChoice, DriverKind, Error, ErrorCode, LastError, NetworkMode, NetworkView, Result, Vm, VmId,
    VmState, VmView, resolve,
};
use banger_protocol::api::Check;
use banger_store::Store;
use banger_vmm::kvm::KvmStatus;
use banger_vmm::{Cage, Choice, Driver, choose};

use crate::artifacts::Artifacts;
use crate::config::{Config, Host};
use crate::op::Op;
use crate::operations::Operations;
use crate::startup::Dirs;

pub(crate) use live::Live;
pub(crate) use stop::STOP_TIMEOUT;
use warm::{Shelf, Spares};

/// How long a read waits for the record of a machine that has just ended.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks at such a record.
const AGAIN: Duration = Duration::from_millis(2);

/// The service.
#[derive(Debug)]
pub(crate) struct Vms {
    store: Arc<Store>,
    artifacts: Arc<Artifacts>,
    dirs: Dirs,
    config: Config,
    host: Host,
    drivers: Vec<Arc<dyn Driver>>,
    companions: PathBuf,
    cage: Cage,
    live: Mutex<HashMap<VmId, Arc<Live>>>,
    locks: Mutex<HashMap<VmId, Arc<tokio::sync::Mutex<()>>>>,
    operations: Arc<Operations>,
    shelf: Shelf,
    spares: Spares,
    /// Something could not be torn down whole.
    unclean: tokio::sync::Notify,
    shutdown: tokio_util::sync::CancellationToken,
}

/// Held while a VM's lifecycle is being changed.
pub(crate) type VmLock = tokio::sync::OwnedMutexGuard<()>;

/// What the service is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The records.
    pub(crate) store: Arc<Store>,
    /// What VMs boot from.
    pub(crate) artifacts: Arc<Artifacts>,
    /// Where VMs live.
    pub(crate) dirs: Dirs,
    /// Defaults and limits.
    pub(crate) config: Config,
    /// What this host has.
    pub(crate) host: Host,
    /// What can run VMs here.
    pub(crate) drivers: Vec<Arc<dyn Driver>>,
    /// Where the programs are that belong to this daemon.
    pub(crate) companions: PathBuf,
    /// What those that are VMs' run in.
    pub(crate) cage: Cage,
    /// What is being done.
    pub(crate) operations: Arc<Operations>,
    /// Cancelled when the daemon ends.
    pub(crate) shutdown: tokio_util::sync::CancellationToken,
}

impl Vms {
    /// The service. Nothing is touched until [`Vms::reconcile`].
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { store, artifacts, dirs, config, host, drivers, companions, cage, operations, shutdown } =
            parts;
        let (live, locks, unclean) = (Mutex::default(), Mutex::default(), tokio::sync::Notify::new());
        let shelf = Shelf::new(dirs.state.templates(), config.warm_budget.value);
        let spares = Spares::new(config.warm_spares.value);
        Self {
            store,
            artifacts,
            shelf,
            spares,
            dirs,
            config,
            host,
            drivers,
            companions,
            cage,
            live,
            locks,
            operations,
            unclean,
            shutdown,
        }
    }

    /// The record that a reference means.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) fn find(&self, reference: &str) -> Result<Vm> {
        let all = self.visible()?;
        resolve("VM", "banger ps -a", reference, &all, |vm| (vm.id.as_str(), vm.name.as_str())).cloned()
    }

    /// The records but for those of templates that are being made, and of spares.
    fn visible(&self) -> Result<Vec<Vm>> {
        let mut vms = self.store.vms()?;
        vms.retain(|vm| !vm.is_hidden());
        Ok(vms)
    }

    /// One VM as users see it.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) async fn show(&self, reference: &str) -> Result<VmView> {
        let vm = self.find(reference)?;
        self.settled(std::slice::from_ref(&vm)).await;
        Ok(self.view(self.find(vm.id.as_str())?))
    }

    /// All VMs, or those that are up.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn list(&self, all: bool) -> Result<Vec<VmView>> {
        let vms = self.visible()?;
        let vms = if self.settled(&vms).await { self.visible()? } else { vms };
        let views = vms.into_iter().map(|vm| self.view(vm));
        Ok(views
            .filter(|vm| all || !matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Error))
            .collect())
    }

    /// Gives machines that have just ended a moment to be written down as what they are; true when there was one.
    async fn settled(&self, vms: &[Vm]) -> bool {
        let up = |vm: &Vm| matches!(vm.state, VmState::Running | VmState::Paused);
        let alive = |id: &VmId| self.alive(id).is_some();
        let mut any = false;
        let wait = async {
            for vm in vms.iter().filter(|vm| up(vm) && !alive(&vm.id)) {
                any = true;
                while matches!(self.store.vm(&vm.id), Ok(Some(now)) if up(&now)) && !alive(&vm.id) {
                    // Whoever settles it has the lock, or is about to take it.
                    drop(self.lock_of(&vm.id).lock_owned().await);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        let _ = tokio::time::timeout(SETTLE, wait).await;
        any
    }

    /// The view of a record: its state is the record's, but "running" only while its VMM lives.
    #[must_use]
    pub(crate) fn view(&self, vm: Vm) -> VmView {
        let live = self.alive(&vm.id);
        let stalled = live.as_ref().and_then(|l| l.not_stalled().err());
        let state = match vm.state {
            VmState::Running | VmState::Paused if live.is_none() => VmState::Stopping,
            VmState::Running if stalled.is_some() => VmState::Paused,
            state => state,
        };
        let stalled = stalled.map(|e| LastError { code: e.code, message: e.message });
        let workspace = vm.whole_workspace().cloned();
        let workspace = workspace.map(|there| banger_model::Workspace { unfinished: None, ..there });
        let guest_ip = (vm.network == NetworkMode::User && live.is_some())
            .then(|| banger_network::GuestAddresses::of(&vm.id).ip.to_string());
        let security = live.as_ref().map(|l| l.machine().handle().security.clone());
        let network_security = live.as_ref().map(|l| l.network_security()).unwrap_or_default();
        VmView {
            security,
            pid: live.map(|l| l.machine().handle().process.pid),
            id: vm.id,
            name: vm.name,
            state,
            driver: vm.driver,
            accel: vm.accel,
            image: vm.image,
            kernel: vm.kernel,
            vcpu: vm.shape.vcpu,
            memory_mib: vm.shape.memory.0,
            disk_bytes: vm.shape.disk.0,
            work_disk_bytes: vm.work_disk.map(|size| size.0),
            network: NetworkView {
                mode: vm.network,
                guest_ip,
                nat: false,
                host_access: vm.host_access,
                security: network_security,
            },
            workspace,
            created_at: vm.created_at,
            started_at: vm.started_at,
            boot: vm.boot,
            last_error: stalled.or(vm.last_error),
            parent: vm.parent,
        }
    }

    /// The running machine that a reference means.
    ///
    /// # Errors
    /// `not_running` with what to type, also when it is paused.
    pub(crate) fn running(&self, reference: &str) -> Result<(Vm, Arc<Live>)> {
        let vm = self.find(reference)?;
        match self.alive(&vm.id) {
            Some(live) if live.is_paused() => Err(pause::paused(&vm.name)),
            Some(live) => Ok((vm, live)),
            None => Err(not_running(&vm)),
        }
    }

    /// Changes a VM's record; whoever watches is told when its state is another one.
    pub(super) fn change(&self, op: &Op, id: &VmId, change: impl FnOnce(&mut Vm)) -> Result<Option<Vm>> {
        let mut before = None;
        let changed = self.store.modify_vm(id, |vm| {
            before = Some(vm.state);
            change(vm);
        })?;
        if let Some(vm) = changed.as_ref().filter(|vm| Some(vm.state) != before) {
            op.changed(vm);
        }
        Ok(changed)
    }

    /// Waits for the lock over a VM's lifecycle.
    ///
    /// # Errors
    /// `cancelled`.
    pub(crate) async fn lock(&self, op: &Op, id: &VmId) -> Result<VmLock> {
        let lock = self.lock_of(id);
        op.or_cancelled(async { Ok::<_, Error>(lock.lock_owned().await) }).await
    }

    /// The VM that a reference means, as it is once nobody else changes it.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`, `cancelled`.
    async fn locked(&self, op: &Op, reference: &str) -> Result<(Vm, VmLock)> {
        let id = self.find(reference)?.id;
        let lock = self.lock(op, &id).await?;
        let vm = self.find(id.as_str())?;
        op.about(&vm.name);
        Ok((vm, lock))
    }

    fn lock_of(&self, id: &VmId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(id.clone()).or_default().clone()
    }

    fn live(&self, id: &VmId) -> Option<Arc<Live>> {
        self.live_map().get(id).cloned()
    }

    /// A VM's machine, unless its VMM has ended.
    fn alive(&self, id: &VmId) -> Option<Arc<Live>> {
        self.live(id).filter(|live| live.machine().exited().is_none())
    }

    fn live_map(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self, kind: DriverKind) -> Result<Arc<dyn Driver>> {
        self.drivers.iter().find(|d| d.kind() == kind).cloned().ok_or_else(|| {
            Error::new(ErrorCode::Unsupported, format!("the driver '{kind}' is not available"))
                .with_hint("'banger doctor' shows which drivers there are")
        })
    }

    /// Whether KVM works: asked by running code once per boot of the host, then remembered.
    pub(crate) async fn kvm(&self) -> KvmStatus {
        let cache = self.dirs.state.path().join("kvm.json");
        match tokio::task::spawn_blocking(move || banger_vmm::kvm::probe_cached(&cache)).await {
            Ok(status) => status,
            Err(_) => banger_vmm::kvm::probe(),
        }
    }

    /// Chooses what runs a VM: by what was asked for, what works here, and what the VM wants.
    ///
    /// # Errors
    /// When what was asked for does not work here.
    pub(crate) async fn choose(
        &self,
        driver: DriverChoice,
        accel: Option<Accel>,
        network: NetworkMode,
    ) -> Result<Choice> {
        let kvm = self.kvm().await;
        let mut able = Vec::new();
        for driver in &self.drivers {
            // Asked only where its answer matters: that runs a program.
            let asked = driver.kind() == DriverKind::Qemu
                || (matches!(kvm, KvmStatus::Works)
                    && driver
                        .capabilities()
                        .await
                        .is_ok_and(|can| can.network || network == NetworkMode::None));
            able.extend(asked.then(|| driver.kind()));
        }
        let choice = choose(driver, accel, &able, &kvm)?;
        // Before anything is fetched for it or changed.
        if choice.driver != DriverKind::Qemu {
            self.driver(choice.driver)?.capabilities().await?;
        }
        Ok(choice)
    }

    /// Whether a machine's vCPUs are emulated, and only one of them at a time.
    async fn vcpus_take_turns(&self, driver: DriverKind, accel: Accel) -> Result<bool> {
        Ok(accel == Accel::Tcg && self.driver(driver)?.capabilities().await?.vcpus_take_turns)
    }

    /// Why a guest of this VM may not get far, when its KVM is an emulation.
    pub(crate) async fn emulated(&self, vm: &Vm) -> Option<String> {
        match (vm.accel, self.kvm().await) {
            (Some(Accel::Kvm), KvmStatus::Emulated { detail }) => {
                Some(format!("KVM is emulated here ({detail}), and stock kernels do not survive that"))
            }
            _ => None,
        }
    }

    /// What VMs' programs run in, for `doctor`.
    pub(crate) fn cage(&self) -> Cage {
        self.cage.clone()
    }

    /// Starts and ends a VM's network, for `doctor`.
    pub(crate) async fn try_network(self: &Arc<Self>) -> Check {
        capability::try_network(self).await
    }

    /// Where the programs are that belong to this daemon, for `doctor`.
    pub(crate) fn companions(&self) -> &Path {
        &self.companions
    }

    /// What this host has, for `doctor`.
    pub(crate) fn host(&self) -> Host {
        self.host
    }

    /// The drivers, for `doctor`.
    pub(crate) fn drivers(&self) -> &[Arc<dyn Driver>] {
        &self.drivers
    }
}

/// The steps of the operations on VMs.
#[must_use]
pub(crate) fn steps() -> Vec<(&'static str, Vec<String>)> {
    let restart = stop::steps().into_iter().chain(start::step_names()).collect();
    vec![
        ("create", create::steps()),
        ("start", start::step_names()),
        ("stop", stop::steps()),
        ("restart", restart),
        ("kill", stop::kill_steps()),
        ("pause", pause::pause_steps()),
        ("resume", pause::resume_steps()),
        ("delete", stop::delete_steps()),
        ("fork", fork::steps()),
        ("snapshot_create", snapshots::create_steps()),
        ("snapshot_restore", snapshots::restore_steps()),
        ("snapshot_delete", snapshots::delete_steps()),
        ("set", change::set_steps()),
        ("rebuild", change::rebuild_steps()),
        ("template", warm::steps()),
        ("template_save", warm::save_steps()),
        ("spare", warm::spare_steps()),
    ]
}

/// The error of a command that needs a running VM.
#[must_use]
pub(crate) fn not_running(vm: &Vm) -> Error {
    Error::new(ErrorCode::NotRunning, format!("VM '{}' is not running", vm.name))
        .with_hint(format!("start it: 'banger vm start {}'", vm.name))
}
