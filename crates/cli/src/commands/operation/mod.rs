//! `banger operation …`

mod cancel;
mod follow;
mod list;
mod show;
mod wait;

use banger_protocol::api::OperationView;
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCompleter;
use hyper::Method;
use serde::Serialize;

use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;

/// The operations' commands.
#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Wait(wait::Args),
    Cancel(cancel::Args),
}

/// One or more operations.
#[derive(Debug, clap::Args)]
pub(crate) struct OperationsArg {
    /// The operations: ids, or unique beginnings of them
    #[arg(value_name = "OP", required = true, value_parser = NonEmptyStringValueParser::new(),
        add = ArgValueCompleter::new(completion::operations))]
    operations: Vec<String>,
}

impl OperationCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::List(args) => list::run(args, context).await,
            Self::Show(args) => show::run(args, context).await,
            Self::Wait(args) => wait::run(args, context).await,
            Self::Cancel(args) => cancel::run(args, context).await,
        }
    }
}

/// Asks for a change that goes on without us, and prints the id of its operation.
pub(crate) async fn detached<B: Serialize>(path: &str, body: &B, context: &Context) -> Result<u8> {
    let operation: OperationView = context.client()?.detached(Method::POST, path, Some(body)).await?;
    if context.output.json {
        context.output.document(&operation)?;
    } else {
        begun(&operation, context)?;
    }
    Ok(0)
}

/// Prints the id of an operation that goes on without us.
pub(crate) fn begun(operation: &OperationView, context: &Context) -> Result<()> {
    context.output.line(operation.id.as_str())?;
    context.output.notice(&format!("'banger operation wait {}' waits for it", operation.id));
    Ok(())
}
