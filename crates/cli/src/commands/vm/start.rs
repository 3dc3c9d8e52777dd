//! `banger vm start`

use banger_protocol::api::{CreatedVm, OperationView};
use hyper::Method;

use super::timings;
use crate::client::path;
use crate::commands::args::VmsArg;
use crate::commands::operation;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::seconds;

/// Start VMs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// Do not wait: print the ids of the operations that do it
    #[arg(short, long, conflicts_with = "timings")]
    detach: bool,
    /// Show how long each step took
    #[arg(long)]
    timings: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let vms = args.which.vms;
    if args.detach {
        let begun = many::each(&context.client()?, &vms, |client, vm| async move {
            client.detached::<(), OperationView>(Method::POST, &path("vms", &vm, "/start"), None).await
        })
        .await?;
        return many::finish(context, &vms, begun, |begun| operation::begun(begun, context));
    }
    let results: Vec<Result<CreatedVm>> =
        many::change(context, "vms", &vms, (Method::POST, "/start"), None::<&()>).await?;
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
