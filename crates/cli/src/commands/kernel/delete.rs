//! `banger kernel delete`

use banger_model::Kernel;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;
use hyper::Method;

use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Delete kernels that no VM uses
#[derive(Debug, clap::Args)]
#[command(visible_alias = "rm")]
pub(crate) struct Args {
    /// The kernels
    #[arg(value_name = "KERNEL", required = true, value_parser = NonEmptyStringValueParser::new(), add = ArgValueCompleter::new(completion::kernels))]
    kernels: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let results = many::change(context, "kernels", &args.kernels, (Method::DELETE, ""), None::<&()>).await?;
    many::finish(context, &args.kernels, results, |kernel: &Kernel| {
        context.output.notice(&format!("kernel '{}' is deleted", kernel.name));
        Ok(())
    })
}
