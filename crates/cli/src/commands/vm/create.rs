//! `banger vm create`

use banger_protocol::api::{CreateVm, CreatedVm};
use hyper::Method;

use super::timings;
use crate::commands::args::MachineArgs;
use crate::commands::operation;
use crate::context::Context;
use crate::error::Result;

/// Create a VM and start it; its name is printed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Do not start it
    #[arg(long)]
    no_start: bool,
    /// Do not wait: print the id of the operation that does it
    #[arg(short, long, conflicts_with = "timings")]
    detach: bool,
    /// Show how long each step took
    #[arg(long)]
    timings: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = CreateVm { no_start: args.no_start, ..args.machine.into_request() };
    if args.detach {
        return operation::detached("/v1/vms", &request, context).await;
    }
    let created: CreatedVm = context.change(Method::POST, "/v1/vms", Some(&request)).await?;
    if context.output.json {
        context.output.document(&timings::document(&created, args.timings)?)?;
        return Ok(0);
    }
    if args.timings {
        timings::show(&created.timings, context);
    }
    context.output.line(created.vm.name.as_str())?;
    Ok(0)
}
