//! The guest's change into the host's repository. Must not touch the host before the guest has said everything and
//! all of it was inspected.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use banger_channel::Session;
use banger_model::{Error, Result, Vm};
use banger_protocol::api::{ApplyRequest, ApplySummary, ExportRequest};
use banger_workspace::apply::{self as library, Arrived, Copied, Wish};
use banger_workspace::capture::Manifest;
use banger_workspace::export::Limits;
use futures_util::FutureExt;

use super::commits::{self, Commits};
use super::export::{Patch, workspace_of};
use super::incoming::Turn;
use super::update;
use crate::artifacts::blocking;
use crate::daemon::Daemon;
use crate::op::Op;

/// Brings a guest's change to the repository it was copied from. The VM is needed only while it is asked: one that
/// was booted for this is off again before the host's files change.
///
/// # Errors
/// `invalid_argument` for wishes that contradict each other or a VM without a workspace; `conflict` with the names of
/// files that changed on the host; anything in the guest's answer that is not let through; `cancelled`.
pub(crate) async fn apply(
    daemon: &Arc<Daemon>,
    op: &Op,
    reference: &str,
    request: ApplyRequest,
) -> Result<ApplySummary> {
    check(&request)?;
    // A copy that is brought up to date meanwhile would be another one than is held against the change.
    let _turn = Turn::take(&daemon.workspaces, &daemon.vms.find(reference)?)?;
    let (ours, its, asked) = (daemon.clone(), op.clone(), request.clone());
    let work = move |vm: Vm, agent: Session| {
        async move {
            let vm = ours.workspaces.settled(&its, vm, &agent).await?;
            let root = match &asked.guest_path {
                Some(path) => path.clone(),
                None => workspace_of(&vm)?.guest_path.clone(),
            };
            let max_bytes = asked.max_bytes;
            let export = ExportRequest { base: asked.base, guest_path: asked.guest_path, max_bytes };
            let patch = ours.workspaces.export(&its, &vm, &agent, export).await?;
            let mut more = More { commits: None, copied: Copied::nothing() };
            if asked.commits {
                let commits = commits::fetch(&its, &vm, &agent, &root, &patch, limit(max_bytes));
                more.commits = Some(commits.await?);
            }
            if asked.branch.is_some() {
                return Ok((vm, patch, more));
            }
            let manifest = ours.workspaces.manifest(&vm.id);
            let (patch, copied) = blocking(move || copied(&manifest, patch)).await?;
            let unsure = copied.unsure();
            let touched = match unsure.is_empty() {
                true => Vec::new(),
                false => update::touched(&its, &agent, &root, &unsure).await?,
            };
            more.copied = copied.told(&touched);
            Ok((vm, patch, more))
        }
        .boxed()
    };
    let (vm, patch, more) = daemon.vms.in_guest(op, reference, work).await?;
    op.stage("apply", format!("applying what VM '{}' did", vm.name), None);
    op.check()?;
    let (manifest, name, id) = (daemon.workspaces.manifest(&vm.id), op.id().to_string(), vm.id.clone());
    let write = blocking(move || carry_out(&vm, &patch, more, &request, &manifest, name));
    daemon.vms.step(op, &id, "write", write).await
}

/// What is known besides the patch.
struct More {
    commits: Option<Commits>,
    copied: Copied,
}

/// What was copied to where the patch is from, held against it.
fn copied(manifest: &Path, patch: Patch) -> Result<(Patch, Copied)> {
    let manifest = Manifest::load(manifest).filter(|manifest| manifest.guest_path() == patch.root.as_str());
    let copied = match manifest {
        Some(manifest) => Copied::of(manifest, &patch.exported)?,
        None => Copied::nothing(),
    };
    Ok((patch, copied))
}

/// Refuses wishes that contradict each other.
fn check(request: &ApplyRequest) -> Result<()> {
    let wrong = |message: &str, hint: &str| Err(Error::invalid(message).with_hint(hint));
    if request.commits && request.branch.is_none() {
        return wrong("the guest's commits need a new branch", "name it: '--commits --branch NAME'");
    }
    if request.commits && request.base.is_some() {
        return wrong(
            "the guest's commits begin at the commit that was copied in, not at another base",
            "leave out '--base', or '--commits' for one commit of everything since that base",
        );
    }
    if request.three_way && request.branch.is_some() {
        return wrong(
            "nothing is merged on a new branch",
            "leave out '--3way', and merge the branch with git",
        );
    }
    Ok(())
}

fn limit(max_bytes: Option<u64>) -> u64 {
    max_bytes.unwrap_or(Limits::default().max_bytes)
}

/// Changes the host's repository, or says what it would change.
fn carry_out(
    vm: &Vm,
    patch: &Patch,
    more: More,
    request: &ApplyRequest,
    manifest: &Path,
    name: String,
) -> Result<ApplySummary> {
    let exported = &patch.exported;
    let mut done = match (&request.branch, &more.commits) {
        (Some(branch), Some(commits)) => {
            let pack = File::open(&commits.pack)
                .map_err(|e| Error::internal(format!("the guest's commits cannot be read: {e}")))?;
            Arrived::receive(exported, pack, &commits.tip, limit(request.max_bytes))?
                .to_branch(branch, request.dry_run)?
        }
        (Some(branch), None) => {
            let message = format!("Changes made in VM '{}'\n", vm.name);
            library::to_branch(exported, branch, &message, request.dry_run)?
        }
        (None, _) => {
            let (copied, three_way) = (more.copied, request.three_way);
            let plan = library::plan(exported, Wish { copied, three_way, name, vm: vm.name.to_string() })?;
            if request.dry_run {
                plan.summary()
            } else {
                let done = plan.carry_out()?;
                done.manifest.map(|amended| amended.keep(manifest)).transpose()?;
                done.summary
            }
        }
    };
    done.dry_run = request.dry_run;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_that_contradict_each_other_are_refused_with_what_to_type() {
        let branch = || Some("b".to_owned());
        for fine in [
            ApplyRequest::default(),
            ApplyRequest { commits: true, branch: branch(), ..ApplyRequest::default() },
            ApplyRequest { base: branch(), three_way: true, ..ApplyRequest::default() },
        ] {
            assert!(check(&fine).is_ok(), "{fine:?}");
        }
        for (wrong, word) in [
            (ApplyRequest { commits: true, ..ApplyRequest::default() }, "--branch"),
            (
                ApplyRequest { commits: true, branch: branch(), base: branch(), ..ApplyRequest::default() },
                "--base",
            ),
            (ApplyRequest { three_way: true, branch: branch(), ..ApplyRequest::default() }, "--3way"),
        ] {
            let error = check(&wrong).unwrap_err();
            assert!(error.hint.is_some_and(|hint| hint.contains(word)), "{wrong:?}");
        }
    }
}
