//! `banger daemon start`

use banger_protocol::api::DaemonStatus;

use super::status;
use crate::context::Context;
use crate::error::Result;

/// Start the daemon, if it does not run yet (every other command does, too)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let now: DaemonStatus = context.client()?.get("/v1/daemon").await?;
    if context.output.json {
        return status::show(&now, context);
    }
    context.output.notice(&format!("the daemon runs, pid {}", crate::table::or_dash(now.pid)));
    Ok(0)
}
