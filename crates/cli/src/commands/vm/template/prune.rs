//! `banger vm template prune`

use banger_model::Bytes;
use banger_protocol::api::{PruneTemplates, PrunedTemplates};
use hyper::Method;

use crate::context::Context;
use crate::error::Result;

/// Delete the templates that were made by themselves; they are made again when they are missed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that were saved
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<u8> {
    let request = PruneTemplates { all: args.all };
    let done: PrunedTemplates = context.change(Method::POST, "/v1/templates/prune", Some(&request)).await?;
    if context.output.json {
        context.output.document(&done)?;
        return Ok(0);
    }
    done.deleted.iter().try_for_each(|id| context.output.line(id))?;
    context.output.notice(&format!("{} freed", Bytes(done.freed_bytes)));
    Ok(0)
}
