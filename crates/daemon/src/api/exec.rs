//! The exec route: JSON in, then the connection becomes the exec stream.

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use banger_model::Error;
use banger_protocol::api::{ErrorEnvelope, ExecRequest, NOTICE_HEADER};
use banger_protocol::exec::UPGRADE;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tracing::Instrument;

use super::respond::{Failure, with_op};
use super::{App, parse};
use crate::exec;

/// The largest request body. Arguments and environment have 2 MiB at most in the guest (execve(2): a quarter of the stack
/// limit), and JSON makes six bytes of one where it has to.
pub(crate) const MAX_REQUEST: usize = 16 << 20;

/// Query of an exec.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct ExecQuery {
    /// Say in the header `banger-notice` when the repository on the host has moved on since it was copied in.
    watch: bool,
}

/// Runs a command: answers 101 and speaks the exec stream (docs/protocols.md) from then on.
#[utoipa::path(post, path = "/v1/vms/{vm}/exec", params(("vm" = String, Path), ExecQuery), request_body = ExecRequest,
    responses((status = 101, description = "the exec stream begins"), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn exec(
    State(daemon): App,
    Path(vm): Path<String>,
    Query(query): Query<ExecQuery>,
    mut request: Request,
) -> Result<Response, Failure> {
    let op = daemon.operations.unlisted("exec");
    let span = tracing::info_span!("op", op_id = op.id().as_str(), operation = "exec");
    let failure = |e: Error| Failure::new(e, &op);
    if !upgrades(request.headers()) {
        return Err(failure(Error::invalid(format!("exec needs the header 'Upgrade: {UPGRADE}'"))));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), MAX_REQUEST)
        .await
        .map_err(|e| failure(Error::invalid(format!("the request's body cannot be read: {e}"))))?;
    let command: ExecRequest = parse(&body).map_err(failure)?;
    let (vm, live) = daemon.vms.running(&vm).map_err(failure)?;
    let notice = if query.watch { daemon.workspaces.moved_on(&vm).await } else { None };
    let opened = exec::open(&op, &vm, &live, command).instrument(span.clone()).await.map_err(failure)?;
    let id = op.id().clone();
    let stream = async move {
        match upgrade.await {
            Ok(upgraded) => opened.join(&op, TokioIo::new(upgraded)).await,
            Err(error) => tracing::info!(%error, "the client left before its command began"),
        }
    };
    tokio::spawn(stream.instrument(span));
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, UPGRADE)];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response();
    if let Some(notice) = notice.and_then(|text| HeaderValue::from_bytes(printable(&text).as_bytes()).ok()) {
        response.headers_mut().insert(NOTICE_HEADER, notice);
    }
    Ok(with_op(response, Some(&id)))
}

/// Text for a header: paths may hold anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn upgrades(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(UPGRADE.as_bytes()))
}
