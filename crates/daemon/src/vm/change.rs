//! Changes of a VM that is off: its size, and the image below its disks. The record is the commit point of both: a
//! crash leaves the old VM or the new one, and what files still have to follow follows at the next start.

use std::sync::Arc;

use banger_image::{DiskUse, VmDisk};
use banger_model::{Error, ErrorCode, Result, Vm, VmState};
use banger_protocol::api::{RebuildVm, SetVm};

use super::{VmLock, Vms, capability, disk};
use crate::artifacts::blocking;
use crate::op::Op;

/// What is on the work disk: root's home, and everybody else's.
const HOMES: [&str; 2] = ["/root/", "/home/"];

/// The names of a set's steps.
pub(super) fn set_steps() -> Vec<String> {
    ["record", "disks"].map(str::to_owned).to_vec()
}

/// The names of a rebuild's steps.
pub(super) fn rebuild_steps() -> Vec<String> {
    ["image", "record", "old_disk"].map(str::to_owned).to_vec()
}

impl Vms {
    /// Gives a VM that is off another size.
    ///
    /// # Errors
    /// `busy` when it runs, `invalid_argument` for a size that cannot be.
    pub(crate) async fn set(self: &Arc<Self>, op: &Op, reference: &str, request: SetVm) -> Result<Vm> {
        let (before, _lock) = self.off(op, reference, "change").await?;
        let mut after = resized(&before, &request)?;
        if let Some(driver) = request.driver {
            let choice = self.choose(driver, None, before.network).await?;
            (after.driver, after.accel) = (choice.driver, Some(choice.accel));
            choice.notice.into_iter().for_each(|notice| op.notice(notice));
        }
        self.fits(after.shape)?;
        for check in capability::ALL.iter().filter_map(|c| c.check_change) {
            check(&before, &after)?;
        }
        op.check()?;
        let id = &before.id;
        op.stage("record", format!("recording ({})", before.name), None);
        let record = async {
            self.change(op, id, |vm| {
                vm.shape = after.shape;
                vm.work_disk = after.work_disk;
                (vm.driver, vm.accel) = (after.driver, after.accel);
            })
        };
        let mut done = self.step(op, id, "record", record).await.map(drop);
        if done.is_ok() {
            op.stage("disks", format!("growing disks ({})", before.name), None);
            done = self.step(op, id, "disks", self.extend_disks(&after)).await;
        }
        if let Err(error) = done {
            // What the host cannot hold is not promised.
            self.change(op, id, |vm| {
                vm.shape = before.shape;
                vm.work_disk = before.work_disk;
                (vm.driver, vm.accel) = (before.driver, before.accel);
            })?;
            return Err(error);
        }
        self.find(id.as_str())
    }

    async fn extend_disks(&self, vm: &Vm) -> Result<()> {
        let (path, size) = (disk::system(&self.dirs.state.vm(&vm.id), vm), vm.shape.disk);
        blocking(
            move || if path.exists() { Ok(VmDisk::extend(&path, size, DiskUse::System)?) } else { Ok(()) },
        )
        .await?;
        for apply in capability::ALL.iter().filter_map(|c| c.apply_change) {
            apply(self, vm).await?;
        }
        Ok(())
    }

    /// Puts a VM that is off on another image, with a new system disk. Its work disk stays as it is.
    ///
    /// # Errors
    /// `busy` when it runs or its snapshots need the image, `invalid_argument` when it has no work disk and nothing says
    /// that all may go;
    /// `image_missing`.
    pub(crate) async fn rebuild(
        self: &Arc<Self>,
        op: &Op,
        reference: &str,
        request: RebuildVm,
    ) -> Result<Vm> {
        let (before, _lock) = self.off(op, reference, "rebuild").await?;
        let dir = self.dirs.state.vm(&before.id);
        let homes_stay = capability::has_homes(&dir, &before);
        if before.started_at.is_some() && !request.force && !homes_stay {
            return Err(everything_lost(&before));
        }
        let id = &before.id;
        let name = request.image.unwrap_or_else(|| before.image.clone());
        let image = self.step(op, id, "image", self.artifacts.ensure_image(op, &name)).await?;
        self.artifacts.image_file(&image.digest)?;
        if image.digest != before.image_digest {
            self.without_snapshots(&before)?;
        }
        op.check()?;
        op.stage("record", format!("recording ({})", before.name), None);
        let kept = before.workspace.clone().filter(|w| homes_stay && is_in_home(w.guest_path.as_str()));
        if let Some(lost) = before.workspace.as_ref().filter(|_| kept.is_none()) {
            op.notice(format!(
                "the workspace at {} was on the system disk and went with it: 'banger vm workspace prepare {}'",
                lost.guest_path, before.name
            ));
        }
        let record = async {
            self.change(op, id, |vm| {
                vm.image = image.name.clone();
                vm.image_digest = image.digest.clone();
                vm.system_generation = vm.system_generation.wrapping_add(1);
                vm.workspace = kept;
                vm.state = if vm.started_at.is_some() { VmState::Stopped } else { VmState::Created };
                vm.last_error = None;
            })
        };
        let after = match self.step(op, id, "record", record).await {
            Ok(Some(after)) => after,
            Ok(None) => return Err(Error::internal("the VM's record vanished")),
            Err(error) => {
                // The old disk is still there.
                self.change(op, id, |vm| *vm = before.clone())?;
                return Err(error);
            }
        };
        op.stage("old_disk", format!("removing the old system disk ({})", before.name), None);
        let removed = async { disk::remove_stale(&dir, &after) };
        if let Err(error) = self.step(op, id, "old_disk", removed).await {
            // The VM is the new one all the same; its next start tries again.
            op.notice(format!("the old system disk stays until the next start: {error}"));
        }
        self.artifacts.collect();
        Ok(after)
    }

    /// A VM that is off, and its lock.
    async fn off(&self, op: &Op, reference: &str, verb: &str) -> Result<(Vm, VmLock)> {
        let (vm, lock) = self.locked(op, reference).await?;
        if self.alive(&vm.id).is_some() {
            return Err(Error::new(ErrorCode::Busy, format!("VM '{}' is {}", vm.name, vm.state))
                .with_hint(format!("'banger vm stop {}', then {verb} it", vm.name)));
        }
        Ok((vm, lock))
    }
}

fn everything_lost(vm: &Vm) -> Error {
    let name = &vm.name;
    let (why, first) = match vm.work_disk {
        None => ("has no work disk", format!("'banger vm set {name} --work-disk 8G', then ")),
        Some(_) => ("has not run with its work disk yet", String::new()),
    };
    Error::invalid(format!("VM '{name}' {why}: everything in it would be lost")).with_hint(format!(
        "{first}'banger vm start {name}' once moves its homes there; or 'banger vm rebuild -f {name}'"
    ))
}

/// Whether what is at a guest's path is on the work disk, if there is one.
fn is_in_home(guest_path: &str) -> bool {
    HOMES.iter().any(|home| guest_path.starts_with(home))
}

fn resized(before: &Vm, request: &SetVm) -> Result<Vm> {
    let SetVm { vcpu, memory, disk_size, work_disk, driver } = *request;
    if vcpu.is_none() && memory.is_none() && disk_size.is_none() && work_disk.is_none() && driver.is_none() {
        return Err(Error::invalid("there is nothing to change")
            .with_hint("give --vcpu, --memory, --disk-size, --work-disk or --driver"));
    }
    let mut after = before.clone();
    after.shape.vcpu = vcpu.unwrap_or(after.shape.vcpu);
    after.shape.memory = memory.unwrap_or(after.shape.memory);
    after.shape.disk = disk_size.unwrap_or(after.shape.disk);
    after.work_disk = work_disk.or(after.work_disk);
    after.shape.validate()?;
    disk::check_growth(&before.name, "system disk", before.shape.disk, after.shape.disk)?;
    Ok(after)
}
