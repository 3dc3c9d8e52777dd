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
    let now = Timestamp::now();
    let row = |i: &Image| {
        vec![
            i.name.to_string(),
            i.digest.as_str().chars().take(12).collect(),
            i.size_bytes.to_string(),
            i.source.to_string(),
            ago(i.created_at, now),
            i.description.clone(),
        ]
    };
    let render = |all: &[Image]| {
        table(
            &["NAME", "DIGEST", "SIZE", "SOURCE", "CREATED", "DESCRIPTION"],
            &all.iter().map(row).collect::<Vec<_>>(),
        )
    };
    context.output.list(&images, |i| i.name.to_string(), render)
}
