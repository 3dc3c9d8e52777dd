//! `banger vm start`

use banger_protocol::api::CreatedVm;
use hyper::Method;

use super::timings;
use crate::client::path;
use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::seconds;

/// Start VMs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// Show how long each step took
    #[arg(long)]
    timings: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let vms = args.which.vms;
    let several = vms.len() > 1;
    let results = many::each(&client, &vms, |client, vm| {
        let mut progress = context.board.track(several.then_some(&*vm));
        async move {
            client
                .change::<(), CreatedVm>(Method::POST, &path("vms", &vm, "/start"), None, &mut progress)
                .await
        }
    })
    .await?;
    if context.output.json {
        let documents =
            results.into_iter().map(|r| r.and_then(|c| timings::document(&c, args.timings))).collect();
        return many::finish(context, &vms, documents, |_| Ok(()));
    }
    many::finish(context, &vms, results, |created| {
        let took = created
            .vm
            .boot
            .map(|b| format!(" ({} boot, {})", b.kind, seconds(b.ready_ms)))
            .unwrap_or_default();
        context.output.notice(&format!("'{}' runs{took}", created.vm.name));
        if args.timings {
            timings::show(&created.timings, context);
        }
        Ok(())
    })
}
