//! The one teardown, which stop, kill, delete, a failed start and reconcile share: each of its steps runs whatever the
//! one before it did, and what fails is joined into one error. Safe to repeat. Must never signal a process that is
//! not this very VM's.

use std::path::Path;
use std::time::Duration;

use banger_model::{Error, Result, VmId};
use banger_vmm::Signal;
use banger_vmm::cage::group;
use banger_vmm::process::{ProcessId, find_marked};

use super::Vms;
use super::capability;
use super::handles::Handles;
use super::start::{RESTORED, failed};
use crate::artifacts::blocking;
use crate::op::Op;

/// How long a process has to be gone after SIGKILL.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The names of its steps: the processes, what each capability holds (the latest first), the sockets, and the file
/// that says what there was.
pub(super) fn steps() -> Vec<String> {
    let released = capabilities().map(|(name, _)| name);
    ["processes".to_owned()]
        .into_iter()
        .chain(released)
        .chain(["sockets", "handles"].map(str::to_owned))
        .collect()
}

fn capabilities() -> impl Iterator<Item = (String, capability::Cleanup)> {
    let with_cleanup = capability::ALL.iter().rev().filter_map(|c| Some((c, c.cleanup?)));
    with_cleanup.map(|(c, cleanup)| (format!("release_{}", c.host_step.name), cleanup))
}

impl Vms {
    /// Releases everything a VM holds on the host.
    pub(super) async fn tear_down(&self, op: &Op, id: &VmId) -> Result<()> {
        let dir = self.dirs.state.vm(id);
        let handles = Handles::load(&dir);
        let mut errors: Vec<String> = Vec::new();
        let mut note = |result: Result<()>| errors.extend(result.err().map(|e| e.to_string()));
        note(self.step(op, id, "processes", end_all(&self.processes(id, handles.as_ref()))).await);
        for (name, cleanup) in capabilities() {
            let release = async {
                match &handles {
                    Some(handles) => cleanup(handles).await,
                    None => Ok(()),
                }
            };
            note(self.step(op, id, &name, release).await);
        }
        // And the memory that a restored machine had mapped, and the group that all processes were in.
        let sockets = async {
            let group = handles.as_ref().and_then(|handles| handles.group.clone());
            let group = match group {
                Some(group) => blocking(move || Ok(group::remove(&group)?)).await,
                None => Ok(()),
            };
            let (sockets, memory) =
                (remove_tree(&self.dirs.runtime.vm(id)), remove_tree(&dir.join(RESTORED)));
            sockets.and(memory).and(group)
        };
        note(self.step(op, id, "sockets", sockets).await);
        // The handles go last, and only when nothing they name is left.
        let whole = errors.is_empty();
        let forget = async {
            if whole {
                Handles::clear(&dir).map_err(|e| failed("clear handles.json in", &dir, &e))
            } else {
                Ok(())
            }
        };
        let forgotten = self.step(op, id, "handles", forget).await;
        errors.extend(forgotten.err().map(|e| e.to_string()));
        if errors.is_empty() {
            return Ok(());
        }
        self.unclean.notify_one();
        Err(Error::internal(errors.join("; ")))
    }

    /// Everything that may still run for a VM. Takes it out of the list of those that live.
    fn processes(&self, id: &VmId, handles: Option<&Handles>) -> Vec<ProcessId> {
        let live = self.live_map().remove(id);
        let mut processes: Vec<ProcessId> =
            live.iter().map(|live| live.machine().handle().process.clone()).collect();
        if let Some(handles) = handles {
            processes.extend(handles.machine.iter().map(|m| m.process.clone()));
            // A process that was started and not yet written down carries the VM's mark.
            processes.extend(find_marked(id).unwrap_or_default());
        }
        processes
    }

    /// Kills a VM's machine monitor as somebody else might; false when there is none. For fault points.
    pub(super) fn kill_vmm(&self, id: &VmId) -> bool {
        let mut victims: Vec<ProcessId> =
            self.live(id).iter().map(|live| live.machine().handle().process.clone()).collect();
        if victims.is_empty() {
            let handles = Handles::load(&self.dirs.state.vm(id)).unwrap_or_default();
            victims = find_marked(id).unwrap_or_default();
            victims.retain(|process| !handles.network.contains(process));
        }
        let killed = victims.iter().filter(|p| p.signal(Signal::KILL).unwrap_or(false)).count();
        killed > 0
    }

    /// One named step of an operation on a VM.
    pub(crate) async fn step<T>(
        &self,
        op: &Op,
        id: &VmId,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        op.step(name, || self.kill_vmm(id), work).await
    }
}

/// Ends each of them, also when one before it could not be ended.
pub(super) async fn end_all(processes: &[ProcessId]) -> Result<()> {
    let mut errors: Vec<String> = Vec::new();
    for process in processes {
        // All at once; one that cannot be signalled says so below.
        let _ = process.signal(Signal::KILL);
    }
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

pub(super) fn survived(what: &str) -> Error {
    Error::internal(format!("{what} is still there {} s after it was killed", KILL_LIMIT.as_secs()))
}

pub(super) fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}
