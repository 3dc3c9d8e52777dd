//! `banger image list`

use banger_model::Image;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, table};

/// List the images
#[derive(Debug, clap::Args)]
#[command(visible_alias = "ls")]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let images: Vec<Image> = context.client()?.get("/v1/images").await?;
    if context.output.json {
        context.output.document(&images)?;
        return Ok(0);
    }
    if context.output.quiet {
        images.iter().try_for_each(|i| context.output.line(i.name.as_str()))?;
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|i| {
            vec![
                i.name.to_string(),
                i.digest.as_str().chars().take(12).collect(),
                i.size_bytes.to_string(),
                i.source.to_string(),
                ago(i.created_at, now),
                i.description.clone(),
            ]
        })
        .collect();
    context
        .output
        .bytes(table(&["NAME", "DIGEST", "SIZE", "SOURCE", "CREATED", "DESCRIPTION"], &rows).as_bytes())?;
    Ok(0)
}
