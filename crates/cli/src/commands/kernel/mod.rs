//! `banger kernel …`

mod delete;
mod import;
mod list;
mod pull;
mod show;

use banger_model::Kernel;
use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

/// The kernel commands.
#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    List(list::Args),
    Show(show::Args),
    Pull(pull::Args),
    Import(import::Args),
    Delete(delete::Args),
}

impl KernelCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::List(args) => list::run(&args, context).await,
            Self::Show(args) => show::run(args, context).await,
            Self::Pull(args) => pull::run(args, context).await,
            Self::Import(args) => import::run(args, context).await,
            Self::Delete(args) => delete::run(args, context).await,
        }
    }
}

/// Tells that a kernel is there.
fn made(kernel: &Kernel, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(kernel)?;
    } else {
        context.output.notice(&format!("kernel '{}' ({}) is ready", kernel.name, kernel.release));
    }
    Ok(0)
}
