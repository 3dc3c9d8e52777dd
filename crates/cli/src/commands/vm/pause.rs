//! `banger vm pause`

use banger_model::VmView;
use hyper::Method;

use crate::client::path;
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
    let client = context.client()?;
    let vms = args.which.vms;
    let several = vms.len() > 1;
    let results = many::each(&client, &vms, |client, vm| {
        let mut progress = context.board.track(several.then_some(&*vm));
        async move {
            client.change::<(), VmView>(Method::POST, &path("vms", &vm, "/pause"), None, &mut progress).await
        }
    })
    .await?;
    many::finish(context, &vms, results, |vm| {
        context.output.notice(&format!("'{}' is paused", vm.name));
        Ok(())
    })
}
