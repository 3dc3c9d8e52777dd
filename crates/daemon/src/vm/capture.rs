//! Capture: the moment of a VM that is up, as a directory that a VM can go on from (see [`super::snapshot`]). The guest's
//! processes stand still first, then its vCPUs, for as short as can be. Must never leave a VM halted that was not: the
//! journal in `handles.json` says that it may be, and whoever finds it lets it go on.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_model::{Error, ErrorCode, Result, Vm, VmId};
use banger_protocol::agent::Request;
use banger_vmm::sparse;

use super::live::Live;
use super::pause::{freeze, thaw};
use super::snapshot::{About, Snapshot};
use super::start::failed;
use super::{Vms, disk};
use crate::artifacts::blocking;
use crate::op::Op;

/// What the workspace keeps of a VM in its directory begins so.
const WORKSPACE: &str = "workspace.";

/// The names of its steps.
pub(super) const STEPS: [&str; 5] = ["journal", "memory", "disks", "whole", "go_on"];

/// How much of a VM is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Memory, devices and disks.
    All,
    /// The disks alone, with what the guest had not written out yet.
    Disks,
}

/// A moment of a VM.
#[derive(Debug)]
pub(super) struct Captured {
    /// Where it is.
    pub(super) snapshot: Snapshot,
    /// The VM's record then.
    pub(super) vm: Vm,
    /// Since when its processes have stood still for it.
    since: Instant,
}

impl Vms {
    /// Captures a VM that is up and whose lock is held into a directory, which is there and empty. It runs on
    /// afterwards, or is paused as before, also when this fails. The caller removes the directory then.
    ///
    /// # Errors
    /// `unsupported` when its agent or its driver cannot; `unavailable` for a full disk.
    pub(super) async fn capture(
        self: &Arc<Self>,
        op: &Op,
        vm: &Vm,
        live: &Live,
        dir: &Path,
        extent: Extent,
    ) -> Result<Captured> {
        let captured = self.take(op, vm, live, dir, extent).await?;
        self.release(op, live, &captured).await.map(|_| captured)
    }

    /// The same, but the VM still stands still when this succeeds: [`Self::release`] is what the caller does next.
    ///
    /// # Errors
    /// As [`Self::capture`]; it runs on then.
    pub(super) async fn take(
        self: &Arc<Self>,
        op: &Op,
        vm: &Vm,
        live: &Live,
        dir: &Path,
        extent: Extent,
    ) -> Result<Captured> {
        let id = &vm.id;
        live.not_stalled()?;
        if live.is_paused() && !live.is_frozen() && extent == Extent::All {
            return Err(too_old(vm));
        }
        let files = self.artifacts.boot_files(&vm.kernel).await?;
        op.stage("capture", format!("capturing ({})", vm.name), None);
        let taken = async {
            if !live.is_paused() {
                self.step(op, id, "journal", async { self.journal_halt(id, true) }).await?;
            }
            let since = self.step(op, id, "memory", stand_still(live, dir, extent)).await?;
            let vm = self.step(op, id, "disks", self.copy_disks(id, dir)).await?;
            let about = About::of(&vm, &files);
            let whole = async {
                about.write(dir)?;
                Snapshot::open(dir)
            };
            let snapshot = self.step(op, id, "whole", whole).await?;
            Ok::<_, Error>(Captured { snapshot, vm, since })
        };
        match taken.await {
            Ok(captured) => Ok(captured),
            Err(mut error) => {
                if let Err(also) = self.let_go(id, live).await {
                    error.message = format!("{}; and it could not go on: {also}", error.message);
                }
                Err(error)
            }
        }
    }

    /// Lets a VM that was captured go on, unless its user has paused it; says how long it stood still.
    ///
    /// # Errors
    /// When its machine or its agent does not obey.
    pub(super) async fn release(&self, op: &Op, live: &Live, captured: &Captured) -> Result<Duration> {
        let vm = &captured.vm;
        if !live.is_paused() {
            self.step(op, &vm.id, "go_on", self.let_go(&vm.id, live)).await?;
        }
        let still = captured.since.elapsed();
        let still_ms = u64::try_from(still.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(vm = %vm.name, still_ms, "captured");
        Ok(still)
    }

    /// Copies a halted VM's disks and what the workspace keeps of it; returns the record that goes with them.
    async fn copy_disks(&self, id: &VmId, dir: &Path) -> Result<Vm> {
        let vm = self.store.vm(id)?.ok_or_else(|| Error::internal("the VM's record vanished"))?;
        copy_files(&self.dirs.state.vm(id), dir, vm.clone()).await?;
        Ok(vm)
    }

    async fn let_go(&self, id: &VmId, live: &Live) -> Result<()> {
        if live.is_paused() || live.machine().exited().is_some() {
            return Ok(());
        }
        live.machine().resume().await?;
        thaw(live).await?;
        self.journal_halt(id, false)
    }
}

/// Lets first the guest's processes stand still, then its vCPUs, and writes its memory; says since when.
async fn stand_still(live: &Live, dir: &Path, extent: Extent) -> Result<Instant> {
    let (machine, was_paused) = (live.machine(), live.is_paused());
    if extent == Extent::Disks {
        let began = Instant::now();
        if !was_paused {
            freeze(live).await?;
            live.agent_halted().await?.call(&Request::Sync).await?;
            machine.pause().await?;
        }
        return Ok(began);
    }
    let mut began = Instant::now();
    let last = async {
        began = Instant::now();
        if was_paused { Ok(()) } else { freeze(live).await }
    };
    machine.snapshot(dir, Box::pin(last)).await?;
    Ok(began)
}

/// Copies the disks of a VM that stands still, or is off, and what the workspace keeps of it.
pub(super) async fn copy_files(vm_dir: &Path, dir: &Path, vm: Vm) -> Result<()> {
    let (vm_dir, dir) = (vm_dir.to_owned(), dir.to_owned());
    blocking(move || {
        sparse::copy(&disk::system(&vm_dir, &vm), &Snapshot::system_disk(&dir))?;
        if vm.work_disk.is_some() {
            sparse::copy(&disk::work(&vm_dir, &vm), &Snapshot::work_disk(&dir))?;
        }
        copy_workspace(&vm_dir, &dir)
    })
    .await
}

/// Copies what the workspace keeps of a VM from one directory to another; what is there already goes. Blocks.
pub(super) fn copy_workspace(from: &Path, to: &Path) -> Result<()> {
    for path in workspace_files(to)? {
        super::start::remove_file(&path)?;
    }
    for path in workspace_files(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        std::fs::copy(&path, &target).map_err(|e| failed("copy", &path, &e))?;
    }
    Ok(())
}

/// What the workspace keeps of a VM in a directory, without what is half made.
pub(super) fn workspace_files(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| failed("look into", dir, &e))?;
    let is_ours = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(WORKSPACE) && !name.ends_with(".new") && path.is_file()
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_ours).collect())
}

/// The error of a guest that cannot be told to stand still.
pub(super) fn too_old(vm: &Vm) -> Error {
    let name = &vm.name;
    Error::new(
        ErrorCode::Unsupported,
        format!("the agent in VM '{name}' is of an older banger, which cannot be copied while it runs"),
    )
    .with_hint(format!("boot it with the present one: 'banger vm restart {name}'"))
}
