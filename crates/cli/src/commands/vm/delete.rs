//! `banger vm delete`

use banger_model::VmView;
use hyper::Method;

use crate::client::path;
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
    let client = context.client()?;
    let vms = args.which.vms;
    let suffix = if args.force { "?force=true" } else { "" };
    let several = vms.len() > 1;
    let results = many::each(&client, &vms, |client, vm| {
        let mut progress = context.board.track(several.then_some(&*vm));
        async move {
            client.change::<(), VmView>(Method::DELETE, &path("vms", &vm, suffix), None, &mut progress).await
        }
    })
    .await?;
    many::finish(context, &vms, results, |vm| {
        context.output.notice(&format!("'{}' is deleted", vm.name));
        Ok(())
    })
}
