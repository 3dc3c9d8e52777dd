//! `banger vm fork`

use banger_model::VmName;
use banger_protocol::api::{ForkVm, ForkedVm};
use hyper::Method;

use crate::client::path;
use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::{CliError, Result};

/// Make VMs that go on from where this one is: with its memory, disks, processes and workspace, each as a machine of its
/// own; their names are printed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: VmArg,
    /// The child's name, with -1, -2, … behind it when there is a --count [default: a generated one]
    #[arg(long)]
    name: Option<VmName>,
    /// How many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    count: Option<u32>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = ForkVm { name: args.name, count: args.count };
    let url = path("vms", &args.vm.vm, "/fork");
    let forked: ForkedVm = context.change(Method::POST, &url, Some(&request)).await?;
    context.output.notice(&format!("'{}' stood still for {:.0} ms", args.vm.vm, forked.paused_ms));
    if context.output.json {
        match forked.vms.as_slice() {
            [one] if args.count.is_none() => context.output.document(one)?,
            all => context.output.document(&all)?,
        }
    } else {
        forked.vms.iter().try_for_each(|vm| context.output.line(vm.name.as_str()))?;
    }
    if forked.failed.is_empty() {
        return Ok(0);
    }
    Err(CliError::several(forked.failed.into_iter().map(CliError::from_daemon).collect()))
}
