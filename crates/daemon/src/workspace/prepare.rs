//! The parts of a copy into a guest: packed (beside a boot, for a new VM), sent, recorded. Must never record what did not
//! arrive whole.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use banger_channel::{ChannelError, Session};
use banger_model::{ByteString, Copying, Error, ErrorCode, GuestPath, Result, VmId, Workspace};
use banger_protocol::agent::{CopyIn, Request};
use banger_protocol::api::{PreparePlan, PrepareRequest, Prepared};
use banger_workspace::Cancel;
use banger_workspace::capture::{self, Capture, Captured, Changes, Manifest, Options};
use tempfile::TempDir;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::{Cancellable, Pulse, STILL, Workspaces, stands_still};
use crate::artifacts::blocking;
use crate::op::{Op, cancelled};

/// How long a guest may take to say why it stopped reading.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    changes: Option<Changes>,
    _scratch: TempDir,
}

/// How a copy comes to what is there.
#[derive(Debug)]
pub(super) enum How {
    /// As a new one; an earlier copy may be replaced.
    Anew { replace: bool },
    /// Into the one that is there, from which these paths go first.
    Update {
        /// Before anything is written.
        remove: Vec<ByteString>,
        /// Indexes that stay the guest's, by number.
        keep: Vec<usize>,
    },
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
        let sent = self.send(op, id, agent, first.0, How::Anew { replace: false }).await?;
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
            let options = Options { cancel, base: base.as_ref(), resend_history, name: op.id().as_str() };
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
    pub(super) async fn send(
        &self,
        op: &Op,
        id: &VmId,
        agent: &Session,
        packed: Packed,
        how: How,
    ) -> Result<Sent> {
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
            How::Update { remove, .. } => {
                remove.iter().for_each(|path| list.extend([path.as_bytes(), &[0]].concat()));
                (true, false)
            }
        };
        let (root, readonly) = (plan.guest_path.as_str().into(), packed.readonly);
        let spec = CopyIn { root, update, replace, remove_bytes: list.len() as u64, readonly };
        let (sender, receiver) = agent.open(&Request::CopyIn(spec)).await?;
        let (silent, pulse) = (op.cancel_token().child_token(), Pulse::new());
        let writer = Cancellable::new(sender.writer(), &silent).watched(&pulse, 0);
        let pending = self.pending(id);
        let write = blocking(move || {
            let mut bridge = SyncIoBridge::new(writer);
            let Packed { capture, scratch, .. } = packed;
            let broken = |e: std::io::Error| Error::new(ErrorCode::GuestFailed, e.to_string());
            bridge.write_all(&list).map_err(broken)?;
            let mut captured = capture.write_tar(&mut bridge)?;
            // Before the guest can have all of it: whoever comes after this daemon finds out which copy is there.
            captured.manifest = captured.manifest.keep(&pending)?;
            bridge.shutdown().map_err(broken)?;
            Ok((captured, scratch))
        });
        let (written, answer) = both(op, write, receiver.reader().reply(), (&pulse, &silent, STILL)).await;
        op.check()?;
        // When the guest refused, the broken writer is only the consequence.
        match answer {
            Some(Err(refused @ ChannelError::Guest { .. })) => return Err(hinted(refused.into())),
            Some(Err(broken)) => return Err(written.err().unwrap_or_else(|| broken.into())),
            Some(Ok(_)) | None => {}
        }
        let (captured, scratch) = written?;
        Ok(Sent { captured, readonly, changes, _scratch: scratch })
    }

    /// Records what was sent: from now on it is the VM's workspace.
    ///
    /// # Errors
    /// A failing disk.
    pub(super) async fn record(&self, id: &VmId, sent: Sent) -> Result<Prepared> {
        let Sent { captured, readonly, changes, _scratch } = sent;
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
        let manifest = self.manifest(id);
        let plan = blocking(move || {
            captured.manifest.keep(&manifest)?;
            Ok(captured.plan)
        })
        .await?;
        self.store.modify_vm(id, |vm| vm.workspace = Some(workspace))?;
        // A file that stays would say what is true: that copy may be replaced by its like.
        let _ = std::fs::remove_file(self.begun(id));
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

    /// Writes down that a copy is under way, so that half of one is never taken for a workspace: a new one by its place
    /// in a file, and what is in the record hides when it is that which changes.
    pub(super) async fn mark(&self, id: &VmId, plan: &PreparePlan, copying: Copying) -> Result<()> {
        if copying == Copying::Anew {
            let (file, place) = (self.begun(id), plan.guest_path.to_string());
            blocking(move || {
                let written = File::create(&file).and_then(|mut out| {
                    out.write_all(place.as_bytes())?;
                    out.sync_data()
                });
                written.map_err(|e| Error::unavailable(format!("cannot write {}: {e}", file.display())))
            })
            .await?;
        }
        self.store.modify_vm(id, |vm| {
            if let Some(there) = vm.workspace.as_mut().filter(|w| w.guest_path == plan.guest_path) {
                there.unfinished = Some(copying);
            }
        })?;
        Ok(())
    }

    /// Whether a new copy was begun at this place and is not known to be whole.
    pub(super) fn was_begun(&self, id: &VmId, place: &GuestPath) -> bool {
        std::fs::read(self.begun(id)).is_ok_and(|there| there == place.as_str().as_bytes())
    }

    /// Says of the workspace in the record, if there is one, how far it is.
    pub(super) fn restore(&self, id: &VmId, before: Option<Workspace>) -> Result<()> {
        self.store.modify_vm(id, |vm| vm.workspace = before)?;
        Ok(())
    }
}

/// The end of a writer and the answer. A guest that waits for what will not come is left to itself, which resets its
/// stream, and so is one that neither takes nor says anything for too long.
async fn both<W, A>(
    op: &Op,
    write: impl Future<Output = Result<W>>,
    answer: impl Future<Output = A>,
    (pulse, silent, silence): (&Pulse, &CancellationToken, Duration),
) -> (Result<W>, Option<A>) {
    let (mut write, mut answer) = (std::pin::pin!(write), std::pin::pin!(answer));
    let mut early = None;
    let written = loop {
        tokio::select! {
            answer = &mut answer, if early.is_none() => early = Some(answer),
            written = &mut write => break written,
            () = pulse.stops(silence) => {
                silent.cancel();
                let _ = write.await;
                break Err(stands_still(silence));
            }
        }
    };
    if early.is_some() {
        return (written, early);
    }
    let patience = async {
        match &written {
            Ok(_) => tokio::select! {
                () = op.cancel_token().cancelled() => cancelled(),
                () = tokio::time::sleep(silence) => stands_still(silence),
            },
            Err(_) => {
                tokio::time::sleep(LAST_WORDS).await;
                cancelled()
            }
        }
    };
    tokio::select! {
        answer = answer => (written, Some(answer)),
        why = patience => (written.and_then(|_| Err(why)), None),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_neither_takes_nor_says_anything_is_given_up() {
        let (op, limit) = (Op::alone(None), Duration::from_secs(60));
        let never = std::future::pending::<()>;
        // Given one that stops reading in the middle.
        let (ours, _theirs) = tokio::io::duplex(64);
        let (silent, pulse) = (op.cancel_token().child_token(), Pulse::new());
        let mut writer = Cancellable::new(ours, &silent).watched(&pulse, 0);
        let write = async { writer.write_all(&[0; 100]).await.map_err(|e| Error::internal(e.to_string())) };
        let (written, answer) = both(&op, write, never(), (&pulse, &silent, limit)).await;
        assert!(written.unwrap_err().code == ErrorCode::Timeout && answer.is_none());
        // One that has read all and does not answer.
        let (silent, pulse) = (op.cancel_token().child_token(), Pulse::new());
        let read = async { Ok(()) };
        let (written, answer) = both(&op, read, never(), (&pulse, &silent, limit)).await;
        assert!(written.unwrap_err().code == ErrorCode::Timeout && answer.is_none());
        // One that answers late, while the host has its time.
        let slow = async {
            tokio::time::sleep(limit * 10).await;
            Ok(())
        };
        let late = tokio::time::sleep(limit * 10 + limit / 2);
        let (written, answer) = both(&op, slow, late, (&pulse, &silent, limit)).await;
        assert!(written.is_ok() && answer.is_some());
    }
}
