//! A repository into a guest: packed beside the boot, sent, recorded. Must never record what did
//! not arrive whole.

use std::time::SystemTime;

use banger_channel::{ChannelError, Session};
use banger_model::{Error, ErrorCode, Result, VmId, Workspace};
use banger_protocol::agent::{Request, UnpackSpec};
use banger_protocol::api::{PreparePlan, PrepareRequest};
use banger_workspace::apply::Copied;
use banger_workspace::Cancel;
use banger_workspace::capture::{self, Capture, Options};
use tempfile::TempDir;
use tokio_util::io::SyncIoBridge;

use super::{Cancellable, Workspaces};
use crate::artifacts::blocking;
use crate::op::Op;

/// A repository, packed and ready to be sent. Its scratch directory goes with it.
#[derive(Debug)]
pub(crate) struct Packed {
    capture: Capture,
    _scratch: TempDir,
}

impl Workspaces {
    /// What a prepare would copy.
    ///
    /// # Errors
    /// Whatever is wrong with the repository or the request.
    pub(crate) async fn preflight(&self, request: &PrepareRequest) -> Result<PreparePlan> {
        let request = request.clone();
        blocking(move || Ok(capture::plan(&request, &Cancel::never())?)).await
    }

    /// Packs a repository while something else (a boot) goes on; both are always finished.
    ///
    /// # Errors
    /// The other work's error first, else the packing's.
    pub(crate) async fn capture_while<T>(
        &self,
        op: &Op,
        request: Option<&PrepareRequest>,
        other: impl Future<Output = Result<T>>,
    ) -> Result<(T, Option<Packed>)> {
        let pack = async {
            match request {
                Some(request) => self.pack(op, request).await.map(Some),
                None => Ok(None),
            }
        };
        let (other, packed) = tokio::join!(other, pack);
        Ok((other?, packed?))
    }

    /// Packs a repository.
    ///
    /// # Errors
    /// Whatever is wrong with it; `cancelled`.
    pub(crate) async fn pack(&self, op: &Op, request: &PrepareRequest) -> Result<Packed> {
        let (request, scratch, op) = (request.clone(), self.scratch(op)?, op.clone());
        blocking(move || {
            op.check()?;
            let token = op.cancel_token().clone();
            let options = Options { cancel: Cancel::new(move || token.is_cancelled()), ..Options::default() };
            let capture = Capture::open(&request, scratch.path(), &options)?;
            Ok(Packed { capture, _scratch: scratch })
        })
        .await
    }

    /// Sends a packed repository into a guest and records it with the VM.
    ///
    /// # Errors
    /// `invalid_argument` when the guest path is not empty; a file that changed meanwhile; a guest
    /// that ran out of disk; `cancelled`.
    pub(crate) async fn send(
        &self,
        op: &Op,
        id: &VmId,
        agent: &Session,
        packed: Packed,
    ) -> Result<PreparePlan> {
        let plan = packed.capture.plan().clone();
        let (files, bytes) = (plan.files.len(), banger_model::Bytes(plan.bytes));
        op.stage("workspace", format!("copying {files} files ({bytes}) to {}", plan.guest_path), None);
        let unpack = UnpackSpec { dest: plan.guest_path.as_str().into(), must_be_empty: true };
        let (sender, receiver) = agent.open(&Request::Unpack(unpack)).await?;
        let writer = Cancellable::new(sender.writer(), op.cancel_token());
        let began = SystemTime::now();
        let write = blocking(move || {
            let mut bridge = SyncIoBridge::new(writer);
            let Packed { capture, _scratch: scratch } = packed;
            let captured = capture.write_tar(&mut bridge)?;
            bridge.shutdown().map_err(|e| Error::new(ErrorCode::GuestFailed, e.to_string()))?;
            Ok((captured, scratch))
        });
        let (written, answer) = tokio::join!(write, receiver.reader().reply());
        op.check()?;
        // When the guest refused, the broken writer is only the consequence.
        match answer {
            Err(refused @ ChannelError::Guest { .. }) => return Err(refused.into()),
            Err(broken) => return Err(written.err().unwrap_or_else(|| broken.into())),
            Ok(_) => {}
        }
        let (captured, _scratch) = written?;
        let workspace = Workspace {
            guest_path: captured.plan.guest_path.clone(),
            source_path: captured.plan.source_path.clone(),
            base_commit: captured.base_commit.clone(),
            branch: captured.branch.clone(),
            mode: captured.plan.mode,
            prepared_at: jiff::Timestamp::now(),
        };
        let (copied, file) = (Copied::of(&captured, began), self.copied(id));
        blocking(move || Ok(copied.save(&file)?)).await?;
        self.store.modify_vm(id, |vm| vm.workspace = Some(workspace))?;
        Ok(captured.plan)
    }
}
