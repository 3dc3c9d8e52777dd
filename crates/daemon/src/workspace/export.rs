//! What a guest did, out of it as a patch. Must never let host git read what the guest wrote.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_channel::{ChannelError, Session};
use banger_model::{Error, ErrorCode, GuestPath, Result, Vm, Workspace};
use banger_protocol::agent::{Reply, Request, ScanSpec};
use banger_protocol::api::ExportRequest;
use banger_workspace::export::{Export, Exported, Limits};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_util::io::SyncIoBridge;

use super::{Cancellable, Workspaces, stream_error};
use crate::artifacts::blocking;
use crate::op::Op;

/// How long an agent that has sent its last record, or stopped before it, has to say how it went.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What the guest did, inspected. Its scratch directory goes with it.
#[derive(Debug)]
pub(crate) struct Patch {
    /// The change, and the patch's file.
    pub(crate) exported: Exported,
    /// Room for more of the guest's, until this is dropped.
    pub(super) scratch: TempDir,
}

impl Workspaces {
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
        let workspace = workspace_of(vm)?;
        let scratch = self.scratch(op)?;
        let base = request.base.unwrap_or_else(|| workspace.base_commit.clone());
        let export = open_export(workspace, base, scratch.path()).await?;
        let root: GuestPath = request.guest_path.unwrap_or_else(|| workspace.guest_path.clone());
        let limits = Limits {
            max_bytes: request.max_bytes.unwrap_or(Limits::default().max_bytes),
            ..Limits::default()
        };
        op.stage("scan", format!("comparing {root} with {}", export.base()), None);
        let spec = ScanSpec {
            root: root.as_str().into(),
            object_format: export.object_format().to_owned(),
            // The limit is held here, by who can say at which path it was and what to do.
            max_bytes: u64::MAX,
        };
        let exported = scan(op, agent, spec, export, limits).await?;
        Ok(Patch { exported, scratch })
    }
}

/// A VM's workspace.
pub(super) fn workspace_of(vm: &Vm) -> Result<&Workspace> {
    vm.whole_workspace().ok_or_else(|| {
        Error::invalid(format!("VM '{}' has no workspace", vm.name))
            .with_hint(format!("copy a repository in first: 'banger vm workspace prepare {} PATH'", vm.name))
    })
}

/// Has the agent compare, and takes what it says. An agent that stops reading or talking is left to itself once what
/// it said cannot become a patch any more.
async fn scan(op: &Op, agent: &Session, spec: ScanSpec, export: Export, limits: Limits) -> Result<Exported> {
    let (sender, receiver) = agent.open(&Request::Scan(spec)).await?;
    let over = op.cancel_token().child_token();
    let mut writer = Cancellable::new(sender.writer(), &over);
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
    let receive = async {
        let received = blocking(move || {
            let mut bridge = SyncIoBridge::new(reader);
            let exported = export.receive(&mut bridge, &limits);
            Ok((exported, bridge.into_inner().inner))
        })
        .await;
        // An honest agent has read the whole listing before it ends its answer.
        over.cancel();
        received
    };
    let (sent, received) = tokio::join!(send, receive);
    op.check()?;
    let (exported, reader) = received?;
    let last =
        tokio::time::timeout(LAST_WORD, op.or_cancelled(async { Ok::<_, Error>(reader.reply().await) }));
    let mut exported = match exported {
        Ok(exported) => exported,
        // A guest that says why it stopped knows better than the reader it stopped.
        Err(error) if error.is_cut_short() => {
            return Err(match last.await {
                Ok(Ok(Err(refused @ ChannelError::Guest { .. }))) => refused.into(),
                _ => error.into(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let silent = |_| Error::new(ErrorCode::GuestFailed, "the agent did not say how its scan ended");
    match last.await.map_err(silent)?? {
        Ok(Reply::Scanned(found)) => exported.note_repositories(found.repositories, found.some_repositories),
        Ok(_) => {
            return Err(Error::new(ErrorCode::GuestFailed, "the agent answered a scan with something else"));
        }
        Err(error) => return Err(error.into()),
    }
    sent?;
    Ok(exported)
}

async fn open_export(workspace: &Workspace, base: String, scratch: &Path) -> Result<Export> {
    let source = PathBuf::from(workspace.source_path.as_os_str());
    let scratch = scratch.to_owned();
    blocking(move || Ok(Export::new(&source, &base, &scratch)?)).await
}
