//! The machines and their fates: what is true whatever daemon looks.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_model::VmId;
use banger_protocol::ProtocolVersion;
use banger_protocol::agent::VERSION;
use banger_vmm::process::ProcessId;
use banger_vmm::{ExitInfo, ExitReason, MachineHandle, Signal};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What becomes of a machine that is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// Its agent answers; it powers off when asked to.
    #[default]
    Works,
    /// The VMM cannot be started.
    LaunchFails,
    /// The VMM dies before the agent answers.
    DiesInBoot,
    /// The agent never answers.
    Mute,
    /// The agent answers, and takes no notice of a power-off.
    IgnoresPowerOff,
    /// It runs, and cannot be snapshotted.
    SnapshotFails,
    /// It cannot go on from a snapshot; it boots.
    RestoreFails,
}

/// All machines of one test.
#[derive(Debug, Clone)]
pub struct World {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// The agents and the watching of processes: no daemon's end may end them.
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct State {
    fates: HashMap<String, Fate>,
    machines: BTreeMap<VmId, Arc<Vmm>>,
    wrong: Vec<String>,
}

/// One machine, from its launch on.
#[derive(Debug)]
pub(super) struct Vmm {
    pub(super) handle: MachineHandle,
    pub(super) disk: PathBuf,
    reason: Mutex<ExitReason>,
    /// The protocol that its agent says it speaks, and the requests it says it knows.
    pub(super) agent: Mutex<(ProtocolVersion, Vec<String>)>,
    pub(super) exit: watch::Receiver<Option<ExitInfo>>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// One without machines.
    #[must_use]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Some(runtime.expect("a runtime"));
        Self { inner: Arc::new(Inner { state: Mutex::default(), runtime }) }
    }

    /// What becomes of this VM's launches from now on.
    pub fn fate(&self, name: &str, fate: Fate) {
        self.state().fates.insert(name.to_owned(), fate);
    }

    pub(super) fn fate_of(&self, name: &str) -> Fate {
        self.state().fates.get(name).copied().unwrap_or_default()
    }

    /// Whether a machine of this VM runs, as the operating system sees it.
    #[must_use]
    pub fn runs(&self, id: &VmId) -> bool {
        self.current(id).is_some_and(|m| m.handle.process.is_alive())
    }

    /// The VMs of which a machine runs.
    #[must_use]
    pub fn running(&self) -> Vec<VmId> {
        let state = self.state();
        let alive = state.machines.iter().filter(|(_, m)| m.handle.process.is_alive());
        alive.map(|(id, _)| id.clone()).collect()
    }

    /// The process of this VM's machine, if one runs.
    #[must_use]
    pub fn process(&self, id: &VmId) -> Option<ProcessId> {
        self.current(id).map(|m| m.handle.process.clone()).filter(ProcessId::is_alive)
    }

    /// Whether this VM's machine stands still, as the operating system sees it.
    #[must_use]
    pub fn halted(&self, id: &VmId) -> bool {
        self.current(id).is_some_and(|machine| machine.halted())
    }

    /// Ends a VM's machine from the guest's side or behind everybody's back; false when none runs.
    /// Returns when the process is gone, whether or not anybody has noticed.
    pub fn end(&self, id: &VmId, reason: ExitReason) -> bool {
        let Some(machine) = self.current(id) else { return false };
        machine.end(reason)
    }

    /// Makes the agent of a running machine one of another version, which knows these requests. Whoever asks it next
    /// learns of that; as long as a daemon keeps its session, it does not.
    pub fn agent(&self, id: &VmId, version: ProtocolVersion, knows: &[&str]) {
        let machine = self.current(id).expect("a machine");
        let knows = knows.iter().map(|name| (*name).to_owned()).collect();
        *machine.agent.lock().unwrap_or_else(PoisonError::into_inner) = (version, knows);
    }

    /// What must never happen and did: two machines on one disk, a launch without its files.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    pub(super) fn never(&self, what: String) {
        self.state().wrong.push(what);
    }

    /// Takes a machine in and watches over its process.
    pub(super) fn add(&self, handle: MachineHandle, disk: PathBuf) -> Arc<Vmm> {
        let (tell, exit) = watch::channel(None);
        let knows = ["hello", "exec", "sync", "shutdown", "configure_network", "freeze", "thaw", "set_time"]
            .map(str::to_owned)
            .to_vec();
        let agent = Mutex::new((VERSION, knows));
        let machine = Arc::new(Vmm { handle, disk, reason: Mutex::new(ExitReason::Unknown), agent, exit });
        let mut state = self.state();
        let others =
            state.machines.values().filter(|m| m.handle.process.is_alive() && m.disk == machine.disk);
        let twice = others.map(|m| m.handle.process.pid).next();
        if let Some(pid) = twice {
            let disk = machine.disk.display();
            let what = format!("{disk} is written to by {pid} and {}", machine.handle.process.pid);
            state.wrong.push(what);
        }
        state.machines.insert(machine.handle.vm.clone(), machine.clone());
        drop(state);
        let watched = machine.clone();
        self.spawn(async move {
            let waited = watched.handle.process.wait().await.ok().flatten();
            let reason = *watched.reason.lock().unwrap_or_else(PoisonError::into_inner);
            let (code, signal) = waited.map_or((None, None), |e| (e.code, e.signal));
            tell.send_replace(Some(ExitInfo { reason, code, signal }));
        });
        machine
    }

    pub(super) fn current(&self, id: &VmId) -> Option<Arc<Vmm>> {
        self.state().machines.get(id).cloned()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.inner.runtime {
            runtime.spawn(task);
        }
    }

    pub(super) fn enter(&self) -> Option<tokio::runtime::EnterGuard<'_>> {
        self.inner.runtime.as_ref().map(Runtime::enter)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vmm {
    pub(super) fn halted(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.handle.process.pid));
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    }

    /// Ends it for this reason; false when it has ended already.
    pub(super) fn end(&self, reason: ExitReason) -> bool {
        let mut said = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if self.handle.process.is_alive() {
            *said = reason;
        }
        drop(said);
        let killed = self.handle.process.signal(Signal::KILL).unwrap_or(false);
        if killed {
            crate::wait::must("a killed process ends", std::time::Duration::from_secs(10), || {
                !self.handle.process.is_alive()
            });
        }
        killed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for machine in state.machines.values() {
            machine.end(ExitReason::Unknown);
        }
        // The last of us may be dropped in a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
