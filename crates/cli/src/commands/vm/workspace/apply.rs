//! `banger vm workspace apply`: the change into the host's repository.

use std::fmt::Write as _;

use banger_model::GuestPath;
use banger_protocol::api::{ApplyRequest, ApplySummary, Outcome};
use hyper::Method;

use super::export::{ByteCount, stayed_behind};
use crate::client;
use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::Result;
use crate::output::printable;

/// Bring what was changed in a VM's workspace to the repository it was copied from
///
/// Files that changed on the host since they were copied are not touched, unless --3way merges them. What is replaced
/// is kept in a ref below refs/banger/backup.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    /// The revision of the host's repository to compare with [default: the one that was copied in]
    #[arg(long, value_name = "REV")]
    base: Option<String>,
    /// Where the workspace is in the guest [default: where it was copied to]
    #[arg(long, value_name = "PATH")]
    guest_path: Option<GuestPath>,
    /// The most that changed files may hold together: a number of bytes, or a size such as 64M [default: 1G]
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<ByteCount>,
    /// Merge files that changed on both sides, with conflict markers where they must be
    #[arg(long = "3way", conflicts_with = "branch")]
    three_way: bool,
    /// Make a commit on a new branch of this name instead; the files stay as they are
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// Bring the guest's commits to the branch, instead of one commit of everything
    #[arg(long, requires = "branch", conflicts_with = "base")]
    commits: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = ApplyRequest {
        base: args.base,
        guest_path: args.guest_path,
        max_bytes: args.max_bytes.map(|max| max.0),
        three_way: args.three_way,
        branch: args.branch,
        commits: args.commits,
        dry_run: args.dry_run,
    };
    let url = client::path("vms", &args.which.vm, "/workspace/apply");
    let done: ApplySummary = context.change(Method::POST, &url, Some(&request)).await?;
    if context.output.json {
        context.output.document(&done)?;
    } else {
        context.output.bytes(&listing(&done))?;
        context.output.notice(&verdict(&done));
        if let Some(backup) = &done.backup {
            context.output.notice(&format!("what was replaced is kept: git show --stat {backup}"));
        }
        if done.uncommitted > 0 {
            context.output.notice(&format!(
                "{} files that were changed and not committed in the guest stay behind",
                done.uncommitted
            ));
        }
        stayed_behind(context, &done.unfiltered, done.skipped_repositories, &done.skipped_paths);
    }
    // As a merge with conflicts ends: done, and not well.
    Ok(u8::from(done.conflicts > 0))
}

/// What happened to each path, or the commits of a branch.
fn listing(done: &ApplySummary) -> Vec<u8> {
    let mut text = Vec::new();
    for commit in &done.commits {
        text.extend_from_slice(commit.id.as_bytes());
        text.push(b' ');
        text.extend_from_slice(printable(&commit.subject.to_string_lossy()).as_bytes());
        text.push(b'\n');
    }
    for file in done.files.iter().filter(|_| done.branch.is_none()) {
        let outcome = match file.outcome {
            Outcome::Applied => "applied",
            Outcome::Unchanged => "unchanged",
            Outcome::Merged => "merged",
            Outcome::Conflict => "conflict",
            Outcome::Committed => "committed",
        };
        text.extend_from_slice(format!("{outcome:<10}").as_bytes());
        text.extend_from_slice(file.path.as_bytes());
        text.push(b'\n');
    }
    text
}

fn verdict(done: &ApplySummary) -> String {
    let (will, target) = (if done.dry_run { "would be" } else { "are" }, done.target.to_string_lossy());
    if !done.has_changes {
        return match done.uncommitted {
            0 => "nothing was changed".to_owned(),
            _ => "nothing was committed in the guest".to_owned(),
        };
    }
    if let Some(branch) = &done.branch {
        let what = match done.commits.len() {
            0 => format!("{} changed files", done.files.len()),
            1 => "1 commit".to_owned(),
            n => format!("{n} commits"),
        };
        let is = if done.commits.len() == 1 && !done.dry_run { "is" } else { will };
        return format!("{what} {is} on the new branch '{branch}' of {target}");
    }
    let unchanged = done.files.iter().filter(|f| f.outcome == Outcome::Unchanged).count();
    let mut text = format!("{} changed files {will} in {target}", done.files.len() - unchanged);
    if unchanged > 0 {
        let _ = write!(text, "; {unchanged} with nothing new");
    }
    if done.conflicts > 0 {
        let _ = write!(text, "; {} with conflict markers", done.conflicts);
    }
    text
}
