//! `banger vm template list`

use banger_model::Bytes;
use banger_protocol::api::TemplateView;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, table};

/// List the templates that new VMs go on from
#[derive(Debug, clap::Args)]
#[command(
    after_help = "One without a name was made by itself after the first boot of a VM of its shape; 'banger vm template save' makes one with a name."
)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let templates: Vec<TemplateView> = context.client()?.get("/v1/templates").await?;
    if context.output.json {
        context.output.document(&templates)?;
        return Ok(0);
    }
    if context.output.quiet {
        templates.iter().try_for_each(|t| context.output.line(&t.id))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = templates
        .iter()
        .map(|t| {
            vec![
                t.id.clone(),
                t.image.to_string(),
                t.kernel.to_string(),
                t.vcpu.to_string(),
                Bytes(u64::from(t.memory_mib) << 20).to_string(),
                t.network.to_string(),
                Bytes(t.size_bytes).to_string(),
                ago(t.created_at, now),
                ago(t.used_at, now),
            ]
        })
        .collect();
    let heads = ["TEMPLATE", "IMAGE", "KERNEL", "CPUS", "MEMORY", "NETWORK", "SIZE", "CREATED", "USED"];
    context.output.bytes(table(&heads, &rows).as_bytes())?;
    Ok(0)
}
