//! Workspaces: the developer's repository into a guest over the agent channel, and the guest's
//! change out. Git and every check of what a guest says are the workspace crate's; this joins its
//! synchronous streams to the channel, and records what went in.

mod apply;
mod commits;
mod drift;
mod export;
mod incoming;
mod prepare;
#[cfg(test)]
mod silent;
mod stream;
mod update;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use banger_model::{Error, ErrorCode, Result, StateDir, VmId};
use banger_store::Store;
use tempfile::TempDir;

use crate::op::Op;

pub(crate) use self::apply::apply;
pub(crate) use self::incoming::{STEPS, prepare, refresh};
use self::stream::{Cancellable, Pulse, STILL, stands_still};

/// What of an export can be made to fail: the boot of a VM that is off, and the comparison.
pub(crate) const EXPORT_STEPS: [&str; 2] = ["boot", "scan"];
/// The same of an apply, beside the export that it begins with.
pub(crate) const APPLY_STEPS: [&str; 1] = ["write"];

/// The service.
#[derive(Debug)]
pub(crate) struct Workspaces {
    store: Arc<Store>,
    state: StateDir,
    /// VMs into which something is copied at the moment.
    copying: Mutex<HashSet<VmId>>,
}

impl Workspaces {
    /// The service.
    #[must_use]
    pub(crate) fn new(store: Arc<Store>, state: StateDir) -> Self {
        Self { store, state, copying: Mutex::default() }
    }

    fn scratch(&self, op: &Op) -> Result<TempDir> {
        let scratch = self.state.scratch();
        tempfile::Builder::new().prefix(&format!("{}-", op.id())).tempdir_in(&scratch).map_err(|e| {
            Error::unavailable(format!("no scratch directory can be made in {}: {e}", scratch.display()))
        })
    }

    /// Where a new copy was begun, in the VM's directory.
    fn begun(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.begun")
    }

    /// What the guest has if it got all of the last copy, in the VM's directory.
    fn pending(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.pending")
    }

    /// What the guest has ([`banger_workspace::capture::Manifest`]), in the VM's directory.
    fn manifest(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.manifest")
    }
}

fn stream_error(error: &std::io::Error) -> Error {
    Error::new(ErrorCode::GuestFailed, format!("the stream to the guest broke: {error}"))
}
