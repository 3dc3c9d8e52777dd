//! The snapshots that a user keeps of a VM, in its own directory: they go with it. A restore puts the VM back to that
//! moment: its disks are copied beside the present ones first, the record that names them is the commit point, and only
//! then it goes on. Must never leave a VM with one disk of then and one of now.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_model::{Error, ErrorCode, Result, Vm, VmId, VmName, VmState};
use banger_protocol::api::{CreateSnapshot, SnapshotKind, SnapshotView};
use banger_vmm::sparse;

use super::capture::{self, Extent, copy_files, copy_workspace, workspace_files};
use super::snapshot::{About, Snapshot};
use super::start::{Origin, RESTORED_STEPS, failed, make_dir, remove_file};
use super::stop::flush;
use super::teardown::remove_tree;
use super::{VmLock, Vms, disk, not_running};
use crate::artifacts::blocking;
use crate::op::Op;

/// Where they are, below a VM's directory.
const DIR: &str = "snapshots";
/// How the name of one that is being made begins: no snapshot is called so.
const HALF: &str = ".new-";
/// How the name of one that is being deleted begins.
const DOOMED: &str = ".old-";

/// The names of a creation's steps.
pub(super) fn create_steps() -> Vec<String> {
    capture::STEPS.into_iter().chain(["keep"]).map(str::to_owned).collect()
}

/// The names of a restore's steps that are not those of any teardown or start.
pub(super) fn restore_steps() -> Vec<String> {
    let own = ["copies", "stopped", "restored"];
    own.into_iter().chain(RESTORED_STEPS).map(str::to_owned).collect()
}

/// The names of a deletion's steps.
pub(super) fn delete_steps() -> Vec<String> {
    ["aside", "files"].map(str::to_owned).to_vec()
}

impl Vms {
    /// A VM's snapshots, oldest first.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`; `unavailable` when they cannot be looked at.
    pub(crate) fn snapshots(&self, reference: &str) -> Result<Vec<SnapshotView>> {
        let dir = self.snapshots_dir(&self.find(reference)?.id);
        let mut all = Vec::new();
        for name in names(&dir)? {
            match Snapshot::open(&dir.join(name.as_str())) {
                Ok(snapshot) => all.push(view(name, &snapshot)),
                Err(error) => tracing::warn!(snapshot = %name, %error, "a snapshot cannot be read"),
            }
        }
        all.sort_by_key(|snapshot| snapshot.created_at);
        Ok(all)
    }

    /// Keeps a VM's present moment under a name. Of one that is off there are only the disks.
    ///
    /// # Errors
    /// `already_exists`; what a capture says.
    pub(crate) async fn create_snapshot(
        self: &Arc<Self>,
        op: &Op,
        reference: &str,
        request: &CreateSnapshot,
    ) -> Result<SnapshotView> {
        let (vm, _lock) = self.locked(op, reference).await?;
        let id = &vm.id;
        let dir = self.snapshots_dir(id);
        let target = dir.join(request.name.as_str());
        if target.exists() {
            let (vm, name) = (&vm.name, &request.name);
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!("VM '{vm}' has a snapshot '{name}' already"),
            )
            .with_hint(format!("another name, or 'banger vm snapshot delete {vm} {name}'")));
        }
        self.enough_disk()?;
        make_dir(&dir)?;
        let half = dir.join(format!("{HALF}{}", op.id()));
        make_dir(&half)?;
        let made = async {
            self.copy_now(op, &vm, &half, request.disk_only).await?;
            op.check()?;
            let keep = async {
                Snapshot::flush(&half).await?;
                std::fs::rename(&half, &target).map_err(|e| failed("name", &target, &e))?;
                let named = std::fs::File::open(&dir).and_then(|dir| dir.sync_all());
                named.map_err(|e| failed("flush", &dir, &e))
            };
            self.step(op, id, "keep", keep).await?;
            Ok::<_, Error>(view(request.name.clone(), &Snapshot::open(&target)?))
        };
        match made.await {
            Ok(made) => Ok(made),
            Err(mut error) => {
                for left in [&half, &target] {
                    if let Err(also) = remove_tree(left) {
                        error.message = format!("{}; and {also}", error.message);
                    }
                }
                Err(error)
            }
        }
    }

    async fn copy_now(self: &Arc<Self>, op: &Op, vm: &Vm, dir: &Path, disk_only: bool) -> Result<()> {
        let live = self.alive(&vm.id);
        if let Some(live) = live {
            if !live.is_paused() {
                // So that its disks are worth something by themselves, should its memory ever be lost.
                flush(op, &live).await;
            }
            let extent = if disk_only { Extent::Disks } else { Extent::All };
            return self.capture(op, vm, &live, dir, extent).await.map(drop);
        }
        let vm_dir = self.dirs.state.vm(&vm.id);
        if !disk::system(&vm_dir, vm).exists() {
            return Err(not_running(vm));
        }
        if !disk_only {
            op.notice(format!("VM '{}' is off: this is a snapshot of its disks", vm.name));
        }
        self.step(op, &vm.id, "disks", copy_files(&vm_dir, dir, vm.clone())).await?;
        let files = self.artifacts.boot_files(&vm.kernel).await?;
        self.step(op, &vm.id, "whole", async { About::of(vm, &files).write(dir) }).await
    }

    /// Puts a VM back to a snapshot's moment; what it did since is gone. It runs afterwards if the snapshot is of one
    /// that ran.
    ///
    /// # Errors
    /// `not_found`; `unsupported` when the VM has another image now; what a start says.
    pub(crate) async fn restore_snapshot(
        self: &Arc<Self>,
        op: &Op,
        reference: &str,
        name: &VmName,
    ) -> Result<Vm> {
        let (vm, lock) = self.locked(op, reference).await?;
        let id = &vm.id;
        let snapshot = self.open_snapshot(&vm, name)?;
        if snapshot.about.image_digest != vm.image_digest {
            return Err(other_image(&vm, &snapshot.about));
        }
        let then = as_then(&vm, &snapshot.about);
        let dir = self.dirs.state.vm(id);
        op.check()?;
        op.stage("copies", format!("copying the disks of snapshot '{name}' ({})", vm.name), None);
        let copies = self.step(op, id, "copies", copy_back(&snapshot, &dir, &then)).await;
        let committed = async {
            copies?;
            op.stage("restore", format!("putting it back ({})", vm.name), None);
            // From here on there is no way back: what runs is ended without being asked.
            self.settle(op, id, settled(&vm)).await?;
            self.step(op, id, "restored", self.commit(op, &snapshot, &then)).await
        };
        if let Err(error) = committed.await {
            let now = self.find(id.as_str())?;
            disk::remove_stale(&dir, &now)?;
            return Err(error);
        }
        let now = self.find(id.as_str())?;
        if !snapshot.has_memory() {
            disk::remove_stale(&dir, &now)?;
            return Ok(now);
        }
        self.go_back(op, now, &lock, snapshot).await
    }

    /// Goes on from a snapshot's memory, or boots from its disks if that cannot be.
    async fn go_back(self: &Arc<Self>, op: &Op, vm: Vm, lock: &VmLock, snapshot: Snapshot) -> Result<Vm> {
        match self.start_from(op, vm.clone(), lock, Origin::Back(snapshot), None).await {
            Err(error) if error.code != ErrorCode::Cancelled => {
                op.notice(format!(
                    "the memory of VM '{}' is lost, it boots from its disks: {error}",
                    vm.name
                ));
                self.start_locked(op, vm, lock).await
            }
            other => other,
        }
    }

    /// The commit point.
    async fn commit(&self, op: &Op, snapshot: &Snapshot, then: &Vm) -> Result<()> {
        let dir = self.dirs.state.vm(&then.id);
        // Without these a copy in is whole, whatever is in the guest.
        for path in workspace_files(&dir)? {
            remove_file(&path)?;
        }
        self.change(op, &then.id, |vm| {
            vm.shape = then.shape;
            vm.work_disk = then.work_disk;
            vm.system_generation = then.system_generation;
            vm.work_generation = then.work_generation;
            vm.workspace.clone_from(&then.workspace);
            vm.state = VmState::Stopped;
            vm.last_error = None;
        })?;
        copy_workspace(snapshot.dir(), &dir)
    }

    /// Forgets a snapshot. A VM that went on from it keeps what it needs.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn delete_snapshot(
        self: &Arc<Self>,
        op: &Op,
        reference: &str,
        name: &VmName,
    ) -> Result<SnapshotView> {
        let (vm, _lock) = self.locked(op, reference).await?;
        let id = &vm.id;
        let shown = view(name.clone(), &self.open_snapshot(&vm, name)?);
        let dir = self.snapshots_dir(id);
        let doomed = dir.join(format!("{DOOMED}{}", op.id()));
        let path = dir.join(name.as_str());
        let aside = async { std::fs::rename(&path, &doomed).map_err(|e| failed("delete", &path, &e)) };
        let aside = self.step(op, id, "aside", aside).await;
        if aside.is_err() && !doomed.exists() {
            return aside.map(|()| shown);
        }
        let files = self.step(op, id, "files", async { remove_tree(&doomed) }).await;
        aside.and(files).map(|()| shown)
    }

    /// Removes what making and deleting snapshots has left when a daemon died.
    pub(super) fn sweep_snapshots(&self, id: &VmId) {
        let dir = self.snapshots_dir(id);
        let Ok(entries) = std::fs::read_dir(&dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if [HALF, DOOMED].iter().any(|kind| name.starts_with(kind))
                && let Err(error) = remove_tree(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a leftover stays");
            }
        }
    }

    /// Refuses to take the image from under a VM's snapshots.
    pub(super) fn without_snapshots(&self, vm: &Vm) -> Result<()> {
        match names(&self.snapshots_dir(&vm.id))?.first() {
            None => Ok(()),
            Some(one) => Err(Error::new(
                ErrorCode::Busy,
                format!("VM '{}' has snapshots ('{one}') that need its present image", vm.name),
            )
            .with_hint(format!("delete them first: 'banger vm snapshot delete {} {one}'", vm.name))),
        }
    }

    fn snapshots_dir(&self, id: &VmId) -> PathBuf {
        self.dirs.state.vm(id).join(DIR)
    }

    fn open_snapshot(&self, vm: &Vm, name: &VmName) -> Result<Snapshot> {
        let dir = self.snapshots_dir(&vm.id).join(name.as_str());
        if dir.is_dir() {
            return Snapshot::open(&dir);
        }
        Err(Error::new(ErrorCode::NotFound, format!("VM '{}' has no snapshot '{name}'", vm.name))
            .with_hint(format!("'banger vm snapshot list {}' shows those that it has", vm.name)))
    }
}

/// The VM as it is after a restore.
fn as_then(vm: &Vm, about: &About) -> Vm {
    Vm {
        shape: about.shape,
        work_disk: about.work_disk,
        workspace: about.workspace.clone(),
        system_generation: vm.system_generation.wrapping_add(1),
        work_generation: vm.work_generation.wrapping_add(1),
        ..vm.clone()
    }
}

/// What a VM is whose machine was ended for a restore that then was not.
fn settled(vm: &Vm) -> VmState {
    if vm.started_at.is_some() { VmState::Stopped } else { VmState::Created }
}

/// Copies a snapshot's disks beside the present ones.
async fn copy_back(snapshot: &Snapshot, dir: &Path, then: &Vm) -> Result<()> {
    let (system, work) = (disk::system(dir, then), disk::work(dir, then));
    let (from, has_work) = (snapshot.dir().to_owned(), then.work_disk.is_some());
    blocking(move || {
        let mut disks = vec![(Snapshot::system_disk(&from), system)];
        if has_work {
            disks.push((Snapshot::work_disk(&from), work));
        }
        for (from, to) in disks {
            // An earlier try may have left one.
            remove_file(&to)?;
            sparse::copy(&from, &to)?;
        }
        Ok(())
    })
    .await
}

fn other_image(vm: &Vm, about: &About) -> Error {
    Error::new(
        ErrorCode::Unsupported,
        format!(
            "VM '{}' has another image now than when the snapshot was taken ('{}')",
            vm.name, about.image
        ),
    )
}

fn names(dir: &Path) -> Result<Vec<VmName>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries
            .flatten()
            .filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()))
            .collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed("look into", dir, &e)),
    }
}

fn view(name: VmName, snapshot: &Snapshot) -> SnapshotView {
    let kind = if snapshot.has_memory() { SnapshotKind::Full } else { SnapshotKind::Disks };
    SnapshotView { name, kind, created_at: snapshot.about.taken_at, bytes: snapshot.size() }
}
