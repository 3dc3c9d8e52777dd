//! `banger vm template …`

mod delete;
mod list;
mod prune;
mod save;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

/// The template commands.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    #[command(visible_alias = "ls")]
    List(list::Args),
    Save(save::Args),
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    Prune(prune::Args),
}

impl TemplateCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::List(args) => list::run(&args, context).await,
            Self::Save(args) => save::run(args, context).await,
            Self::Delete(args) => delete::run(args, context).await,
            Self::Prune(args) => prune::run(&args, context).await,
        }
    }
}
