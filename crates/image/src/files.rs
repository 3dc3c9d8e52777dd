//! The store of root file systems: content-addressed squashfs files, written once, never modified.
//! Must never know names; names and references live in the database.

use std::path::{Path, PathBuf};

use banger_model::{Bytes, RootFsType, Sha256};

use crate::context::Context;
use crate::error::{ImageError, Result};

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildSpec {
    /// The Debian release, such as `trixie`; [`DEFAULT_RELEASE`] when absent.
    pub release: Option<String>,
    /// Packages besides the default ones.
    pub include: Vec<String>,
    /// Leave out the default development packages: only systemd and what it needs.
    pub minimal: bool,
}

/// The release built when none is asked for.
pub const DEFAULT_RELEASE: &str = "bookworm";

/// A root file system that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// Digest of the file, and its address.
    pub digest: Sha256,
    /// The file's size.
    pub size: Bytes,
    /// Its format.
    pub fs: RootFsType,
    /// What it was made from, for people.
    pub description: String,
}

/// The image files below one state directory.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    images: PathBuf,
    scratch: PathBuf,
}

impl ImageFiles {
    /// The store in `images_dir`; `scratch_dir` must be on the same file system. Both are created (0700) when needed.
    #[must_use]
    pub fn new(images_dir: impl Into<PathBuf>, scratch_dir: impl Into<PathBuf>) -> Self {
        Self { images: images_dir.into(), scratch: scratch_dir.into() }
    }

    /// Builds a Debian root file system.
    ///
    /// # Errors
    /// `invalid_argument` for bad or unknown names, `unavailable` when the host lacks something, `cancelled`.
    pub fn build(&self, _spec: &BuildSpec, _ctx: &Context<'_>) -> Result<BuiltImage> {
        Err(ImageError::ToolMissing { tool: "mmdebstrap", package: "mmdebstrap" })
    }

    /// Takes in a directory, a tar archive (plain, gzip, zstd, xz) or a squashfs file at the absolute `path`.
    ///
    /// # Errors
    /// `invalid_argument` when it is none of these, empty or damaged; `cancelled`.
    pub fn import(&self, path: &Path, _ctx: &Context<'_>) -> Result<BuiltImage> {
        Err(ImageError::bad_source(path, "not yet"))
    }

    /// The file of `digest`.
    ///
    /// # Errors
    /// `image_missing` when it is not there.
    pub fn path(&self, digest: &Sha256) -> Result<PathBuf> {
        let path = self.images.join(format!("{digest}.sqfs"));
        if path.is_file() {
            Ok(path)
        } else {
            Err(ImageError::Missing { digest: digest.clone(), dir: self.images.clone() })
        }
    }

    /// Deletes the file of `digest`; that it is gone already is no error.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove(&self, _digest: &Sha256) -> Result<()> {
        Ok(())
    }

    /// The digests of all files that are not in `referenced`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list_unreferenced(&self, _referenced: &[Sha256]) -> Result<Vec<Sha256>> {
        Ok(Vec::new())
    }

    /// Reads the whole file of `digest` and checks that it is what its name says.
    ///
    /// # Errors
    /// `image_missing`, or `internal` when it is damaged.
    pub fn verify(&self, _digest: &Sha256) -> Result<()> {
        Ok(())
    }

    /// Removes what builds and imports left behind that were killed, here and in the system's temporary directory.
    /// Returns how many leftovers went. Call it when the daemon starts, before any job.
    ///
    /// # Errors
    /// When a leftover cannot be removed.
    pub fn sweep(&self) -> Result<usize> {
        let _ = &self.scratch;
        Ok(0)
    }
}
