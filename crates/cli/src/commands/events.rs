//! `banger events`

use banger_protocol::api::{News, OperationView, VmNews};
use hyper::Method;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::client::{Lines, news};
use crate::context::Context;
use crate::error::Result;
use crate::output::printable;

/// Show what happens, as it happens: operations and VMs' states
///
/// With --json one document a line, the first of type "watching". Kinds may be added.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_args: &Args, context: &Context) -> Result<u8> {
    let mut stream = context.client()?.stream::<()>(Method::GET, "/v1/events", None).await?;
    let mut lines = Lines::default();
    loop {
        let line = lines.next(&mut stream).await?;
        let news = news(&line)?;
        if context.output.json {
            context.output.bytes(&[&line[..], b"\n"].concat())?;
        } else if let Some(text) = news.and_then(|news| render(&news, &TimeZone::system())) {
            context.output.line(&printable(&text).replace('\n', " "))?;
        }
    }
}

fn render(news: &News, zone: &TimeZone) -> Option<String> {
    let clock = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string();
    match news {
        News::Watching { .. } => None,
        News::Operation { at, operation } => Some(format!("{}  {}", clock(*at), of_operation(operation))),
        News::Vm(vm) => Some(format!("{}  {}", clock(vm.at), of_vm(vm, vm.state.as_str()))),
        News::VmDeleted(vm) => Some(format!("{}  {}", clock(vm.at), of_vm(vm, "deleted"))),
        News::Missed { lines } => Some(format!("({lines} events were missed)")),
    }
}

fn of_operation(op: &OperationView) -> String {
    let mut text = format!("{}  {}", op.id, op.kind);
    if let Some(vm) = &op.vm {
        text.push_str(&format!(" {vm}"));
    }
    text.push_str(&format!(": {}", op.state.as_str()));
    if let (Some(message), false) = (&op.message, op.state.is_over()) {
        text.push_str(&format!(", {message}"));
    }
    if let (Some(percent), false) = (op.percent, op.state.is_over()) {
        text.push_str(&format!(" {percent}%"));
    }
    if let Some(error) = &op.error {
        text.push_str(&format!(": {} ({})", error.message, error.code));
    }
    text
}

fn of_vm(vm: &VmNews, what: &str) -> String {
    let mut text = format!("VM {}: {what}", vm.name);
    if let Some(error) = &vm.last_error {
        text.push_str(&format!(": {} ({})", error.message, error.code));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: serde_json::Value) -> Option<String> {
        render(&serde_json::from_value(json).unwrap(), &TimeZone::UTC)
    }

    #[test]
    fn an_event_is_a_line() {
        let at = "2026-01-01T10:20:30Z";
        assert_eq!(shown(serde_json::json!({"type": "watching", "at": at})), None);
        let operation = serde_json::json!({
            "id": "op-0123456789ab", "kind": "start", "vm": "web", "state": "running", "stage": "boot",
            "message": "booting (web)", "percent": null, "started_at": at, "ended_at": null, "error": null,
        });
        assert_eq!(
            shown(serde_json::json!({"type": "operation", "at": at, "operation": operation})).unwrap(),
            "10:20:30  op-0123456789ab  start web: running, booting (web)"
        );
        let error = serde_json::json!({"code": "guest_failed", "message": "the guest's kernel panicked"});
        assert_eq!(
            shown(serde_json::json!({"type": "vm", "at": at, "id": "0123456789ab", "name": "web",
                "state": "error", "last_error": error, "op_id": null}))
            .unwrap(),
            "10:20:30  VM web: error: the guest's kernel panicked (guest_failed)"
        );
    }
}
