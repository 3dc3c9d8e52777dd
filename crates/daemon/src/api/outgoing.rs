//! Routes for what a guest did: as a patch, and into the host's repository.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use banger_model::{Error, Vm};
use banger_protocol::api::{ApplyRequest, ApplySummary, EXPORT, ErrorEnvelope, ExportRequest};
use futures_util::FutureExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::respond::{Asked, Failure, with_op};
use super::{App, Json};

/// What the guest did, as a patch: one line of JSON, then the patch. A VM that is off is booted as far as its agent.
#[utoipa::path(post, path = "/v1/vms/{vm}/workspace/export", params(("vm" = String, Path)),
    request_body = ExportRequest,
    responses((status = 200, content_type = "application/vnd.banger.export", description = "ExportSummary as one line, then the patch"),
    (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn export(
    State(daemon): App,
    Path(vm): Path<String>,
    Json(request): Json<ExportRequest>,
) -> Result<Response, Failure> {
    let op = daemon.operations.unlisted("export");
    // Dropping this future, as the server does when the client goes away, cancels the operation.
    let _guard = op.cancel_token().clone().drop_guard();
    let failure = |e: Error| Failure::new(e, &op);
    let (ours, its) = (daemon.clone(), op.clone());
    let work = move |vm: Vm, agent| {
        async move {
            let scan = ours.workspaces.export(&its, &vm, &agent, request);
            ours.vms.step(&its, &vm.id, "scan", scan).await
        }
        .boxed()
    };
    let patch = daemon.vms.in_guest(&op, &vm, work).await.map_err(failure)?;
    let mut head =
        serde_json::to_vec(&patch.exported.summary).map_err(|e| failure(Error::internal(e.to_string())))?;
    head.push(b'\n');
    let file = tokio::fs::File::open(&patch.exported.patch)
        .await
        .map_err(|e| failure(Error::internal(format!("the patch cannot be read: {e}"))))?;
    // The patch's scratch directory lives as long as the body that reads from it.
    let body = ReaderStream::new(std::io::Cursor::new(head).chain(file));
    let body = futures_util::StreamExt::map(body, move |piece| {
        let _held = &patch;
        piece
    });
    Ok(with_op(([(header::CONTENT_TYPE, EXPORT)], Body::from_stream(body)).into_response(), Some(op.id())))
}

/// The guest's change into the repository it was copied from: its working tree, or a new branch. A VM that is off is
/// booted as far as its agent.
#[utoipa::path(post, path = "/v1/vms/{vm}/workspace/apply", params(("vm" = String, Path)),
    request_body = ApplyRequest, responses((status = 200, body = ApplySummary), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn apply(
    asked: Asked,
    Path(vm): Path<String>,
    Json(request): Json<ApplyRequest>,
) -> Response {
    asked
        .of_vm("apply", vm, |daemon, op, vm| async move {
            crate::workspace::apply(&daemon, &op, &vm, request).await
        })
        .await
}
