//! The working directory of a machine's Firecracker: the VM's runtime directory, with links to its
//! files under names that are the same for every VM. Must never name anything outside it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::cage::Tap;
use crate::driver::Words;
use crate::process::mark;
use crate::snapshot::Files;
use crate::sockets::Cleanup;
use crate::{Disk, MachineSpec, Policy, Result, VmmError};

/// Names in the directory.
pub(super) const API: &str = "api.sock";
pub(super) const VSOCK: &str = "vsock.sock";
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const LOG: &str = "vmm.log";
pub(super) const METRICS: &str = "metrics.log";

/// What network devices are opened by.
pub(super) const TUN: &str = "/dev/net/tun";

/// The name of a disk.
pub(super) fn disk(disk: &Disk) -> String {
    format!("disk-{}", disk.role.serial())
}

/// Makes the links, replacing those of an earlier run; sockets of that run go. On drop all goes.
pub(super) fn furnish(spec: &MachineSpec, kernel: &Path, words: &Words) -> Result<Cleanup> {
    let dir = &spec.runtime_dir;
    let mut made = Cleanup::of(&[&dir.join(API), &dir.join(VSOCK)]);
    for name in [API, VSOCK] {
        remove(&dir.join(name))?;
    }
    let disks = spec.disks.iter().map(|d| (disk(d), d.path.clone()));
    match rustix::fs::mkdir(room(words), Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(VmmError::file("make", &room(words))(e.into())),
    }
    clear_room(words);
    let fixed = [
        (KERNEL, kernel.to_owned()),
        (INITRAMFS, spec.initramfs.clone()),
        (LOG, words.log()),
        (METRICS, words.metrics()),
    ];
    for (name, target) in fixed.into_iter().map(|(name, path)| (name.to_owned(), path)).chain(disks) {
        let link = dir.join(name);
        remove(&link)?;
        let target = std::path::absolute(&target).map_err(VmmError::file("find", &target))?;
        symlink(&target, &link).map_err(VmmError::file("make the link", &link))?;
        made.add(link);
    }
    Ok(made)
}

fn remove(path: &PathBuf) -> Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(VmmError::file("remove", path)(e.into())),
    }
}

/// Where it writes its snapshots, from where they are taken away at once: the runtime directory may be in memory.
pub(super) fn room(words: &Words) -> PathBuf {
    words.dir.join("room")
}

/// The memory and the state that it writes there.
pub(super) fn snapshot(words: &Words) -> [PathBuf; 2] {
    ["memory", "state"].map(|name| room(words).join(name))
}

/// Removes what lies there.
pub(super) fn clear_room(words: &Words) {
    drop(Cleanup::of(&snapshot(words).each_ref().map(PathBuf::as_path)));
}

/// What of the host this machine's Firecracker may have.
pub(super) fn policy(
    spec: &MachineSpec,
    kernel: &Path,
    words: &Words,
    snapshot: Option<&Files>,
    tap: Option<Tap>,
) -> Result<Policy> {
    let mut policy = Policy::nothing(mark(&spec.id));
    policy.read.extend([kernel.to_owned(), spec.initramfs.clone()]);
    for disk in &spec.disks {
        let list = if disk.read_only { &mut policy.read } else { &mut policy.write };
        list.push(disk.path.clone());
    }
    policy.write.extend([words.log(), words.metrics()]);
    if let Some(files) = snapshot {
        policy.read.extend([files.memory.clone(), files.state.clone()]);
    }
    policy.rooms.push(spec.runtime_dir.clone());
    policy.rooms.push(room(words));
    policy.devices.push(PathBuf::from("/dev/kvm"));
    if tap.is_some() {
        policy.devices.push(PathBuf::from(TUN));
    }
    policy.tap = tap;
    for list in [&mut policy.read, &mut policy.write, &mut policy.rooms] {
        for path in list {
            *path = std::path::absolute(&*path).map_err(VmmError::file("find", path))?;
        }
    }
    Ok(policy)
}

/// Locks on the disks that the guest may write to, for the VMM to hold as long as it lives:
/// Firecracker itself takes none, and two machines on one disk destroy it.
pub(super) fn lock_disks(spec: &MachineSpec) -> Result<Vec<OwnedFd>> {
    let writable = spec.disks.iter().filter(|disk| !disk.read_only);
    writable
        .map(|disk| {
            let file = File::open(&disk.path).map_err(VmmError::file("open", &disk.path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(file.into()),
                Err(Errno::WOULDBLOCK) => {
                    Err(VmmError::DiskInUse { vm: spec.name.to_string(), path: disk.path.clone() })
                }
                Err(e) => Err(VmmError::file("lock", &disk.path)(e.into())),
            }
        })
        .collect()
}
