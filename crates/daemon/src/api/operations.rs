//! Routes about operations, and the news of everything that happens.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use banger_protocol::api::{ErrorEnvelope, NDJSON, News, OperationView};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::App;
use super::respond::Failure;

/// Query of the list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct ListQuery {
    /// Include those that ended lately.
    all: bool,
}

/// The operations under way, oldest first.
#[utoipa::path(get, path = "/v1/operations", params(ListQuery),
    responses((status = 200, body = Vec<OperationView>)))]
pub(crate) async fn list(
    State(daemon): App,
    Query(query): Query<ListQuery>,
) -> axum::Json<Vec<OperationView>> {
    axum::Json(daemon.operations.list(query.all))
}

/// One operation, also one that ended lately.
#[utoipa::path(get, path = "/v1/operations/{operation}", params(("operation" = String, Path)),
    responses((status = 200, body = OperationView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn show(
    State(daemon): App,
    Path(operation): Path<String>,
) -> Result<axum::Json<OperationView>, Failure> {
    Ok(axum::Json(daemon.operations.find(&operation)?.view()))
}

/// Tells an operation to end and unwind. One that cannot go back any more goes on; one that has ended stays as it is.
#[utoipa::path(delete, path = "/v1/operations/{operation}", params(("operation" = String, Path)),
    responses((status = 200, body = OperationView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn cancel(
    State(daemon): App,
    Path(operation): Path<String>,
) -> Result<axum::Json<OperationView>, Failure> {
    let op = daemon.operations.find(&operation)?;
    op.cancel_token().cancel();
    tracing::info!(op_id = op.id().as_str(), "cancelled on request");
    Ok(axum::Json(op.view()))
}

/// What happens from now on, a line each, until the client leaves: operations that begin, move on and end, VMs whose
/// state changes.
#[utoipa::path(get, path = "/v1/events",
    responses((status = 200, content_type = "application/x-ndjson", body = News)))]
pub(crate) async fn events(State(daemon): App) -> Response {
    let watcher = Watcher { news: daemon.operations.watch(), ending: daemon.shutdown.clone(), begun: false };
    let body = Body::from_stream(stream::unfold(watcher, Watcher::next_line));
    ([(header::CONTENT_TYPE, NDJSON)], body).into_response()
}

struct Watcher {
    news: broadcast::Receiver<News>,
    ending: CancellationToken,
    begun: bool,
}

impl Watcher {
    async fn next_line(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        let news = if self.begun {
            tokio::select! {
                biased;
                news = self.news.recv() => match news {
                    Ok(news) => news,
                    Err(broadcast::error::RecvError::Lagged(lines)) => News::Missed { lines },
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = self.ending.cancelled() => return None,
            }
        } else {
            self.begun = true;
            News::Watching { at: Timestamp::now() }
        };
        let mut line = serde_json::to_vec(&news).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Bytes::from(line)), self))
    }
}
