//! `banger vm pause`

use banger_model::VmView;
use hyper::Method;

use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Halt VMs: memory and processes stay as they are, and cost no processor time
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let vms = args.which.vms;
    let results = many::change(context, "vms", &vms, (Method::POST, "/pause"), None::<&()>).await?;
    many::finish(context, &vms, results, |vm: &VmView| {
        context.output.notice(&format!("'{}' is paused", vm.name));
        Ok(())
    })
}
