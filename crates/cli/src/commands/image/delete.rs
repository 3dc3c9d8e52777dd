//! `banger image delete`

use banger_model::Image;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;
use hyper::Method;

use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Delete images that no VM uses
#[derive(Debug, clap::Args)]
#[command(visible_alias = "rm")]
pub(crate) struct Args {
    /// The images
    #[arg(value_name = "IMAGE", required = true, value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::images))]
    images: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let results = many::change(context, "images", &args.images, (Method::DELETE, ""), None::<&()>).await?;
    many::finish(context, &args.images, results, |image: &Image| {
        context.output.notice(&format!("image '{}' is deleted", image.name));
        Ok(())
    })
}
