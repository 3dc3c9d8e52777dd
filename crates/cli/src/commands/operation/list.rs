//! `banger operation list`

use banger_protocol::api::OperationView;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, or_dash, table};

/// List what the daemon is doing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what ended lately
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let path = if args.all { "/v1/operations?all=true" } else { "/v1/operations" };
    let operations: Vec<OperationView> = context.client()?.get(path).await?;
    context.output.list(&operations, |op| op.id.to_string(), |all| render(all, Timestamp::now()))
}

fn render(operations: &[OperationView], now: Timestamp) -> String {
    let row = |op: &OperationView| {
        vec![
            op.id.to_string(),
            op.kind.clone(),
            or_dash(op.vm.as_deref()),
            op.state.as_str().to_owned(),
            or_dash(op.stage.as_deref()),
            or_dash(op.percent.map(|percent| format!("{percent}%"))),
            ago(op.started_at, now),
        ]
    };
    let rows: Vec<Vec<String>> = operations.iter().map(row).collect();
    table(&["ID", "KIND", "VM", "STATE", "STAGE", "DONE", "BEGAN"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_one_line_under_the_headings() {
        let op: OperationView = serde_json::from_value(serde_json::json!({
            "id": "op-0123456789ab", "kind": "kernel_pull", "vm": null, "state": "running",
            "stage": "download", "message": "getting it", "percent": 40,
            "started_at": "2026-01-01T00:00:00Z", "ended_at": null, "error": null,
        }))
        .unwrap();
        let now = "2026-01-01T00:00:07Z".parse().unwrap();
        assert_eq!(
            render(&[op], now),
            "ID               KIND         VM  STATE    STAGE     DONE  BEGAN\n\
             op-0123456789ab  kernel_pull  -   running  download  40%   7 s ago\n"
        );
    }
}
