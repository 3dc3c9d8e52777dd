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

use super::{Cancellable, Pulse, Workspaces, stands_still, stream_error};
use crate::artifacts::blocking;
use crate::op::Op;

/// How long an agent that has sent its last record, or stopped before it, has to say how it went.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How long an agent may neither take nor say anything. One that works says every few seconds that it does.
const SILENCE: Duration = Duration::from_secs(120);

/// What the guest did, inspected. Its scratch directory goes with it.
#[derive(Debug)]
pub(crate) struct Patch {
    /// The change, and the patch's file.
    pub(crate) exported: Exported,
    /// Room for more of the guest's, until this is dropped.
    pub(super) scratch: TempDir,
    /// Which directory of the guest it is from.
    pub(super) root: GuestPath,
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
        let vm = self.settled_in_turn(op, vm.clone(), agent).await?;
        let workspace = workspace_of(&vm)?;
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
            ticks: true,
        };
        let exported = scan(op, agent, spec, export, limits, SILENCE).await?;
        Ok(Patch { exported, scratch, root })
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
async fn scan(
    op: &Op,
    agent: &Session,
    spec: ScanSpec,
    export: Export,
    limits: Limits,
    silence: Duration,
) -> Result<Exported> {
    let (sender, receiver) = agent.open(&Request::Scan(spec)).await?;
    let (silent, pulse) = (op.cancel_token().child_token(), Pulse::new());
    let over = silent.child_token();
    let mut writer = Cancellable::new(sender.writer(), &over).watched(&pulse, 0);
    let reader = Cancellable::new(receiver.reader(), &silent).watched(&pulse, 1);
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
    let mut both = std::pin::pin!(async { tokio::join!(send, receive) });
    let (sent, received) = tokio::select! {
        done = &mut both => done,
        () = pulse.stops(silence) => {
            silent.cancel();
            both.await
        }
    };
    op.check()?;
    if silent.is_cancelled() {
        let hint = "end the VM with 'banger vm kill' and try again: its disks are then read without it";
        return Err(stands_still(silence).with_hint(hint));
    }
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::silent::SilentAgent;
    use super::*;

    #[tokio::test]
    async fn an_agent_that_stands_still_is_given_up() {
        let agent = SilentAgent::connect().await;
        let (repo, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let git = |args: &[&str]| {
            let identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"];
            let run = Command::new("git").current_dir(repo.path()).args(identity).args(args).output();
            assert!(run.unwrap().status.success(), "{args:?}");
        };
        git(&["init", "-q"]);
        git(&["commit", "-q", "--allow-empty", "-m", "first"]);
        let export = Export::new(repo.path(), "HEAD", scratch.path()).unwrap();
        let spec = ScanSpec {
            root: "/w".into(),
            object_format: export.object_format().to_owned(),
            max_bytes: 1,
            ticks: true,
        };
        let op = Op::alone(None);
        let silence = Duration::from_millis(50);
        let error = scan(&op, &agent.session, spec, export, Limits::default(), silence).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Timeout, "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("vm kill")));
    }
}
