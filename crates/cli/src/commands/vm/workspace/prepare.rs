//! `banger vm workspace prepare`

use std::ffi::OsString;

use banger_protocol::api::{PreparePlan, Prepared};
use hyper::Method;

use super::{show_plan, tell};
use crate::client;
use crate::commands::args::{VmArg, WorkspaceArgs};
use crate::context::Context;
use crate::error::Result;

/// Copy a repository into a running VM, or bring the copy that is there up to date
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A second prepare sends what is other on the host and removes what is gone there. What the guest changed stays; where both sides changed the same file it is refused with the files' names, unless --force gives the guest's up."
)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    /// A path in a git repository [default: .]
    #[arg(value_hint = clap::ValueHint::DirPath)]
    path: Option<OsString>,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    /// Give up what the guest changed where the host did too
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let dry_run = args.workspace.dry_run;
    let request = args.workspace.into_request(&args.path.unwrap_or_else(|| ".".into()))?;
    if dry_run {
        let plan: PreparePlan = context.change(Method::POST, "/v1/workspace/plan", Some(&request)).await?;
        return show_plan(&plan, context);
    }
    let query = if args.force { "/workspace/prepare?force=true" } else { "/workspace/prepare" };
    let url = client::path("vms", &args.which.vm, query);
    let prepared: Prepared = context.change(Method::POST, &url, Some(&request)).await?;
    if context.output.json {
        context.output.document(&prepared)?;
    } else {
        tell(&prepared, context);
    }
    Ok(0)
}
