//! `banger vm restart`

use std::time::Duration;

use banger_model::parse_duration;

use super::stop;
use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Stop VMs in good order and start them again
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// How long a guest has to power off, such as 10s [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let results = stop::act(&args.which.vms, "/restart", args.timeout, context).await?;
    many::finish(context, &args.which.vms, results, |vm| {
        context.output.notice(&format!("'{}' runs again", vm.name));
        Ok(())
    })
}
