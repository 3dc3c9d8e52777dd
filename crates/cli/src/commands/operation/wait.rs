//! `banger operation wait`

use banger_protocol::api::OperationView;

use super::{OperationsArg, follow};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::many;

/// Wait until operations end; fails when one of them did
///
/// Ending this command ends the waiting only: see 'banger operation cancel'.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: OperationsArg,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let operations = args.which.operations;
    let several = operations.len() > 1;
    let results = many::each(&context.client()?, &operations, |client, op| {
        let mut progress = context.board.track(several.then_some(&*op));
        async move {
            let ended = follow::to_the_end(&client, &op, &mut progress).await?;
            match ended.error {
                Some(error) => Err(CliError::from_daemon(error)),
                None => Ok(ended),
            }
        }
    })
    .await?;
    many::finish(context, &operations, results, |op: &OperationView| {
        context.output.notice(&format!("{} ({}) is {}", op.id, op.kind, op.state.as_str()));
        Ok(())
    })
}
