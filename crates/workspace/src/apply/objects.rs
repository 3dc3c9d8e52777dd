//! Objects and refs for the host's repository: everything is made in scratch and only what is
//! kept is brought over, by a pack.
//!
//! Must never write a ref before its objects are there, and never move one that exists.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::export::Exported;
use crate::git::Git;
use crate::source::object_id;
use crate::{Result, WorkspaceError};

/// Who commits where the user has not said who they are.
const NOBODY: [(&str, &str); 4] = [
    ("GIT_AUTHOR_NAME", "banger"),
    ("GIT_AUTHOR_EMAIL", "banger@localhost"),
    ("GIT_COMMITTER_NAME", "banger"),
    ("GIT_COMMITTER_EMAIL", "banger@localhost"),
];

/// git on the host's repository whose new objects go to the export's scratch store.
pub(crate) fn scratch_git(exported: &Exported) -> Result<Git> {
    exported.source.writing_to(&exported.git.dir().join("objects"))
}

/// A commit of `tree` in scratch, by the user, or by nobody when `anonymous`.
pub(crate) fn commit(
    exported: &Exported,
    tree: &str,
    parent: Option<&str>,
    message: &str,
    anonymous: bool,
) -> Result<String> {
    let mut git = scratch_git(exported)?;
    if anonymous || git.query(&["var", "GIT_COMMITTER_IDENT"], 1 << 12)?.is_none() {
        git = NOBODY.iter().fold(git, |git, (name, value)| git.env(name, value.as_ref()));
    }
    let mut args = vec!["commit-tree", tree];
    if let Some(parent) = parent {
        args.extend(["-p", parent]);
    }
    let out = git.feed(&args, 1 << 12, |pipe| {
        pipe.write_all(message.as_bytes()).map_err(|e| WorkspaceError::io("write to git in", git.dir(), e))
    })?;
    object_id(&out).ok_or_else(|| git.odd("commit-tree"))
}

/// Brings a commit of the scratch store, with all it needs, into the host's repository.
pub(crate) fn keep(exported: &Exported, commit: &str) -> Result<()> {
    let pack = exported.scratch.join("kept.pack");
    let failed = |e| WorkspaceError::io("write", &pack, e);
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&pack);
    let file = file.map_err(failed)?;
    let git = scratch_git(exported)?;
    let mut run = git.converse_into(
        &["pack-objects", "-q", "--revs", "--stdout", "--local", "--thin", "--delta-base-offset"],
        file.try_clone().map_err(failed)?,
    )?;
    let not = exported.base_commit().map(|base| format!("^{base}\n")).unwrap_or_default();
    if let Some(pipe) = run.child.stdin.as_mut() {
        // A pipe that breaks is git's own failure, which says why.
        let _ = pipe.write_all(format!("{commit}\n{not}").as_bytes());
    }
    run.finish()?;
    let source = &exported.source.git;
    let mut input = File::open(&pack).map_err(failed)?;
    let args = ["index-pack", "--stdin", "--fix-thin"];
    source.feed(&args, 1 << 16, |pipe| {
        std::io::copy(&mut input, pipe)
            .map(drop)
            .map_err(|e| WorkspaceError::io("write to git in", source.dir(), e))
    })?;
    Ok(())
}

/// Makes a ref that does not exist yet.
pub(crate) fn make_ref(exported: &Exported, name: &str, commit: &str, why: &str) -> Result<()> {
    let none = "0".repeat(commit.len());
    exported.source.git.output(&["update-ref", "-m", why, name, commit, &none], 1 << 12).map(drop)
}

/// Refuses a name that is no branch's, or is taken.
pub(crate) fn check_branch(exported: &Exported, branch: &str) -> Result<()> {
    let git = &exported.source.git;
    let plain = !branch.contains('\0') && !branch.starts_with('@') && !branch.starts_with('-');
    if !plain || git.query(&["check-ref-format", "--branch", branch], 1 << 16)?.is_none() {
        return Err(WorkspaceError::BranchName(branch.to_owned()));
    }
    let name = format!("refs/heads/{branch}");
    match git.query(&["show-ref", "--verify", "--quiet", &name], 1 << 16)? {
        Some(_) => Err(WorkspaceError::BranchExists(branch.to_owned())),
        None => Ok(()),
    }
}
