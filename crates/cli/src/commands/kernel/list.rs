//! `banger kernel list`

use banger_model::Kernel;
use banger_protocol::api::AvailableKernel;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, table};

/// List the kernels
#[derive(Debug, clap::Args)]
#[command(visible_alias = "ls")]
pub(crate) struct Args {
    /// List those that can be pulled
    #[arg(long)]
    available: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<u8> {
    if args.available { available(context).await } else { present(context).await }
}

async fn present(context: &Context) -> Result<u8> {
    let kernels: Vec<Kernel> = context.client()?.get("/v1/kernels").await?;
    let now = Timestamp::now();
    let row = |k: &Kernel| {
        vec![
            k.name.to_string(),
            k.release.clone(),
            k.size_bytes.to_string(),
            ago(k.created_at, now),
            k.description.clone(),
        ]
    };
    let render = |all: &[Kernel]| {
        table(
            &["NAME", "RELEASE", "SIZE", "CREATED", "DESCRIPTION"],
            &all.iter().map(row).collect::<Vec<_>>(),
        )
    };
    context.output.list(&kernels, |k| k.name.to_string(), render)
}

async fn available(context: &Context) -> Result<u8> {
    let kernels: Vec<AvailableKernel> = context.client()?.get("/v1/kernels/available").await?;
    let row = |k: &AvailableKernel| {
        vec![k.name.to_string(), if k.present { "yes" } else { "no" }.to_owned(), k.description.clone()]
    };
    let render = |all: &[AvailableKernel]| {
        table(&["NAME", "PRESENT", "DESCRIPTION"], &all.iter().map(row).collect::<Vec<_>>())
    };
    context.output.list(&kernels, |k| k.name.to_string(), render)
}
