//! `banger kernel show`

use banger_model::Kernel;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;

use crate::client::path;
use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::fields;

/// Show kernels in full
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kernels
    #[arg(value_name = "KERNEL", required = true, value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::kernels))]
    kernels: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let results = many::each(&client, &args.kernels, |client, kernel| async move {
        client.get::<Kernel>(&path("kernels", &kernel, "")).await
    })
    .await?;
    many::finish(context, &args.kernels, results, |kernel| {
        context.output.bytes(
            fields(&[
                ("name", kernel.name.to_string()),
                ("release", kernel.release.clone()),
                ("digest", kernel.digest.to_string()),
                ("size", kernel.size_bytes.to_string()),
                ("modules", if kernel.has_modules { "yes" } else { "no" }.to_owned()),
                ("description", kernel.description.clone()),
                ("created", kernel.created_at.to_string()),
            ])
            .as_bytes(),
        )
    })
}
