//! `banger operation show`

use banger_protocol::api::OperationView;

use super::OperationsArg;
use crate::client::path;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::{fields, or_dash};

/// Show operations, also those that ended lately
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: OperationsArg,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let operations = args.which.operations;
    let results = many::each(&context.client()?, &operations, |client, op| async move {
        client.get::<OperationView>(&path("operations", &op, "")).await
    })
    .await?;
    many::finish(context, &operations, results, |op| context.output.bytes(render(op).as_bytes()))
}

fn render(op: &OperationView) -> String {
    let mut lines = vec![
        ("id", op.id.to_string()),
        ("kind", op.kind.clone()),
        ("vm", or_dash(op.vm.as_deref())),
        ("state", op.state.as_str().to_owned()),
        ("stage", or_dash(op.stage.as_deref())),
        ("message", or_dash(op.message.as_deref())),
        ("done", or_dash(op.percent.map(|percent| format!("{percent}%")))),
        ("began", op.started_at.to_string()),
        ("ended", or_dash(op.ended_at)),
    ];
    if let Some(error) = &op.error {
        lines.push(("error", format!("{} ({})", error.message, error.code)));
    }
    fields(&lines)
}
