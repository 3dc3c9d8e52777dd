//! `banger image import`

use std::ffi::OsString;

use banger_model::{Image, ImageName};
use banger_protocol::api::ImportImage;
use hyper::Method;

use crate::commands::args::existing;
use crate::context::Context;
use crate::error::Result;

/// Make an image from a directory, a tar archive or a squashfs file
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the image
    name: ImageName,
    /// A directory, a tar archive (plain, gzip, zstd or xz) or a squashfs file
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    source: OsString,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = ImportImage { name: args.name, path: existing(&args.source)? };
    let image: Image = context.change(Method::POST, "/v1/images/import", Some(&request)).await?;
    super::made(&image, context)
}
