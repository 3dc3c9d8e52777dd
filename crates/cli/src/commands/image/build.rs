//! `banger image build`

use banger_model::{Image, ImageName};
use banger_protocol::api::BuildImage;
use hyper::Method;

use crate::commands::operation;
use crate::context::Context;
use crate::error::Result;

/// Build an image from a distribution's packages
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The distribution: debian
    distro: String,
    /// Name of the image [default: the distribution's]
    #[arg(long)]
    name: Option<ImageName>,
    /// The release, such as bookworm
    #[arg(long)]
    release: Option<String>,
    /// Packages besides the default ones, separated by commas; may be repeated
    #[arg(long, value_name = "PKG", value_delimiter = ',')]
    include: Vec<String>,
    /// Leave out the default development packages
    #[arg(long)]
    minimal: bool,
    /// Do not wait: print the id of the operation that does it
    #[arg(short, long)]
    detach: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = BuildImage {
        distro: args.distro,
        name: args.name,
        release: args.release,
        include: args.include,
        minimal: args.minimal,
    };
    if args.detach {
        return operation::detached("/v1/images/build", &request, context).await;
    }
    let image: Image = context.change(Method::POST, "/v1/images/build", Some(&request)).await?;
    super::made(&image, context)
}
