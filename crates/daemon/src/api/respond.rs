//! How a request becomes an operation and its outcome a response.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use banger_model::{Error, ErrorCode, OpId, Result, Vm};
use banger_protocol::api::{DETACH, ErrorBody, ErrorEnvelope, Event, NDJSON, OP_HEADER, PREFER};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tracing::Instrument;

use crate::daemon::Daemon;
use crate::op::{EVENT_BACKLOG, Op, fresh_id};

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

/// A request for a change: what it is made to, and how its client wants to hear of it.
#[derive(Debug)]
pub(super) struct Asked {
    daemon: Arc<Daemon>,
    headers: HeaderMap,
}

impl FromRequestParts<Arc<Daemon>> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        daemon: &Arc<Daemon>,
    ) -> std::result::Result<Self, Infallible> {
        Ok(Self { daemon: daemon.clone(), headers: parts.headers.clone() })
    }
}

impl Asked {
    /// Its headers.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Runs `work` as an operation and answers with its result, or, when the client accepts
    /// [`NDJSON`], with its events as they happen. The client going away cancels the operation, unless it asked for
    /// one that goes on without it ([`DETACH`]): then it is answered at once.
    pub(super) async fn operation<T, Fut>(
        self,
        kind: &'static str,
        work: impl FnOnce(Arc<Daemon>, Op) -> Fut + Send + 'static,
    ) -> Response
    where
        T: Serialize + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        self.operation_and_hold(kind, None, work, |_, _, _| std::future::ready(())).await
    }

    /// The same about the VM that a reference means.
    pub(super) async fn of_vm<T, Fut>(
        self,
        kind: &'static str,
        vm: String,
        work: impl FnOnce(Arc<Daemon>, Op, String) -> Fut + Send + 'static,
    ) -> Response
    where
        T: Serialize + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        let reference = vm.clone();
        let work = |daemon, op| work(daemon, op, vm);
        self.operation_and_hold(kind, Some(&reference), work, |_, _, _| std::future::ready(())).await
    }

    /// The same for what leaves a VM: the answer is how that one is now.
    pub(super) async fn change<Fut>(
        self,
        kind: &'static str,
        vm: String,
        work: impl FnOnce(Arc<Daemon>, Op, String) -> Fut + Send + 'static,
    ) -> Response
    where
        Fut: Future<Output = Result<Vm>> + Send + 'static,
    {
        self.of_vm(kind, vm, |daemon, op, vm| async move {
            let changed = work(daemon.clone(), op, vm).await?;
            Ok(daemon.vms.view(changed))
        })
        .await
    }

    /// Like [`Asked::operation`]; when it succeeded, `hold` runs after the result was sent, with the event
    /// stream still open and the operation's token cancelled when the client closes it.
    pub(super) async fn operation_and_hold<T, Fut, Hold>(
        self,
        kind: &'static str,
        vm: Option<&str>,
        work: impl FnOnce(Arc<Daemon>, Op) -> Fut + Send + 'static,
        hold: impl FnOnce(Arc<Daemon>, Op, T) -> Hold + Send + 'static,
    ) -> Response
    where
        T: Serialize + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        Hold: Future<Output = ()> + Send + 'static,
    {
        let Self { daemon, headers } = self;
        let detached = wants_detached(&headers);
        let streaming = !detached && accepts_ndjson(&headers);
        let (sender, receiver) = mpsc::channel(EVENT_BACKLOG);
        let op = daemon.operations.begin(kind, vm, streaming.then(|| sender.clone()));
        let span = tracing::info_span!("op", op_id = op.id().as_str(), operation = kind);
        let guard = op.cancel_token().clone().drop_guard();
        let (done, outcome) = tokio::sync::oneshot::channel();
        let task = {
            let op = op.clone();
            async move {
                tracing::debug!("operation started");
                match work(daemon.clone(), op.clone()).await {
                    Ok(value) => {
                        tracing::info!(ms = op.elapsed_ms(), "operation done");
                        op.end(None);
                        let json = serde_json::to_value(&value).map_err(|e| Error::internal(e.to_string()));
                        let sent = json.map_err(|e| ErrorBody::new(e, Some(op.id().clone())));
                        let _ = done.send(sent);
                        hold(daemon, op, value).await;
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
                Ok(Err(error)) => {
                    (status_of(error.code), axum::Json(ErrorEnvelope { error })).into_response()
                }
                Err(_) => Failure::new(Error::internal("the operation ended without an answer"), &op)
                    .into_response(),
            }
        };
        with_op(response, Some(op.id()))
    }
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
