//! A client of the daemon's API: one connection for each request, which may be closed at any moment.

use std::path::Path;
use std::time::Duration;

use banger_model::ErrorCode;
use banger_protocol::api::{ErrorBody, ErrorEnvelope, Event, NDJSON};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::reference::{Ask, End, Fork, Verb};

/// How long anything may take, in a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Cuts below this count stages; later ones are moments.
const STAGES: u8 = 8;
/// One moment.
const MOMENT: Duration = Duration::from_millis(3);

/// A request under way.
pub(crate) struct Request {
    lines: BufReader<UnixStream>,
    status: u16,
}

/// What a request has come to.
pub(crate) enum So {
    /// It is still under way.
    Far,
    /// It ended.
    Done(End),
}

/// Where and how a verb is asked for.
fn route(ask: Ask) -> (&'static str, String, Value) {
    let name = ask.name;
    let to = |verb: &str| format!("/v1/vms/{name}/{verb}");
    // A guest that ignores a power-off is ended soon: this is a model, not a wait.
    let patience = json!({ "timeout_ms": 80 });
    match ask.verb {
        Verb::Create { start } => {
            let vm = json!({ "name": name, "image": "bare", "kernel": "debian-cloud", "network": "none",
                "accel": "tcg", "disk_size": 64 << 20, "no_start": !start });
            ("POST", "/v1/vms".to_owned(), vm)
        }
        Verb::Start => ("POST", to("start"), Value::Null),
        Verb::Stop => ("POST", to("stop"), patience),
        Verb::Restart => ("POST", to("restart"), patience),
        Verb::Kill => ("POST", to("kill"), Value::Null),
        Verb::Pause => ("POST", to("pause"), Value::Null),
        Verb::Resume => ("POST", to("resume"), Value::Null),
        Verb::Delete { force } => ("DELETE", format!("/v1/vms/{name}?force={force}"), Value::Null),
    }
}

impl Request {
    /// Asks.
    pub(crate) async fn send(socket: &Path, ask: Ask) -> Self {
        let (method, path, body) = route(ask);
        Self::raw(socket, method, &path, &body).await
    }

    /// Asks for a fork.
    pub(crate) async fn fork(socket: &Path, fork: Fork) -> Self {
        let path = format!("/v1/vms/{}/fork", fork.parent);
        Self::raw(socket, "POST", &path, &json!({ "name": fork.child })).await
    }

    async fn raw(socket: &Path, method: &str, path: &str, body: &Value) -> Self {
        let mut stream = UnixStream::connect(socket).await.expect("the daemon's socket");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        // HTTP/1.0: the answer ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\naccept: {NDJSON}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("the daemon reads");
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).await.expect("an answer");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_default();
        while !line.trim().is_empty() {
            line.clear();
            lines.read_line(&mut line).await.expect("its head");
        }
        Self { lines, status }
    }

    /// Waits until it is so many stages or moments under way, or ended.
    pub(crate) async fn until(&mut self, cut: u8) -> So {
        if cut >= STAGES {
            return match tokio::time::timeout(MOMENT * u32::from(cut - STAGES + 1), self.end()).await {
                Ok(end) => So::Done(end),
                Err(_) => So::Far,
            };
        }
        for _ in 0..cut {
            if let Some(end) = self.line().await {
                return So::Done(end);
            }
        }
        So::Far
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> End {
        let ended = async {
            loop {
                if let Some(end) = self.line().await {
                    return end;
                }
            }
        };
        tokio::time::timeout(LIMIT, ended).await.expect("an end: something waits for ever")
    }

    /// The next line; what it says when it is the last. Cancel-safe enough: a line that is lost with
    /// its reader belongs to a request that nobody asks any more.
    async fn line(&mut self) -> Option<End> {
        let mut line = String::new();
        if self.status != 200 {
            self.lines.read_to_string(&mut line).await.expect("an error");
            let envelope: ErrorEnvelope = serde_json::from_str(&line).expect("an error in JSON");
            return Some(Err(told(&envelope.error)));
        }
        let n = self.lines.read_line(&mut line).await.expect("a line");
        assert!(n > 0, "the answer ended without a result");
        match serde_json::from_str(&line).expect("an event") {
            Event::Progress(_) | Event::Notice { .. } => None,
            Event::Result { .. } => Some(Ok(())),
            Event::Error { error } => Some(Err(told(&error))),
        }
    }
}

fn told(error: &ErrorBody) -> ErrorCode {
    assert!(error.code != ErrorCode::Internal, "an error nobody should see: {error:?}");
    error.code
}

/// Everything that `GET PATH` answers.
pub(crate) async fn get(socket: &Path, path: &str) -> Value {
    let mut request = Request::raw(socket, "GET", path, &Value::Null).await;
    let mut text = String::new();
    request.lines.read_to_string(&mut text).await.expect("an answer");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}
