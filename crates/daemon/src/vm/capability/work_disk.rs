//! The work disk: a second disk that the agent mounts on the user's home. It is made on the first start after it was
//! asked for, and no rebuild touches it. Must never be removed but with its VM, or by the start that made it.

use banger_image::{DiskUse, VmDisk};
use banger_model::{Result, Vm};
use banger_vmm::{Disk, DiskRole, MachineSpec};
use futures_util::future::BoxFuture;

use super::{Capability, Context, Hooks, StepName};
use crate::artifacts::blocking;
use crate::vm::Vms;
use crate::vm::disk::{self, Making, WORK};

pub(super) const CAPABILITY: Capability = Capability {
    host_step: StepName { name: "work_disk", message: "making the work disk" },
    guest_step: None,
    plug: || Box::<WorkDisk>::default(),
    in_rescue: true,
    cleanup: None,
    check_change: Some(check_change),
    apply_change: Some(|vms, vm| Box::pin(apply_change(vms, vm))),
    doctor: None,
};

#[derive(Default)]
struct WorkDisk {
    making: Making,
    path: Option<std::path::PathBuf>,
}

impl Hooks for WorkDisk {
    fn prepare_host<'a>(&'a mut self, cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some(size) = cx.vm.work_disk else { return Ok(()) };
            let path = cx.vms.dirs.state.vm(&cx.vm.id).join(WORK);
            self.path = Some(path.clone());
            self.making.make(path, size, DiskUse::Work).await
        })
    }

    fn undo_prepare_host<'a>(&'a mut self, _cx: Context<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match self.path.take() {
                Some(path) => self.making.undo(path).await,
                None => Ok(()),
            }
        })
    }

    fn contribute_to_machine(&mut self, _vm: &Vm, spec: &mut MachineSpec) -> Result<()> {
        let disk = |path| Disk { role: DiskRole::Work, path, read_only: false };
        spec.disks.extend(self.path.clone().map(disk));
        Ok(())
    }
}

/// Disks have limits, only grow, and are not taken away.
fn check_change(from: &Vm, to: &Vm) -> Result<()> {
    let Some(size) = to.work_disk else { return Ok(()) };
    disk::check_size(size)?;
    disk::check_growth(&to.name, "work disk", from.work_disk.unwrap_or(size), size)
}

/// Gives a disk that is there its new size; one that is not gets it when it is made.
async fn apply_change(vms: &Vms, vm: &Vm) -> Result<()> {
    let Some(size) = vm.work_disk else { return Ok(()) };
    let path = vms.dirs.state.vm(&vm.id).join(WORK);
    blocking(move || if path.exists() { Ok(VmDisk::extend(&path, size, DiskUse::Work)?) } else { Ok(()) })
        .await
}
