//! What a new daemon makes of what an old one left: adopt what lives, finish what was half done,
//! tear down what is dead, remove what belongs to nobody.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{ErrorCode, LastError, Result, Vm, VmId, VmState};

use super::Vms;
use super::handles::Handles;
use super::stop::remove_tree;
use crate::op::Op;

/// How long the client of a `--rm` VM has to come back after a daemon's death, before the VM goes.
const EPHEMERAL_GRACE: Duration = Duration::from_secs(60);

impl Vms {
    /// Brings records, processes and files into agreement. Called once, before any request.
    ///
    /// # Errors
    /// Only when the database fails; what goes wrong with one VM is its own `last_error`.
    pub(crate) async fn reconcile(self: &Arc<Self>) -> Result<()> {
        remove_children(&self.dirs.state.scratch());
        let vms = self.store.vms()?;
        let known: HashSet<String> = vms.iter().map(|vm| vm.id.to_string()).collect();
        for vm in vms {
            let id = vm.id.clone();
            if let Err(error) = self.reconcile_one(vm).await {
                tracing::error!(vm_id = %id, %error, "a VM could not be reconciled");
                let message = error.message;
                self.store.modify_vm(&id, |vm| {
                    vm.state = VmState::Error;
                    vm.last_error = Some(LastError { code: error.code, message });
                })?;
            }
        }
        self.remove_orphans(&known).await;
        Ok(())
    }

    async fn reconcile_one(self: &Arc<Self>, vm: Vm) -> Result<()> {
        let dir = self.dirs.state.vm(&vm.id);
        let handle = Handles::load(&dir).and_then(|h| h.machine);
        let machine = match (&handle, vm.state) {
            // A start or stop that was under way is finished by tearing down: nobody waits for it.
            (Some(handle), VmState::Running | VmState::Paused) if vm.unfinished.is_none() => {
                self.driver(vm.driver)?.adopt(handle).await?
            }
            _ => None,
        };
        if let Some(machine) = machine {
            tracing::info!(vm_id = %vm.id, vm = %vm.name, pid = machine.handle().process.pid, "adopted");
            self.watch(vm.id.clone(), machine, None);
            if vm.ephemeral {
                self.expire_later(vm.id);
            }
            return Ok(());
        }
        self.tear_down(&vm.id).await?;
        if vm.ephemeral || vm.unfinished.is_some() {
            tracing::info!(vm_id = %vm.id, vm = %vm.name, unfinished = ?vm.unfinished,
                "a VM of a run that ended, or half made, or half deleted, is deleted");
            let lock = self.lock_of(&vm.id).lock_owned().await;
            return self.delete_locked(&vm.id, lock).await;
        }
        if !dir.is_dir() {
            let message = format!("its directory {} is gone", dir.display());
            return Err(banger_model::Error::new(ErrorCode::Unavailable, message));
        }
        let state = match vm.state {
            VmState::Created | VmState::Error => vm.state,
            VmState::Starting if !dir.join("system.ext4").exists() => VmState::Created,
            _ => VmState::Stopped,
        };
        if state != vm.state {
            tracing::info!(vm_id = %vm.id, vm = %vm.name, was = %vm.state, now = %state, "settled");
            self.store.modify_vm(&vm.id, |vm| vm.state = state)?;
        }
        Ok(())
    }

    /// The run that made this VM lost its daemon. Its client deletes the VM itself if it still
    /// lives; if it does not, nobody will.
    fn expire_later(self: &Arc<Self>, id: VmId) {
        let vms = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EPHEMERAL_GRACE).await;
            let op = Op::new(None);
            if let Ok(Some(_)) = vms.store.vm(&id)
                && let Err(error) = vms.delete(&op, id.as_str(), true).await
            {
                tracing::warn!(vm_id = %id, %error, "the VM of a run that ended stays");
            }
        });
    }

    /// Directories without a record, and the processes that carry their mark: leftovers of a
    /// create or delete that a crash cut short.
    async fn remove_orphans(self: &Arc<Self>, known: &HashSet<String>) {
        let mut ids: HashSet<String> = HashSet::new();
        for dir in [self.dirs.state.vms(), self.dirs.runtime.vms()] {
            ids.extend(children(&dir).into_iter().filter(|name| !known.contains(name)));
        }
        for id in ids.iter().filter_map(|name| name.parse::<VmId>().ok()) {
            tracing::info!(vm_id = %id, "removing what belongs to no VM");
            let gone = self.tear_down(&id).await.and_then(|()| remove_tree(&self.dirs.state.vm(&id)));
            if let Err(error) = gone {
                tracing::warn!(vm_id = %id, %error, "a leftover stays");
            }
        }
    }
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
