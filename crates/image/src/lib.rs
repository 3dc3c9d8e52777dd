//! Kernels, initramfs and root file systems: everything a VM boots from.
//!
//! Owns the files below `images/` and `kernels/` of a state directory, and makes VMs' disks. Plain
//! synchronous code. Must never keep names or references (the store does), nor start a VM.

mod archive;
mod build;
mod context;
mod entries;
mod error;
mod files;
mod initramfs;
mod job;
pub mod kernel;
mod space;
mod squash;
mod tree;
mod vm_disk;
mod workdir;

pub use build::BUILD_STAGES;
pub use context::{Context, Progress};
pub use error::ImageError;
pub use files::{BuildSpec, BuiltImage, DEFAULT_RELEASE, ImageFiles};
pub use vm_disk::{DiskUse, VmDisk};
