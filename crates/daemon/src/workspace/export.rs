//! What a guest did, out of it as a patch. Must never let host git read what the guest wrote.

use std::path::{Path, PathBuf};

use banger_channel::{ChannelError, Session};
use banger_model::{Error, ErrorCode, GuestPath, Result, Vm, Workspace};
use banger_protocol::agent::{Reply, Request, ScanSpec};
use banger_protocol::api::{ExportRequest, ExportSummary};
use banger_workspace::export::{Export, Limits};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_util::io::SyncIoBridge;

use super::{Cancellable, Workspaces, stream_error};
use crate::artifacts::blocking;
use crate::op::Op;

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
}

async fn open_export(workspace: &Workspace, base: String, scratch: &Path) -> Result<Export> {
    let source = PathBuf::from(workspace.source_path.as_os_str());
    let scratch = scratch.to_owned();
    blocking(move || Ok(Export::new(&source, &base, &scratch)?)).await
}
