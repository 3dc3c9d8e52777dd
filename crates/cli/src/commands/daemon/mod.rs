//! `banger daemon …`

mod logs;
mod start;
mod status;
mod stop;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

/// The daemon's commands.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    Status(status::Args),
    Start(start::Args),
    Stop(stop::Args),
    Logs(logs::Args),
}

impl DaemonCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Status(args) => status::run(&args, context).await,
            Self::Start(args) => start::run(&args, context).await,
            Self::Stop(args) => stop::run(&args, context).await,
            Self::Logs(args) => logs::run(&args, context).await,
        }
    }
}
