//! `banger operation cancel`

use banger_protocol::api::OperationView;
use hyper::Method;

use super::{OperationsArg, follow};
use crate::client::path;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Cancel operations and wait until they have unwound
///
/// One that cannot go back any more, such as a stop or a delete, is carried to its end.
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
            let told: OperationView = client.call(Method::DELETE, &path("operations", &op, "")).await?;
            follow::to_the_end(&client, told.id.as_str(), &mut progress).await
        }
    })
    .await?;
    many::finish(context, &operations, results, |op: &OperationView| {
        context.output.notice(&format!("{} ({}) is {}", op.id, op.kind, op.state.as_str()));
        Ok(())
    })
}
