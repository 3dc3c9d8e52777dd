//! `banger image show`

use banger_model::Image;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;

use crate::client::path;
use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::fields;

/// Show images in full
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The images
    #[arg(value_name = "IMAGE", required = true, value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let results = many::each(&client, &args.images, |client, image| async move {
        client.get::<Image>(&path("images", &image, "")).await
    })
    .await?;
    many::finish(context, &args.images, results, |image| {
        context.output.bytes(
            fields(&[
                ("name", image.name.to_string()),
                ("digest", image.digest.to_string()),
                ("format", image.fs.to_string()),
                ("size", image.size_bytes.to_string()),
                ("source", image.source.to_string()),
                ("description", image.description.clone()),
                ("created", image.created_at.to_string()),
            ])
            .as_bytes(),
        )
    })
}
