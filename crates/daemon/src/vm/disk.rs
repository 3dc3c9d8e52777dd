//! The files of a VM's own disks: made whole or not at all, extended, and removed when another has taken their place.
//! Must never touch a disk that a machine may be using.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_image::{DiskUse, VmDisk};
use banger_model::{Bytes, Error, Result, Vm, VmName};
use banger_vmm::sparse;

use super::start::{failed, make_dir, remove_file};
use crate::artifacts::blocking;

/// The system disk's file. It has the disk's generation in its name: the record says which one counts, so that a
/// rebuild changes image and disk in one commit.
pub(crate) fn system(vm_dir: &Path, vm: &Vm) -> PathBuf {
    vm_dir.join(match vm.system_generation {
        0 => "system.ext4".to_owned(),
        generation => format!("system.{generation}.ext4"),
    })
}

/// The work disk's file, with its generation in its name as well: a snapshot that is restored brings its own.
pub(super) fn work(vm_dir: &Path, vm: &Vm) -> PathBuf {
    vm_dir.join(match vm.work_generation {
        0 => "work.ext4".to_owned(),
        generation => format!("work.{generation}.ext4"),
    })
}

/// The limits of MachineShape, for disks beside the system's.
pub(super) fn check_size(size: Bytes) -> Result<()> {
    if (64 << 20..=16 << 40).contains(&size.0) {
        return Ok(());
    }
    Err(Error::invalid(format!("a work disk of {size} is not between 64 MiB and 16 TiB"))
        .with_hint("give another size with --work-disk, such as 8G"))
}

/// Disks only grow.
pub(super) fn check_growth(vm: &VmName, what: &str, from: Bytes, to: Bytes) -> Result<()> {
    if to >= from {
        return Ok(());
    }
    Err(Error::invalid(format!("the {what} of VM '{vm}' has {from} and cannot shrink to {to}"))
        .with_hint("disks only grow; 'banger vm create' makes a VM with smaller ones"))
}

/// Removes the disks of other generations, and those that are half made.
pub(super) fn remove_stale(vm_dir: &Path, vm: &Vm) -> Result<()> {
    let current = [system(vm_dir, vm), work(vm_dir, vm)];
    let entries = match std::fs::read_dir(vm_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look into", vm_dir, &e)),
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let disk = ["system.", "work."].iter().any(|kind| name.starts_with(kind))
            && [".ext4", ".ext4.new"].iter().any(|end| name.ends_with(end));
        if disk && !current.contains(&path) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// A disk that a start makes if it is not there, and unmakes when the start fails. The work runs on a thread that a
/// cancelled start leaves behind; what it does after that, it does not.
#[derive(Debug, Clone, Default)]
pub(super) struct Making {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    made: bool,
    abandoned: bool,
}

impl Making {
    /// Sees to it that the disk is there and has its size.
    pub(super) async fn make(&self, path: PathBuf, size: Bytes, purpose: DiskUse) -> Result<()> {
        let state = self.state.clone();
        blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.abandoned {
                return Err(crate::op::cancelled());
            }
            if path.exists() {
                // It may have been given more room while it was off. One that is larger than it should be stays so.
                let now = std::fs::metadata(&path).map_err(|e| failed("look at", &path, &e))?.len();
                if now < size.0 {
                    VmDisk::extend(&path, size, purpose)?;
                }
                return Ok(());
            }
            if let Some(dir) = path.parent() {
                make_dir(dir)?;
            }
            // Made beside its name, so that a half-made disk is never taken for a whole one.
            let next = half(&path);
            remove_file(&next)?;
            VmDisk::create(&next, size, purpose)?;
            std::fs::rename(&next, &path).map_err(|e| failed("name", &path, &e))?;
            state.made = true;
            Ok(())
        })
        .await
    }

    /// Sees to it that the disk is there, with the content of a snapshot's.
    pub(super) async fn copy(&self, from: PathBuf, path: PathBuf) -> Result<()> {
        let state = self.state.clone();
        blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.abandoned {
                return Err(crate::op::cancelled());
            }
            if let Some(dir) = path.parent() {
                make_dir(dir)?;
            }
            let next = half(&path);
            remove_file(&next)?;
            sparse::copy(&from, &next)?;
            std::fs::rename(&next, &path).map_err(|e| failed("name", &path, &e))?;
            state.made = true;
            Ok(())
        })
        .await
    }

    /// Removes what was made, and what was half made.
    pub(super) async fn undo(&self, path: PathBuf) -> Result<()> {
        let state = self.state.clone();
        blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.abandoned = true;
            remove_file(&half(&path))?;
            if std::mem::take(&mut state.made) { remove_file(&path) } else { Ok(()) }
        })
        .await
    }
}

fn half(path: &Path) -> PathBuf {
    path.with_extension("ext4.new")
}
