//! Workspaces: the developer's repository into a guest over the agent channel, and the guest's
//! change out. Git and every check of what a guest says are the workspace crate's; this joins its
//! synchronous streams to the channel, and records what went in.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use banger_channel::{ChannelError, Session};
use banger_model::{Error, ErrorCode, GuestPath, Result, Vm, VmId, Workspace};
use banger_protocol::agent::{Reply, Request, ScanSpec, UnpackSpec};
use banger_protocol::api::{ExportRequest, ExportSummary, PreparePlan, PrepareRequest};
use banger_store::Store;
use banger_workspace::capture::{self, Capture};
use banger_workspace::export::{Export, Limits};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::artifacts::blocking;
use crate::op::{Op, cancelled};

/// The service.
#[derive(Debug)]
pub(crate) struct Workspaces {
    store: Arc<Store>,
    scratch: PathBuf,
}

/// A repository, packed and ready to be sent. Its scratch directory goes with it.
#[derive(Debug)]
pub(crate) struct Packed {
    capture: Capture,
    _scratch: TempDir,
}

/// A patch, and what is in it. Its scratch directory goes with it.
#[derive(Debug)]
pub(crate) struct Patch {
    /// What changed.
    pub summary: ExportSummary,
    /// The patch's file.
    pub path: PathBuf,
    _scratch: TempDir,
}

impl Workspaces {
    /// The service; `scratch` is private and on the state directory's file system.
    #[must_use]
    pub(crate) fn new(store: Arc<Store>, scratch: PathBuf) -> Self {
        Self { store, scratch }
    }

    /// What a prepare would copy.
    ///
    /// # Errors
    /// Whatever is wrong with the repository or the request.
    pub(crate) async fn preflight(&self, request: &PrepareRequest) -> Result<PreparePlan> {
        let request = request.clone();
        blocking(move || Ok(capture::plan(&request)?)).await
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
            let capture = Capture::open(&request, scratch.path())?;
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
        let token = op.cancel_token().clone();
        let write = blocking(move || {
            let mut bridge = SyncIoBridge::new(writer);
            let captured = packed.capture.write_tar(&mut bridge, &|| token.is_cancelled())?;
            bridge.shutdown().map_err(|e| Error::new(ErrorCode::GuestFailed, e.to_string()))?;
            Ok((captured, packed))
        });
        let (written, answer) = tokio::join!(write, receiver.reader().reply());
        op.check()?;
        // When the guest refused, the broken writer is only the consequence.
        match answer {
            Err(refused @ ChannelError::Guest { .. }) => return Err(refused.into()),
            Err(broken) => return Err(written.err().unwrap_or_else(|| broken.into())),
            Ok(_) => {}
        }
        let (captured, _packed) = written?;
        let workspace = Workspace {
            guest_path: captured.plan.guest_path.clone(),
            source_path: captured.plan.source_path.clone(),
            base_commit: captured.base_commit.clone(),
            branch: captured.branch.clone(),
            mode: captured.plan.mode,
            prepared_at: jiff::Timestamp::now(),
        };
        self.store.modify_vm(id, |vm| vm.workspace = Some(workspace))?;
        Ok(captured.plan)
    }

    /// What the guest did, as a patch against the recorded base or the one asked for.
    ///
    /// # Errors
    /// `invalid_argument` when the VM has no workspace; anything in the guest's answer that is not
    /// let through; `cancelled`.
    pub(crate) async fn export(
        &self,
        op: &Op,
        vm: &Vm,
        agent: &Session,
        request: ExportRequest,
    ) -> Result<Patch> {
        let Some(workspace) = &vm.workspace else {
            return Err(Error::invalid(format!("VM '{}' has no workspace", vm.name)).with_hint(format!(
                "copy a repository in first: 'banger vm workspace prepare {} PATH'",
                vm.name
            )));
        };
        let scratch = self.scratch(op)?;
        let base = request.base.unwrap_or_else(|| workspace.base_commit.clone());
        let export = open_export(workspace, base, scratch.path()).await?;
        let root: GuestPath = request.guest_path.unwrap_or_else(|| workspace.guest_path.clone());
        let limits = Limits {
            max_bytes: request.max_bytes.unwrap_or(Limits::default().max_bytes),
            ..Limits::default()
        };
        op.stage("scan", format!("comparing {root} with {}", export.base()), None);
        let scan = ScanSpec {
            root: root.as_str().into(),
            object_format: export.object_format().to_owned(),
            max_bytes: limits.max_bytes,
        };
        let (sender, receiver) = agent.open(&Request::Scan(scan)).await?;
        let mut writer = Cancellable::new(sender.writer(), op.cancel_token());
        let reader = Cancellable::new(receiver.reader(), op.cancel_token());
        let listing = export.base_listing()?;
        let send = async {
            let fed = blocking(move || {
                let (mut listing, mut bridge) = (listing, SyncIoBridge::new(&mut writer));
                std::io::copy(&mut listing, &mut bridge).map_err(|e| stream_error(&e))?;
                Ok(writer)
            })
            .await;
            match fed {
                Ok(mut writer) => writer.shutdown().await.map_err(|e| stream_error(&e)),
                Err(error) => Err(error),
            }
        };
        let receive = blocking(move || {
            let mut bridge = SyncIoBridge::new(reader);
            let exported = export.receive(&mut bridge, &limits);
            Ok((exported, bridge.into_inner().inner))
        });
        let (sent, received) = tokio::join!(send, receive);
        op.check()?;
        let (exported, reader) = received?;
        let exported = match exported {
            Ok(exported) => exported,
            // A guest that says why it stopped knows better than the reader it stopped.
            Err(error) => {
                let reply = tokio::time::timeout(std::time::Duration::from_secs(1), reader.reply()).await;
                return Err(match reply {
                    Ok(Err(refused @ ChannelError::Guest { .. })) => refused.into(),
                    _ => error.into(),
                });
            }
        };
        sent?;
        match reader.reply().await? {
            Reply::Scanned(_) => {}
            _ => {
                return Err(Error::new(
                    ErrorCode::GuestFailed,
                    "the agent answered a scan with something else",
                ));
            }
        }
        Ok(Patch { summary: exported.summary, path: exported.patch, _scratch: scratch })
    }

    fn scratch(&self, op: &Op) -> Result<TempDir> {
        tempfile::Builder::new().prefix(&format!("{}-", op.id())).tempdir_in(&self.scratch).map_err(|e| {
            Error::unavailable(format!("no scratch directory can be made in {}: {e}", self.scratch.display()))
        })
    }
}

async fn open_export(workspace: &Workspace, base: String, scratch: &Path) -> Result<Export> {
    let source = PathBuf::from(workspace.source_path.as_os_str());
    let scratch = scratch.to_owned();
    blocking(move || Ok(Export::new(&source, &base, &scratch)?)).await
}

fn stream_error(error: &std::io::Error) -> Error {
    Error::new(ErrorCode::GuestFailed, format!("the stream to the guest broke: {error}"))
}

/// A reader or writer that fails as soon as its operation is cancelled, so that a thread that
/// waits on a silent guest is let go.
struct Cancellable<T> {
    inner: T,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Cancellable<T> {
    fn new(inner: T, token: &CancellationToken) -> Self {
        Self { inner, cancelled: Box::pin(token.clone().cancelled_owned()) }
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(std::io::Error::other(cancelled())),
            Poll::Pending => Ok(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cancellable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_cancelled(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cancellable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_cancelled(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
