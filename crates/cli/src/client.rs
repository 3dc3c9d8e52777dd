//! The daemon's API as the commands use it: one HTTP/1.1 connection a request, on the unix socket.
//!
//! Closing a connection cancels what was asked on it, so a request that is dropped is cancelled.
//! Must never print.

use std::collections::VecDeque;

use banger_model::OpId;
use banger_protocol::api::{DETACH, ErrorEnvelope, Event, NDJSON, NOTICE_HEADER, News, OP_HEADER, PREFER};
use banger_protocol::exec::UPGRADE;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE as UPGRADE_HEADER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::daemon_start::{connect, connect_or_start};
use crate::error::{CliError, Result};
use crate::place::Place;
use crate::progress::Progress;

/// The most bytes a whole answer, or one line of a stream, may have.
const ANSWER_MAX: usize = 64 << 20;

/// Talks to the daemon of one place.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    place: Place,
    start: bool,
}

/// One connection; dropping it closes it.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer whose body is read bit by bit.
#[derive(Debug)]
pub(crate) struct Streamed {
    body: Incoming,
    _connection: Connection,
}

/// An operation that has its result but whose connection stays open: dropping this tells the daemon
/// that the caller is gone.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held for its drop")] Streamed);

impl Client {
    /// A client that starts the daemon when it is not there.
    pub(crate) fn new(place: Place) -> Self {
        Self { place, start: true }
    }

    /// A client that only ever talks to a daemon that runs.
    pub(crate) fn without_start(place: Place) -> Self {
        Self { place, start: false }
    }

    /// Makes sure that the daemon runs.
    pub(crate) async fn wake(&self) -> Result<()> {
        self.connect().await.map(drop)
    }

    /// Asks and reads the whole JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path).await
    }

    /// As [`Client::get`], or nothing when no daemon runs (and none is to be started).
    pub(crate) async fn get_if_running<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        if !self.start && connect(&self.place).await?.is_none() {
            return Ok(None);
        }
        self.get(path).await.map(Some)
    }

    /// Asks for a change with a body and reads the answer, showing progress.
    pub(crate) async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        progress: &mut Progress,
    ) -> Result<T> {
        self.change_held(method, path, body, progress).await.map(|(value, _)| value)
    }

    /// As [`Client::change`], and keeps the connection.
    pub(crate) async fn change_held<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        progress: &mut Progress,
    ) -> Result<(T, Held)> {
        let (response, connection) = self.send(method, path, body, Some(NDJSON)).await?;
        let response = checked(response).await?;
        let op = op_id(&response);
        let stream = is_media(&response, NDJSON);
        let mut streamed = Streamed { body: response.into_body(), _connection: connection };
        if !stream {
            let mut whole = BytesMut::new();
            while let Some(chunk) = streamed.next().await? {
                whole.extend_from_slice(&chunk);
            }
            return Ok((parse(&whole)?, Held(streamed)));
        }
        let mut lines = Lines::default();
        loop {
            let line = tokio::select! {
                line = lines.next(&mut streamed) => line?,
                () = progress.tick() => continue,
            };
            let Some(event) = event(&line)? else { continue };
            match event {
                Event::Progress(p) => progress.update(&p),
                Event::Notice { message } => progress.notice(&message),
                Event::Error { mut error } => {
                    error.op_id = error.op_id.or(op);
                    return Err(CliError::from_daemon(error));
                }
                Event::Result { value } => {
                    let value = serde_json::from_value(value).map_err(CliError::protocol)?;
                    return Ok((value, Held(streamed)));
                }
            }
        }
    }

    /// Asks for a change without a body and reads the plain answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        let (response, _connection) = self.send(method, path, None::<&()>, None).await?;
        parse(&collect(checked(response).await?.into_body()).await?)
    }

    /// Asks for a change that goes on without this client; the answer says which operation it is.
    pub(crate) async fn detached<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T> {
        let (response, _connection) = self.send(method, path, body, Some(DETACH)).await?;
        parse(&collect(checked(response).await?.into_body()).await?)
    }

    /// Asks for something whose body is a stream of bytes.
    pub(crate) async fn stream<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Streamed> {
        let (response, connection) = self.send(method, path, body, None).await?;
        let response = checked(response).await?;
        Ok(Streamed { body: response.into_body(), _connection: connection })
    }

    /// Asks for an exec stream: the raw connection, and what was read of it already.
    pub(crate) async fn upgrade<B: Serialize>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<(UnixStream, Bytes, Option<String>)> {
        let (response, connection) = self.send(Method::POST, path, Some(body), Some(UPGRADE)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            checked(response).await?;
            return Err(CliError::protocol("it did not switch to the exec stream"));
        }
        let notice = response
            .headers()
            .get(NOTICE_HEADER)
            .map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        let upgraded =
            hyper::upgrade::on(response).await.map_err(|e| CliError::daemon_gone(&e.to_string()))?;
        drop(connection);
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| CliError::protocol("not our connection"))?;
        Ok((parts.io.into_inner(), parts.read_buf, notice))
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        want: Option<&'static str>,
    ) -> Result<(Response<Incoming>, Connection)> {
        let mut connection = self.connect().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "banger")
            .header(USER_AGENT, concat!("banger/", env!("CARGO_PKG_VERSION")));
        match want {
            Some(UPGRADE) => {
                request = request.header(CONNECTION, "Upgrade").header(UPGRADE_HEADER, UPGRADE);
            }
            Some(DETACH) => request = request.header(PREFER, DETACH),
            Some(media) => request = request.header(ACCEPT, media),
            None => {}
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Bytes::from(serde_json::to_vec(body).map_err(CliError::protocol)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(body)).map_err(CliError::protocol)?;
        let response = connection
            .sender
            .send_request(request)
            .await
            .map_err(|e| CliError::daemon_gone(&e.to_string()))?;
        Ok((response, connection))
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = if self.start {
            connect_or_start(&self.place).await?
        } else {
            connect(&self.place).await?.ok_or_else(|| {
                banger_model::Error::unavailable("the daemon is not running")
                    .with_hint("start it with 'banger daemon start'")
            })?
        };
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| CliError::daemon_gone(&e.to_string()))?;
        let task = tokio::spawn(async move {
            // Whoever waits for the answer sees the failure there.
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection { sender, task })
    }
}

impl Streamed {
    /// The next bytes; nothing at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|e| CliError::daemon_gone(&e.to_string()))?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// Splits a stream into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Complete lines.
    ready: VecDeque<Bytes>,
    /// The beginning of the next one.
    rest: BytesMut,
}

impl Lines {
    /// The next line, without its end. Cancel-safe.
    pub(crate) async fn next(&mut self, from: &mut Streamed) -> Result<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(line);
            }
            let Some(chunk) = from.next().await? else {
                return Err(CliError::daemon_gone("the stream ended without a result"));
            };
            self.feed(&chunk)?;
        }
    }

    /// What came after the lines that were taken.
    pub(crate) fn into_rest(self) -> Bytes {
        let mut rest = BytesMut::new();
        for line in self.ready {
            rest.extend_from_slice(&line);
            rest.extend_from_slice(b"\n");
        }
        rest.extend_from_slice(&self.rest);
        rest.freeze()
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(chunk);
        let mut from = self.rest.len() - chunk.len();
        while let Some(end) = self.rest.get(from..).and_then(|new| new.iter().position(|b| *b == b'\n')) {
            let mut line = self.rest.split_to(from + end + 1);
            line.truncate(line.len() - 1);
            self.ready.push_back(line.freeze());
            from = 0;
        }
        if self.rest.len() > ANSWER_MAX {
            return Err(CliError::protocol("a line has no end"));
        }
        Ok(())
    }
}

/// The path `/v1/<collection>/<reference><suffix>`, with the reference percent-encoded.
pub(crate) fn path(collection: &str, reference: &str, suffix: &str) -> String {
    let mut out = format!("/v1/{collection}/");
    for byte in reference.bytes() {
        // RFC 3986 "unreserved", without the dot: `..` is a path segment with a meaning.
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out.push_str(suffix);
    out
}

/// The response, or the error it carries.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let op = op_id(&response);
    let body = collect(response.into_body()).await?;
    match serde_json::from_slice::<ErrorEnvelope>(&body) {
        Ok(mut envelope) => {
            envelope.error.op_id = envelope.error.op_id.or(op);
            Err(CliError::from_daemon(envelope.error))
        }
        Err(_) => Err(CliError::protocol(format!("HTTP {status}: {}", String::from_utf8_lossy(&body)))),
    }
}

fn op_id(response: &Response<Incoming>) -> Option<OpId> {
    response.headers().get(OP_HEADER)?.to_str().ok()?.parse().ok()
}

fn is_media(response: &Response<Incoming>, media: &str) -> bool {
    response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.starts_with(media))
}

async fn collect(body: Incoming) -> Result<Bytes> {
    match Limited::new(body, ANSWER_MAX).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(e) => Err(CliError::daemon_gone(&e.to_string())),
    }
}

/// The event in a line; nothing for a kind that a newer daemon has added.
fn event(line: &[u8]) -> Result<Option<Event>> {
    known(line, &["progress", "notice", "result", "error"])
}

/// The news in a line; nothing for a kind that a newer daemon has added.
pub(crate) fn news(line: &[u8]) -> Result<Option<News>> {
    known(line, &["watching", "operation", "vm", "vm_deleted", "missed"])
}

fn known<T: DeserializeOwned>(line: &[u8], known: &[&str]) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Tagged {
        r#type: String,
    }
    match serde_json::from_slice::<Tagged>(line) {
        Ok(tagged) if !known.contains(&tagged.r#type.as_str()) => Ok(None),
        _ => parse(line).map(Some),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(CliError::protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_cannot_leave_their_segment() {
        assert_eq!(path("vms", "web-1", "/stop"), "/v1/vms/web-1/stop");
        assert_eq!(path("vms", "../a b?x=1#ü%", ""), "/v1/vms/%2E%2E%2Fa%20b%3Fx%3D1%23%C3%BC%25");
    }

    #[test]
    fn events_of_a_newer_daemon_are_passed_over_and_nonsense_is_not() {
        assert_eq!(event(br#"{"type":"metric","value":1}"#).unwrap(), None);
        let notice = Event::Notice { message: "m".to_owned() };
        assert_eq!(event(br#"{"type":"notice","message":"m","more":1}"#).unwrap(), Some(notice));
        assert!(event(br#"{"type":"notice"}"#).is_err());
        assert!(event(b"text").is_err());
    }

    #[test]
    fn lines_come_whole_however_the_bytes_are_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\nrest\nof it";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            lines.feed(&text[..cut]).unwrap();
            lines.feed(&text[cut..]).unwrap();
            assert_eq!(lines.ready.pop_front().unwrap(), "{\"a\":1}");
            assert_eq!(lines.ready.pop_front().unwrap(), "");
            assert_eq!(lines.ready.pop_front().unwrap(), "{\"b\":2}");
            assert_eq!(lines.into_rest(), "rest\nof it", "cut at {cut}");
        }
    }
}
