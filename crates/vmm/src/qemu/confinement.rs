//! What QEMU may have of the host: its firmware, the guest's kernel and disks, and one console file. Its sockets are
//! descriptors that it is given.

use std::path::{Path, PathBuf};

use banger_model::Accel;

use crate::process::mark;
use crate::{MachineSpec, Policy};

/// Where QEMU looks for firmware and modules, from the directory that its program is in (`qemu-system-x86_64 -L help`).
const OWN: &[&str] = &[
    "../share/qemu",
    "../share/seabios",
    "../lib/ipxe/qemu",
    "../lib/x86_64-linux-gnu/qemu",
    "../lib64/qemu",
    "../lib/qemu",
    "pc-bios",
    "qemu-bundle",
];

/// The policy for one machine.
#[must_use]
pub fn policy(program: &Path, spec: &MachineSpec, console: &Path) -> Policy {
    let mut policy = Policy::nothing(mark(&spec.id));
    policy.read.extend([spec.kernel.clone(), spec.initramfs.clone()]);
    for disk in &spec.disks {
        let list = if disk.read_only { &mut policy.read } else { &mut policy.write };
        list.push(disk.path.clone());
    }
    policy.write.push(console.to_owned());
    let bin = program.parent().unwrap_or(Path::new("/"));
    policy.read.extend(OWN.iter().map(|dir| bin.join(dir)));
    if spec.accel == Accel::Kvm {
        policy.devices.push(PathBuf::from("/dev/kvm"));
    }
    policy
}
