//! The guest's commits as the guest's own git packs them. What arrives is bytes in a file of capped size; the
//! workspace crate looks into it.

use std::path::PathBuf;

use banger_channel::{Session, StreamEvent};
use banger_model::{ByteString, Error, ErrorCode, GuestPath, Result, Vm};
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{ExecSpec, ExitStatus, Reply, Request};
use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::export::Patch;
use super::{STILL, stands_still};
use crate::op::Op;

/// The most that is kept of what the guest's git complains.
const STDERR_CAP: usize = 4 << 10;
/// An object's id, with room to spare.
const ID_CAP: u64 = 200;

/// A pack, and the commit at its top. Nothing of it is believed yet.
#[derive(Debug)]
pub(super) struct Commits {
    pub(super) pack: PathBuf,
    pub(super) tip: String,
}

/// Has the guest's git pack what is between the base and its HEAD.
///
/// # Errors
/// `unsupported` when the guest has no git; `guest_failed` when that fails or sends more than `max_bytes`.
pub(super) async fn fetch(
    op: &Op,
    vm: &Vm,
    agent: &Session,
    root: &GuestPath,
    patch: &Patch,
    max_bytes: u64,
) -> Result<Commits> {
    op.stage("commits", format!("packing the commits of VM '{}'", vm.name), None);
    let git = Git { op, vm, agent, root };
    let mut tip = Vec::new();
    let head = ["rev-parse", "--verify", "--end-of-options", "HEAD^{commit}"];
    git.run(&head, Bytes::new(), &mut tip, ID_CAP).await?;
    let tip = String::from_utf8_lossy(&tip).trim().to_owned();
    let not = patch.exported.base_commit().map(|base| format!("^{base}\n")).unwrap_or_default();
    let pack = patch.scratch.path().join("guest.pack");
    let failed = |e: std::io::Error| Error::unavailable(format!("cannot write {}: {e}", pack.display()));
    let mut file = File::create_new(&pack).await.map_err(failed)?;
    let revisions = Bytes::from(format!("{tip}\n{not}"));
    git.run(&["pack-objects", "-q", "--revs", "--stdout"], revisions, &mut file, max_bytes).await?;
    file.flush().await.map_err(failed)?;
    drop(file);
    Ok(Commits { pack, tip })
}

/// The guest's git in its workspace.
struct Git<'a> {
    op: &'a Op,
    vm: &'a Vm,
    agent: &'a Session,
    root: &'a GuestPath,
}

impl Git<'_> {
    /// Runs it to its end with its output to `out`, at most `cap` bytes.
    async fn run(
        &self,
        args: &[&str],
        stdin: Bytes,
        out: &mut (impl AsyncWrite + Unpin),
        cap: u64,
    ) -> Result<()> {
        // Whoever owns the files there: only the guest is at stake.
        let first = ["git", "-c", "safe.directory=*", "--no-pager"];
        let argv: Vec<ByteString> = first.iter().chain(args).map(|word| ByteString::from(*word)).collect();
        let spec = ExecSpec {
            argv,
            env: vec![("LC_ALL".into(), "C".into())],
            cwd: Some(self.root.as_str().into()),
            user: None,
            tty: None,
            stdin: true,
            op_id: self.op.id().to_string(),
        };
        let (sender, mut receiver) = self.agent.open(&Request::Exec(spec)).await?;
        if !stdin.is_empty() {
            sender.send(stdin).await?;
        }
        sender.finish().await?;
        let (mut left, mut stderr) = (cap, Vec::new());
        loop {
            let event = tokio::time::timeout(STILL, self.op.or_cancelled(receiver.next())).await;
            let event = event.map_err(|_| stands_still(STILL))??;
            match event {
                Some(StreamEvent::Data(Lane::Err, data)) => {
                    stderr.extend(data.iter().take(STDERR_CAP - stderr.len()));
                }
                Some(StreamEvent::Data(_, data)) => {
                    left = left.checked_sub(data.len() as u64).ok_or_else(|| self.too_much(cap))?;
                    out.write_all(&data).await.map_err(|e| {
                        Error::unavailable(format!("the guest's commits cannot be written: {e}"))
                    })?;
                }
                Some(StreamEvent::Message(Reply::Exited(status))) => return self.verdict(status, &stderr),
                Some(StreamEvent::Message(Reply::Error { code, message })) => {
                    return Err(Error::new(code, message));
                }
                Some(StreamEvent::Message(_) | StreamEvent::Eof(_)) => {}
                None => return Err(self.failed("it ended without a status")),
            }
        }
    }

    fn verdict(&self, status: ExitStatus, stderr: &[u8]) -> Result<()> {
        match status {
            ExitStatus::Code(0) => Ok(()),
            ExitStatus::NotFound(_) => Err(Error::new(
                ErrorCode::Unsupported,
                format!("VM '{}' has no git, which alone can say what its commits are", self.vm.name),
            )
            .with_hint("leave out '--commits': '--branch NAME' makes one commit of everything")),
            status => {
                let text = String::from_utf8_lossy(stderr);
                let line = text.lines().next_back().unwrap_or_default();
                let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
                Err(self.failed(&if shown.is_empty() { format!("{status:?}") } else { shown }))
            }
        }
    }

    fn too_much(&self, cap: u64) -> Error {
        Error::new(
            ErrorCode::GuestFailed,
            format!("the commits of VM '{}' are larger than the limit of {cap} bytes", self.vm.name),
        )
        .with_hint("raise --max-bytes")
    }

    fn failed(&self, why: &str) -> Error {
        let (name, root) = (&self.vm.name, self.root);
        Error::new(ErrorCode::GuestFailed, format!("git in {root} of VM '{name}' failed: {why}"))
    }
}
