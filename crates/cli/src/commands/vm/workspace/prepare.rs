//! `banger vm workspace prepare`

use std::ffi::OsString;

use banger_protocol::api::PreparePlan;
use hyper::Method;

use super::show_plan;
use crate::client;
use crate::commands::args::{VmArg, WorkspaceArgs};
use crate::context::Context;
use crate::error::Result;
use crate::table::size;

/// Copy a repository into a running VM
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    /// A path in a git repository [default: .]
    #[arg(value_hint = clap::ValueHint::DirPath)]
    path: Option<OsString>,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    /// Take away the permission to write in the copy
    #[arg(long)]
    readonly: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let dry_run = args.workspace.dry_run;
    let request = args.workspace.into_request(&args.path.unwrap_or_else(|| ".".into()), args.readonly)?;
    let client = context.client()?;
    let url = match dry_run {
        true => "/v1/workspace/plan".to_owned(),
        false => client::path("vms", &args.which.vm, "/workspace/prepare"),
    };
    let mut progress = context.board.track(None);
    let plan: PreparePlan = client.change(Method::POST, &url, Some(&request), &mut progress).await?;
    drop(progress);
    if dry_run || context.output.json {
        return show_plan(&plan, context);
    }
    context.output.notice(&format!(
        "{} files, {}, are in {}, based on {}",
        plan.files.len(),
        size(plan.bytes),
        plan.guest_path,
        plan.base_commit.get(..12).unwrap_or(&plan.base_commit)
    ));
    if plan.skipped_untracked > 0 {
        context.output.notice(&format!(
            "{} untracked files stayed behind; --include-untracked copies them too",
            plan.skipped_untracked
        ));
    }
    Ok(0)
}
