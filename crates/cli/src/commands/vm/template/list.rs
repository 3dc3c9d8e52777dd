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
    let now = Timestamp::now();
    let row = |t: &TemplateView| {
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
            t.spares.len().to_string(),
        ]
    };
    let render = |all: &[TemplateView]| {
        table(
            &[
                "TEMPLATE", "IMAGE", "KERNEL", "CPUS", "MEMORY", "NETWORK", "SIZE", "CREATED", "USED",
                "SPARES",
            ],
            &all.iter().map(row).collect::<Vec<_>>(),
        )
    };
    context.output.list(&templates, |t| t.id.clone(), render)
}
