//! The parts of a copy into a guest: packed (beside a boot, for a new VM), sent, recorded. Must never record what did not
//! arrive whole.

use std::io::Write as _;
use std::time::SystemTime;

use banger_channel::{ChannelError, Session};
use banger_model::{ByteString, Copying, Error, ErrorCode, Result, VmId, Workspace};
use banger_protocol::agent::{CopyIn, Request};
use banger_protocol::api::{PreparePlan, PrepareRequest, Prepared};
use banger_workspace::Cancel;
use banger_workspace::apply::Copied;
use banger_workspace::capture::{self, Capture, Captured, Changes, Manifest, Options};
use tempfile::TempDir;
use tokio_util::io::SyncIoBridge;

use super::{Cancellable, Workspaces};
use crate::artifacts::blocking;
use crate::op::Op;

/// A repository, packed and ready to be sent. Its scratch directory goes with it.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) capture: Capture,
    pub(super) readonly: bool,
    scratch: TempDir,
}

/// What was sent, and is not recorded yet.
#[derive(Debug)]
pub(super) struct Sent {
    captured: Captured,
    readonly: bool,
    began: SystemTime,
    changes: Option<Changes>,
    _scratch: TempDir,
}

/// How a copy comes to what is there.
#[derive(Debug)]
pub(super) enum How {
    /// As a new one; an earlier copy may be replaced.
    Anew { replace: bool },
    /// Into the one that is there, from which these paths go first.
    Update { remove: Vec<ByteString> },
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
    ) -> Result<(T, Option<FirstCopy>)> {
        let pack = async {
            match request {
                Some(request) => self.pack(op, request, None, false).await.map(|p| Some(FirstCopy(p))),
                None => Ok(None),
            }
        };
        let (other, packed) = tokio::join!(other, pack);
        Ok((other?, packed?))
    }

    /// Copies what was packed into a VM that is being made.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::record`].
    pub(crate) async fn copy_first(
        &self,
        op: &Op,
        id: &VmId,
        agent: &Session,
        first: FirstCopy,
    ) -> Result<()> {
        let sent = self.send(op, agent, first.0, How::Anew { replace: false }).await?;
        self.record(id, sent).await.map(drop)
    }

    /// Packs a repository; with `base` only what is other than that.
    ///
    /// # Errors
    /// Whatever is wrong with it; `cancelled`.
    pub(super) async fn pack(
        &self,
        op: &Op,
        request: &PrepareRequest,
        base: Option<Manifest>,
        resend_history: bool,
    ) -> Result<Packed> {
        let (request, scratch, op) = (request.clone(), self.scratch(op)?, op.clone());
        op.stage("pack", "packing the repository", None);
        blocking(move || {
            op.check()?;
            let token = op.cancel_token().clone();
            let cancel = Cancel::new(move || token.is_cancelled());
            let options = Options { cancel, base: base.as_ref(), resend_history };
            let capture = Capture::open(&request, scratch.path(), &options)?;
            Ok(Packed { capture, readonly: request.readonly, scratch })
        })
        .await
    }

    /// Sends a packed repository into a guest.
    ///
    /// # Errors
    /// `already_exists` when there is something else; a file that changed meanwhile; `unavailable` when the guest's
    /// disk is full; `cancelled`.
    pub(super) async fn send(&self, op: &Op, agent: &Session, packed: Packed, how: How) -> Result<Sent> {
        let plan = packed.capture.plan();
        let changes = packed.capture.changes().cloned();
        let (files, bytes) = changes
            .as_ref()
            .map_or((plan.files.len(), plan.bytes), |changes| (changes.replaced.len(), changes.bytes));
        let bytes = banger_model::Bytes(bytes);
        op.stage("workspace", format!("copying {files} files ({bytes}) to {}", plan.guest_path), None);
        let mut list = Vec::new();
        let (update, replace) = match how {
            How::Anew { replace } => (false, replace),
            How::Update { remove } => {
                remove.iter().for_each(|path| list.extend([path.as_bytes(), &[0]].concat()));
                (true, false)
            }
        };
        let (root, readonly) = (plan.guest_path.as_str().into(), packed.readonly);
        let spec = CopyIn { root, update, replace, remove_bytes: list.len() as u64, readonly };
        let (sender, receiver) = agent.open(&Request::CopyIn(spec)).await?;
        let writer = Cancellable::new(sender.writer(), op.cancel_token());
        let began = SystemTime::now();
        let write = blocking(move || {
            let mut bridge = SyncIoBridge::new(writer);
            let Packed { capture, scratch, .. } = packed;
            let broken = |e: std::io::Error| Error::new(ErrorCode::GuestFailed, e.to_string());
            bridge.write_all(&list).map_err(broken)?;
            let captured = capture.write_tar(&mut bridge)?;
            bridge.shutdown().map_err(broken)?;
            Ok((captured, scratch))
        });
        let (written, answer) = tokio::join!(write, receiver.reader().reply());
        op.check()?;
        // When the guest refused, the broken writer is only the consequence.
        match answer {
            Err(refused @ ChannelError::Guest { .. }) => return Err(hinted(refused.into())),
            Err(broken) => return Err(written.err().unwrap_or_else(|| broken.into())),
            Ok(_) => {}
        }
        let (captured, scratch) = written?;
        Ok(Sent { captured, readonly, began, changes, _scratch: scratch })
    }

    /// Records what was sent: from now on it is the VM's workspace.
    ///
    /// # Errors
    /// A failing disk.
    pub(super) async fn record(&self, id: &VmId, sent: Sent) -> Result<Prepared> {
        let Sent { captured, readonly, began, changes, _scratch } = sent;
        let workspace = Workspace {
            guest_path: captured.plan.guest_path.clone(),
            source_path: captured.plan.source_path.clone(),
            base_commit: captured.base_commit.clone(),
            branch: captured.branch.clone(),
            mode: captured.plan.mode,
            prepared_at: jiff::Timestamp::now(),
            readonly,
            unfinished: None,
        };
        let (copied, manifest) = (self.copied(id), self.manifest(id));
        let plan = blocking(move || {
            Copied::of(&captured, began).save(&copied)?;
            captured.manifest.keep(&manifest)?;
            Ok(captured.plan)
        })
        .await?;
        self.store.modify_vm(id, |vm| vm.workspace = Some(workspace))?;
        Ok(match changes {
            None => Prepared {
                updated: false,
                sent: plan.files.len() as u64,
                sent_bytes: plan.bytes,
                removed: 0,
                plan,
            },
            Some(changes) => Prepared {
                updated: true,
                sent: changes.replaced.len() as u64,
                sent_bytes: changes.bytes,
                removed: changes.removed.len() as u64,
                plan,
            },
        })
    }

    /// Says in the record that a copy is under way, so that half of one is never taken for a workspace.
    pub(super) fn mark(&self, id: &VmId, plan: &PreparePlan, copying: Copying) -> Result<()> {
        let begun = Workspace {
            guest_path: plan.guest_path.clone(),
            source_path: plan.source_path.clone(),
            base_commit: plan.base_commit.clone(),
            branch: plan.branch.clone(),
            mode: plan.mode,
            prepared_at: jiff::Timestamp::now(),
            readonly: false,
            unfinished: Some(copying),
        };
        self.store.modify_vm(id, |vm| match (&mut vm.workspace, copying) {
            (Some(there), Copying::Update) => there.unfinished = Some(copying),
            (there, _) => *there = Some(begun),
        })?;
        Ok(())
    }

    /// Takes a mark back: nothing of the copy is in the guest.
    pub(super) fn unmark(&self, id: &VmId, before: Option<Workspace>) -> Result<()> {
        self.store.modify_vm(id, |vm| vm.workspace = before)?;
        Ok(())
    }
}

/// A copy for a VM that is being made.
#[derive(Debug)]
pub(crate) struct FirstCopy(Packed);

/// What to do about what the guest refused.
fn hinted(error: Error) -> Error {
    match error.code {
        ErrorCode::AlreadyExists => {
            error.with_hint("give another place with --guest-path; --force replaces an earlier copy and what was done in it")
        }
        ErrorCode::Unavailable => error.with_hint(
            "make room in the guest, or stop the VM and give it a larger disk: 'banger vm set NAME --disk-size SIZE'",
        ),
        _ => error,
    }
}
