//! In: a repository with the developer's exact state as one tar stream.

use std::io::Write;
use std::path::Path;

use banger_protocol::api::{PreparePlan, PrepareRequest};
use serde::{Deserialize, Serialize};

use crate::Result;

/// What a capture would hold; changes nothing and needs no VM.
///
/// # Errors
/// As [`Capture::open`].
pub fn plan(request: &PrepareRequest) -> Result<PreparePlan> {
    let _ = request;
    Err(crate::WorkspaceError::Cancelled)
}

/// A repository, inspected and packed, ready to be streamed.
#[derive(Debug)]
pub struct Capture {
    plan: PreparePlan,
}

/// What was captured: kept with the VM, for export and for telling whether the host has moved on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Files, bytes, mode and depth as they were sent.
    pub plan: PreparePlan,
    /// The commit that an export diffs against; the empty tree's id when there was no commit.
    pub base_commit: String,
    /// The branch checked out in the guest; none when HEAD is detached.
    pub branch: Option<String>,
    /// The hash of object ids: `sha1` or `sha256`.
    pub object_format: String,
    /// Whether uncommitted changes went along; not so with a starting point other than HEAD.
    pub overlay: bool,
}

impl Capture {
    /// Inspects the repository and makes, in `scratch` (an empty private directory that must live
    /// as long as this), the pack of its history and a copy of its index. The repository itself
    /// is only read.
    ///
    /// With `branch` the guest has a new branch of that name at `from` (HEAD when absent). Changes
    /// that are not committed go along only when that is the commit HEAD names.
    ///
    /// # Errors
    /// No such path, no repository, bare, submodules, an unknown revision, a mode that is not
    /// supported yet, or git's own failure.
    pub fn open(request: &PrepareRequest, scratch: &Path) -> Result<Self> {
        let _ = scratch;
        Ok(Self { plan: plan(request)? })
    }

    /// What [`Self::write_tar`] will send.
    #[must_use]
    pub fn plan(&self) -> &PreparePlan {
        &self.plan
    }

    /// Writes the tar stream that, unpacked into an empty directory, is the repository. Memory
    /// does not grow with the size of files. `cancelled` is asked between chunks.
    ///
    /// # Errors
    /// A file that changed, vanished or cannot be read; a writer that broke; cancellation. Then
    /// the stream has no end marker and what was unpacked must be thrown away.
    pub fn write_tar(&self, out: impl Write, cancelled: &dyn Fn() -> bool) -> Result<Captured> {
        let (_, _) = (out, cancelled);
        Err(crate::WorkspaceError::Cancelled)
    }
}
