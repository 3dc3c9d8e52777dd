//! A second copy over a first one: what the guest did meanwhile, and whether that stands against it. Must never give up
//! anything of the guest's unless it was told to.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use banger_channel::Session;
use banger_model::{ByteString, Error, ErrorCode, GuestPath, Result};
use banger_protocol::agent::touched::{FIXED, Kind, Touched};
use banger_protocol::agent::{CompareSpec, Compared, Place, Reply, Request};
use banger_protocol::api::PreparePlan;
use banger_workspace::capture::{Changes, GitChange};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Cancellable, Pulse, STILL, stands_still, stream_error};
use crate::op::Op;

/// The most records that are taken: more than a repository has files that matter to a person.
const MAX_TOUCHED: usize = 1_000_000;
/// How many paths an error names.
const NAMED: usize = 5;

/// What the guest says.
#[derive(Debug)]
pub(super) struct Guest {
    compared: Compared,
    touched: Vec<Touched>,
}

/// Asks the agent what became of all that is to be written or removed.
pub(super) async fn ask(op: &Op, agent: &Session, plan: &PreparePlan, changes: &Changes) -> Result<Guest> {
    op.stage("compare", format!("looking at {} in the guest", plan.guest_path), None);
    let spec = CompareSpec {
        root: plan.guest_path.as_str().into(),
        branch: changes.branch.as_ref().map(|(name, _)| name.clone()),
        needed: changes.packs.clone(),
        indexes: changes.indexes.iter().map(|index| index.path.clone()).collect(),
    };
    let files = changes.git_files.iter().map(|file| &file.path);
    compare(op, agent, spec, changes.replaced.iter().chain(&changes.removed).chain(files), STILL).await
}

/// Asks the agent which of some paths are not as they were copied in.
pub(super) async fn touched(
    op: &Op,
    agent: &Session,
    root: &GuestPath,
    paths: &[ByteString],
) -> Result<Vec<Touched>> {
    Ok(compare(op, agent, about(root), paths.iter(), STILL).await?.touched)
}

/// What the copy at a place calls itself.
pub(super) async fn name(op: &Op, agent: &Session, root: &GuestPath) -> Result<Option<ByteString>> {
    Ok(compare(op, agent, about(root), std::iter::empty(), STILL).await?.compared.copy)
}

fn about(root: &GuestPath) -> CompareSpec {
    CompareSpec { root: root.as_str().into(), branch: None, needed: Vec::new(), indexes: Vec::new() }
}

async fn compare(
    op: &Op,
    agent: &Session,
    spec: CompareSpec,
    paths: impl Iterator<Item = &ByteString>,
    silence: Duration,
) -> Result<Guest> {
    let (sender, receiver) = agent.open(&Request::Compare(spec)).await?;
    let pulse = Pulse::new();
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(path.as_bytes());
        list.push(0);
    }
    let mut writer = Cancellable::new(sender.writer(), op.cancel_token()).watched(&pulse, 0);
    let mut reader = Cancellable::new(receiver.reader(), op.cancel_token()).watched(&pulse, 1);
    let write = async {
        writer.write_all(&list).await?;
        writer.shutdown().await
    };
    let both = async { tokio::join!(write, records(&mut reader)) };
    let (written, touched) = tokio::select! {
        done = both => done,
        () = pulse.stops(silence) => return Err(stands_still(silence)),
    };
    op.check()?;
    let reply = async { Ok::<_, Error>(reader.inner.reply().await) };
    let reply = tokio::time::timeout(silence, op.or_cancelled(reply)).await;
    let compared = match reply.map_err(|_| stands_still(silence))??? {
        Reply::Compared(compared) => compared,
        _ => return Err(odd()),
    };
    written.map_err(|e| stream_error(&e))?;
    Ok(Guest { compared, touched: touched? })
}

async fn records(reader: &mut (impl AsyncReadExt + Unpin)) -> Result<Vec<Touched>> {
    let mut touched = Vec::new();
    let mut fixed = [0; FIXED];
    loop {
        match reader.read(&mut fixed[..1]).await {
            Ok(0) => return Ok(touched),
            Ok(_) => {}
            Err(e) => return Err(stream_error(&e)),
        }
        reader.read_exact(&mut fixed[1..]).await.map_err(|e| stream_error(&e))?;
        let (kind, digest, len) = Touched::decode(&fixed).ok_or_else(odd)?;
        let mut path = vec![0; len];
        reader.read_exact(&mut path).await.map_err(|e| stream_error(&e))?;
        if touched.len() >= MAX_TOUCHED {
            return Err(odd());
        }
        touched.push(Touched { kind, digest, path });
    }
}

fn odd() -> Error {
    Error::new(ErrorCode::GuestFailed, "the agent answered a comparison with something else")
}

impl Guest {
    pub(super) fn place(&self) -> Place {
        self.compared.place
    }

    /// Whether git in the guest no longer has what a small pack would lean on.
    pub(super) fn lost_packs(&self) -> bool {
        self.compared.missing > 0
    }

    /// The paths to remove before the new files come, and the indexes that stay the guest's (by number); an error when
    /// something of the guest's would be taken, unless `force`. What is the same on both sides by now is nobody's loss.
    pub(super) fn judge(
        self,
        source: &ByteString,
        changes: &Changes,
        new: &(Option<String>, String),
        vm: &str,
        force: bool,
    ) -> Result<(Vec<ByteString>, Vec<usize>)> {
        let source = Path::new(source.as_os_str());
        let removed: HashSet<&[u8]> = changes.removed.iter().map(ByteString::as_bytes).collect();
        let mut against: Vec<ByteString> = Vec::new();
        let mut in_the_way: Vec<ByteString> = Vec::new();
        let of_git: HashMap<&[u8], &GitChange> =
            changes.git_files.iter().map(|file| (file.path.as_bytes(), file)).collect();
        for touched in &self.touched {
            if let Some(file) = of_git.get(&touched.path[..]) {
                let digest = Some(hex::encode(touched.digest));
                let is_file = matches!(touched.kind, Kind::File | Kind::Executable);
                if !(is_file && (file.old == digest || file.new == digest)) && touched.kind != Kind::Gone {
                    against.push(file.path.clone());
                }
                continue;
            }
            // An apply brought it to the host, which went on from there.
            let was_applied = changes.applied.get(&touched.path).is_some_and(|(kind, digest)| {
                let same = match touched.kind {
                    Kind::File => 0,
                    Kind::Executable => 1,
                    Kind::Link => 2,
                    Kind::Gone => 3,
                    Kind::Other => return false,
                };
                *kind == same && (same == 3 || *digest == touched.digest)
            });
            let is_gone_on_both = removed.contains(&touched.path[..]) && touched.kind == Kind::Gone;
            let is_same = !removed.contains(&touched.path[..]) && is_same(source, touched);
            if !is_gone_on_both && !is_same && !was_applied {
                against.push(ByteString(touched.path.clone()));
            }
            if touched.kind == Kind::Other {
                in_the_way.push(ByteString(touched.path.clone()));
            }
        }
        let mut remove: Vec<ByteString> =
            changes.removed.iter().chain(&changes.git_removed).cloned().collect();
        if self.compared.head.as_ref() != Some(&changes.head) {
            against.push(".git/HEAD".into());
        }
        if let Some((branch, commit)) = &changes.branch
            && self.compared.branch_at.as_ref() != Some(commit)
        {
            let reference: ByteString = format!(".git/refs/heads/{branch}").as_str().into();
            let is_same = *new == (Some(branch.clone()), self.compared.branch_at.clone().unwrap_or_default());
            if !is_same {
                against.push(reference.clone());
                remove.push(reference);
            }
        }
        let mut keep = Vec::new();
        for (n, (index, staged)) in changes.indexes.iter().zip(&self.compared.staged).enumerate() {
            match staged {
                Some(_) if *staged == index.old || *staged == index.new => {}
                // The host's is as it was: the guest's own stays.
                Some(_) if index.old == index.new => keep.push(n),
                Some(_) => against.push(index.path.clone()),
                None => {}
            }
        }
        if !against.is_empty() && !force {
            return Err(refused(&mut against, vm));
        }
        remove.extend(in_the_way);
        Ok((remove, keep))
    }
}

fn refused(against: &mut [ByteString], vm: &str) -> Error {
    against.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    let named: Vec<String> =
        against.iter().take(NAMED).map(|p| format!("'{}'", p.to_string_lossy())).collect();
    let more = against.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::new(ErrorCode::Conflict, format!("both the host and VM '{vm}' changed {}{more}", named.join(", ")))
        .with_hint(format!("'banger vm workspace apply {vm}' brings the guest's changes to the host first; --force gives them up"))
}

/// Whether the host has the same at a path of its working tree.
fn is_same(source: &Path, touched: &Touched) -> bool {
    let path = source.join(Path::new(std::ffi::OsStr::from_bytes(&touched.path)));
    let Ok(meta) = std::fs::symlink_metadata(&path) else { return false };
    match touched.kind {
        Kind::Link if meta.is_symlink() => std::fs::read_link(&path).is_ok_and(|target| {
            <[u8; 32]>::from(Sha256::digest(target.as_os_str().as_bytes())) == touched.digest
        }),
        Kind::File | Kind::Executable if meta.is_file() => {
            let is_executable = meta.mode() & 0o100 != 0;
            is_executable == (touched.kind == Kind::Executable) && digest(&path) == Some(touched.digest)
        }
        _ => false,
    }
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let mut file = File::options().read(true).custom_flags(flags.cast_signed()).open(path).ok()?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hash.finalize().into()),
            n => hash.update(buffer.get(..n)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::silent::SilentAgent;
    use super::*;

    #[tokio::test]
    async fn an_agent_that_does_not_compare_is_given_up() {
        let agent = SilentAgent::connect().await;
        let (op, root, paths) = (Op::alone(None), "/w".parse().unwrap(), [ByteString::from("a")]);
        let silence = Duration::from_millis(50);
        let error = compare(&op, &agent.session, about(&root), paths.iter(), silence).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Timeout, "{error}");
    }
}
