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
    if context.output.json {
        context.output.document(&kernels)?;
        return Ok(0);
    }
    if context.output.quiet {
        kernels.iter().try_for_each(|k| context.output.line(k.name.as_str()))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = kernels
        .iter()
        .map(|k| {
            vec![
                k.name.to_string(),
                k.release.clone(),
                k.size_bytes.to_string(),
                ago(k.created_at, now),
                k.description.clone(),
            ]
        })
        .collect();
    context.output.bytes(table(&["NAME", "RELEASE", "SIZE", "CREATED", "DESCRIPTION"], &rows).as_bytes())?;
    Ok(0)
}

async fn available(context: &Context) -> Result<u8> {
    let kernels: Vec<AvailableKernel> = context.client()?.get("/v1/kernels/available").await?;
    if context.output.json {
        context.output.document(&kernels)?;
        return Ok(0);
    }
    if context.output.quiet {
        kernels.iter().try_for_each(|k| context.output.line(k.name.as_str()))?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = kernels
        .iter()
        .map(|k| {
            vec![k.name.to_string(), if k.present { "yes" } else { "no" }.to_owned(), k.description.clone()]
        })
        .collect();
    context.output.bytes(table(&["NAME", "PRESENT", "DESCRIPTION"], &rows).as_bytes())?;
    Ok(0)
}
