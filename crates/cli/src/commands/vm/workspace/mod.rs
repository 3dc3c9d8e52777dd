//! `banger vm workspace …`

mod apply;
mod export;
mod prepare;

use banger_protocol::api::PreparePlan;
use clap::Subcommand;

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
