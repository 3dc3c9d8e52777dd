//! How a request becomes an operation and its outcome a response.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use banger_model::{Error, ErrorCode, OpId, Result};
use banger_protocol::api::{DETACH, ErrorBody, ErrorEnvelope, Event, NDJSON, OP_HEADER, PREFER};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tracing::Instrument;

use crate::op::{EVENT_BACKLOG, Op, fresh_id};
use crate::operations::Operations;

/// A failed request: HTTP status, the op header and the error's JSON.
#[derive(Debug)]
pub(crate) struct Failure {
    error: Error,
    op_id: Option<OpId>,
}

impl Failure {
    /// The failure of an operation.
    pub(crate) fn new(error: impl Into<Error>, op: &Op) -> Self {
        Self { error: error.into(), op_id: Some(op.id().clone()) }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        // Reads have no operation of their own; give the line an id all the same so that the
        // message leads to the log.
        Self { error: error.into(), op_id: Some(fresh_id()) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.error.code == ErrorCode::Internal {
            tracing::error!(op_id = self.op_id.as_ref().map(OpId::as_str), error = %self.error, "request failed");
        } else {
            tracing::info!(op_id = self.op_id.as_ref().map(OpId::as_str), code = %self.error.code, error = %self.error,
                "request refused");
        }
        let status = status_of(self.error.code);
        let op = self.op_id.clone();
        let body = ErrorEnvelope { error: ErrorBody::new(self.error, self.op_id) };
        with_op((status, axum::Json(body)).into_response(), op.as_ref())
    }
}

/// The HTTP status for a code.
#[must_use]
pub(super) fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::AlreadyExists
        | ErrorCode::Ambiguous
        | ErrorCode::NotRunning
        | ErrorCode::Busy
        | ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::Unavailable | ErrorCode::ImageMissing => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Adds the op header.
pub(super) fn with_op(mut response: Response, op: Option<&OpId>) -> Response {
    if let Some(value) = op.and_then(|op| HeaderValue::from_str(op.as_str()).ok()) {
        response.headers_mut().insert(OP_HEADER, value);
    }
    response
}

/// Gives a request that has no operation of its own (a read) an id all the same, and logs it: every
/// answer leads to the log.
pub(crate) async fn identified(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let response = if response.headers().contains_key(OP_HEADER) {
        response
    } else {
        with_op(response, Some(&fresh_id()))
    };
    let op_id = response.headers().get(OP_HEADER).and_then(|v| v.to_str().ok()).unwrap_or_default();
    tracing::debug!(op_id, %method, path, status = response.status().as_u16(), "answered");
    response
}

/// What an operation's request says about it.
pub(super) struct Asked<'a> {
    /// Where operations are listed.
    pub(super) operations: &'a Arc<Operations>,
    /// The operation's kind.
    pub(super) kind: &'static str,
    /// What the request calls the VM, if it names one.
    pub(super) vm: Option<&'a str>,
    /// Its headers.
    pub(super) headers: &'a HeaderMap,
}

/// Runs `work` as an operation and answers with its result, or, when the client accepts
/// [`NDJSON`], with its events as they happen. The client going away cancels the operation, unless it asked for one
/// that goes on without it ([`DETACH`]): then it is answered at once.
pub(super) async fn operation<T, Fut>(
    asked: Asked<'_>,
    work: impl FnOnce(Op) -> Fut + Send + 'static,
) -> Response
where
    T: Serialize + Send + 'static,
    Fut: Future<Output = Result<T>> + Send + 'static,
{
    operation_and_hold(asked, work, |_, _| std::future::ready(())).await
}

/// Like [`operation`]; when it succeeded, `hold` runs after the result was sent, with the event
/// stream still open and the operation's token cancelled when the client closes it.
pub(super) async fn operation_and_hold<T, Fut, Hold>(
    asked: Asked<'_>,
    work: impl FnOnce(Op) -> Fut + Send + 'static,
    hold: impl FnOnce(Op, T) -> Hold + Send + 'static,
) -> Response
where
    T: Serialize + Send + 'static,
    Fut: Future<Output = Result<T>> + Send + 'static,
    Hold: Future<Output = ()> + Send + 'static,
{
    let Asked { operations, kind, vm, headers } = asked;
    let detached = wants_detached(headers);
    let streaming = !detached && accepts_ndjson(headers);
    let (sender, receiver) = mpsc::channel(EVENT_BACKLOG);
    let op = operations.begin(kind, vm, streaming.then(|| sender.clone()));
    let span = tracing::info_span!("op", op_id = op.id().as_str(), operation = kind);
    let guard = op.cancel_token().clone().drop_guard();
    let (done, outcome) = tokio::sync::oneshot::channel();
    let task = {
        let op = op.clone();
        async move {
            tracing::debug!("operation started");
            match work(op.clone()).await {
                Ok(value) => {
                    tracing::info!(ms = op.elapsed_ms(), "operation done");
                    op.end(None);
                    let json = serde_json::to_value(&value).map_err(|e| Error::internal(e.to_string()));
                    let sent = json.map_err(|e| ErrorBody::new(e, Some(op.id().clone())));
                    let _ = done.send(sent);
                    hold(op, value).await;
                }
                Err(error) => {
                    tracing::warn!(ms = op.elapsed_ms(), code = %error.code, error = %error, "operation failed");
                    let error = ErrorBody::new(error, Some(op.id().clone()));
                    op.end(Some(&error));
                    let _ = done.send(Err(error));
                }
            }
            drop(sender);
        }
    };
    tokio::spawn(task.instrument(span));
    let response = if detached {
        drop(guard.disarm());
        (StatusCode::ACCEPTED, axum::Json(op.view())).into_response()
    } else if streaming {
        let events = Events { receiver, outcome: Some(outcome), guard: Some(guard) };
        let body = Body::from_stream(stream::unfold(events, Events::next_line));
        ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
    } else {
        let outcome = outcome.await;
        drop(guard.disarm());
        match outcome {
            Ok(Ok(value)) => axum::Json(value).into_response(),
            Ok(Err(error)) => (status_of(error.code), axum::Json(ErrorEnvelope { error })).into_response(),
            Err(_) => {
                Failure::new(Error::internal("the operation ended without an answer"), &op).into_response()
            }
        }
    };
    with_op(response, Some(op.id()))
}

/// Whether the operation is to go on without its client.
#[must_use]
pub(super) fn wants_detached(headers: &HeaderMap) -> bool {
    let values = headers.get_all(PREFER).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(DETACH))
}

/// Whether the client wants an event stream.
#[must_use]
pub(super) fn accepts_ndjson(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains(NDJSON))
}

type Outcome = tokio::sync::oneshot::Receiver<Result<serde_json::Value, ErrorBody>>;

/// The lines of an event stream. Dropped by the HTTP server when the client goes away.
struct Events {
    receiver: mpsc::Receiver<Event>,
    outcome: Option<Outcome>,
    guard: Option<DropGuard>,
}

impl Events {
    async fn next_line(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        let event = match &mut self.outcome {
            // Progress first, as long as there is any; then the outcome; then silence until the
            // operation lets go of the stream.
            Some(outcome) => tokio::select! {
                biased;
                Some(event) = self.receiver.recv() => event,
                outcome = outcome => {
                    self.outcome = None;
                    match outcome {
                        Ok(Ok(value)) => Event::Result { value },
                        Ok(Err(error)) => Event::Error { error },
                        Err(_) => Event::Error {
                            error: ErrorBody::new(Error::internal("the operation ended without an answer"), None),
                        },
                    }
                }
            },
            None => {
                while self.receiver.recv().await.is_some() {}
                if let Some(guard) = self.guard.take() {
                    drop(guard.disarm());
                }
                return None;
            }
        };
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Bytes::from(line)), self))
    }
}
