//! The store of kernels: one directory each, written in scratch and renamed into place, so that a reader sees
//! a whole kernel or none. Must never modify a kernel in place, but for the initramfs cache beside it.

mod debian;
mod error;
mod index;
mod modules;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod tool;
mod version;

use std::path::PathBuf;

pub use error::KernelError;
pub use store::KernelStore;

/// The kernel used when none is asked for.
pub const DEFAULT_KERNEL: &str = "debian-cloud";

/// A kernel that `pull` knows how to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name.
    pub name: &'static str,
    /// What it is, for people.
    pub description: &'static str,
}

/// All that a VM needs to boot a kernel; the files stay valid while the kernel is not deleted or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The bootable kernel: a bzImage, or an uncompressed ELF.
    pub kernel: PathBuf,
    /// Agent and modules.
    pub initramfs: PathBuf,
    /// squashfs with the content of `/lib/modules`; a virtio-blk disk for the guest. None: all is built in.
    pub modules: Option<PathBuf>,
    /// `uname -r`.
    pub release: String,
    /// Equal only for the same kernel with the same modules; of the agent the initramfs' name tells.
    pub identity: String,
}
