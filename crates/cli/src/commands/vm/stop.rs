//! `banger vm stop`

use std::time::Duration;

use banger_model::{VmView, parse_duration};
use banger_protocol::api::StopVm;
use hyper::Method;

use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Stop VMs in good order: disks are flushed, services are asked first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// How long a guest has to power off, such as 10s [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let results = act(&args.which.vms, "/stop", args.timeout, context).await?;
    many::finish(context, &args.which.vms, results, |vm| {
        context.output.notice(&format!("'{}' is stopped", vm.name));
        Ok(())
    })
}

/// Posts to `/stop` or `/restart`, which take the same body.
pub(super) async fn act(
    vms: &[String],
    suffix: &'static str,
    timeout: Option<Duration>,
    context: &Context,
) -> Result<Vec<Result<VmView>>> {
    let request = StopVm { timeout_ms: timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)) };
    many::change(context, "vms", vms, (Method::POST, suffix), Some(&request)).await
}
