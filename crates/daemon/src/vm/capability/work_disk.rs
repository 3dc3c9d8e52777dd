//! The work disk: a second disk that the agent mounts on the homes. It is made on the first start after it was
//! asked for, and no rebuild touches it. Must never be removed but with its VM, or by the start that made it, nor be
//! taken for the place of a home that is not there yet.

use std::path::Path;

use banger_image::{DiskUse, VmDisk};
use banger_model::{Result, Vm};
use banger_vmm::{Disk, DiskRole, MachineSpec};
use futures_util::future::BoxFuture;

use super::{Capability, Context, Hooks, StepName};
use crate::artifacts::blocking;
use crate::vm::Vms;
use crate::vm::disk::{self, Making};
use crate::vm::snapshot::Snapshot;
use crate::vm::start::{failed, make_dir};

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
            let path = disk::work(&cx.vms.dirs.state.vm(&cx.vm.id), cx.vm);
            self.path = Some(path.clone());
            if let Some(snapshot) = cx.disks {
                return self.making.copy(Snapshot::work_disk(snapshot.dir()), path).await;
            }
            if !path.exists() {
                note_making(cx.vm, &path)?;
            }
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

/// Whether the homes of a VM that is off are on its work disk, and not still on its system disk: the agent moves them at
/// the first boot with the disk, which a crash can cut short.
pub(in crate::vm) fn has_homes(vm_dir: &Path, vm: &Vm) -> bool {
    let path = disk::work(vm_dir, vm);
    let cut_short = std::fs::read_to_string(note(&path)).is_ok_and(|then| then == last_start(vm));
    vm.work_disk.is_some() && path.exists() && !cut_short
}

/// Notes, before a disk is made, which start was the last one without it.
fn note_making(vm: &Vm, path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    let note = note(path);
    let written = std::fs::write(&note, last_start(vm)).and_then(|()| std::fs::File::open(&note)?.sync_all());
    written.map_err(|e| failed("write", &note, &e))
}

fn note(path: &Path) -> std::path::PathBuf {
    path.with_extension("made-after")
}

fn last_start(vm: &Vm) -> String {
    vm.started_at.map(|time| time.to_string()).unwrap_or_default()
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
    let path = disk::work(&vms.dirs.state.vm(&vm.id), vm);
    blocking(move || if path.exists() { Ok(VmDisk::extend(&path, size, DiskUse::Work)?) } else { Ok(()) })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_model::{Bytes, DriverKind, MachineShape, Mib, NetworkMode, Sha256, VmId, VmState};
    use std::fs;

    fn a_vm() -> Vm {
        Vm {
            id: VmId::from_random([1; 6]),
            name: "a".parse().unwrap(),
            state: VmState::Stopped,
            driver: DriverKind::Qemu,
            accel: None,
            image: "debian".parse().unwrap(),
            image_digest: Sha256::from_bytes([1; 32]),
            kernel: "debian-cloud".parse().unwrap(),
            shape: MachineShape { vcpu: 1, memory: Mib(512), disk: Bytes(1 << 30) },
            work_disk: None,
            system_generation: 0,
            work_generation: 0,
            parent: None,
            network: NetworkMode::None,
            host_access: false,
            ephemeral: false,
            unfinished: None,
            workspace: None,
            created_at: "2026-11-21T03:33:00Z".parse().unwrap(),
            started_at: Some("2026-11-21T03:33:01Z".parse().unwrap()),
            boot: None,
            last_error: None,
        }
    }

    #[test]
    fn homes_are_on_the_disk_once_a_start_with_it_has_succeeded() {
        let dir = tempfile::tempdir().unwrap();
        let mut vm = a_vm();
        assert!(!has_homes(dir.path(), &vm), "no work disk");
        vm.work_disk = Some(Bytes(1 << 30));
        assert!(!has_homes(dir.path(), &vm), "asked for, and not made yet");
        // Made by a start that a crash cut short
        let path = disk::work(dir.path(), &vm);
        note_making(&vm, &path).unwrap();
        fs::write(&path, "disk").unwrap();
        assert!(!has_homes(dir.path(), &vm));
        // And used by the next
        vm.started_at = Some("2026-11-21T03:35:00Z".parse().unwrap());
        assert!(has_homes(dir.path(), &vm));
        // A VM that had it from its first start on
        fs::remove_file(note(&path)).unwrap();
        assert!(has_homes(dir.path(), &vm));
    }
}
