//! `banger vm workspace …`

mod apply;
mod export;
mod prepare;

use banger_protocol::api::{PreparePlan, Prepared};
use clap::Subcommand;
use hyper::Method;

use crate::client::path;
use crate::context::Context;
use crate::error::Result;
use crate::table::{fields, or_dash, size};

/// The workspace commands.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    Prepare(prepare::Args),
    Export(export::Args),
    Apply(apply::Args),
}

impl WorkspaceCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Prepare(args) => prepare::run(args, context).await,
            Self::Export(args) => export::run(args, context).await,
            Self::Apply(args) => apply::run(args, context).await,
        }
    }
}

/// Brings a VM's workspace up to date, as it was prepared.
pub(super) async fn refresh(vm: &str, force: bool, context: &Context) -> Result<Prepared> {
    let query = if force { "/workspace/refresh?force=true" } else { "/workspace/refresh" };
    context.change(Method::POST, &path("vms", vm, query), None::<&()>).await
}

/// Says what a prepare did.
pub(super) fn tell(prepared: &Prepared, context: &Context) {
    let plan = &prepared.plan;
    let base = plan.base_commit.get(..12).unwrap_or(&plan.base_commit);
    let files = |n: u64| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
    context.output.notice(&match prepared.updated {
        false => {
            let (all, bytes) = (files(plan.files.len() as u64), size(plan.bytes));
            format!("{all}, {bytes}, are in {}, based on {base}", plan.guest_path)
        }
        true => format!(
            "{} is up to date, based on {base}: {}, {}, sent, {} removed",
            plan.guest_path,
            files(prepared.sent),
            size(prepared.sent_bytes),
            prepared.removed
        ),
    });
    if plan.skipped_untracked > 0 {
        let left = files(plan.skipped_untracked);
        context
            .output
            .notice(&format!("untracked and left behind: {left}; --include-untracked copies them too"));
    }
}

/// Prints what `--dry-run` found: the summary, then the files.
pub(super) fn show_plan(plan: &PreparePlan, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(plan)?;
        return Ok(0);
    }
    let mut text = fields(&[
        ("source", plan.source_path.to_string_lossy().into_owned()),
        ("guest path", plan.guest_path.to_string()),
        ("mode", plan.mode.to_string()),
        ("base", plan.base_commit.clone()),
        ("branch", or_dash(plan.branch.as_deref())),
        ("depth", plan.depth.to_string()),
        ("files", plan.files.len().to_string()),
        ("bytes", format!("{} ({})", plan.bytes, size(plan.bytes))),
        ("untracked, left out", plan.skipped_untracked.to_string()),
    ])
    .into_bytes();
    text.push(b'\n');
    for file in &plan.files {
        text.extend_from_slice(file.as_bytes());
        text.push(b'\n');
    }
    context.output.bytes(&text)?;
    Ok(0)
}
