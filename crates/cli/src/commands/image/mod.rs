//! `banger image …`

mod build;
mod delete;
mod import;
mod list;
mod show;

use banger_model::Image;
use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

/// The image commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    List(list::Args),
    Show(show::Args),
    Build(build::Args),
    Import(import::Args),
    Delete(delete::Args),
}

impl ImageCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::List(args) => list::run(&args, context).await,
            Self::Show(args) => show::run(args, context).await,
            Self::Build(args) => build::run(args, context).await,
            Self::Import(args) => import::run(args, context).await,
            Self::Delete(args) => delete::run(args, context).await,
        }
    }
}

/// Tells that an image was made.
fn made(image: &Image, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(image)?;
    } else {
        context.output.notice(&format!("image '{}' is ready, {}", image.name, image.size_bytes));
    }
    Ok(0)
}
