//! What a daemon makes of what it finds: it adopts what lives, finishes what was half done, tears down what is dead and
//! removes what belongs to nobody. Once before the first request and from time to time after. Must never touch what an
//! operation is just at work on, nor what belongs to another installation.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use banger_model::{Error, ErrorCode, LastError, Result, Vm, VmId, VmState};
use banger_vmm::MachineHandle;
use banger_vmm::process::all_marked;
use futures_util::FutureExt as _;

use super::handles::Handles;
use super::teardown::{end_all, remove_tree};
use super::{STOP_TIMEOUT, VmLock, Vms};
use crate::op::Op;

/// How long the client of a `--rm` VM has to come back after a daemon's death, before the VM goes.
const EPHEMERAL_GRACE: Duration = Duration::from_secs(60);
/// How often it looks again.
const TICK: Duration = Duration::from_secs(30);
/// How soon what an operation could not clean up is tried again.
const SOON: Duration = Duration::from_secs(1);
/// What belongs to nobody goes when it is this old: younger, it may be just in the making.
const ORPHANED: Duration = Duration::from_secs(60);

impl Vms {
    /// Brings records, processes and files into agreement. Called once, before any request.
    ///
    /// # Errors
    /// Only when the database fails; what goes wrong with one VM is its own `last_error`.
    pub(crate) async fn reconcile(self: &Arc<Self>) -> Result<()> {
        remove_children(&self.dirs.state.scratch());
        self.shelf.sweep();
        for vm in self.store.vms()? {
            let lock = self.lock_of(&vm.id).lock_owned().await;
            self.reconcile_one(vm, lock, true).await?;
        }
        self.remove_orphans(Duration::ZERO).await;
        Ok(())
    }

    /// The same for what went wrong since, for ever.
    pub(crate) async fn reconcile_for_ever(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
                () = self.unclean.notified() => tokio::time::sleep(SOON).await,
            }
            if let Err(error) = self.look_again().await {
                tracing::warn!(%error, "the records could not be compared with the truth");
            }
            // What could not be cleaned up this time either has time until the next.
            let _ = self.unclean.notified().now_or_never();
        }
    }

    async fn look_again(self: &Arc<Self>) -> Result<()> {
        for vm in self.store.vms()? {
            // Whoever has the lock is at work on it, and a machine that lives has its watcher.
            let Ok(lock) = self.lock_of(&vm.id).try_lock_owned() else { continue };
            if self.live(&vm.id).is_some() {
                continue;
            }
            // Looked at again: it may have been changed before we had the lock.
            if let Some(vm) = self.store.vm(&vm.id)? {
                self.reconcile_one(vm, lock, false).await?;
            }
        }
        self.remove_orphans(ORPHANED).await;
        Ok(())
    }

    async fn reconcile_one(self: &Arc<Self>, vm: Vm, lock: VmLock, first: bool) -> Result<()> {
        use tracing::Instrument;
        let op = self.operations.unlisted("reconcile");
        let span = tracing::info_span!("op", op_id = op.id().as_str(), operation = "reconcile");
        let (id, was) = (vm.id.clone(), vm.state);
        let Err(error) = self.agree(&op, vm, lock, first).instrument(span).await else { return Ok(()) };
        let news = self.change(&op, &id, |vm| {
            vm.state = VmState::Error;
            vm.last_error = Some(LastError { code: error.code, message: error.message.clone() });
        });
        if was != VmState::Error {
            tracing::error!(vm_id = %id, %error, "a VM is not as it should be");
        }
        match news {
            // What cannot be written down now is found again.
            Err(error) if !first => tracing::warn!(vm_id = %id, %error, "that could not be recorded"),
            other => drop(other?),
        }
        Ok(())
    }

    async fn agree(self: &Arc<Self>, op: &Op, vm: Vm, lock: VmLock, first: bool) -> Result<()> {
        let dir = self.dirs.state.vm(&vm.id);
        let handles = Handles::load(&dir);
        self.sweep_snapshots(&vm.id);
        if first && vm.unfinished.is_none() && self.adopt(&vm, handles.as_ref()).await? {
            match vm.state {
                VmState::Stopping => self.finish_stop(vm.clone(), lock),
                _ if vm.ephemeral => self.expire_later(vm.id.clone()),
                _ => {}
            }
            return Ok(());
        }
        if first || handles.is_some() || !is_settled(vm.state) {
            self.tear_down(op, &vm.id).await?;
        }
        if vm.unfinished.is_some() || (first && vm.ephemeral) {
            tracing::info!(vm_id = %vm.id, vm = %vm.name, unfinished = ?vm.unfinished,
                "a VM of a run that ended, or half made, or half deleted, is deleted");
            return self.delete_locked(op, &vm.id, lock).await;
        }
        if !dir.is_dir() {
            return Err(directory_gone(&vm, &dir));
        }
        if self.artifacts.image_file(&vm.image_digest).is_err() {
            return Err(Error::new(
                ErrorCode::ImageMissing,
                format!("the image '{}' ({}) of VM '{}' is gone", vm.image, vm.image_digest, vm.name),
            ));
        }
        let panicked =
            matches!(vm.state, VmState::Running | VmState::Paused) && self.console(&vm.id).await.panicked;
        let state = match vm.state {
            state if is_settled(state) => state,
            VmState::Starting if vm.started_at.is_none() => VmState::Created,
            _ if panicked => {
                let message = format!("the kernel of VM '{}' panicked while no daemon looked on", vm.name);
                return Err(Error::new(ErrorCode::GuestFailed, message));
            }
            _ => VmState::Stopped,
        };
        if state != vm.state {
            tracing::info!(vm_id = %vm.id, vm = %vm.name, was = %vm.state, now = %state, "settled");
            self.change(op, &vm.id, |vm| vm.state = state)?;
        }
        Ok(())
    }

    /// Takes over a machine that lives and that somebody wants. One whose start was under way has nobody who waits
    /// for it; one whose stop was under way is still to be powered off in good order.
    async fn adopt(self: &Arc<Self>, vm: &Vm, handles: Option<&Handles>) -> Result<bool> {
        let Some(handle) = handles.and_then(|h| h.machine.as_ref()) else { return Ok(false) };
        if !matches!(vm.state, VmState::Running | VmState::Paused | VmState::Stopping) {
            return Ok(false);
        }
        // One that was a spare began under another name.
        let handle = MachineHandle { name: vm.name.clone(), ..handle.clone() };
        let Some(machine) = self.driver(vm.driver)?.adopt(&handle).await? else { return Ok(false) };
        tracing::info!(vm_id = %vm.id, vm = %vm.name, pid = machine.handle().process.pid, "adopted");
        self.watch(vm.id.clone(), machine, None);
        if let (Some(handles), Some(live)) = (handles, self.live(&vm.id)) {
            self.settle_halt(vm, handles, &live).await?;
        }
        Ok(true)
    }

    fn finish_stop(self: &Arc<Self>, vm: Vm, lock: VmLock) {
        let (vms, name) = (self.clone(), vm.name.to_string());
        tokio::spawn(async move {
            let operations = vms.operations.clone();
            let stop = async move |op: Op| vms.stop_locked(&op, &vm, STOP_TIMEOUT, &lock).await;
            if let Err(error) = operations.run("stop", &name, stop).await {
                tracing::warn!(%error, "a stop that a daemon's death cut short was not clean");
            }
        });
    }

    /// The run that made this VM lost its daemon. Its client deletes the VM itself if it still
    /// lives; if it does not, nobody will.
    fn expire_later(self: &Arc<Self>, id: VmId) {
        let vms = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EPHEMERAL_GRACE).await;
            let delete = async |op: Op| vms.delete(&op, id.as_str(), true).await;
            if let Ok(Some(_)) = vms.store.vm(&id)
                && let Err(error) = vms.operations.run("delete", id.as_str(), delete).await
            {
                tracing::warn!(vm_id = %id, %error, "the VM of a run that ended stays");
            }
        });
    }

    /// Directories without a record, and processes that carry a mark of ours: leftovers of a create or delete that a
    /// crash cut short.
    async fn remove_orphans(self: &Arc<Self>, older_than: Duration) {
        let known: HashSet<String> = match self.store.vms() {
            Ok(vms) => vms.into_iter().map(|vm| vm.id.to_string()).collect(),
            Err(error) => return tracing::warn!(%error, "leftovers could not be looked for"),
        };
        let mut ids: HashSet<VmId> = HashSet::new();
        for dir in [self.dirs.state.vms(), self.dirs.runtime.vms()] {
            let names = children(&dir).into_iter().filter(|name| is_old(&dir.join(name), older_than));
            ids.extend(names.filter_map(|name| name.parse().ok()));
        }
        // The working directory tells our machines from those of another installation. Some work among their sockets.
        let marked = all_marked(older_than).unwrap_or_default();
        let homes = [self.dirs.state.vms(), self.dirs.runtime.vms()];
        let ours = |works_in: &Path| homes.iter().any(|home| works_in.parent() == Some(home));
        let ours = marked.into_iter().filter(|m| ours(&m.works_in));
        for orphan in ours.filter(|m| !known.contains(m.vm.as_str())) {
            tracing::info!(vm_id = %orphan.vm, pid = orphan.process.pid, "a process that belongs to no VM is ended");
            if let Err(error) = end_all(&[orphan.process]).await {
                tracing::warn!(vm_id = %orphan.vm, %error, "a leftover stays");
            }
            ids.insert(orphan.vm);
        }
        for id in ids.iter().filter(|id| !known.contains(id.as_str())) {
            tracing::info!(vm_id = %id, "removing what belongs to no VM");
            let op = self.operations.unlisted("reconcile");
            let gone = self.tear_down(&op, id).await.and_then(|()| remove_tree(&self.dirs.state.vm(id)));
            if let Err(error) = gone {
                tracing::warn!(vm_id = %id, %error, "a leftover stays");
            }
        }
        let scratch = self.dirs.state.scratch();
        let deleted = |name: &String| {
            name.strip_prefix("deleted-").is_some_and(|id| !known.contains(id))
                && is_old(&scratch.join(name), older_than)
        };
        for name in children(&scratch).into_iter().filter(deleted) {
            if let Err(error) = remove_tree(&scratch.join(&name)) {
                tracing::warn!(name, %error, "a leftover stays");
            }
        }
    }
}

/// The error of a VM whose files somebody has taken away: what was in it cannot be made again.
pub(super) fn directory_gone(vm: &Vm, dir: &Path) -> Error {
    Error::unavailable(format!("the directory of VM '{}', {}, is gone", vm.name, dir.display()))
        .with_hint(format!("it can only be deleted: 'banger vm delete {}'", vm.name))
}

/// Whether nothing is under way in this state, and nothing runs.
fn is_settled(state: VmState) -> bool {
    matches!(state, VmState::Created | VmState::Stopped | VmState::Error)
}

fn is_old(path: &Path, age: Duration) -> bool {
    let changed = std::fs::symlink_metadata(path).and_then(|m| m.modified());
    changed.is_ok_and(|at| SystemTime::now().duration_since(at).unwrap_or_default() >= age)
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn remove_children(dir: &Path) {
    for name in children(dir) {
        let path = dir.join(name);
        let gone = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        if let Err(error) = gone {
            tracing::warn!(path = %path.display(), %error, "a leftover stays");
        }
    }
}
