//! `banger vm delete`

use banger_model::VmView;
use hyper::Method;

use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Delete VMs and their disks
#[derive(Debug, clap::Args)]
#[command(visible_alias = "rm")]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// Also those that run
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let vms = args.which.vms;
    let suffix = if args.force { "?force=true" } else { "" };
    let results = many::change(context, "vms", &vms, (Method::DELETE, suffix), None::<&()>).await?;
    many::finish(context, &vms, results, |vm: &VmView| {
        context.output.notice(&format!("'{}' is deleted", vm.name));
        Ok(())
    })
}
