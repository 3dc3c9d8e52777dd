//! Whether KVM truly works here: decided by running code in a tiny VM, because a /dev/kvm that
//! opens can be an emulation that no stock kernel survives. The answer is kept per boot.

mod cache;
mod guest;
mod status;
mod trial;

pub use status::KvmStatus;

use std::path::Path;

use rustix::fs::{Access, OFlags};
use rustix::io::Errno;

/// Asks the host. Takes at most some 200 ms, less than 20 ms where KVM works or is absent.
#[must_use]
pub fn probe() -> KvmStatus {
    let device = Path::new("/dev/kvm");
    match rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty()) {
        Ok(_) => trial::run(),
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => KvmStatus::NoModule,
        Err(Errno::ACCESS | Errno::PERM) => KvmStatus::NoPermission { group: status::group_of(device) },
        Err(error) => KvmStatus::Emulated { detail: format!("/dev/kvm cannot be opened: {error}") },
    }
}

/// Asks the host once per boot and user: the answer is kept in `cache` (a file that may be deleted
/// at any time). Whether the device can be opened is looked at every time, since that changes when
/// a user joins a group or a module is loaded.
#[must_use]
pub fn probe_cached(cache: &Path) -> KvmStatus {
    let reachable = rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok();
    if reachable && let Some(status) = cache::read(cache) {
        return status;
    }
    let status = probe();
    if matches!(status, KvmStatus::Works | KvmStatus::Emulated { .. }) {
        cache::write(cache, &status);
    }
    status
}
